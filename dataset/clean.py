"""The plain stages of the builder: text and sound made uniform, and the gates that bad material does not pass.

- `normalise_text`, `read_clip` (decode, mono, resample, trim, level), `check_clip` and `check_speech` (the gates), `resize_picture`.
- Everything wrong with one item is a ValueError whose text is the reason in the rejects file.
- Sounds are float32 (S,) in [-1, 1]; levels are relative to full scale.
"""
import io
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.audio import encode_audio, read_audio, resample
from model.config import INPUT_RATE, SAMPLE_RATE

LOUDNESS = 2600 / 32768  # root mean square of every utterance: voices differ by 6 dB, which a codec should not spend bits on
PEAK = 32000 / 32768  # the level is lower where this would be exceeded
LEAD_SECONDS = 0.12  # silence kept at either end
TRIM_DB = 35.0  # what is so far below a recording's peak, at its ends, is silence
FULL_SCALE = 0.999  # a sample at or above this is clipped
FRAME_SECONDS = 0.02  # of the noise estimate
PICTURE_SIZE = (256, 256)  # what SigLIP2 looks at: larger pictures would be shrunk at every epoch


@dataclass(frozen=True)
class Gates:
    """What an utterance must keep to. The rate of speech is in letters and digits a second, of any script."""
    min_seconds: float = 0.3
    max_seconds: float = 30.0
    max_clipping: float = 0.001  # share of the samples
    min_snr_db: float = 10.0
    min_chars_per_second: float = 1.0
    max_chars_per_second: float = 30.0
    max_cer: float = 0.3  # used with a recogniser only


@dataclass
class Clip:
    """One utterance, trimmed and levelled."""
    wav: np.ndarray  # (S,) float32 at 24 kHz
    clipping: float  # share of the original's samples at full scale
    snr_db: float
    phones: list | None = None  # [(name, seconds at which it ends)] of speech whose synthesiser tells

    @property
    def seconds(self) -> float:
        return len(self.wav) / SAMPLE_RATE


def normalise_text(text: str) -> str:
    """NFC, no control characters, single spaces; line breaks stay, at most two in a row. ValueError for what is then empty."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text is not valid Unicode: {error.reason}") from error
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n")
    text = "".join(c if c == "\n" or unicodedata.category(c) != "Cc" else " " for c in text)
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", re.sub(r"[^\S\n]+", " ", text))).strip()
    if not text:
        raise ValueError("the text is empty")
    return text


def characters(text: str) -> str:
    """What counts when a text is compared with speech: lower-case letters and digits of any script."""
    return "".join(c for c in text.lower() if c.isalnum())


def read_clip(source: str | bytes, name: str, max_seconds: float) -> Clip:
    """A sound file or its bytes -> Clip; one that is over twice `max_seconds` long is refused before it is read into memory."""
    import soundfile

    is_bytes = isinstance(source, bytes)
    if not is_bytes and not Path(source).is_file():
        raise FileNotFoundError(f"no audio file {name}")
    try:
        info = soundfile.info(io.BytesIO(source) if is_bytes else source)
    except (soundfile.SoundFileError, TypeError) as error:
        raise ValueError(f"cannot decode audio {name}: {error}") from error
    if info.duration > 2 * max_seconds:
        raise ValueError(f"{info.duration:.1f} s is too long (at most {max_seconds:g} s)")
    return make_clip(read_audio(source, info.samplerate, name), info.samplerate)


def make_clip(wav: np.ndarray, rate: int, phones: list | None = None) -> Clip:
    """(S,) float at `rate` Hz -> trimmed and levelled at 24 kHz, the ends of its phones moved along. ValueError for silence."""
    peak = float(np.abs(wav).max())
    if peak < 1e-3:
        raise ValueError("the recording is silent")
    clipping, noise = float(np.mean(np.abs(wav) >= FULL_SCALE)), snr_db(wav, rate)
    wav = resample(wav, rate, SAMPLE_RATE)
    kept = sound_span(wav, peak * 10 ** (-TRIM_DB / 20), round(LEAD_SECONDS * SAMPLE_RATE))
    phones = phones and [(phone, end - kept.start / SAMPLE_RATE) for phone, end in phones]
    return Clip(level(wav[kept]).astype(np.float32), clipping, noise, phones)


def sound_span(wav: np.ndarray, threshold: float, margin: int) -> slice:
    """(S,) -> all but the ends in which no |sample| exceeds `threshold`, less `margin` samples that are kept. ValueError for silence."""
    loud = np.flatnonzero(np.abs(wav) > threshold)
    if not len(loud):
        raise ValueError("there is nothing but silence")
    return slice(max(loud[0] - margin, 0), loud[-1] + 1 + margin)


def level(wav: np.ndarray) -> np.ndarray:
    """(S,) scaled to LOUDNESS, less where the loudest peak would exceed PEAK."""
    return wav * min(LOUDNESS / np.sqrt(np.mean(np.square(wav, dtype=np.float64))), PEAK / np.abs(wav).max())


def snr_db(wav: np.ndarray, rate: int) -> float:
    """Loud frames (95th percentile of 20 ms) over quiet ones (10th), in dB: pauses show the noise. At most 100."""
    size = max(int(FRAME_SECONDS * rate), 1)
    frames = wav[:len(wav) // size * size].reshape(-1, size) if len(wav) >= size else wav[None]
    loud, quiet = np.percentile(np.sqrt(np.mean(np.square(frames, dtype=np.float64), axis=1)), (95, 10))
    return float(20 * np.log10(loud / max(quiet, loud * 1e-5)))


def check_clip(clip: Clip, gates: Gates) -> None:
    """ValueError with the reason when the sound does not pass."""
    if clip.seconds < gates.min_seconds:
        raise ValueError(f"{clip.seconds:.2f} s is too short (at least {gates.min_seconds:g} s)")
    if clip.seconds > gates.max_seconds:
        raise ValueError(f"{clip.seconds:.1f} s is too long (at most {gates.max_seconds:g} s)")
    if clip.clipping > gates.max_clipping:
        raise ValueError(f"clipped: {clip.clipping:.2%} of the samples are at full scale (at most {gates.max_clipping:.2%})")
    if clip.snr_db < gates.min_snr_db:
        raise ValueError(f"noisy: {clip.snr_db:.1f} dB between speech and pauses (at least {gates.min_snr_db:g} dB)")


def check_speech(text: str, clip: Clip, gates: Gates) -> None:
    """ValueError when text and speech cannot belong together by their lengths."""
    wanted = characters(text)
    rate = len(wanted) / clip.seconds
    if not gates.min_chars_per_second <= rate <= gates.max_chars_per_second:
        raise ValueError(f"transcript and speech do not match: {rate:.1f} characters a second "
                         f"(between {gates.min_chars_per_second:g} and {gates.max_chars_per_second:g})")


def check_heard(text: str, clip: Clip, gates: Gates, recogniser) -> None:
    """ValueError when `recogniser.transcribe(wav at 16 kHz)` is not the text."""
    from rapidfuzz.distance import Levenshtein

    wanted, heard = characters(text), characters(recogniser.transcribe(resample(clip.wav, SAMPLE_RATE, INPUT_RATE)))
    cer = Levenshtein.distance(wanted, heard) / max(len(wanted), 1)
    if cer > gates.max_cer:
        raise ValueError(f"transcript and speech do not match: CER {cer:.2f} against what is heard (at most {gates.max_cer:g})")


def encode_question(clip: Clip, format: str = "flac") -> bytes:
    """The clip at 16 kHz, the rate of everything that is listened to, as a file: "flac", or "mp3" of a sixth of the size."""
    return encode_audio(resample(clip.wav, SAMPLE_RATE, INPUT_RATE).clip(-1, 1), INPUT_RATE, format)


def resize_picture(data: bytes) -> bytes:
    """An encoded picture of any size -> JPEG of 256 x 256. ValueError when it cannot be decoded."""
    from PIL import Image

    from dataset.omni_dataset import decode_image

    buffer = io.BytesIO()
    decode_image(data).resize(PICTURE_SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
