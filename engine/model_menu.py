"""Which models there are to choose from: folders are looked at, nothing is loaded.

A folder may be a pack (tokenizer, codec and weights), a Transformers folder of MiniMind-O, or hold weights alone. What the latter two
lack, tokenizer or codec, is taken from the first of the packs whose vocabulary and codec are of the right size.
"""
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.chat import MIMI, released_config
from model.checkpoint import read_sidecar
from model.config import OmniConfig
from model.transformers_folder import is_transformers_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """weights: a .pth file or a Transformers folder; pack: where tokenizer, codec and voices are."""
    weights: Path
    pack: Path


def scan(folders: Iterable[Path], packs: Sequence[Path]) -> dict[str, Choice]:
    """The models in these folders and in the folders directly in them, by name (folder/file); packs are looked into as well."""
    choices = {}
    for folder in [*packs, *folders]:
        for place in [folder, *sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.startswith("."))]:
            for name, weights in _weights_in(place):
                choice = _choose(weights, place, packs)
                if choice is not None and choice not in choices.values():
                    choices[name if name not in choices else str(weights.with_suffix(""))] = choice
    return choices


def _weights_in(place: Path) -> list[tuple[str, Path]]:
    if is_transformers_folder(place):
        return [(place.name, place)]
    return [(f"{place.name}/{path.stem}", path) for path in sorted(place.glob("*.pth")) if _is_weights(path)]


def _is_weights(path: Path) -> bool:
    """By the released naming, <weight>_<hidden>[_moe].pth."""
    stem = path.stem.removesuffix("_moe")
    return "_" in stem and stem.rpartition("_")[2].isdigit()


def _choose(weights: Path, place: Path, packs: Sequence[Path]) -> Choice | None:
    """The weights with a pack that fits; None, with a word in the log, for another model's and where none fits."""
    try:
        config = _config(weights)
        for pack in [place, *packs]:
            if _fits(pack, config, weights.is_dir()):
                return Choice(weights, pack)
    except (ValueError, OSError, TypeError, KeyError) as error:
        log.debug("%s is not in the menu: %s", weights, error)
        return None
    log.info("%s is not in the menu: no pack has its tokenizer and codec", weights)
    return None


def _config(weights: Path) -> OmniConfig:
    sidecar = read_sidecar(weights)
    return released_config(weights) if sidecar is None else OmniConfig.from_dict(sidecar["config"])


def _fits(pack: Path, config: OmniConfig, own_tokenizer: bool) -> bool:
    codec, tokenizer = pack / MIMI / "config.json", pack / "tokenizer.json"
    if not codec.is_file() or json.loads(codec.read_text(encoding="utf-8")).get("codebook_size") != config.num_codes:
        return False
    if own_tokenizer:
        return True
    if not tokenizer.is_file():
        return False
    vocabulary = json.loads(tokenizer.read_text(encoding="utf-8"))
    return len({*vocabulary["model"]["vocab"], *(t["content"] for t in vocabulary["added_tokens"])}) == config.vocab_size
