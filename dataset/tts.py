"""Text to speech for the builder and the nano world: flite, espeak-ng, any command, or a class of one's own.

- A backend is any object with `voices` (names) and `speak(text, voice) -> Speech`, ValueError for a text that it cannot say. `load_tts`
  makes one by name. A neural system such as Qwen3-TTS or CosyVoice is a class of these two members (see docs/data.md), or a command.
- `synthesise` is flite with rate and pitch: a voice sped up, or shifted in pitch and formants together (by resampling with the duration
  given back), which makes further speakers out of the four.
- Equal texts give equal samples: nothing here draws random numbers.
"""
import io
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf

from dataset.clean import level, sound_span
from dataset.extensions import find_class, split_name
from model.audio import read_audio

FLITE_RATE = 16_000  # what flite produces for these voices
FLITE_VOICES = ("slt", "rms", "awb", "kal16")
QUIET = 200 / 32768  # |sample| below this at either end is silence
MARGIN_SAMPLES = 1920  # silence kept at the ends, 120 ms
ESPEAK = "espeak-ng -v {voice} -w {wav} -- {text}"
COMMAND_SECONDS = 120  # a command that takes longer for one text is taken for stuck


class Speech(NamedTuple):
    """What a backend says."""
    wav: np.ndarray  # (S,) float in [-1, 1]
    rate: int  # Hz
    phones: list | None = None  # [(name, seconds at which it ends)], where the backend knows them


def synthesise(text, voice, rate=1.0, pitch=1.0, f0=1.0):
    """Speech for `text` by flite: (S,) int16 at 16 kHz, silence at the ends trimmed to 120 ms, all voices equally loud.

    `f0` multiplies the fundamental alone, formants untouched (slt, rms and awb only).

    Raises FileNotFoundError without flite, ValueError for an unknown voice, an empty text or a rate or pitch outside 0.5-2.
    """
    return synthesise_timed(text, voice, rate, pitch, f0)[0]


def synthesise_timed(text, voice, rate=1.0, pitch=1.0, f0=1.0):
    """As `synthesise`, and when its phones end: (wav (S,) int16, [(name, seconds)]); flite calls a pause "pau"."""
    if voice not in FLITE_VOICES:
        raise ValueError(f"unknown voice {voice!r}; choose from {FLITE_VOICES}")
    if not text.strip():
        raise ValueError("nothing to say: the text is empty")
    if not (0.5 <= rate <= 2 and 0.5 <= pitch <= 2):
        raise ValueError(f"rate {rate} and pitch {pitch} must lie in 0.5-2")
    program = find_program("flite")
    # flite stretches by pitch / rate, playing it `pitch` times as fast then leaves the wanted duration
    command = [program, "-voice", voice, "-psdur", "--setf", f"duration_stretch={pitch / rate:.4f}", "-t", text, "-o", "/dev/stdout"]
    if f0 != 1.0:
        command += ["--setf", f"f0_shift={f0:.4f}"]
    printed = subprocess.run(command, check=True, capture_output=True).stdout
    size = 8 + int.from_bytes(printed[4:8], "little")  # of the RIFF file; the phones are printed after it
    wav, sample_rate = sf.read(io.BytesIO(printed[:size]), dtype="float32")
    assert sample_rate == FLITE_RATE, sample_rate
    if pitch != 1.0:
        import soxr

        wav = soxr.resample(wav, FLITE_RATE * pitch, FLITE_RATE).astype(np.float32)
    kept = sound_span(wav, QUIET, MARGIN_SAMPLES)
    phones = [phone.split(":") for phone in printed[size:].decode().split()]
    phones = [(name, float(end) / pitch - kept.start / FLITE_RATE) for name, end in phones]
    return np.round(level(wav[kept]) * 32768).astype(np.int16), phones


def find_program(name: str) -> str:
    """Full path of a program; FileNotFoundError says how to get it."""
    program = shutil.which(name)
    if program is None:
        raise FileNotFoundError(f"the {name} program is missing: apt-get install {name}")
    return program


class Flite:
    """The flite program. A voice may carry rate and pitch, "slt:1.1" or "slt:1:0.9": speakers made out of the built-in ones."""

    def __init__(self, voices=()):
        find_program("flite")  # now, not at the first of a million texts
        self.voices = tuple(voices) or FLITE_VOICES[:3]
        for voice in self.voices:
            flite_voice(voice)

    def speak(self, text: str, voice: str) -> Speech:
        try:
            wav, phones = synthesise_timed(text, *flite_voice(voice))
            return Speech(wav.astype(np.float32) / 32768, FLITE_RATE, phones)
        except subprocess.CalledProcessError as error:
            raise ValueError(f"flite failed: {error.stderr.decode(errors='replace').strip()[-200:]}") from error


def flite_voice(name: str) -> tuple[str, float, float]:
    """"slt:1.1:0.9" -> ("slt", 1.1, 0.9): voice, rate and pitch; ValueError for a voice that flite does not have."""
    voice, *factors = name.split(":")
    try:
        rate, pitch = [float(factor) for factor in [*factors, 1, 1][:max(2, len(factors))]]
    except ValueError as error:
        raise ValueError(f"the flite voice {name!r} is not VOICE[:RATE[:PITCH]], such as slt:1.1:0.9") from error
    if voice not in FLITE_VOICES:
        raise ValueError(f"flite has no voice {voice!r}; choose from {FLITE_VOICES}")
    return voice, rate, pitch


class Command:
    """Any program that writes a sound file: a command line in which {text}, {voice} and {wav} are filled in (no shell is involved)."""

    def __init__(self, template: str, voices=()):
        self.parts = shlex.split(template)
        for needed in ("{text}", "{wav}"):
            if not any(needed in part for part in self.parts):
                raise ValueError(f"the speech command {template!r} has no {needed}: it must say where text, voice and wav go")
        find_program(self.parts[0])
        self.voices = tuple(voices)
        if not self.voices:
            raise ValueError(f"the speech command {template!r} needs --voices NAME...")

    def speak(self, text: str, voice: str) -> Speech:
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder) / "speech.wav"
            fill = {"{text}": text, "{voice}": voice, "{wav}": str(wav)}
            command = [_fill(part, fill) for part in self.parts]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=COMMAND_SECONDS)
                rate = sf.info(wav).samplerate
            except subprocess.CalledProcessError as error:
                raise ValueError(f"{command[0]} failed: {error.stderr.decode(errors='replace').strip()[-200:]}") from error
            except (subprocess.TimeoutExpired, sf.SoundFileError) as error:
                raise ValueError(f"{command[0]} made no sound file: {error}") from error
            return Speech(read_audio(wav, rate), rate)


def _fill(part: str, values: dict[str, str]) -> str:
    for name in values:
        if part == name:  # the usual case: no text can be taken for a placeholder
            return values[name]
    for name, value in values.items():
        part = part.replace(name, value)
    return part


def load_tts(name: str, voices=()):
    """A backend: "flite", "espeak-ng", a command with {text}, {voice} and {wav}, or "module:Class", made by `Class(voices)`.

    FileNotFoundError names a missing program.
    """
    if name == "flite":
        return Flite(voices)
    if name == "espeak-ng":
        return Command(ESPEAK, tuple(voices) or ("en-us",))
    own = split_name(name)[0]
    return find_class(own)(tuple(voices)) if own else Command(name, voices)
