"""Training batches: an OmniDataset behind a BatchPlan, collated into plain dicts of tensors that pin and ship well.

- Layout and augmentation belong to the dataset; here rows are only grouped, padded and counted.
- One DataLoader serves the whole run, epochs included: workers start once, and no epoch boundary stalls the device.
- Rows of similar length share a batch; with --max_tokens a batch is filled by positions, not rows.
- Some rows are held out for evaluation: the same ones for the same data and seed.
"""
import argparse
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from dataset.omni_dataset import OmniDataset, OmniSample, Variants, collate
from model.config import IGNORE, NUM_CODEBOOKS, NUM_STREAMS, OmniConfig
from trainer.batch_plan import BatchPlan, PlannedBatches, RowLengths
from trainer.trainer_utils import Processes

CUDA_PAD_MULTIPLE = 32  # lengths the tensor cores like, and few distinct shapes for the compiler
MEASURED_ROWS = 128  # built to learn how rough lengths relate to positions
log = logging.getLogger(__name__)


class EpochRows(Dataset):
    """An OmniDataset asked for (epoch, row): the epoch travels with the row, so workers may read ahead across epochs."""

    def __init__(self, data: OmniDataset):
        self.data = data

    def __getitem__(self, key: tuple[int, int]):
        epoch, row = key
        return self.data.sample(row, epoch)


@dataclass
class TrainingData:
    """Rows of this process in the order of `plan`."""
    rows: EpochRows
    plan: BatchPlan
    rank: int
    num_workers: int
    cuda: bool
    seed: int
    batch_size: int
    held_out: np.ndarray  # row numbers, ascending; none of them is in the plan
    fixed: OmniDataset | None  # the same files without random choices, for the held-out rows
    collate: Callable  # list of samples -> dict

    def loader(self, start: int, stop: int) -> DataLoader:
        """Batches number `start` to `stop` (counted over all epochs), each a dict as made by `collate_padded`."""
        return DataLoader(
            self.rows, batch_sampler=PlannedBatches(self.plan, self.rank, start, stop), num_workers=self.num_workers,
            collate_fn=self.collate,
            pin_memory=self.cuda, prefetch_factor=4 if self.num_workers else None, worker_init_fn=ignore_sigterm,
            generator=torch.Generator().manual_seed(self.seed))  # its own: the loader must not advance the global random state

    def position(self, number: int) -> dict:
        """What a resume needs to go on at batch `number` even if its batches are others: the rows that the epoch has had, as bits."""
        epoch, rows = self.plan.gone_through(number)
        begun = self.plan.begun[1] if self.plan.begun and self.plan.begun[0] == epoch else rows[:0]
        return {"epoch": epoch, "rows": len(self.rows.data), "had": self._bits(rows), "had_before": self._bits(begun)}

    def go_on_from(self, position: dict, same_plan: bool) -> int | None:
        """Take up an epoch where `position` was saved, by this plan or another. Number of the next batch; None if the data is another."""
        if position["rows"] != len(self.rows.data):
            return None
        had = np.flatnonzero(np.unpackbits(position["had_before" if same_plan else "had"].numpy(), count=position["rows"]))
        return self.plan.go_on_from(position["epoch"], had) if len(had) else self.plan.first_of(position["epoch"])

    def _bits(self, rows: np.ndarray) -> torch.Tensor:
        mask = np.zeros(len(self.rows.data), bool)
        mask[rows] = True
        return torch.from_numpy(np.packbits(mask))

    def held_out_batches(self) -> Iterator[dict]:
        """This rank's share of the held-out rows."""
        mine = self.held_out[self.rank::self.plan.world]
        for first in range(0, len(mine), self.batch_size):
            yield self.collate([self.fixed.sample(int(row), 0) for row in mine[first:first + self.batch_size]])

    def row_alone(self, key: tuple[int, int]) -> tuple[dict, Path, int]:
        """(epoch, row) as a batch of its own, as it was trained on, with its file and its place there."""
        return self.collate([self.rows[key]]), *self.rows.data.rows.where(key[1])


def ignore_sigterm(worker: int) -> None:
    """A scheduler sends SIGTERM to the whole process group: the workers stay until the trainer has saved, and end with it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def open_data(paths: list[str | Path], tokenizer, config: OmniConfig, args: argparse.Namespace, procs: Processes) -> TrainingData:
    """The training data of the command line's settings. FileNotFoundError or ValueError for unusable files."""
    # Wrong text tokens teach the Thinker to recover; a frozen one would only hand the Talker words that are not the ones spoken.
    variants = Variants(system=args.system_share, history_dropout=args.history_dropout, speech=args.mode not in ("thinker", "spelling"),
                        augment_share=args.augment_share,
                        **({"text_sampling": 0.0} if args.freeze_backbone == "all" else {}),
                        **({"question_mix": tuple(args.question_mix)} if args.question_mix else {}))
    data = OmniDataset(paths, tokenizer, config, args.max_seq_len, variants, seed=args.seed, audio_frames=audio_frames)
    if len(data) == 0:
        raise ValueError(f"no rows in {', '.join(map(str, paths))}")
    lengths = RowLengths(data.rows, audio_frames, config.image_token_len) if "length_groups" not in args.without else None
    if args.max_tokens and lengths is not None:
        lengths = in_positions(lengths, data)
    held_out, fixed = np.empty(0, np.int64), None
    if args.eval_interval:
        if 2 * args.eval_rows > len(data) or args.eval_rows < procs.world:
            raise ValueError(f"--eval_rows {args.eval_rows}: give at least one row per process, and at most half of the {len(data)} rows")
        held_out = np.sort(np.random.default_rng(args.seed).choice(len(data), args.eval_rows, replace=False))
        fixed = OmniDataset(paths, tokenizer, config, args.max_seq_len, Variants.fixed(), seed=args.seed, audio_frames=audio_frames,
                            cache_bytes=0)
    kept = np.ones(len(data), bool)
    kept[held_out] = False

    def order(epoch: int) -> np.ndarray:
        rows = data.shuffled(epoch)
        return rows[kept[rows]] if len(held_out) else rows

    plan = BatchPlan(int(kept.sum()), args.batch_size, procs.world, args.seed, lengths, order, args.max_tokens)
    cuda = procs.device.type == "cuda"
    collate = partial(collate_padded, config=config, multiple=CUDA_PAD_MULTIPLE if cuda else 1,
                      pad_to=args.max_seq_len if "tight_padding" in args.without else 0, window="logits_window" not in args.without)
    return TrainingData(EpochRows(data), plan, procs.rank, args.num_workers, cuda, args.seed, args.batch_size, held_out, fixed, collate)


def in_positions(lengths: RowLengths, data: OmniDataset) -> Callable[[np.ndarray], np.ndarray]:
    """Rough lengths scaled to positions: 19 of 20 rows of a sample are no longer than said."""
    rows = np.unique(np.linspace(0, len(data) - 1, min(len(data), MEASURED_ROWS)).astype(int))
    samples = [data.sample(int(row), 0) for row in rows]
    ratios = [sample.input_ids.shape[1] / length for sample, length in zip(samples, lengths(rows)) if isinstance(sample, OmniSample)]
    scale = np.quantile(ratios, 0.95) if ratios else 1.0
    return lambda rows: np.clip(np.ceil(lengths(rows) * scale), 1, data.max_length - 1).astype(np.int64)


def audio_frames(num_samples: int) -> int:
    """Feature vectors that the audio encoder makes of 16 kHz samples."""
    from model.encoders import sensevoice_frames
    return sensevoice_frames(num_samples)


def collate_padded(samples: list, config: OmniConfig, multiple: int = 1, pad_to: int = 0, window: bool = True) -> dict:
    """OmniBatch as a dict, padded to pad_to positions or more, a multiple of `multiple`; see only_targets for `window`.

    With it go num_rows, num_tokens (positions that are not padding), num_targets (positions with labels) and num_pairs (sum of T^2).
    Without a good row the batch is one row of pads without labels: its losses are 0, and other ranks are not left waiting.
    """
    batch = dict(vars(collate(samples))) if samples else {"num_skipped": 0}
    good = [sample.input_ids.shape[1] for sample in samples if isinstance(sample, OmniSample)]
    if not good:
        ids = torch.full((1, NUM_STREAMS, multiple), config.audio_pad_token)
        ids[:, -1] = config.pad_token_id
        batch.update(input_ids=ids, text_labels=torch.full((1, multiple), IGNORE), spk_emb=torch.zeros(1, config.spk_emb_size),
                     audio_labels=torch.full((1, NUM_CODEBOOKS, multiple), IGNORE), wavs=[None], images=[[]],
                     letters=torch.full((1, multiple), torch.nan), spoken=torch.full((1, 0), IGNORE))
    length = batch["input_ids"].shape[-1]
    extra = max(length, pad_to) - length
    extra += -(length + extra) % multiple
    if extra:
        batch["input_ids"] = F.pad(batch["input_ids"], (0, extra), value=config.audio_pad_token)
        batch["input_ids"][:, -1, -extra:] = config.pad_token_id
        for name in ("text_labels", "audio_labels"):
            batch[name] = F.pad(batch[name], (0, extra), value=IGNORE)
        batch["letters"] = F.pad(batch["letters"], (0, extra), value=torch.nan)
    labelled = (batch["text_labels"] != IGNORE) | (batch["audio_labels"] != IGNORE).any(1)
    batch.update(num_rows=len(good), num_tokens=sum(good), num_targets=int(labelled.sum()), num_pairs=sum(n * n for n in good))
    return only_targets(batch, multiple) if window else {**batch, "positions": torch.arange(length + extra).expand(len(labelled), -1)}


def only_targets(batch: dict, multiple: int = 1) -> dict:
    """The batch with labels cut to the window of R positions that holds each row's targets, and `positions` (B, R) saying where it is.

    Logits outside it would be computed for nothing. R is the widest row's, rounded up to a multiple; text_labels become (B, R),
    audio_labels (B, 8, R), letters (B, R), and the losses stay what they were.
    """
    text, audio = batch["text_labels"], batch["audio_labels"]
    length = text.shape[1]
    labelled = (text != IGNORE) | (audio != IGNORE).any(1)
    first = labelled.int().argmax(1)
    last = length - 1 - labelled.flip(1).int().argmax(1)
    width = int(torch.where(labelled.any(1), last - first + 1, 1).max())
    width = min(length, -(-width // multiple) * multiple)
    positions = first.clamp(max=length - width)[:, None] + torch.arange(width)
    return {**batch, "positions": positions, "text_labels": text.gather(1, positions), "letters": batch["letters"].gather(1, positions),
            "audio_labels": audio.gather(2, positions[:, None].expand(-1, NUM_CODEBOOKS, -1))}
