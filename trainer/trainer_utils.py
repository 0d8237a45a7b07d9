"""What every training script here needs: processes, schedule, frozen front ends, logs, random states.

- `init_distributed`: one process or torchrun's many, CUDA (nccl) or CPU (gloo).
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

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from model.config import OmniConfig

ROOT = Path(__file__).resolve().parents[1]
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
    """Join torchrun's group when started by it (one CUDA device per local rank), else a single process on `device`.

    ValueError when there is no such device.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"--device {device!r} is not a device; use cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: this machine has no CUDA device; use --device cpu")
    if "RANK" not in os.environ:
        return Processes(0, 1, torch.device(device))
    if kind == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    return Processes(dist.get_rank(), dist.get_world_size(), torch.device(device))


def mean_over_processes(x: Tensor) -> Tensor:
    """Mean of `x` over all processes; no gradient passes."""
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def lr_at(step: int, total: int, base: float, warmup: int = 0) -> float:
    """Learning rate of 0-based `step` of `total`: base * (0.1 + 0.45 (1 + cos(pi t / T))), after an optional linear warm-up."""
    rate = base * (0.1 + 0.45 * (1 + math.cos(math.pi * step / total)))
    return rate * min(1.0, (step + 1) / warmup) if warmup else rate


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
