"""What every training script here needs: processes, schedule, data order, frozen front ends, logs, random states.

- `init_distributed`: one process or torchrun's many, CUDA (nccl) or CPU (gloo).
- `BatchPlan`: which rows form which batch, a pure function of (seed, epoch): every row exactly once per epoch, ranks disjoint,
  any batch reachable by its number (that is what makes resuming exact), rows of similar length together.
- `Frontends`: the frozen audio and image encoders, loaded when the first batch needs them; the trained model only sees features.
- `RunLog`: progress on the terminal, CSV, a PNG of the curves; wandb and TensorBoard when asked for.
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


@torch.compiler.disable  # the ranks wait for each other here, which is no part of a graph
def mean_over_processes(x: Tensor) -> Tensor:
    """Mean of `x` over all processes; no gradient passes."""
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def lr_at(step: int, total: int, base: float, warmup: int = 0) -> float:
    """Learning rate of 0-based `step` of `total`: base * (0.1 + 0.45 (1 + cos(pi t / T))), after an optional linear warm-up."""
    rate = base * (0.1 + 0.45 * (1 + math.cos(math.pi * step / total)))
    return rate * min(1.0, (step + 1) / warmup) if warmup else rate


class BatchPlan:
    """The order of training data. Batch number n (counted over all epochs) is the same rows whenever and wherever it is asked for.

    A *global batch* is what all ranks consume together: batch_size * world rows, or as many as a budget of positions allows. Rank r
    takes every world-th row of it from r on. So the rows of a step depend on the global batch only, not on how many ranks share it.
    """

    def __init__(self, num_rows: int, batch_size: int, world: int = 1, seed: int = 42, lengths: np.ndarray | None = None,
                 order: Callable[[int], np.ndarray] | None = None, max_tokens: int | None = None):
        """lengths: size of each row in any unit (with max_tokens: in positions), by row number; None leaves rows unsorted.

        order(epoch) -> (num_rows,), a permutation that suits the storage; default: a uniform one.
        max_tokens: instead of batch_size rows, a rank gets as many as together fill so many positions, padding included.
        Raises ValueError when there are fewer rows than ranks, or max_tokens without lengths.
        """
        if num_rows < world:
            raise ValueError(f"{num_rows} rows of data cannot feed {world} processes; start fewer, or give more data")
        if max_tokens and lengths is None:
            raise ValueError("--max_tokens needs the rows' lengths, and these files are too big to scan; use --batch_size alone")
        self.num_rows, self.world, self.seed, self.lengths, self.order, self.max_tokens = num_rows, world, seed, lengths, order, max_tokens
        self.global_batch = batch_size * world
        self.batches_per_epoch = self._count(num_rows)  # under a budget it differs from epoch to epoch: see first_of
        self._firsts = [0]
        self._cached: tuple[int, list[np.ndarray]] | None = None
        self.begun: tuple[int, np.ndarray] | None = None  # an epoch that another plan began, and the rows it went through

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The epoch's global batches, each an array of row numbers."""
        if self._cached is None or self._cached[0] != epoch:
            order = self.order(epoch) if self.order else np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
            batches = self._arrange(epoch, order)
            if self.begun and self.begun[0] == epoch:  # what is left makes the epoch's last batches; the first ones are empty
                left = self._arrange(epoch, order[~np.isin(order, self.begun[1])])
                batches = [order[:0]] * (len(batches) - len(left)) + left
            self._cached = (epoch, batches)
        return self._cached[1]

    def go_on_from(self, epoch: int, rows: np.ndarray) -> int:
        """An epoch was begun with other batches and went through `rows`: it now holds the others only. Returns its next batch's number.

        Of very few rows some rank may get none.
        """
        self.begun, self._firsts, self._cached = (epoch, rows), [0], None
        return self.first_of(epoch) + sum(len(batch) == 0 for batch in self.epoch(epoch))

    def gone_through(self, number: int) -> tuple[int, np.ndarray]:
        """(epoch of batch `number`, rows that the epoch went through before it)."""
        epoch, index = self.locate(number)
        before = [self.begun[1]] if self.begun and self.begun[0] == epoch else []
        return epoch, np.concatenate([np.empty(0, np.int64), *before, *self.epoch(epoch)[:index]])

    def first_of(self, epoch: int) -> int:
        """Number of the epoch's first batch."""
        if not self.max_tokens:
            return epoch * self.batches_per_epoch
        while len(self._firsts) <= epoch:
            self._firsts.append(self._firsts[-1] + len(self.epoch(len(self._firsts) - 1)))
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

    def _count(self, num_rows: int) -> int:
        """Batches of so many rows. A rest too small to give every rank a row joins the batch before it: none is lost or left out."""
        full, rest = divmod(num_rows, self.global_batch)
        return max(min(1, num_rows), full + (rest >= self.world))

    def _arrange(self, epoch: int, order: np.ndarray) -> list[np.ndarray]:
        """Rows in the order they are read -> batches."""
        rng = np.random.default_rng([self.seed, epoch])
        count, batches = self._count(len(order)), []
        ends = [i * self.global_batch for i in range(count)] + [len(order)]
        for first in range(0, count, BUCKET_BATCHES):  # sort and shuffle within a window: reading stays local
            cuts = np.array(ends[first:first + BUCKET_BATCHES + 1])
            rows = order[cuts[0]:cuts[-1]]
            if self.lengths is not None:
                rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            parts = np.split(rows, self._cuts(self.lengths[rows]) if self.max_tokens else cuts[1:-1] - cuts[0])
            batches += [parts[i] for i in rng.permutation(len(parts))]
        return batches

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

    def rank_batch(self, number: int, rank: int) -> list[tuple[int, int]]:
        """Batch `number` of `rank`, as (epoch, row) pairs."""
        epoch, index = self.locate(number)
        return [(epoch, int(row)) for row in self.epoch(epoch)[index][rank::self.world]]

    def state(self) -> dict:
        """What a resumed run compares with its own plan."""
        return {"num_rows": self.num_rows, "global_batch": self.global_batch, "batches_per_epoch": self.batches_per_epoch,
                "seed": self.seed, **({"max_tokens": self.max_tokens, "world": self.world} if self.max_tokens else {})}


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
        self.audio_encoder = self.image_encoder = None

    @torch.no_grad()
    def audio(self, wavs: list[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
        """16 kHz wavs, None where a row has none -> features (B, L, 512) and lens (B,), or (None, None) when no row has any.

        FileNotFoundError names the encoder's folder and how to get it.
        """
        rows = [i for i, wav in enumerate(wavs) if wav is not None]
        if not rows:
            return None, None
        if self.audio_encoder is None:
            from model.encoders import SenseVoice
            self.audio_encoder = SenseVoice.load(self.audio_dir, self.device)
        found, lengths = self.audio_encoder.features([wavs[i] for i in rows])
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
        if self.image_encoder is None:
            from model.encoders import SigLIP2
            self.image_encoder = SigLIP2.load(self.vision_dir, self.device)
        found = self.image_encoder(flat)
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
    """Where a run reports: terminal, <folder>/log.csv, eval.csv and loss.png, wandb, TensorBoard. Made by the main process only.

    On resume the CSV is cut back to the checkpoint's step, so that a killed run's curve has no doubled or missing rows.
    """

    def __init__(self, folder: Path, total: int, step: int = 0, wandb_project: str | None = None, settings: dict | None = None,
                 tensorboard: bool = False):
        self.folder, self.total, self.csv_path, self.eval_path = folder, total, folder / "log.csv", folder / "eval.csv"
        folder.mkdir(parents=True, exist_ok=True)
        for path in (self.csv_path, self.eval_path):
            self._start_csv(path, [row for row in read_log(path) if int(row["step"]) <= step] if step else [])
        self.bar = tqdm(total=total, initial=step, desc=folder.name, unit="step", disable=not sys.stderr.isatty())
        self.started, self.first_step = time.perf_counter(), step
        self.wandb = _start_wandb(folder, wandb_project, settings, resume=step > 0) if wandb_project else None
        self.board = None
        if tensorboard:
            from tensorboardX import SummaryWriter
            self.board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict) -> None:
        """Report the averages of the steps since the last call. `values` keeps its order as the CSV's columns."""
        self._write([{"step": step, **values}], self.csv_path, "a")
        self._publish(step, values)
        shown = {name: f"{values[name]:.4g}" for name in ("total", "text", "audio", "lr", "grad_norm", "samples_per_s", "tokens_per_s",
                                                          "mfu", "data_wait") if name in values}
        self.bar.set_postfix(shown)
        if self.bar.disable:  # no terminal: plain lines for the log file
            left = (time.perf_counter() - self.started) / max(1, step - self.first_step) * (self.total - step)
            log.info("step %d/%d  %s  eta %s", step, self.total, "  ".join(f"{k} {v}" for k, v in shown.items()),
                     tqdm.format_interval(left))

    def write_eval(self, step: int, values: dict) -> None:
        """Report figures of the held-out rows: in eval.csv, and elsewhere as eval/<name>."""
        self._write([{"step": step, **values}], self.eval_path, "a")
        self._publish(step, {f"eval/{name}": value for name, value in values.items()})
        log.info("step %d  held-out rows: %s", step, "  ".join(f"{name} {values[name]:.4g}" for name in ("total", "text", "audio")))

    def _publish(self, step: int, values: dict) -> None:
        if self.wandb is not None:
            self.wandb.log(values, step=step)
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def advance(self) -> None:
        """One step done; touches no tensor."""
        self.bar.update()

    def plot(self) -> None:
        """Draw the curves of both CSVs."""
        rows, held_out = read_log(self.csv_path), read_log(self.eval_path)
        if not rows:
            return
        from matplotlib.figure import Figure
        steps = [int(row["step"]) for row in rows]
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for name in ("total", "text", "audio"):
            line, = axes.plot(steps, [float(row[name]) for row in rows], label=name)
            if held_out:
                axes.plot([int(row["step"]) for row in held_out], [float(row[name]) for row in held_out], "o--", color=line.get_color(),
                          label=f"{name}, held-out rows")
        axes.set(xlabel="step", ylabel="loss", title=self.folder.name, ylim=(0, None))
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(self.folder / "loss.png", dpi=100)

    def close(self) -> None:
        self.plot()
        self.bar.close()
        if self.wandb is not None:
            self.wandb.finish()
        if self.board is not None:
            self.board.close()

    def _start_csv(self, path: Path, rows: list[dict]) -> None:
        if not rows:
            path.unlink(missing_ok=True)
            return
        fresh = path.with_suffix(".tmp")  # renamed when complete: a kill while rewriting must not cost the history
        self._write(rows, fresh, "w")
        os.replace(fresh, path)

    def _write(self, rows: list[dict], path: Path, mode: str) -> None:
        with open(path, mode, newline="") as file:
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


class StopSignal:
    """SIGTERM asks for an orderly end: the loop sees `asked` and saves, instead of dying between two steps."""

    def __init__(self):
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number, frame) -> None:
        self.asked = True
