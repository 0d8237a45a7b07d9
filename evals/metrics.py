"""Figures of merit as plain functions: error rates, similarity, latency percentiles (numpy only).

- Word errors are counted on normalised words (a-z and apostrophes), so case and punctuation never count; character errors on all
  letters and digits of any script, which is what Chinese needs.
- `ErrorRate` adds up over a set: total errors / total reference units, so long sentences weigh more than short ones.
"""
import re
from dataclasses import dataclass

import numpy as np


def words(text: str) -> list[str]:
    """Lower-case words of a-z and '; everything else separates (so numbers must be written as words)."""
    return re.sub(r"[^a-z' ]", " ", text.lower().replace("\u2019", "'")).split()


def characters(text: str) -> list[str]:
    """Lower-case letters and digits of any script, without spaces and punctuation."""
    return [c for c in text.lower() if c.isalnum()]


def edit_distance(reference, hypothesis) -> int:
    """Fewest insertions, deletions and substitutions that turn one sequence into the other."""
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, got in enumerate(hypothesis, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (wanted != got))
    return row[-1]


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


def cer(pairs) -> float:
    """Character error rate over (reference text, recognised text) pairs, any script."""
    total = ErrorRate()
    for reference, hypothesis in pairs:
        total.add(characters(reference), characters(hypothesis))
    return total.rate


def percentiles(values, ranks=(50, 95)) -> dict[str, float]:
    """{"p50": ..., "p95": ...}; NaN for an empty sequence."""
    values = np.asarray(list(values), dtype=np.float64)
    return {f"p{rank:g}": float(np.percentile(values, rank)) if len(values) else float("nan") for rank in ranks}


def cosine(a, b) -> float:
    """Cosine similarity of two vectors; 0 when either is all zero."""
    a, b = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if scale else 0.0
