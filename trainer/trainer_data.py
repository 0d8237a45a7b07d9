"""Training batches: an OmniDataset behind a BatchPlan, collated into plain dicts of tensors that pin and ship well.

- Layout and augmentation belong to the dataset; here rows are only grouped, padded and counted.
- One DataLoader serves the whole run, epochs included: workers start once, and no epoch boundary stalls the device.
- Rows of similar length share a batch where finding the lengths is cheap.
"""
import argparse
import logging
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from dataset.omni_dataset import OmniDataset, OmniSample, Variants, collate
from model.config import IGNORE, NUM_CODEBOOKS, NUM_STREAMS, OmniConfig
from trainer.trainer_utils import BatchPlan, PlannedBatches, Processes

CUDA_PAD_MULTIPLE = 32  # lengths the tensor cores like, and few distinct shapes for the compiler
MAX_SCAN_BYTES = 2 << 30  # more code data than this is not read through just to know its lengths
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

    def loader(self, start: int, stop: int) -> DataLoader:
        """Batches number `start` to `stop` (counted over all epochs), each a dict as made by `collate_padded`."""
        return DataLoader(
            self.rows, batch_sampler=PlannedBatches(self.plan, self.rank, start, stop), num_workers=self.num_workers,
            collate_fn=partial(collate_padded, config=self.rows.data.config, multiple=CUDA_PAD_MULTIPLE if self.cuda else 1),
            pin_memory=self.cuda, prefetch_factor=4 if self.num_workers else None, worker_init_fn=ignore_sigterm,
            generator=torch.Generator().manual_seed(self.seed))  # its own: the loader must not advance the global random state


def ignore_sigterm(worker: int) -> None:
    """A scheduler sends SIGTERM to the whole process group: the workers stay until the trainer has saved, and end with it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def open_data(paths: list[str | Path], tokenizer, config: OmniConfig, args: argparse.Namespace, procs: Processes) -> TrainingData:
    """The training data of the command line's settings. FileNotFoundError or ValueError for unusable files."""
    # Wrong text tokens teach the Thinker to recover; a frozen one would only hand the Talker words that are not the ones spoken.
    variants = Variants(system=args.system_share, history_dropout=args.history_dropout,
                        **({"text_sampling": 0.0} if args.freeze_backbone == "all" else {}))
    data = OmniDataset(paths, tokenizer, config, args.max_seq_len, variants, seed=args.seed, audio_frames=audio_frames)
    if len(data) == 0:
        raise ValueError(f"no rows in {', '.join(map(str, paths))}")
    plan = BatchPlan(len(data), args.batch_size, procs.world, args.seed, row_lengths(data.rows.files), data.shuffled)
    return TrainingData(EpochRows(data), plan, procs.rank, args.num_workers, procs.device.type == "cuda", args.seed)


def audio_frames(num_samples: int) -> int:
    """Feature vectors that the audio encoder makes of 16 kHz samples."""
    from model.encoders import sensevoice_frames
    return sensevoice_frames(num_samples)


def row_lengths(files: list[Path]) -> np.ndarray | None:
    """Rough positions of each row: text bytes / 4 + speech frames. None when the files are too big to scan, or hold other types."""
    metas = [pq.read_metadata(path) for path in files]
    names = [name for name in ("conversations", "answer_audios") if all(name in meta.schema.to_arrow_schema().names for meta in metas)]
    size = sum(group.column(c).total_uncompressed_size for meta in metas for group in map(meta.row_group, range(meta.num_row_groups))
               for c in range(group.num_columns) if group.column(c).path_in_schema.split(".")[0] in names)
    if size > MAX_SCAN_BYTES or not names:
        log.info("rows are not grouped by length: %.1f GB would have to be read for it", size / 1e9)
        return None
    lengths = []
    for path in files:
        with pq.ParquetFile(path, memory_map=True) as file:
            for group in range(file.num_row_groups):
                try:
                    lengths.append(_group_lengths(file.read_row_group(group, columns=names)))
                except (OSError, TypeError, NotImplementedError, ValueError) as error:  # damaged or odd: the dataset reports its rows
                    log.warning("%s, row group %d: lengths unknown (%s)", path, group, error)
                    lengths.append(np.zeros(file.metadata.row_group(group).num_rows, np.int64))
    return np.concatenate(lengths)


def _group_lengths(table) -> np.ndarray:
    total = np.zeros(table.num_rows, np.int64)
    if "conversations" in table.column_names:
        total += pc.fill_null(pc.binary_length(table["conversations"]), 0).to_numpy() // 4
    if "answer_audios" in table.column_names:
        turns = pc.list_value_length(pc.list_flatten(table["answer_audios"]))  # codes per turn
        owner = pc.list_parent_indices(table["answer_audios"]).to_numpy()
        np.add.at(total, owner, pc.fill_null(turns, 0).to_numpy() // NUM_CODEBOOKS)
    return total


def collate_padded(samples: list, config: OmniConfig, multiple: int = 1) -> dict:
    """OmniBatch as a dict, lengths padded up to a multiple, with num_rows and num_tokens (positions that are not padding).

    When every row was broken the batch is one row of pads without labels: its losses are 0, and other ranks are not left waiting.
    """
    batch = dict(vars(collate(samples)))
    good = [sample.input_ids.shape[1] for sample in samples if isinstance(sample, OmniSample)]
    if not good:
        ids = torch.full((1, NUM_STREAMS, multiple), config.audio_pad_token)
        ids[:, -1] = config.pad_token_id
        batch.update(input_ids=ids, text_labels=torch.full((1, multiple), IGNORE), spk_emb=torch.zeros(1, config.spk_emb_size),
                     audio_labels=torch.full((1, NUM_CODEBOOKS, multiple), IGNORE), wavs=[None], images=[[]])
    extra = -batch["input_ids"].shape[-1] % multiple
    if extra:
        batch["input_ids"] = F.pad(batch["input_ids"], (0, extra), value=config.audio_pad_token)
        batch["input_ids"][:, -1, -extra:] = config.pad_token_id
        for name in ("text_labels", "audio_labels"):
            batch[name] = F.pad(batch[name], (0, extra), value=IGNORE)
    return {**only_targets(batch, multiple), "num_rows": len(good), "num_tokens": sum(good)}


def only_targets(batch: dict, multiple: int = 1) -> dict:
    """The batch with labels cut to the window of R positions that holds each row's targets, and `positions` (B, R) saying where it is.

    Logits outside it would be computed for nothing. R is the widest row's, rounded up to a multiple; text_labels become (B, R),
    audio_labels (B, 8, R), and the losses stay what they were.
    """
    text, audio = batch["text_labels"], batch["audio_labels"]
    length = text.shape[1]
    labelled = (text != IGNORE) | (audio != IGNORE).any(1)
    first = labelled.int().argmax(1)
    last = length - 1 - labelled.flip(1).int().argmax(1)
    width = int(torch.where(labelled.any(1), last - first + 1, 1).max())
    width = min(length, -(-width // multiple) * multiple)
    positions = first.clamp(max=length - width)[:, None] + torch.arange(width)
    return {**batch, "positions": positions, "text_labels": text.gather(1, positions),
            "audio_labels": audio.gather(2, positions[:, None].expand(-1, NUM_CODEBOOKS, -1))}
