"""What a nano ear is worth: word error rates on held-out questions, clean and under noise, by voices heard or never heard."""
import random

import numpy as np
from tqdm import tqdm

from dataset.augment import add_noise, pink_noise
from model.encoders import SenseVoice
from nano.corpus import normalise
from nano.speech import TRAIN_VOICES, UNSEEN_VOICE

NOISE_DB = 10.0  # pink noise of the report


def errors(reference, hypothesis):
    """Fewest word insertions, deletions and substitutions between two lists."""
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, got in enumerate(hypothesis, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (wanted != got))
    return row[-1]


def word_error_rate(ear, speech, rows, noise_db=None, seed=1):
    """WER of `ear` (a SenseVoice) on utterances `rows`, with pink noise at `noise_db` if given; and ten mistakes."""
    rng = np.random.default_rng(seed)
    wrong, total, mistakes = 0, 0, []
    for row in tqdm(rows, desc="listening", unit="clip", leave=False, mininterval=5):
        start, count = int(speech.starts[row]), int(speech.counts[row])
        wav = speech.samples[start:start + count].cpu().numpy().astype(np.float32) / 32768
        if noise_db is not None:
            wav = add_noise(wav, pink_noise(len(wav), rng), noise_db)
        said, heard = normalise(speech.utterances[row].text), normalise(ear.transcribe(wav))
        wrong += errors(said.split(), heard.split())
        total += len(said.split())
        if heard != said and len(mistakes) < 10:
            mistakes.append([said, heard])
    return wrong / max(total, 1), mistakes


def report(folder, speech, device, clips):
    """Word error rates on held-out questions: {condition: WER}, at most `clips` clips each, and some mistakes."""
    ear, rates, mistakes = SenseVoice.load(folder, device), {}, {}
    order = random.Random(3).sample(range(len(speech)), len(speech))
    for name, voices in (("training voices", TRAIN_VOICES), ("unseen voice", (UNSEEN_VOICE,))):
        rows = [row for row in order if speech.utterances[row].voice in voices][:clips]
        for suffix, noise_db in (("", None), (f", {NOISE_DB:.0f} dB pink noise", NOISE_DB)):
            rates[name + suffix], mistakes[name + suffix] = word_error_rate(ear, speech, rows, noise_db)
    for voice in TRAIN_VOICES:
        rows = [row for row in order if speech.utterances[row].voice == voice][:clips]
        rates[voice] = word_error_rate(ear, speech, rows)[0]
    return {"wer": rates, "mistakes": mistakes}
