"""From an ear's CTC probabilities to words: by the best token of each frame, or by the best text, with a model of what people say.

CTC (Graves et al. 2006) gives every frame a token or the blank; a text is heard as likely as all its alignments together. A token that
the sound leaves open is settled by the tokens before it, of which `NGram` knows how they go on.
"""
import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from model.checkpoint import replace_atomic

BLANK, BEGIN, END = 0, 1, 2  # token ids; the first is <unk> in the tokenizer, which no text contains
NEVER = -math.inf


class NGram:
    """How often tokens follow one another, and from it how likely each is to be next.

    grams (M, order): the distinct runs of `order` tokens of some texts, each text with BEGIN in front as often as makes the first token
    the last of such a run, and END behind; counts (M,). Both integer. Probabilities are Witten-Bell's: what was seen behind the longest
    known history, mixed with what a shorter one says, the more the more different tokens were seen (Chen & Goodman 1998, section 2.6).
    """

    def __init__(self, grams: np.ndarray, counts: np.ndarray, vocab_size: int):
        self.grams, self.counts, self.vocab_size, self.order = grams, counts, vocab_size, grams.shape[1]
        # by length of the history; a run of tokens is one number in base vocab_size
        self.seen: list[dict[int, float]] = []  # history and next token -> how often
        self.followed: list[dict[int, tuple[float, int]]] = []  # history -> how often anything followed, and how many different tokens did
        for length in range(self.order):
            runs = grams[:, self.order - 1 - length:].astype(np.int64) @ vocab_size ** np.arange(length, -1, -1)
            runs, place = np.unique(runs, return_inverse=True)
            seen = np.bincount(place, weights=counts)
            histories, place, kinds = np.unique(runs // vocab_size, return_inverse=True, return_counts=True)
            total = np.bincount(place, weights=seen)
            self.seen.append(dict(zip(runs.tolist(), seen.tolist())))
            self.followed.append(dict(zip(histories.tolist(), zip(total.tolist(), kinds.tolist()))))

    @classmethod
    def fit(cls, texts: list[list[int]], order: int, vocab_size: int) -> "NGram":
        """Of texts as token ids, none of which is BLANK, BEGIN or END."""
        found = Counter()
        for text in texts:
            padded = [BEGIN] * (order - 1) + text + [END]
            found.update(tuple(padded[i:i + order]) for i in range(len(text) + 1))
        runs = sorted(found)
        return cls(np.array(runs, np.uint16), np.array([found[run] for run in runs], np.uint32), vocab_size)

    def save(self, path: Path) -> None:
        replace_atomic(path, partial(np.savez_compressed, grams=self.grams.T, counts=self.counts, vocab_size=self.vocab_size))

    @classmethod
    def load(cls, path: Path) -> "NGram":
        """ValueError for a file that `save` did not write."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["grams"].T, file["counts"], int(file["vocab_size"]))
        except (OSError, EOFError, KeyError, ValueError, IndexError, BadZipFile) as error:
            raise ValueError(f"{path} is not a language model of nano.train_language ({error}); make it anew or remove it") from error

    def log_prob(self, before: tuple[int, ...], token: int) -> float:
        """Natural logarithm of the probability that `token` comes after the tokens `before`, from the text's beginning or later on."""
        history, probability = 0, 1 / self.vocab_size
        for length in range(self.order):
            if length:
                history += (before[-length] if length <= len(before) else BEGIN) * self.vocab_size ** (length - 1)
            if history not in self.followed[length]:
                break
            total, kinds = self.followed[length][history]
            seen = self.seen[length].get(history * self.vocab_size + token, 0)
            probability = (seen + kinds * probability) / (total + kinds)
        return math.log(probability)


@dataclass
class Beam:
    """One text that the frames so far may say: log probabilities of its alignments that end with the blank, and with its last token."""
    blank: float
    token: float
    said: float  # what the language model adds

    @property
    def sound(self) -> float:
        return _add(self.blank, self.token)

    @property
    def score(self) -> float:
        return self.sound + self.said


def greedy(log_probs: np.ndarray) -> list[int]:
    """Tokens of the likeliest alignment of (L, V)."""
    best = log_probs.argmax(-1).tolist()
    return [token for before, token in zip([BLANK, *best], best) if token not in (before, BLANK)]


def search(log_probs: np.ndarray, model: NGram, weight: float = 0.7, bonus: float = 1.0, width: int = 16, least: float = -8.0,
           behind: float = 10.0) -> list[int]:
    """Tokens of the likeliest text of (L, V) log probabilities: CTC prefix search (Hannun et al. 2014) with shallow fusion.

    A text's score is the log probability of its alignments, `weight` times that of its tokens, and `bonus` per token, without which short
    texts win. After each frame the best `width` texts stay, no more than `behind` worse than the best. Of a frame's tokens the best `width`
    are tried, and none below `least`: noise has hundreds of them.
    """
    beams = {(): Beam(0.0, NEVER, 0.0)}
    for frame in log_probs:
        likely = np.argpartition(-frame, width)[:width] if len(frame) > width else np.arange(len(frame))
        tokens = [(int(token), float(frame[token])) for token in likely if frame[token] > least and token != BLANK]
        grown: dict[tuple, Beam] = {}
        for text, beam in beams.items():
            last, sound = text[-1] if text else None, beam.sound
            stays = grown.setdefault(text, Beam(NEVER, NEVER, beam.said))
            stays.blank = _add(stays.blank, sound + float(frame[BLANK]))
            if text:
                stays.token = _add(stays.token, beam.token + float(frame[last]))
            for token, log_prob in tokens:
                before = beam.blank if token == last else sound  # the same token again is another one behind a blank only
                if before == NEVER:
                    continue
                longer = (*text, token)
                if longer not in grown:
                    said = beams[longer].said if longer in beams else beam.said + weight * model.log_prob(text, token) + bonus
                    grown[longer] = Beam(NEVER, NEVER, said)
                grown[longer].token = _add(grown[longer].token, before + log_prob)
        scores = {text: beam.score for text, beam in grown.items()}
        best = sorted(scores, key=scores.get, reverse=True)[:width]
        beams = {text: grown[text] for text in best if scores[text] >= scores[best[0]] - behind}
    return list(max(beams, key=lambda text: beams[text].score + weight * model.log_prob(text, END)))


def _add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    high, low = (a, b) if a > b else (b, a)
    return high if low == NEVER else high + math.log1p(math.exp(low - high))
