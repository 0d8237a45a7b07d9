"""What a table of results is: figures with 95 % intervals, rows, a note on how to read it, or the reason why there is none."""
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from evals.metrics import bootstrap
from evals.samples import Sample


@dataclass
class Figure:
    """A value with its 95 % interval."""
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "-" if math.isnan(self.value) else f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def ratio(pairs: Iterable[tuple[float, float]]) -> Figure:
    """Sum of the numerators / sum of the denominators over items."""
    pairs = [(float(a), float(b)) for a, b in pairs]  # numpy's own numbers are not JSON
    top, bottom = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    value = top / max(bottom, 1) if pairs else math.nan
    return Figure(value, *bootstrap((a for a, _ in pairs), (b for _, b in pairs)))


def mean(values: Iterable[float]) -> Figure:
    return ratio((value, 1) for value in values)


@dataclass
class Row:
    """One line: what is counted, over how many items, figures by column, and the published values of the same columns."""
    group: str
    n: int
    figures: dict[str, Figure | str]
    published: dict[str, float] = field(default_factory=dict)


@dataclass
class Table:
    """key: its name on the command line; note: how it was measured; skipped: why there are no rows; clips: what can be listened to."""
    key: str
    title: str
    note: str = ""
    rows: list[Row] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    skipped: str = ""
    clips: list[tuple[str, list[Sample]]] = field(default_factory=list, repr=False)  # (heading, what to hear side by side)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.figures))

    def to_dict(self) -> dict:
        def plain(figure):
            return figure if isinstance(figure, str) else {name: None if math.isnan(x) else round(x, 5) for name, x in vars(figure).items()}

        rows = [{"group": row.group, "n": row.n, **{name: plain(figure) for name, figure in row.figures.items()},
                 "published": row.published} for row in self.rows]
        return {"table": self.key, "title": self.title, "note": self.note, "skipped": self.skipped, "rows": rows,
                "samples": [sample.to_dict() for sample in self.samples]}


class Skipped(Exception):
    """A table cannot be measured here; the message says what is missing and how to get it."""
