"""The config.json of a Transformers folder (model_type "minimind-o") <-> OmniConfig. Nothing here imports transformers.

- Reading is careful: a key that would change the numbers and is not ours is an error, an unknown one is logged.
- Writing gives the keys that Transformers and vLLM-Omni look for, see docs/weights.md.
- The weights of such a folder are read by weight_files.load_folder; code in the folder is never run.
"""
import json
import logging
from dataclasses import fields
from pathlib import Path

from model.config import NUM_CODEBOOKS, SAMPLE_RATE, OmniConfig
from model.model_minimind import YARN_BETA_FAST, YARN_BETA_SLOW, YARN_FACTOR, YARN_ORIGINAL_LENGTH

logger = logging.getLogger(__name__)

CONFIG = "config.json"
MODEL_TYPE = "minimind-o"
ARCHITECTURE = "MiniMindOmni"
FIXED = {"hidden_act": "silu", "norm_topk_prob": True, "tie_word_embeddings": True}  # the only values this architecture has
YARN = {"factor": YARN_FACTOR, "original_max_position_embeddings": YARN_ORIGINAL_LENGTH, "beta_fast": YARN_BETA_FAST,
        "beta_slow": YARN_BETA_SLOW, "attention_factor": 1.0}
WITHOUT_EFFECT = {"architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "tokenizer_class", "use_cache",
                  "flash_attn", "rope_scaling", "rope_parameters", "head_dim", "moe_intermediate_size", "initializer_range",
                  "audio_encoder_path", "vision_model_path", "code2wav_config"}  # on this project's numbers, or checked apart
ENCODERS = {"audio_encoder_path": "SenseVoiceSmall", "vision_model_path": "siglip2-base-p32-256-ve"}  # vLLM-Omni loads them itself
CODEC = "mimi"


def is_transformers_folder(path: str | Path) -> bool:
    """Whether `path` is a folder with a config.json; whose it is, `read_config` says."""
    return (Path(path) / CONFIG).is_file()


def read_config(folder: str | Path) -> OmniConfig:
    """The OmniConfig of a folder's config.json. FileNotFoundError without it, ValueError for another model's or a broken one."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}: give a Transformers folder of MiniMind-O")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}")
        return config_from_json(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def config_from_json(values: dict) -> OmniConfig:
    """OmniConfig from the keys of a config.json. ValueError for what this architecture cannot do."""
    if values.get("model_type") != MODEL_TYPE:
        raise ValueError(f"model_type is {values.get('model_type')!r}, not {MODEL_TYPE!r}")
    own = {f.name for f in fields(OmniConfig)}
    known = {key: value for key, value in values.items() if key in own and value is not None}  # null: not set
    known["use_moe"] = bool(known.get("use_moe", False))
    config = OmniConfig(**{**known, **_rope(values)})
    required = {**FIXED, "head_dim": config.head_dim, "moe_intermediate_size": config.intermediate_size}
    for key, value in required.items():
        if values.get(key, value) not in (value, None):
            raise ValueError(f"{key} is {values[key]!r}; this architecture has {value!r}")
    unknown = sorted(set(values) - own - set(required) - WITHOUT_EFFECT)
    if unknown:
        logger.warning("config.json: keys without a meaning here: %s", ", ".join(unknown))
    return config


def _rope(values: dict) -> dict:
    """rope_theta and inference_rope_scaling from the places where versions of Transformers keep them."""
    found = {}
    for key in ("rope_parameters", "rope_scaling"):
        rope = values.get(key) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if "rope_theta" in rope:
            found["rope_theta"] = rope["rope_theta"]
        if kind == "yarn":
            other = {name: rope[name] for name, value in YARN.items() if rope.get(name, value) not in (value, None)}
            if other:
                raise ValueError(f"{key} has {other}; this architecture stretches with {YARN}")
            found["inference_rope_scaling"] = True
        elif kind != "default":
            raise ValueError(f"{key} is of type {kind!r}; only 'yarn' and 'default' exist here")
    return found


def config_to_json(config: OmniConfig, modelling_file: str, frozen_dir: str = "model") -> dict:
    """The keys of a config.json. modelling_file: stem of the .py with the classes.

    frozen_dir: where the frozen modules lie for the program that serves the folder; this project does not read it.
    """
    return {
        "architectures": [ARCHITECTURE],
        "auto_map": {"AutoConfig": f"{modelling_file}.MiniMindOConfig", "AutoModelForCausalLM": f"{modelling_file}.{ARCHITECTURE}"},
        **config.to_dict(),
        **FIXED,
        "head_dim": config.head_dim,
        "rope_scaling": None,  # YaRN is said by inference_rope_scaling; Transformers 5 would rewrite a dict here
        "dtype": "float32",  # to compute in, as load_model does; Transformers 5 would take the half precision of the file
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: f"{frozen_dir}/{name}" for key, name in ENCODERS.items()},
        "code2wav_config": {"mimi_path": f"{frozen_dir}/{CODEC}", "codec_num_code_layers": NUM_CODEBOOKS,
                            "codec_sample_rate": SAMPLE_RATE, "codec_pad_token": config.audio_pad_token},
    }
