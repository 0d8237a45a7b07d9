"""What a complete download looks like: one check per kind of file, each with the very loader that the program uses later.

- A check returns one line about what is there; FileNotFoundError says what is missing, ValueError what is wrong with it.
- Checked are the format, every key and shape, and the number of parameters against the published figure.
- Used by download_models.py; nothing is downloaded here.
"""
from pathlib import Path

import torch
from torch import Tensor

from engine.chat import load_tokenizer
from engine.voices import load_voices
from model.checkpoint import check_state
from model.config import OmniConfig
from model.encoders import CAMPPlus, SenseVoice, SigLIP2
from model.mimi import Mimi
from model.model_omni import MiniMindOmni
from model.sequence import encode_text, template_is_plain
from model.transformers_folder import read_config
from model.weight_files import HEAD, infer_config, load_folder, load_weights, migrate

MILLIONS = {"SenseVoiceSmall": 234.00, "siglip2-base-p32-256-ve": 94.55, "mimi": 96.15, "campplus": 6.85,  # as published
            "thinker": 63.91, "dense": 113.13, "moe": 314.89}
TOLERANCE = 0.01  # millions: the published figures are rounded
NEW_PARTS = ("talker.", "audio_proj.", "vision_proj.")  # what a language model alone lacks
PARQUET_COLUMNS = {"conversations"}  # the only one that every row needs


def _counted(count: int, name: str) -> str:
    """The number of parameters in words. ValueError when it is not the published one."""
    if abs(count / 1e6 - MILLIONS[name]) > TOLERANCE:
        raise ValueError(f"it has {count / 1e6:.2f} M parameters, the released {name} has {MILLIONS[name]:.2f} M")
    return f"{count / 1e6:.2f} M parameters"


def _size(*tensors: Tensor) -> int:
    return sum(t.numel() for t in tensors)


def sensevoice(folder: Path) -> str:
    model = SenseVoice.load(folder)
    if model.head is None or model.queries is None:
        raise ValueError("it has no CTC head or no query vectors: part of the weights is missing")
    count = _counted(_size(*model.encoder.parameters(), *model.head, model.queries), "SenseVoiceSmall")
    return count + ("" if model.can_transcribe else ", no sentencepiece model: it hears but cannot write down what it heard")


def siglip(folder: Path) -> str:
    return _counted(_size(*SigLIP2.load(folder).model.parameters()), "siglip2-base-p32-256-ve")


def mimi(folder: Path) -> str:
    codec = Mimi.load(folder)
    if codec.num_codes != OmniConfig().num_codes:
        raise ValueError(f"its codebooks have {codec.num_codes} entries, the released ones {OmniConfig().num_codes}")
    return _counted(_size(*load_folder(folder).values()), "mimi") + f", {codec.num_codes} codes"  # codebooks are not parameters


def campplus(folder: Path) -> str:
    return _counted(_size(*CAMPPlus.load(folder).model.parameters()), "campplus")


def language_model(path: Path) -> str:
    """A .pth with the Thinker alone: where training starts."""
    state = migrate(load_weights(path))
    absent = check_state(_empty(infer_config(state)), state, NEW_PARTS)
    if absent != set(NEW_PARTS):
        raise ValueError(f"a language model alone was expected, this file also has {sorted(set(NEW_PARTS) - absent)}")
    return _counted(_distinct(state), "thinker")


def dense(path: Path) -> str:
    return _omni(path, "dense")


def moe(path: Path) -> str:
    return _omni(path, "moe")


def _omni(path: Path, variant: str) -> str:
    """The whole model, a .pth or a Transformers folder with its tokenizer."""
    state = migrate(load_folder(path) if path.is_dir() else load_weights(path))
    config = read_config(path) if path.is_dir() else infer_config(state)
    check_state(_empty(config), state)
    words = [_counted(_distinct(state), variant), str(state[HEAD].dtype).removeprefix("torch.")]
    return ", ".join([*words, tokenizer(path)] if path.is_dir() else words)


def _empty(config: OmniConfig) -> MiniMindOmni:
    with torch.device("meta"):
        return MiniMindOmni(config)


def _distinct(state: dict[str, Tensor]) -> int:
    return _size(*(value for key, value in state.items() if key != HEAD))  # tied: counted as the embedding


def tokenizer(folder: Path) -> str:
    """The released tokenizer, with the special ids that the model was trained on."""
    words, config = load_tokenizer(folder), OmniConfig()
    for text, ids in ((config.audio_special_token, config.audio_ids), (config.image_special_token, config.image_ids),
                      ("<|im_end|>", [config.eos_token_id]), ("</think>\n\n", config.think_end_ids)):
        if encode_text(words, text) != ids:
            raise ValueError(f"the tokenizer writes {text!r} as {encode_text(words, text)}, the model reads {ids}")
    if not template_is_plain(words):
        raise ValueError("the tokenizer's chat template is not MiniMind's")
    return f"tokenizer of {len(words)} ids"


def voices(path: Path) -> str:
    found = load_voices(path, OmniConfig())
    return f"{len(found)} voices: {', '.join(found)}"


def parquet(path: Path) -> str:
    """Footer and columns; the rows themselves are checked while training."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    if not path.is_file():
        raise FileNotFoundError(f"no {path}")
    try:
        file = pq.ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file ({error})") from error
    missing = PARQUET_COLUMNS - set(file.schema_arrow.names)
    if missing:
        raise ValueError(f"{path} has no column {sorted(missing)}; it has {file.schema_arrow.names}")
    return f"{file.metadata.num_rows} rows"
