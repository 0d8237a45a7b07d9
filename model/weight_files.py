"""Reading weights: every file format they are released in, and the key names that others or older versions gave them.

- `load_weights` reads one .pth or .bin file, `load_folder` a Transformers folder: safetensors or .bin, in one file or in shards.
- Nothing read here can run code: pickles are opened with `weights_only=True`, safetensors hold only numbers.
- `migrate` brings a state dict to today's names. Every difference has a function of its own, which logs what it changed; a state
  dict in today's form passes through untouched and unmentioned. What none of them knows stays, for the strict load to report.
"""
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from model.config import AUDIO_SPECIALS, OmniConfig, audio_ids_for
from model.refusal import one_line

logger = logging.getLogger(__name__)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # tied: one matrix, two names
WRAPPERS = ("state_dict", "model_state_dict", "model")  # what trainers call the state dict inside a larger file
WRAPPED_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile
ROPE_TABLES = ("freqs_cos", "freqs_sin", "rotary_emb.inv_freq", "rope.cos", "rope.sin")
FROZEN = ("audio_encoder.", "vision_encoder.", "mimi.")  # modules that are loaded from folders of their own
SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"


# ---- files

def load_weights(path: str | Path, map_location: str | torch.device = "cpu") -> dict:
    """The object saved at `path`. FileNotFoundError names the folder's checkpoints; ValueError says the file is unreadable."""
    path = Path(path)
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.pth"))
        raise FileNotFoundError(f"no checkpoint {path}; {path.parent} holds {there or 'no .pth file'}")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # damaged bytes lead the unpickler to struct.error, KeyError, IndexError, ...
        raise ValueError(f"{path} is not a readable checkpoint ({type(error).__name__}); fetch or write it again") from error


def load_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of one .safetensors file, on the CPU. ValueError says the file is unreadable."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); fetch or write it again") from error


def load_folder(folder: str | Path) -> dict[str, Tensor]:
    """The state dict of a Transformers folder, keys as stored. Safetensors are preferred to .bin, as Transformers does.

    FileNotFoundError when there are no weights or a shard is missing; ValueError names an unreadable file or a broken index.
    """
    folder = Path(folder)
    for name, read in ((SAFETENSORS, load_safetensors), (BIN, load_weights)):
        if (folder / name).is_file():
            return read(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _load_shards(folder, folder / f"{name}.index.json", read)
    there = sorted(p.name for p in folder.glob("*")) if folder.is_dir() else []
    raise FileNotFoundError(f"no weights in {folder}: neither {SAFETENSORS} nor {BIN}, whole or with an index of shards "
                            f"(it holds {there or 'nothing'})")


def _load_shards(folder: Path, index: Path, read) -> dict[str, Tensor]:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not an index of shards ({type(error).__name__}: {error})") from error
    state = {}
    for name in sorted(set(shard_of.values())):
        if Path(name).name != name:
            raise ValueError(f"{index} names a shard outside its folder: {name!r}")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"shard {name} of {index} is missing: fetch the folder again")
        state.update(read(folder / name))
    absent = sorted(set(shard_of) - set(state))
    if absent:
        raise ValueError(f"{index} promises {absent[:8]} ({len(absent)} in all), which its shards do not hold")
    return state


def names_folder(load: Callable) -> Callable:
    """`load(cls, folder, ...)` whose every complaint names the folder: whatever a library makes of a broken file there is a ValueError.

    What is absent (OSError, ImportError) and want of memory stay what they are.
    """
    @functools.wraps(load)
    def wrapped(cls, folder, *args, **kwargs):
        try:
            return load(cls, folder, *args, **kwargs)
        except (OSError, ImportError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # JSON, YAML, pickle, safetensors and the modules' own constructors raise a dozen kinds
            if isinstance(error, ValueError) and str(folder) in str(error):
                raise
            raise ValueError(f"{folder} cannot be loaded ({type(error).__name__}: {one_line(error)}); fetch or write it again") from error
    return wrapped


# ---- names

def migrate(state: dict) -> dict[str, Tensor]:
    """`state` in today's key names; see the functions below. ValueError when it is no state dict or its head is not tied."""
    for step in (unwrap, strip_wrapped_prefixes, drop_frozen_modules, drop_rope_tables, tie_head):
        state = step(state)
    return state


def unwrap(state: dict) -> dict[str, Tensor]:
    """Take the state dict out of a trainer's larger file (optimizer, step, ...)."""
    for name in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            logger.info("weights: took %r out of a file with %s", name, sorted(map(str, state)))
            state = state[name]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("the file holds no state dict (names with tensors)")
    return state


def strip_wrapped_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop "module." and "_orig_mod." in front of keys that were saved from a wrapped model."""
    def strip(key: str) -> str:
        while key.startswith(WRAPPED_PREFIXES):
            key = key.split(".", 1)[1]
        return key

    stripped = {strip(key): value for key, value in state.items()}
    if stripped.keys() != state.keys():
        logger.info("weights: removed the prefixes %s of a wrapped model", " and ".join(WRAPPED_PREFIXES))
    return stripped


def drop_frozen_modules(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out frozen encoders that were saved along with the model."""
    kept = {key: value for key, value in state.items() if not key.startswith(FROZEN)}
    if len(kept) < len(state):
        logger.warning("weights: left out %d tensors of frozen modules (%s); those come from folders of their own",
                       len(state) - len(kept), ", ".join(FROZEN))
    return kept


def drop_rope_tables(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out rotary tables, which follow from the config."""
    kept = {key: value for key, value in state.items() if not key.endswith(ROPE_TABLES)}
    if len(kept) < len(state):
        logger.info("weights: left out %d rotary tables; they follow from the config", len(state) - len(kept))
    return kept


def tie_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tied output matrix its second name where the file stores it once. ValueError when the two are not the same."""
    if EMBEDDING not in state:
        return state
    if HEAD not in state:
        logger.info("weights: %s is tied to %s", HEAD, EMBEDDING)
        return {**state, HEAD: state[EMBEDDING]}
    if state[HEAD].shape == state[EMBEDDING].shape and not torch.equal(state[HEAD], state[EMBEDDING]):
        raise ValueError(f"{HEAD} differs from {EMBEDDING}: this model ties the two, the file is of another kind")
    return state


# ---- sizes

def infer_config(state: dict[str, Tensor]) -> OmniConfig:
    """The sizes of a migrated state dict; what shapes cannot tell (theta, top-k, bridge, text ids) has the released values.

    A missing part (say the Talker of a language model's file) gets default sizes. ValueError when it is no MiniMind.
    """
    def size(key: str, dim: int = 0) -> int | None:
        return state[key].shape[dim] if key in state else None

    def count(prefix: str) -> int | None:
        return len({key[len(prefix):].split(".")[0] for key in state if key.startswith(prefix)}) or None

    first = "model.layers.0."
    head_dim, queries = size(f"{first}self_attn.q_norm.weight"), size(f"{first}self_attn.q_proj.weight")
    if EMBEDDING not in state or not head_dim or not queries:
        raise ValueError(f"these are not the weights of a MiniMind-O: {EMBEDDING} or {first}self_attn is missing")
    experts = count(f"{first}mlp.experts.")
    expert = "mlp.experts.0." if experts else "mlp."
    sizes = dict(
        vocab_size=size(EMBEDDING), hidden_size=size(EMBEDDING, 1), num_hidden_layers=count("model.layers."),
        num_attention_heads=queries // head_dim, num_key_value_heads=size(f"{first}self_attn.k_proj.weight") // head_dim,
        intermediate_size=size(f"{first}{expert}gate_proj.weight"), use_moe=bool(experts), num_experts=experts,
        num_talker_hidden_layers=count("talker.layers."), talker_hidden_size=size("talker.norm.weight"),
        spk_emb_size=size("talker.spk_proj.weight", 1), audio_hidden_size=size("audio_proj.mlp.0.weight"),
        image_hidden_size=size("vision_proj.mlp.0.weight"))
    codes = size("talker.lm_head.base.weight")
    if codes and codes > AUDIO_SPECIALS:
        sizes.update(audio_ids_for(codes - AUDIO_SPECIALS))
    return OmniConfig(**{key: value for key, value in sizes.items() if value is not None})
