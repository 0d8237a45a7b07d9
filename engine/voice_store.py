"""Cloned voices on disk: enrolled from a clip, kept across restarts, deleted for good.

- One file per voice, in the format of a pack's voices file; the clip itself is not kept.
- Codes mean something to one codec only: each codec has a folder of its own, named by its codebooks.
- Names become file names, so they are letters, digits, spaces, - and _ only; none may stand for another voice.
"""
import hashlib
import logging
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from engine.voices import NO_VOICE, OPENAI_VOICES, Voice, load_voices
from model.checkpoint import save_atomic
from model.config import OmniConfig
from model.mimi import Mimi

MAX_NAME = 32  # characters
MAX_VOICES = 100
NAME = re.compile(r"\w+(?:[ -]\w+)*")
log = logging.getLogger(__name__)


def codec_id(mimi: Mimi) -> str:
    """12 hex digits that stand for the codec's codebooks."""
    digest = hashlib.sha256()
    for chain in mimi.encode_chains:
        digest.update(chain.tables.cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def check_name(name: str, taken: Iterable[str]) -> str:
    """The name in its normal form; ValueError when it cannot name a new voice beside those `taken`."""
    name = unicodedata.normalize("NFC", name).strip()
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ValueError(f"a voice's name is 1 to {MAX_NAME} letters, digits, single spaces, - or _")
    if name.casefold() in {NO_VOICE.name, *OPENAI_VOICES}:
        raise ValueError(f"the name {name!r} is reserved; choose another")
    if name.casefold() in {other.casefold() for other in taken}:
        raise ValueError(f"there is a voice {name!r} already; choose another name, or delete that one first")
    return name


class VoiceStore:
    """The cloned voices in `folder`; it is made with the first of them."""

    def __init__(self, folder: str | Path, config: OmniConfig):
        self.folder, self.config = Path(folder), config

    def load(self) -> dict[str, Voice]:
        """All of them by name. A file that is no voice is left out, with a warning in the log."""
        voices = {}
        for path in sorted(self.folder.glob("*.pt")):
            try:
                voice, = load_voices(path, self.config).values()
            except ValueError as error:
                log.warning("a cloned voice is left out: %s", error)
                continue
            voices[path.stem] = replace(voice, name=path.stem, kind="cloned")
        return voices

    def save(self, voice: Voice) -> None:
        """Keep it under its name, which check_name has passed. ValueError when there are too many."""
        if len(list(self.folder.glob("*.pt"))) >= MAX_VOICES:
            raise ValueError(f"{MAX_VOICES} voices are enrolled already; delete one first")
        save_atomic({voice.name: {"ref_codes": voice.ref_codes, "spk_emb": voice.spk_emb}}, self.folder / f"{voice.name}.pt")

    def delete(self, name: str) -> None:
        (self.folder / f"{name}.pt").unlink()
