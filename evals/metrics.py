"""Figures of merit as plain functions: error rates with confidence intervals, latency percentiles.

- How a text is normalised before errors are counted is said by `words` and `characters`, and nowhere else.
- Errors are jiwer's: insertions + deletions + substitutions of the best alignment. `ErrorRate` adds them up over a set: total errors /
  total reference units, so long sentences weigh more than short ones.
- `bootstrap` gives the 95 % interval of such a total by drawing the items again with replacement: it is as wide as few items make it.
"""
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

YEARS = range(1100, 2100)  # four digits in here are read as a year: "1999" is nineteen ninety-nine
NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
RESAMPLES = 1000


def words(text: str) -> list[str]:
    """Lower-case words of a-z and '; numbers are spelled out in English, everything else separates.

    Unicode's compatibility forms (NFKC) first; "%" is the word percent. An "and" inside a number is left out: half of the speakers do.
    """
    return re.sub(r"[^a-z' ]", " ", _numbers_in_english(_plain(text))).split()


def characters(text: str) -> list[str]:
    """Lower-case letters of any script, without spaces and punctuation; what CER counts.

    Numbers are spelled out: in Chinese where the text has Chinese characters, else in English. Traditional is not made simplified.
    """
    text = _plain(text)
    return [c for c in (_numbers_in_chinese(text) if HAN.search(text) else _numbers_in_english(text)) if c.isalnum()]


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'").replace("℃", "度")


def _numbers_in_english(text: str) -> str:
    def spell(match: re.Match) -> str:
        digits = match[0].replace(",", "")
        is_year = digits.isdigit() and digits == match[0] and len(digits) == 4 and int(digits) in YEARS
        return f" {_spelled(digits, 'year' if is_year else 'cardinal')} "

    text = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b", lambda match: _spelled(match[1], "ordinal"), text)
    text = NUMBER.sub(spell, text).replace("%", " percent ")
    return re.sub(r"\b(hundred|thousand|million|billion) and\b", r"\1", text)  # in texts without digits, too: the other may have them


def _spelled(digits: str, kind: str) -> str:
    from num2words import num2words

    try:
        return num2words(float(digits) if "." in digits else int(digits), to=kind)
    except (OverflowError, ValueError):  # too long for a name: digit by digit
        return " ".join("point" if digit == "." else num2words(int(digit)) for digit in digits)


def _numbers_in_chinese(text: str) -> str:
    if not re.search(r"\d", text):
        return text
    from cn2an import transform

    return transform(re.sub(r"(?<=\d),(?=\d{3})", "", text), "an2cn")


def edit_distance(reference, hypothesis) -> int:
    """Fewest insertions, deletions and substitutions that turn one sequence of words or characters into the other."""
    from jiwer import process_words

    counts = process_words(" ".join(reference), " ".join(hypothesis))
    return counts.insertions + counts.deletions + counts.substitutions


@dataclass
class ErrorRate:
    """Errors against reference units (words or characters), added up item by item."""
    errors: int = 0
    units: int = 0

    def add(self, reference, hypothesis) -> int:
        """Count one pair of sequences; returns its errors."""
        errors = edit_distance(reference, hypothesis)
        self.errors += errors
        self.units += len(reference)
        return errors

    @property
    def rate(self) -> float:
        """Errors per reference unit; against an empty reference every error counts in full."""
        return self.errors / max(self.units, 1)


def wer(pairs) -> float:
    """Word error rate over (reference text, recognised text) pairs: total errors / total reference words."""
    total = ErrorRate()
    for reference, hypothesis in pairs:
        total.add(words(reference), words(hypothesis))
    return total.rate


def bootstrap(numerators, denominators=None, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % interval of sum(numerators) / sum(denominators) over items (a mean where denominators are left out); NaN without items."""
    top = np.asarray(list(numerators), dtype=np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(list(denominators), dtype=np.float64)
    if not len(top):
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(0, len(top), (resamples, len(top)))
    low, high = np.percentile(top[drawn].sum(1) / np.maximum(bottom[drawn].sum(1), 1), (2.5, 97.5))
    return float(low), float(high)


def percentiles(values, ranks=(50, 95)) -> dict[str, float]:
    """{"p50": ..., "p95": ...}; NaN for an empty sequence."""
    values = np.asarray(list(values), dtype=np.float64)
    return {f"p{rank:g}": float(np.percentile(values, rank)) if len(values) else float("nan") for rank in ranks}
