"""Speech on the grid of the codec's frames: every word begins with a frame, so that a word has the same codes wherever it stands.

- A frame is 80 ms, a word about four. In plain speech a word begins anywhere within a frame, and each of those phases has its own codes:
  many times as much to learn. Here every word is stretched or squeezed to the nearest whole number of frames.
- No sound is stretched: `hop_ends` says where the codec's analysis looks (mimi_targets.Analyser.encode_at), and the codes are those
  of the stretched speech.
- flite says when its phones end, and, asked for one word, how many phones the word has (`word_phones`).
"""
import re
import subprocess
from functools import cache

import numpy as np
import torch

from dataset.tts import find_program
from nano.mimi_targets import FRAME_SAMPLES, HOP, SAMPLE_RATE, Analyser

PAUSE = "pau"
WORD = r"[A-Za-z0-9']+"


@cache
def word_phones(word):
    """How many phones flite says a single word with."""
    said = subprocess.run([find_program("flite"), "-voice", "rms", "-ps", "-t", word, "-o", "none"], check=True, capture_output=True)
    return sum(phone != PAUSE for phone in said.stdout.decode().split())


def unit_ends(text, phones):
    """Where each word and each pause ends: a list of (seconds, is a pause).

    `phones` are (name, end in seconds) of the whole text. Where flite reads a word otherwise than alone ("Elizabeth I" is "the first"),
    the phones do not add up, and no word of the text is found: all from one pause to the end of the next counts as a pause.
    """
    counts = [word_phones(word) for word in re.findall(WORD, text)]
    if sum(counts) != sum(name != PAUSE for name, _ in phones):
        counts = []
    last_of_word, count, ends = set(np.cumsum(counts).tolist()), 0, []
    for name, end in phones:
        count += name != PAUSE
        if name == PAUSE or count in last_of_word:
            ends.append((end, name == PAUSE))
    return ends


def hop_ends(units, samples):
    """The sample at which the window of every 10 ms of speech on the grid ends: (frames * 8,) int64, at 24 kHz.

    `units` as unit_ends gives them, `samples` the length of the speech at 24 kHz. A word gets the nearest number of frames, at least
    one; a pause is cut to whole frames, the one before the first word to a single frame.
    """
    ends, frames = _whole_frames(units, samples)
    grid = np.cumsum(frames) * FRAME_SAMPLES
    hops = np.arange(HOP, grid[-1] + 1, HOP)
    return np.interp(hops, [0, *grid], [0, *ends]).round().astype(np.int64)


def letters_said(text, units, samples):
    """Which letter is being said in the middle of each frame of the speech on the grid: (frames,) float32, spaces not counted.

    Empty where the words were not found (see unit_ends).
    """
    words = [match.span() for match in re.finditer(WORD, text)]
    frames = _whole_frames(units, samples)[1].astype(int)
    if len(words) != sum(not is_pause for _, is_pause in units):
        return np.zeros(0, np.float32)
    before = np.cumsum([0, *(not character.isspace() for character in text)])  # letters before each character
    said, word = [], 0
    for count, (_, is_pause) in zip(frames, units):
        if is_pause:
            said += [before[words[word][0]] if word < len(words) else before[-1]] * count
        else:
            first, last = before[list(words[word])]
            said += (first + (np.arange(count) + 0.5) / count * (last - first)).tolist()
            word += 1
    return np.array(said, np.float32)


def _whole_frames(units, samples):
    """End sample and number of frames of every unit, (units,) each."""
    ends = np.array([end for end, _ in units]) * SAMPLE_RATE
    ends[-1] = samples
    ends = ends.clip(0, samples)
    frames = np.diff(ends, prepend=0) / FRAME_SAMPLES
    pause = np.array([is_pause for _, is_pause in units])
    frames = np.where(pause, np.floor(frames), np.round(frames)).clip(min=1)
    if pause[0]:
        frames[0] = 1
    return ends, frames


class GridCodec:
    """The codes the nano Talker is taught, as dataset.build_parquet takes them: `--codec nano.word_grid:GridCodec=targets.pt`."""

    def __init__(self, analyser):
        self.analyser = analyser

    @classmethod
    def load(cls, path, device="cpu"):
        return cls(Analyser.load(path, device))

    def encode(self, wav):
        """wav (B, S) at 24 kHz -> codes (B, 8, ceil(S / 1920)) of speech as it is."""
        return self.analyser.encode(wav)

    def encode_spoken(self, wav, text, phones):
        """wav (S,) float32 at 24 kHz and when its phones end -> codes (8, T) int16, every word beginning with a frame, and letters_said."""
        units = unit_ends(text, phones)
        ends = hop_ends(units, len(wav))
        codes = self.analyser.encode_at(torch.from_numpy(wav), torch.from_numpy(ends)).cpu().numpy().astype(np.int16)
        return codes, letters_said(text, units, len(wav))
