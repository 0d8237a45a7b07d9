"""Which rows form which batch: decided window by window, so that a run over any amount of data starts at once.

- `BatchPlan`: a pure function of (seed, epoch): every row exactly once per epoch, ranks disjoint, any batch reachable by its number
  (that is what makes resuming exact), rows of similar length together. An epoch begun with other batches can be taken up.
- `RowLengths`: how long rows are, text, speech, sound and pictures, read from the files when a window first asks.
"""
import contextlib
import logging
import math
from dataclasses import dataclass
from typing import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Sampler

from dataset.omni_dataset import IMAGE_TAG
from dataset.parquet_rows import ParquetRows
from model.audio import read_audio
from model.config import INPUT_RATE, NUM_CODEBOOKS

WINDOW_BATCHES = 64  # rows are sorted by length within this many batches: little padding, and still a shuffle
MAX_BYTES = {"answer_audios": 2 << 30, "question_audios": 8 << 30}  # of more than this the lengths are told by the text, which it follows
log = logging.getLogger(__name__)


@dataclass
class _Epoch:
    number: int
    order: np.ndarray  # its rows
    firsts: np.ndarray  # batches before each window, then all of them
    gone: int  # batches that stand for the rows another plan went through


class BatchPlan:
    """The order of training data. Batch number n (counted over all epochs) is the same rows whenever and wherever it is asked for.

    A *global batch* is what all ranks consume together: batch_size * world rows, or as many as a budget of positions allows. Rank r
    takes every world-th row of it from r on. So the rows of a step depend on the global batch only, not on how many ranks share it.
    """

    def __init__(self, num_rows: int, batch_size: int, world: int = 1, seed: int = 42,
                 lengths: np.ndarray | Callable[[np.ndarray], np.ndarray] | None = None,
                 order: Callable[[int], np.ndarray] | None = None, max_tokens: int | None = None):
        """lengths: size of each row in any unit (with max_tokens: in positions), by row number, or a function of row numbers; None
        leaves rows unsorted.

        order(epoch) -> (num_rows,), a permutation that suits the storage; default: a uniform one.
        max_tokens: instead of batch_size rows, a rank gets as many as together fill so many positions, padding included.
        Raises ValueError when there are fewer rows than ranks, or max_tokens without lengths.
        """
        if num_rows < world:
            raise ValueError(f"{num_rows} rows of data cannot feed {world} processes; start fewer, or give more data")
        if max_tokens and lengths is None:
            raise ValueError("--max_tokens needs the rows' lengths: leave out --without length_groups")
        self.num_rows, self.world, self.seed, self.order, self.max_tokens = num_rows, world, seed, order, max_tokens
        self.lengths = lengths.__getitem__ if isinstance(lengths, np.ndarray) else lengths
        self.global_batch = batch_size * world
        self.batches_per_epoch = self._count(num_rows)  # under a budget it differs from epoch to epoch: see first_of
        self.begun: tuple[int, np.ndarray] | None = None  # an epoch that another plan began, and the rows it went through
        self._firsts = [0]
        self._open: _Epoch | None = None
        self._cached: tuple[int, int, list[np.ndarray]] | None = None  # epoch, window, its batches

    def batch(self, number: int) -> np.ndarray:
        """The rows of global batch `number`; none where another plan has been."""
        epoch, index = self.locate(number)
        index -= self._epoch(epoch).gone
        if index < 0:
            return np.empty(0, np.int64)
        window = int(np.searchsorted(self._open.firsts, index, side="right")) - 1
        if self._cached is None or self._cached[:2] != (epoch, window):
            self._cached = (epoch, window, self._window(epoch, self._open.order, window))
        return self._cached[2][index - self._open.firsts[window]]

    def rank_batch(self, number: int, rank: int) -> list[tuple[int, int]]:
        """Batch `number` of `rank`, as (epoch, row) pairs."""
        epoch, _ = self.locate(number)
        return [(epoch, int(row)) for row in self.batch(number)[rank::self.world]]

    def first_of(self, epoch: int) -> int:
        """Number of the epoch's first batch."""
        if not self.max_tokens:
            return epoch * self.batches_per_epoch
        while len(self._firsts) <= epoch:
            last = self._epoch(len(self._firsts) - 1)
            self._firsts.append(self._firsts[-1] + last.gone + int(last.firsts[-1]))
        return self._firsts[epoch]

    def locate(self, number: int) -> tuple[int, int]:
        """(epoch, place in it) of a batch."""
        epoch = 0 if self.max_tokens else number // self.batches_per_epoch
        while self.first_of(epoch + 1) <= number:
            epoch += 1
        return epoch, number - self.first_of(epoch)

    def position(self, number: int) -> float:
        """How many epochs lie before batch `number`."""
        epoch, index = self.locate(number)
        return epoch + index / (self.first_of(epoch + 1) - self.first_of(epoch))

    def number_at(self, position: float) -> int:
        """The batch that is as far into the training as `position`, in epochs."""
        epoch = int(position)
        return self.first_of(epoch) + round((position - epoch) * (self.first_of(epoch + 1) - self.first_of(epoch)))

    def go_on_from(self, epoch: int, rows: np.ndarray) -> int:
        """An epoch was begun with other batches and went through `rows`: it now holds the others only. Returns its next batch's number.

        Of very few rows some rank may get none.
        """
        self.begun, self._firsts, self._open, self._cached = (epoch, rows), [0], None, None
        return self.first_of(epoch) + self._epoch(epoch).gone

    def gone_through(self, number: int) -> tuple[int, np.ndarray]:
        """(epoch of batch `number`, rows that the epoch went through before it)."""
        epoch, index = self.locate(number)
        before = self.begun[1] if self.begun and self.begun[0] == epoch else np.empty(0, np.int64)
        opened = self._epoch(epoch)
        window = int(np.searchsorted(opened.firsts, index - opened.gone, side="right")) - 1
        whole = opened.order[:max(0, window) * WINDOW_BATCHES * self.global_batch]  # windows that are done, then batches of the next
        first = self.first_of(epoch) + opened.gone + int(opened.firsts[max(0, window)])
        return epoch, np.concatenate([before, whole, *(self.batch(n) for n in range(first, number))])

    def state(self) -> dict:
        """What a resumed run compares with its own plan."""
        return {"num_rows": self.num_rows, "global_batch": self.global_batch, "batches_per_epoch": self.batches_per_epoch,
                "window": WINDOW_BATCHES, "seed": self.seed,
                **({"max_tokens": self.max_tokens, "world": self.world} if self.max_tokens else {})}

    def _epoch(self, epoch: int) -> _Epoch:
        if self._open is None or self._open.number != epoch:
            order = self.order(epoch) if self.order else np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
            firsts, gone = self._count_batches(epoch, order), 0
            if self.begun and self.begun[0] == epoch:  # the rest makes the epoch's last batches: their numbers stay in step with others
                whole, order = firsts[-1], order[~np.isin(order, self.begun[1])]
                firsts = self._count_batches(epoch, order)
                gone = max(0, int(whole - firsts[-1]))
            self._open = _Epoch(epoch, order, firsts, gone)
        return self._open

    def _count(self, num_rows: int) -> int:
        """Batches of so many rows. A rest too small to give every rank a row joins the batch before it: none is lost or left out."""
        full, rest = divmod(num_rows, self.global_batch)
        return max(min(1, num_rows), full + (rest >= self.world))

    def _count_batches(self, epoch: int, order: np.ndarray) -> np.ndarray:
        """Batches before each window, then all of them."""
        count = self._count(len(order))
        starts = np.arange(0, count, WINDOW_BATCHES)
        if self.max_tokens:
            return np.cumsum([0, *(len(self._window(epoch, order, window)) for window in range(len(starts)))])
        return np.append(starts, count)

    def _window(self, epoch: int, order: np.ndarray, window: int) -> list[np.ndarray]:
        """Batches of the rows of a window, which lie near each other in the files: sorted by length, cut, shuffled."""
        count = self._count(len(order))
        cuts = np.arange(window * WINDOW_BATCHES, min(count, (window + 1) * WINDOW_BATCHES) + 1) * self.global_batch
        if cuts[-1] == count * self.global_batch:
            cuts[-1] = len(order)
        rows = order[cuts[0]:cuts[-1]]
        if self.lengths is not None:
            rows = rows[np.argsort(self.lengths(rows), kind="stable")]
        parts = np.split(rows, self._cuts(self.lengths(rows)) if self.max_tokens else cuts[1:-1] - cuts[0])
        return [parts[i] for i in np.random.default_rng([self.seed, epoch, window]).permutation(len(parts))]

    def _cuts(self, lengths: np.ndarray) -> list[int]:
        """Where ascending `lengths` are cut so that no rank's share of a part, padded, exceeds max_tokens (one row always may)."""
        cuts, first = [], 0
        while first < len(lengths):
            most = (self.max_tokens // max(1, lengths[first]) + 1) * self.world
            share = np.arange(self.world, most + self.world) // self.world  # rows per rank of 1, 2, 3, ... rows
            cost = share[:len(lengths) - first] * lengths[first:first + most]
            first += max(self.world, int(np.searchsorted(cost, self.max_tokens, side="right")))
            if len(lengths) - first < self.world:  # the rest joins, else a rank would get none
                break
            cuts.append(first)
        return cuts


class PlannedBatches(Sampler):
    """Batches `start` to `stop` of a plan for one rank, across epochs: one DataLoader lives through the whole training."""

    def __init__(self, plan: BatchPlan, rank: int, start: int, stop: int):
        self.plan, self.rank, self.start, self.stop = plan, rank, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return (self.plan.rank_batch(number, self.rank) for number in range(self.start, self.stop))


class RowLengths:
    """Rough positions of rows by number, read from a row group when one of its rows is first asked for.

    Text bytes / 4, the frames of speech, the spoken question's feature vectors and those of the pictures. Sounds are not decoded but for
    one of each group, which tells how many vectors a byte makes there. sound_frames, picture_frames: see open_data.
    """

    def __init__(self, rows: ParquetRows, sound_frames: Callable[[int], int], picture_frames: int):
        sizes = rows.column_bytes()
        self.columns = [name for name in ("conversations", *MAX_BYTES) if name in sizes and sizes[name] <= MAX_BYTES.get(name, math.inf)]
        self.rows, self.known = rows, np.zeros(len(rows), np.int32)  # 0: not read yet
        self.sound_frames, self.picture_frames = sound_frames, picture_frames

    def __call__(self, wanted: np.ndarray) -> np.ndarray:
        for group in np.unique(self.rows.group_of(wanted[self.known[wanted] == 0])):
            self.known[self.rows.group_rows(group)] = self._read(group)
        return self.known[wanted]

    def _read(self, group: int) -> np.ndarray | int:
        try:
            table = self.rows.read_group(group, self.columns)
            total = np.zeros(table.num_rows, np.int64)
            if "conversations" in table.column_names:
                text = table["conversations"]
                total += pc.fill_null(pc.binary_length(text), 0).to_numpy() // 4
                total += pc.fill_null(pc.count_substring(text, IMAGE_TAG), 0).to_numpy() * self.picture_frames
            if "answer_audios" in table.column_names:
                turns = pc.list_value_length(pc.list_flatten(table["answer_audios"]))  # codes per turn
                owner = pc.list_parent_indices(table["answer_audios"]).to_numpy()
                np.add.at(total, owner, pc.fill_null(turns, 0).to_numpy() // NUM_CODEBOOKS)
            if "question_audios" in table.column_names:
                sounds = pc.list_flatten(table["question_audios"])
                longest = np.zeros(table.num_rows, np.int64)  # of a row's questions one is heard
                np.maximum.at(longest, pc.list_parent_indices(table["question_audios"]).to_numpy(),
                              pc.fill_null(pc.binary_length(sounds), 0).to_numpy())
                total += (longest * self._frames_per_byte(sounds)).astype(np.int64)
            return total.clip(1, np.iinfo(np.int32).max)
        except (TypeError, NotImplementedError, ValueError) as error:  # damaged or odd: the dataset reports its rows
            log.warning("%s: lengths unknown (%s)", self.rows.where(self.rows.group_rows(group).start)[0], error)
            return 1

    def _frames_per_byte(self, sounds: pa.ChunkedArray) -> float:
        """Of the group's first sound that can be decoded, not of the first one ever: a resumed run begins with another group."""
        for sound in sounds:
            if data := sound.as_py():
                with contextlib.suppress(ValueError):
                    return self.sound_frames(len(read_audio(data, INPUT_RATE, name="question_audios"))) / len(data)
        return 0.0
