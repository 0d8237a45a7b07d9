"""Voices that answer nothing and only ask: festival's ked and the variants of espeak-ng. An ear that has heard three knows no others.

- `say_all` speaks Utterances (nano/speech.py) by these voices; `asked_by` chooses one for a text.
- ked is made as kal16 is, out of one man's diphones, but of another man: kal16 stays unheard.
- Needs the programs `festival` with the voice `ked_diphone` and `espeak-ng` (apt-get install festival festvox-kdlpc16k espeak-ng).
"""
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from dataset.clean import level, sound_span
from dataset.tts import FLITE_RATE as RATE, MARGIN_SAMPLES, QUIET, find_program
from model.audio import read_audio
from nano.speech import Utterance

KED = "ked"
KED_SHARE = 0.4  # of the questions by these voices
ESPEAK_VOICES = tuple(f"en-us+{name}" for name in ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "croak",
                                                   "klatt", "klatt2", "Andy", "Annie", "Gene", "Lee", "max", "Michael", "rob", "steph"))
ESPEAK_WORDS = 150  # a minute, at the rate 1
RATES = (0.8, 0.9, 1.0, 1.1, 1.2)
PITCHES = (0.86, 0.93, 1.0, 1.07, 1.15)


def asked_by(text, rng):
    """The Utterance of a text by one of these voices; `rng` is a random.Random."""
    voice = KED if rng.random() < KED_SHARE else rng.choice(ESPEAK_VOICES)
    return Utterance(text, voice, rng.choice(RATES), rng.choice(PITCHES))


def say_all(utterances):
    """Speech of the Utterances, in order: a list of (S,) int16 at 16 kHz, equally loud, 120 ms of silence at the ends.

    festival is started once for all of its part. FileNotFoundError names a missing program, ValueError an unknown voice.
    """
    for utterance in utterances:
        if utterance.voice != KED and utterance.voice not in ESPEAK_VOICES:
            raise ValueError(f"unknown voice {utterance.voice!r}; choose {KED} or one of espeak-ng's {', '.join(ESPEAK_VOICES)}")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.wav" for i in range(len(utterances))]
        by_ked = [(u, path) for u, path in zip(utterances, paths) if u.voice == KED]
        if by_ked:
            _festival(by_ked, Path(folder) / "say.scm")
        for utterance, path in zip(utterances, paths):
            if utterance.voice != KED:
                _espeak(utterance, path)
        return [_finished(path, utterance.pitch) for utterance, path in zip(utterances, paths)]


def _festival(said, script):
    lines = ["(voice_ked_diphone)"]
    for utterance, path in said:
        lines += [f"(Parameter.set 'Duration_Stretch {utterance.pitch / utterance.rate:.4f})",
                  f"(utt.save.wave (utt.synth (Utterance Text {json.dumps(utterance.text)})) {json.dumps(str(path))} 'riff)"]
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    subprocess.run([find_program("festival"), "-b", str(script)], check=True, capture_output=True)
    missing = [path.name for _, path in said if not path.exists()]
    if missing:
        raise FileNotFoundError(f"festival said nothing of {len(missing)} texts; is its voice there? apt-get install festvox-kdlpc16k")


def _espeak(utterance, path):
    words = round(ESPEAK_WORDS * utterance.rate / utterance.pitch)
    subprocess.run([find_program("espeak-ng"), "-v", utterance.voice, "-s", str(words), "-w", str(path), "--", utterance.text], check=True,
                   capture_output=True)


def _finished(path, pitch):
    """Played `pitch` times as fast, as nano/speech.py's other speakers are, trimmed and levelled."""
    import soxr

    wav = read_audio(path, RATE)
    wav = soxr.resample(wav, RATE * pitch, RATE).astype(np.float32) if pitch != 1.0 else wav
    return np.round(level(wav[sound_span(wav, QUIET, MARGIN_SAMPLES)]) * 32768).astype(np.int16)
