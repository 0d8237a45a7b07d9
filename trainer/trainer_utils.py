"""What every training script here needs: processes, schedule, data order, frozen front ends, logs, random states.

- `init_distributed`: one process or torchrun's many, CUDA (nccl) or CPU (gloo).
- `BatchPlan`: which rows form which batch, a pure function of (seed, epoch): every row exactly once per epoch, ranks disjoint,
  any batch reachable by its number (that is what makes resuming exact), rows of similar length together.
- `Frontends`: the frozen audio and image encoders, loaded when the first batch needs them; the trained model only sees features.
- `RunLog`: progress on the terminal, CSV, a PNG of the curves, wandb when asked for.
"""
import csv
import logging
import math
import os
import random
import signal
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler
from tqdm import tqdm

from model.config import OmniConfig

ROOT = Path(__file__).resolve().parents[1]
BUCKET_BATCHES = 64  # rows are sorted by length within this many batches: little padding, and still a shuffle
log = logging.getLogger(__name__)


@dataclass
class Processes:
    """This process among its peers. `device` is where it computes."""
    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0


def init_distributed(device: str) -> Processes:
    """Join torchrun's group when started by it (one CUDA device per local rank), else a single process on `device`."""
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: this machine has no CUDA device; use --device cpu")
    if "RANK" not in os.environ:
        return Processes(0, 1, torch.device(device))
    if kind == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    return Processes(dist.get_rank(), dist.get_world_size(), torch.device(device))


def lr_at(step: int, total: int, base: float, warmup: int = 0) -> float:
    """Learning rate of 0-based `step` of `total`: base * (0.1 + 0.45 (1 + cos(pi t / T))), after an optional linear warm-up."""
    rate = base * (0.1 + 0.45 * (1 + math.cos(math.pi * step / total)))
    return rate * min(1.0, (step + 1) / warmup) if warmup else rate


class BatchPlan:
    """The order of training data. Batch number n (counted over all epochs) is the same rows whenever and wherever it is asked for.

    A *global batch* is what all ranks consume together, batch_size * world rows; rank r takes every world-th row of it from r on.
    So the rows of a step depend on the global batch size only, not on how many ranks share it.
    """

    def __init__(self, num_rows: int, batch_size: int, world: int = 1, seed: int = 42, lengths: np.ndarray | None = None,
                 order: Callable[[int], np.ndarray] | None = None):
        """lengths (num_rows,): size of each row in any unit; None leaves rows unsorted.

        order(epoch) -> (num_rows,), a permutation that suits the storage; default: a uniform one.
        Raises ValueError when there are fewer rows than ranks.
        """
        if num_rows < world:
            raise ValueError(f"{num_rows} rows of data cannot feed {world} processes; start fewer, or give more data")
        assert lengths is None or len(lengths) == num_rows, (len(lengths), num_rows)
        self.num_rows, self.world, self.seed, self.lengths, self.order = num_rows, world, seed, lengths, order
        self.global_batch = batch_size * world
        full, rest = divmod(num_rows, self.global_batch)
        # A rest too small to give every rank a row joins the batch before it: no row is lost, no rank is left out.
        self.batches_per_epoch = max(1, full + (rest >= world))
        self._cached: tuple[int, list[np.ndarray]] | None = None

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The epoch's global batches, each an array of row numbers."""
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, self._arrange(epoch))
        return self._cached[1]

    def _arrange(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        order = self.order(epoch) if self.order else rng.permutation(self.num_rows)
        ends = [i * self.global_batch for i in range(self.batches_per_epoch)] + [self.num_rows]
        batches = []
        for first in range(0, self.batches_per_epoch, BUCKET_BATCHES):  # sort and shuffle within a window: reading stays local
            cuts = np.array(ends[first:first + BUCKET_BATCHES + 1])
            rows = order[cuts[0]:cuts[-1]]
            if self.lengths is not None:
                rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            parts = np.split(rows, cuts[1:-1] - cuts[0])
            batches += [parts[i] for i in rng.permutation(len(parts))]
        return batches

    def rank_batch(self, number: int, rank: int) -> list[tuple[int, int]]:
        """Batch `number` of `rank`, as (epoch, row) pairs."""
        epoch, index = divmod(number, self.batches_per_epoch)
        return [(epoch, int(row)) for row in self.epoch(epoch)[index][rank::self.world]]

    def state(self) -> dict:
        """What a resumed run compares with its own plan."""
        return {"num_rows": self.num_rows, "global_batch": self.global_batch, "batches_per_epoch": self.batches_per_epoch,
                "seed": self.seed}


class PlannedBatches(Sampler):
    """Batches `start` to `stop` of a plan for one rank, across epochs: one DataLoader lives through the whole training."""

    def __init__(self, plan: BatchPlan, rank: int, start: int, stop: int):
        self.plan, self.rank, self.start, self.stop = plan, rank, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return (self.plan.rank_batch(number, self.rank) for number in range(self.start, self.stop))


class Frontends:
    """Frozen encoders, outside the trained model. Loaded at the first batch that needs them, so text-only data needs neither."""

    def __init__(self, audio_dir: Path, vision_dir: Path, device: torch.device):
        self.audio_dir, self.vision_dir, self.device = audio_dir, vision_dir, device
        self._audio = self._vision = None

    @torch.no_grad()
    def audio(self, wavs: list[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
        """16 kHz wavs, None where a row has none -> features (B, L, 512) and lens (B,), or (None, None) when no row has any.

        FileNotFoundError names the encoder's folder and how to get it.
        """
        rows = [i for i, wav in enumerate(wavs) if wav is not None]
        if not rows:
            return None, None
        if self._audio is None:
            from model.encoders import SenseVoice
            self._audio = SenseVoice.load(self.audio_dir, self.device)
        found, lengths = self._audio.features([wavs[i] for i in rows])
        features = found.new_zeros(len(wavs), *found.shape[1:])
        lens = lengths.new_zeros(len(wavs))
        index = torch.tensor(rows, device=found.device)
        return features.index_copy(0, index, found), lens.index_copy(0, index.to(lens.device), lengths).to(found.device)

    @torch.no_grad()
    def images(self, images: list[list]) -> Tensor | None:
        """The images of each row -> features (B, N, 64, 768), zeros where a row has fewer than N; None when no row has any."""
        flat = [image for row in images for image in row]
        if not flat:
            return None
        if self._vision is None:
            from model.encoders import SigLIP2
            self._vision = SigLIP2.load(self.vision_dir, self.device)
        found = self._vision(flat)
        most = max(len(row) for row in images)
        index = torch.tensor([b * most + n for b, row in enumerate(images) for n in range(len(row))], device=found.device)
        features = found.new_zeros(len(images) * most, *found.shape[1:]).index_copy(0, index, found)
        return features.view(len(images), most, *found.shape[1:])


def rng_state(device: torch.device) -> dict:
    """Every global random state of this process, in types that `weights_only` loading accepts."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {"python": random.getstate(), "torch": torch.get_rng_state(),
            "numpy": (name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def set_rng_state(state: dict, device: torch.device) -> None:
    """Undo of `rng_state`."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_everything(seed: int) -> None:
    """Seed the global generators of an entry point (weight init, dropout); data order and augmentation have their own."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class RunLog:
    """Where a run reports: terminal, <folder>/log.csv, <folder>/loss.png, wandb. Made by the main process only.

    On resume the CSV is cut back to the checkpoint's step, so that a killed run's curve has no doubled or missing rows.
    """

    def __init__(self, folder: Path, total: int, step: int = 0, wandb_project: str | None = None, settings: dict | None = None):
        self.folder, self.total, self.csv_path = folder, total, folder / "log.csv"
        folder.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_log(self.csv_path) if int(row["step"]) <= step] if step else []
        self._start_csv(kept)
        self.bar = tqdm(total=total, initial=step, desc=folder.name, unit="step", disable=not sys.stderr.isatty())
        self.started, self.first_step = time.perf_counter(), step
        self.wandb = _start_wandb(folder, wandb_project, settings, resume=step > 0) if wandb_project else None

    def write(self, step: int, values: dict) -> None:
        """Report the averages of the steps since the last call. `values` keeps its order as the CSV's columns."""
        row = {"step": step, **values}
        self._write([row], self.csv_path, "a")
        if self.wandb is not None:
            self.wandb.log(values, step=step)
        shown = {name: f"{values[name]:.4g}" for name in ("total", "text", "audio", "lr", "grad_norm", "samples_per_s", "tokens_per_s")
                 if name in values}
        self.bar.set_postfix(shown)
        if self.bar.disable:  # no terminal: plain lines for the log file
            left = (time.perf_counter() - self.started) / max(1, step - self.first_step) * (self.total - step)
            log.info("step %d/%d  %s  eta %s", step, self.total, "  ".join(f"{k} {v}" for k, v in shown.items()),
                     tqdm.format_interval(left))

    def advance(self) -> None:
        """One step done; touches no tensor."""
        self.bar.update()

    def plot(self) -> None:
        """Draw the curves of the CSV."""
        rows = read_log(self.csv_path)
        if not rows:
            return
        from matplotlib.figure import Figure
        steps = [int(row["step"]) for row in rows]
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for name in ("total", "text", "audio"):
            axes.plot(steps, [float(row[name]) for row in rows], label=name)
        axes.set(xlabel="step", ylabel="loss", title=self.folder.name, ylim=(0, None))
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(self.folder / "loss.png", dpi=100)

    def close(self) -> None:
        self.plot()
        self.bar.close()
        if self.wandb is not None:
            self.wandb.finish()

    def _start_csv(self, rows: list[dict]) -> None:
        fresh = self.csv_path.with_suffix(".tmp")  # renamed when complete: a kill while rewriting must not cost the history
        self._write(rows, fresh, "w")
        os.replace(fresh, self.csv_path)

    def _write(self, rows: list[dict], path: Path, mode: str) -> None:
        with open(path, mode, newline="") as file:
            if not rows:
                return
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)


def read_log(path: Path) -> list[dict]:
    """Rows of a log.csv, strings by column; [] when there is none. A last row cut short by a kill is left out."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        text = file.read()
    complete = text[:text.rfind("\n") + 1]
    return list(csv.DictReader(complete.splitlines()))


def _start_wandb(folder: Path, project: str, settings: dict | None, resume: bool):
    import wandb
    known = folder / "wandb_id"
    name = known.read_text() if resume and known.is_file() else uuid.uuid4().hex[:8]
    known.write_text(name)
    return wandb.init(project=project, name=folder.name, id=name, resume="allow", dir=str(folder), config=settings)


def check_config(config: OmniConfig, tokenizer, max_seq_len: int) -> None:
    """Refuse sizes that would only fail deep inside the model (ValueError)."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}: "
                         "wrong --tokenizer_dir or --preset")
    if max_seq_len > config.max_position_embeddings:
        raise ValueError(f"--max_seq_len {max_seq_len} exceeds the model's {config.max_position_embeddings} positions")


class Meter:
    """Throughput since the last log, counted on the host: rows, tokens, padded places, and the time spent waiting for data."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.rows = self.tokens = self.places = 0
        self.waited, self.started = 0.0, time.perf_counter()

    def fetch(self, batches: Iterator[dict], count: int) -> list[dict]:
        """The next `count` batches, counted and timed."""
        began = time.perf_counter()
        fetched = [next(batches) for _ in range(count)]
        self.waited += time.perf_counter() - began
        for batch in fetched:
            self.rows += batch["num_rows"]
            self.tokens += batch["num_tokens"]
            self.places += batch["input_ids"][:, 0].numel()
        return fetched

    def figures(self, procs: Processes) -> dict:
        """Averages over all processes since `restart`, by name."""
        seconds = time.perf_counter() - self.started
        counts = torch.tensor([self.rows, self.tokens, self.places, self.waited], dtype=torch.float64).to(procs.device)
        if procs.world > 1:
            dist.all_reduce(counts)
        rows, tokens, places, waited = counts.tolist()
        return {"samples_per_s": round(rows / seconds, 2), "tokens_per_s": round(tokens / seconds, 1),
                "padding": round(1 - tokens / max(places, 1), 4), "data_wait": round(waited / procs.world / seconds, 4)}


class StopSignal:
    """SIGTERM asks for an orderly end: the loop sees `asked` and saves, instead of dying between two steps."""

    def __init__(self):
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number, frame) -> None:
        self.asked = True
