"""Voices: who speaks. Loading a voices file, picking by name, and making a new voice from a clip.

- A voice is reference codes (what it sounds like, heard just before the reply) and a speaker vector (who it is).
- A voices file comes from users: it is loaded with weights_only=True and every entry is checked before anything uses it.
- A clip that cannot give a good voice (too short, silent, clipped, noisy) is refused with the reason.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.audio import read_audio
from model.checkpoint import load_weights
from model.config import INPUT_RATE, NUM_CODEBOOKS, SAMPLE_RATE, OmniConfig

CLIP_SECONDS = (1.0, 30.0)
SILENT_RMS = 10 ** (-50 / 20)  # -50 dB of full scale
CLIPPED_SHARE = 0.01  # of the samples at full scale
MIN_SNR_DB = 10.0  # between the loud and the quiet parts of a clip: speech has pauses, noise has none
LEVEL_WINDOW_S = 0.02
OPENAI_VOICES = ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse")


@dataclass(frozen=True)
class Voice:
    """name; ref_codes (8, R) int64 or None; spk_emb (192,) float32 or None; kind: built-in, unseen (in training) or cloned."""
    name: str
    ref_codes: Tensor | None = None
    spk_emb: Tensor | None = None
    kind: str = "built-in"


NO_VOICE = Voice("none")  # no voice prompt at all: the model speaks as it likes


def load_voices(path: str | Path, config: OmniConfig) -> dict[str, Voice]:
    """The voices file at `path`: {name: {"ref_codes": int64 (8, R), "spk_emb": float32 (192,)}} as Voice objects, in file order.

    Raises FileNotFoundError without the file, ValueError naming file and voice for anything that is not such an entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no voices file {path}; put one there, or talk without a voice prompt (--voice none)")
    entries = load_weights(path)
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{path} must hold a dict of voices, it holds {type(entries).__name__}")
    return {str(name): _check_entry(str(name), entry, f"{path}, voice {name!r}", config) for name, entry in entries.items()}


def _check_entry(name: str, entry, where: str, config: OmniConfig) -> Voice:
    if not isinstance(entry, dict) or not {"ref_codes", "spk_emb"} <= set(entry):
        raise ValueError(f"{where}: needs ref_codes and spk_emb")
    codes, spk_emb = entry["ref_codes"], entry["spk_emb"]
    if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.ndim != 2 or codes.shape[0] != NUM_CODEBOOKS:
        shape = tuple(getattr(codes, "shape", ()))
        raise ValueError(f"{where}: ref_codes must be integers of shape ({NUM_CODEBOOKS}, T), not {shape}")
    if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < config.num_codes):
        raise ValueError(f"{where}: ref_codes {int(codes.min())}..{int(codes.max())} lie outside this codec's 0..{config.num_codes - 1}")
    if not isinstance(spk_emb, Tensor) or not spk_emb.is_floating_point() or tuple(spk_emb.shape) != (config.spk_emb_size,):
        shape = tuple(getattr(spk_emb, "shape", ()))
        raise ValueError(f"{where}: spk_emb must be floats of shape ({config.spk_emb_size},), not {shape}")
    if not torch.isfinite(spk_emb).all():
        raise ValueError(f"{where}: spk_emb holds NaN or infinity")
    return Voice(name, codes.long(), spk_emb.float())


def pick_voice(voices: dict[str, Voice], name: str | None) -> Voice:
    """The voice called `name`; None means the first of the file, "none" no voice prompt. ValueError lists the known names."""
    if name is None:
        return next(iter(voices.values()), NO_VOICE)
    if name == NO_VOICE.name:
        return NO_VOICE
    if name not in voices:
        raise ValueError(f"unknown voice {name!r}; choose from {', '.join([*voices, NO_VOICE.name])}")
    return voices[name]


def match_voice(names: Sequence[str], wanted: str, stand_ins: Sequence[str] = ()) -> str:
    """The voice of `names` that a client of OpenAI's protocols means; ValueError lists the known ones.

    Such clients name one of OpenAI's voices unless told otherwise: each stands for one of `stand_ins` (of `names`, if there are none),
    always the same.
    """
    if wanted in names or wanted == NO_VOICE.name:
        return wanted
    stand_ins = stand_ins or names
    if wanted in OPENAI_VOICES and stand_ins:
        return stand_ins[OPENAI_VOICES.index(wanted) % len(stand_ins)]
    raise ValueError(f"unknown voice {wanted[:40]!r}; choose from {', '.join([*names, NO_VOICE.name])}")


def check_clip(wav: np.ndarray, rate: int, name: str) -> None:
    """Raise ValueError, naming `name` and the reason, when (S,) samples at `rate` Hz cannot give a good voice."""
    seconds, (shortest, longest) = len(wav) / rate, CLIP_SECONDS
    if not shortest <= seconds <= longest:
        raise ValueError(f"{name} is {seconds:.1f} s long; a voice needs {shortest:g} to {longest:g} s of speech")
    if np.sqrt(np.mean(wav ** 2)) < SILENT_RMS:
        raise ValueError(f"{name} is silent (below -50 dB); record it louder")
    clipped = np.mean(np.abs(wav) >= 0.999)
    if clipped > CLIPPED_SHARE:
        raise ValueError(f"{name} is clipped ({clipped:.0%} of its samples at full scale); record it more quietly")
    window = int(LEVEL_WINDOW_S * rate)
    levels = np.sqrt(np.mean(wav[:len(wav) // window * window].reshape(-1, window) ** 2, axis=1)) + 1e-6
    snr_db = 20 * np.log10(np.percentile(levels, 95) / np.percentile(levels, 5))
    if snr_db < MIN_SNR_DB:
        raise ValueError(f"{name} is noisy (speech only {snr_db:.0f} dB above the background); record it in a quiet place")


def clone_voice(clip: str | Path | bytes, mimi, campplus, name: str | None = None) -> Voice:
    """A voice from an audio file (or its bytes) of any rate: codes by `mimi.encode`, speaker vector by `campplus`.

    name: by default the file's. ValueError as check_clip, and for what cannot be decoded.
    """
    shown, longest = name if isinstance(clip, bytes) else str(clip), CLIP_SECONDS[1]
    wav = read_audio(clip, SAMPLE_RATE, shown, longest)
    check_clip(wav, SAMPLE_RATE, shown)
    codes = mimi.encode(torch.from_numpy(wav))[0]
    spk_emb = campplus(torch.from_numpy(read_audio(clip, INPUT_RATE, shown, longest)))
    return Voice(name or Path(clip).stem, codes.long().cpu(), spk_emb.float().reshape(-1).cpu(), "cloned")
