"""Supervised training of MiniMind-O: T2A, A2A and I2T alike; what a stage learns is chosen by --mode and --freeze_backbone.

- One process, or torchrun's many; CUDA or CPU; the same losses either way.
- A run leaves <save_dir>/<save_weight>_<hidden>[_moe].pth (fp16, to use), ..._resume.pth (everything, to continue exactly)
  and a folder of that name with log.csv and loss.png.
- The step never waits for the device: losses gather there and are fetched every --log_interval steps.
- A step whose gradients are not finite is skipped on the device, counted, and its rows are looked at one by one and named.
- With --eval_interval, rows that are never trained on are evaluated, and whoever calls `main` may pass a function that speaks.

    cd trainer && torchrun --nproc_per_node 1 train_sft_omni.py --data_path ../dataset/sft_t2a_mini.parquet --from_weight llm
    python -m trainer.train_sft_omni --preset nano --from_weight none --data_path out/nano/data/t2a_train
"""
import argparse
import contextlib
import logging
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works by path and from this folder too

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from model.checkpoint import load_strict, load_weights, remove_leftovers, resume_path, save_atomic, save_model, weights_path  # noqa: E402
from model.hardware import keep_freed_memory  # noqa: E402
from model.model_minimind import MoE  # noqa: E402
from model.model_omni import MiniMindOmni, init_talker_from_thinker, label_counts  # noqa: E402
from model.optimizers import adamw_and_muon  # noqa: E402
from trainer.attention_guide import AttentionGuide, count_letters  # noqa: E402
from trainer.loss_model import LOSSES, TARGETS, LossModel  # noqa: E402
from trainer.options import DTYPES, build_config, input_path, load_tokenizer, parse, shareable  # noqa: E402
from trainer.throughput import Meter, ModelFlops, peak_flops  # noqa: E402
from trainer.trainer_data import open_data  # noqa: E402
from trainer.trainer_utils import (ROOT, Frontends, Processes, RunLog, StopSignal, init_distributed, lr_at,  # noqa: E402
                                   rng_state, seed_everything, set_rng_state)

NEW_PARTS = ("talker.", "audio_proj.", "vision_proj.")  # all that a weight may lack: a MiniMind language model has none of them
NAMED_BATCHES = 4  # of the batches that were skipped, so many are searched for the rows to blame
log = logging.getLogger("trainer")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return parse(__doc__, argv)


def load_start(model: MiniMindOmni, args: argparse.Namespace) -> None:
    """Load --from_weight. Parts it lacks stay random, but a missing Talker begins as a copy of the Thinker's last layers."""
    if args.from_weight == "none":
        return
    path = Path(args.from_weight)
    if path.suffix != ".pth":
        folders = [Path(args.save_dir), ROOT / "out"]
        path = next((p for p in (weights_path(f, args.from_weight, model.config) for f in folders) if p.is_file()),
                    weights_path(folders[0], args.from_weight, model.config))
    absent = load_strict(model, load_weights(path), allow_missing_prefixes=NEW_PARTS)
    if absent:
        log.info("%s has no %s: these start anew", path, ", ".join(sorted(absent)))
    if "talker." in absent:
        try:
            init_talker_from_thinker(model)
        except ValueError as error:  # a Talker of another width has nothing to copy: it starts random
            log.warning("%s", error)


def set_trainable(model: MiniMindOmni, mode: str, freeze_backbone: str) -> None:
    """mode "audio_proj" / "vision_proj": that projector alone; "spelling": the audio projector. "thinker": both, and the Thinker above
    the bridge. "talker": everything less the Thinker and the projectors. "all": everything, less the Thinker as freeze_backbone says."""
    config = model.config
    last = f"model.layers.{config.num_hidden_layers - 1}."
    above = ("audio_proj.", "vision_proj.", "model.norm.",
             *(f"model.layers.{i}." for i in range(config.bridge_layer + 1, config.num_hidden_layers)))
    for name, parameter in model.named_parameters():
        if mode == "thinker":
            parameter.requires_grad_(name.startswith(above))
        elif mode == "talker":  # with hearing and sight left as they are
            parameter.requires_grad_(not name.startswith(("model.", "audio_proj.", "vision_proj.")))
        elif mode != "all":
            parameter.requires_grad_(name.startswith("audio_proj." if mode == "spelling" else f"{mode}."))
        elif name.startswith("model.") and freeze_backbone != "none":  # the tied lm_head goes with the embedding
            parameter.requires_grad_(freeze_backbone == "last1" and name.startswith(last))
        else:
            parameter.requires_grad_(True)


def checkpoint_blocks(model: MiniMindOmni) -> None:
    """From now on a block keeps its input only, and computes the rest again on the way back."""
    for block in (*model.model.layers, *model.talker.layers):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


class Trainer:
    """A run: model, optimizer and position. `fit` trains to the end, `save` and `load` make it continue exactly.

    speak(model, path): called after each evaluation, with the model in eval mode, to write a spoken sample to path (.wav).
    """

    def __init__(self, args: argparse.Namespace, procs: Processes, speak: Callable[[MiniMindOmni, Path], None] | None = None):
        self.args, self.procs, self.device, self.speak = args, procs, procs.device, speak
        if self.device.type == "cpu" and "kept_memory" not in args.without:
            keep_freed_memory()
        seed_everything(args.seed)  # the same weights on every rank
        tokenizer = load_tokenizer(args)
        self.config = build_config(args, tokenizer)
        self.weights = weights_path(args.save_dir, args.save_weight, self.config)
        self.resume_file = resume_path(args.save_dir, args.save_weight, self.config)
        self.data = open_data([input_path(p) for p in args.data_path], tokenizer, self.config, args, procs)
        self.frontends = Frontends(input_path(args.audio_encoder_dir), input_path(args.vision_dir), self.device)
        self.model = MiniMindOmni(self.config)
        self.resuming = bool(args.from_resume) and bool(self.checkpoints())
        if not self.resuming:
            load_start(self.model, args)
        self.model.to(self.device).train()
        set_trainable(self.model, args.mode, args.freeze_backbone)
        for module in self.model.modules():
            if isinstance(module, MoE):
                module.grouped = "grouped_experts" not in args.without
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        matrices = [p for n, p in self.model.named_parameters()
                    if args.optimizer == "muon" and p.requires_grad and p.ndim == 2 and (".layers." in n or "_proj.mlp." in n)]
        self.optimizer, self.muon = adamw_and_muon(self.trained, matrices, args.learning_rate, "fused_adamw" not in args.without)
        self.dtype = DTYPES[args.dtype or ("bfloat16" if self.device.type == "cuda" else "float32")]
        half = self.dtype == torch.float16
        # Only fp16 needs scaling; at a scale of 1 the scaler still is torch's way to skip non-finite steps without a sync.
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0 ** 16 if half else 1.0,
                                           growth_interval=2000 if half else 2 ** 30, backoff_factor=0.5 if half else 1 - 1e-12)
        guide = None
        if args.guided_attention:
            guide = AttentionGuide(self.model, count_letters(tokenizer, self.config.vocab_size).to(self.device))
        weights = torch.tensor(args.codebook_weights, device=self.device) if args.codebook_weights else None
        self.loss_model = LossModel(self.model, "fused_loss" not in args.without, guide, args.guided_attention, weights,
                                    args.spelling, args.mode == "spelling")
        if args.use_compile:
            self.loss_model.compile_parts()
        if args.gradient_checkpointing:  # after compiling: what is computed again is a block's graph
            checkpoint_blocks(self.model)
        self.net = self._wrap()
        self.step = self.batches = self.skipped_rows = self.skipped_steps = self.bad_in_row = 0
        self.recent: list[tuple[Tensor, range]] = []  # of each step since the last log: was it finite, and its batches
        self.window = torch.zeros(len(LOSSES) + 3, device=self.device)  # sums since the last log: losses, grad norm, good and bad steps
        self.count_steps()
        self.stop = StopSignal()
        if procs.main:
            for file in (self.weights, self.weights.with_suffix(".json"), self.resume_file):
                remove_leftovers(file)
        seed_everything(args.seed + procs.rank)  # dropout differs between ranks
        if self.resuming:
            self.load()

    def count_steps(self) -> None:
        args = self.args
        self.total_batches = args.max_steps * args.accumulation_steps if args.max_steps else self.data.plan.first_of(args.epochs)
        self.total_steps = math.ceil(self.total_batches / args.accumulation_steps)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer] if self.muon is None else [self.optimizer, self.muon]

    def _wrap(self) -> nn.Module:
        if self.procs.world == 1:
            return self.loss_model
        # A projector gets no gradient from a batch without its input, nor the speaker's without speakers; DDP must be told to expect
        # that. Training a projector alone, every parameter always has a gradient (see _inputs).
        return DistributedDataParallel(self.loss_model, device_ids=[self.device] if self.device.type == "cuda" else None,
                                       find_unused_parameters=self.args.mode in ("all", "thinker", "talker"))

    def _inputs(self, batch: dict) -> dict:
        """Model inputs on the device: ids, speaker, and the frozen encoders' features."""
        audio, lens = self.frontends.audio(batch["wavs"])
        images = None if self.args.mode == "spelling" else self.frontends.images(batch["images"])
        for features, width, folder in ((audio, self.config.audio_hidden_size, self.frontends.audio_dir),
                                        (images, self.config.image_hidden_size, self.frontends.vision_dir)):
            if features is not None and features.shape[-1] != width:
                raise ValueError(f"{folder} gives features of width {features.shape[-1]}, the model expects {width}: "
                                 "wrong folder or --preset")
        rows = len(batch["input_ids"])
        # A projector trained alone on a batch without its input: a feature that is placed nowhere keeps the loss's graph.
        if self.args.mode in ("audio_proj", "spelling") and audio is None:
            audio = torch.zeros(rows, 1, self.config.audio_hidden_size, device=self.device)
            lens = torch.zeros(rows, dtype=torch.long, device=self.device)
        if self.args.mode == "vision_proj" and images is None:
            images = torch.zeros(rows, 1, self.config.image_token_len, self.config.image_hidden_size, device=self.device)
        direct = {name: batch[name].to(self.device, non_blocking=True) for name in ("input_ids", "spk_emb", "positions")}
        # A frozen Thinker learns nothing from its words, nor do frozen projectors: half of it need not run (its text loss reads 0).
        frozen = self.args.mode in ("all", "talker") and self.args.freeze_backbone == "all" and not self.config.use_moe
        nothing_projected = self.args.mode == "talker" or audio is None and images is None
        return dict(direct, audio_features=audio, audio_lens=lens, image_features=images,
                    speech_only=frozen and nothing_projected, text_only=self.args.mode == "thinker")

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def eagerly(self) -> contextlib.AbstractContextManager:
        """For a few forwards beside the training, which are not worth a graph of their own."""
        return torch.compiler.set_stance("force_eager") if self.args.use_compile else contextlib.nullcontext()

    def _counts(self, labels: list[Tensor]) -> Tensor | None:
        """Targets per process, averaged over all: divided by these, the mean of the processes' losses is that of the whole batch."""
        if self.procs.world == 1:
            return None
        counts = label_counts(*labels)
        dist.all_reduce(counts)
        return counts.clamp(min=1) / self.procs.world

    def train_step(self, micro_batches: list[dict]) -> None:
        """One optimizer step over the accumulated batches. Reads nothing back from the device."""
        rate = lr_at(self.step, self.total_steps, self.args.learning_rate, self.args.warmup_steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        sums = torch.zeros(len(LOSSES), device=self.device)
        for i, batch in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            wait = self.net.no_sync() if self.procs.world > 1 and not last else contextlib.nullcontext()
            labels = [batch[name].to(self.device, non_blocking=True) for name in TARGETS]
            inputs, counts = self._inputs(batch), self._counts(labels[:2])
            with wait:
                with self.autocast():
                    loss, parts = self.net(inputs, *labels, counts)
                self.scaler.scale(loss / len(micro_batches)).backward()
            sums += parts / len(micro_batches)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        self._skip_all_or_none()
        norm = nn.utils.clip_grad_norm_(self.trained, self.args.grad_clip)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        good = norm.isfinite()  # the same on every rank: gradients are already averaged
        figures = torch.cat([sums, norm[None]]).where(good, 0)
        self.window += torch.cat([figures, torch.stack([good, ~good]).float()])
        self.recent.append((good, range(self.batches, self.batches + len(micro_batches))))
        self.step += 1
        self.batches += len(micro_batches)
        self.skipped_rows += sum(batch["num_skipped"] for batch in micro_batches)

    def _skip_all_or_none(self) -> None:
        """What is not finite among the gradients of one optimizer keeps the other from stepping, too: clipping has mixed them all."""
        found = [flag for optimizer in self.optimizers for flag in self.scaler._found_inf_per_device(optimizer).values()]
        worst = torch.stack(found).amax(0)
        for flag in found:
            flag.copy_(worst)

    def fit(self) -> bool:
        """Train to the end (True), or until SIGTERM asks for a stop (False): the run is then saved, ready for --from_resume 1."""
        args, last_saved = self.args, None
        report = None
        if self.procs.main:
            report = RunLog(self.weights.with_suffix(""), self.total_steps, self.step, args.wandb_project if args.use_wandb else None,
                            vars(args), args.use_tensorboard)
        meter = Meter(ModelFlops(self.model), peak_flops(self.device, self.dtype))
        batches, stopped = iter(self.data.loader(self.batches, self.total_batches)), False
        while self.step < self.total_steps and not stopped:
            count = min(args.accumulation_steps, self.total_batches - self.batches)
            self.train_step(meter.fetch(batches, count))
            stopped = self.stop.asked and self.procs.world == 1
            if report:
                report.advance()
            ends = self.step == self.total_steps
            if self.step % args.log_interval == 0 or ends:
                stopped = self.read_window(meter, report)
            if self.step % args.save_interval == 0 or ends:  # first: an evaluation that fails must not cost what was learnt
                self.save()
                last_saved = self.step
            if args.eval_interval and (self.step % args.eval_interval == 0 or ends):
                self.evaluate(report)
                meter.restart()
            if report and self.step % args.save_interval == 0:
                report.plot()
        if last_saved != self.step:
            self.save()
        if report:
            report.close()
            log.info("%s %s: step %d of %d, rows skipped %d, steps skipped %d", "stopped and saved" if stopped else "finished",
                     self.weights, self.step, self.total_steps, self.skipped_rows, self.skipped_steps)
        return not stopped

    def read_window(self, meter: Meter, report: RunLog | None) -> bool:
        """Report the averages over all ranks since the last log, the one place that waits for the device. True: stop was asked."""
        host = torch.tensor([self.skipped_rows, self.stop.asked], device=self.device, dtype=torch.float32)
        figures = torch.cat([self.window, host])
        if self.procs.world > 1:
            dist.all_reduce(figures)  # also how the ranks agree to stop at the same step
        *sums, good, bad, skipped_rows, stop = figures.tolist()
        self.window.zero_()
        self.skipped_steps += round(bad / self.procs.world)
        speed = meter.figures(self.procs)
        if speed["samples_per_s"] == 0:
            raise ValueError(f"every row since the last log was broken ({int(skipped_rows)} so far): see the warnings above, and check "
                             "that --preset and --tokenizer_dir fit the data")
        means = {name: value / max(good, 1) for name, value in zip((*LOSSES, "grad_norm"), sums)}
        values = {"epoch": round(self.data.plan.position(self.batches), 4), "lr": self.optimizer.param_groups[0]["lr"], **means,
                  **speed, "skipped_rows": int(skipped_rows), "skipped_steps": self.skipped_steps}
        if report:
            report.write(self.step, values)
        self.check_steps()
        meter.restart()
        return stop > 0

    def check_steps(self) -> None:
        """Name the rows of the steps that were skipped since the last log. ValueError when too many came one after the other."""
        finite = torch.stack([good for good, _ in self.recent]).tolist() if self.recent else []
        bad = [number for good, (_, batches) in zip(finite, self.recent) if not good for number in batches]
        for good in finite:
            self.bad_in_row = 0 if good else self.bad_in_row + 1
            if self.bad_in_row >= self.args.max_bad_steps:
                break
        self.recent.clear()
        blamed = [place for number in bad[:NAMED_BATCHES] for place in self.blame(number)]
        if blamed:
            log.warning("no finite loss from %s", "; ".join(blamed))
        if self.bad_in_row >= self.args.max_bad_steps:
            raise ValueError(f"{self.bad_in_row} steps in a row had no finite loss or gradient (--max_bad_steps): "
                             f"{'; '.join(blamed) or 'no single row is to blame: lower --learning_rate or --grad_clip'}")

    @torch.no_grad()
    def blame(self, number: int) -> list[str]:
        """Rows of this rank's batch `number` whose loss, each for itself, is not finite with today's weights."""
        blamed = []
        for key in self.data.plan.rank_batch(number, self.procs.rank):
            batch, file, row = self.data.row_alone(key)
            with self.autocast(), self.eagerly():
                loss, _ = self.loss_model(self._inputs(batch), *(batch[name].to(self.device) for name in TARGETS))
            if not loss.isfinite():
                blamed.append(f"row {row} of {file}")
        return blamed

    @torch.no_grad()
    def evaluate(self, report: RunLog | None) -> None:
        """Losses of the held-out rows, averaged over all, and a spoken sample. Training goes on as if this had not been."""
        random_states = rng_state(self.device)
        self.model.eval()
        sums, rows = torch.zeros(len(LOSSES), device=self.device), 0
        for batch in self.data.held_out_batches():
            labels = [batch[name].to(self.device) for name in TARGETS]
            with self.autocast(), self.eagerly():
                _, parts = self.loss_model({**self._inputs(batch), "speech_only": False}, *labels)
            sums += parts * batch["num_rows"]
            rows += batch["num_rows"]
        totals = torch.cat([sums, sums.new_tensor([rows])])
        if self.procs.world > 1:
            dist.all_reduce(totals)
        if report:
            *sums, rows = totals.tolist()
            report.write_eval(self.step, {name: value / max(1, rows) for name, value in zip(LOSSES, sums)})
            if self.speak is not None:
                with self.eagerly():
                    self.speak(self.model, report.folder / f"sample_{self.step:06d}.wav")
        self.model.train()
        set_rng_state(random_states, self.device)

    def save(self) -> None:
        """Write the resume checkpoint, then the fp16 weights. Each is replaced atomically; a kill in between leaves both readable."""
        mine = {"rng": rng_state(self.device), "skipped_rows": self.skipped_rows, "window": self.window.cpu(),
                "recent": [(good.cpu(), [batches.start, batches.stop]) for good, batches in self.recent]}
        ranks = [mine]
        if self.procs.world > 1:
            ranks = [None] * self.procs.world
            dist.all_gather_object(ranks, mine)
        if not self.procs.main:
            return
        position = {"step": self.step, "epoch": self.data.plan.position(self.batches)}
        save_atomic({**position, "total_steps": self.total_steps, "batches": self.batches, "plan": self.data.plan.state(),
                     "position": self.data.position(self.batches),
                     "skipped_steps": self.skipped_steps, "bad_in_row": self.bad_in_row,
                     "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                     "muon": self.muon and self.muon.state_dict(), "scaler": self.scaler.state_dict(),
                     "ranks": ranks, "args": vars(self.args), "config": self.config.to_dict()}, self.resume_file)
        self.keep_older()
        save_model(self.model, self.weights, {**position, "args": shareable(self.args)})

    def checkpoints(self) -> list[Path]:
        """The resume checkpoints there are: the latest under its own name, then those that --keep_last kept, newest first."""
        older = self.resume_file.parent.glob(f"{self.resume_file.stem}_step*.pth")
        return [path for path in (self.resume_file, *sorted(older, key=lambda path: -path.stat().st_mtime_ns)) if path.is_file()]

    def keep_older(self) -> None:
        """Give the checkpoint just written a second name (a hard link, not a copy), and drop those that --keep_last does not keep."""
        kept = self.args.keep_last if self.args.keep_last > 1 else 0  # the newest of them is the latest itself
        if kept:
            name = self.resume_file.with_name(f"{self.resume_file.stem}_step{self.step:08d}.pth")
            name.unlink(missing_ok=True)
            name.hardlink_to(self.resume_file)
        for path in self.checkpoints()[1 + kept:]:
            path.unlink()

    def newest_readable(self) -> dict:
        """The newest checkpoint that can be read; one that cannot is named. ValueError when none can."""
        *newer, oldest = self.checkpoints()
        for path in newer:
            try:
                return load_weights(path)
            except ValueError as error:
                log.warning("%s; trying the one before it", error)
        return load_weights(oldest)

    def load(self) -> None:
        """Continue from the newest readable checkpoint: exactly, if the data and the global batch are the same; with another number of
        processes or another batch, at the rows that the epoch has not had yet.

        Raises ValueError when the checkpoint is of another model or another stage.
        """
        state = self.newest_readable()
        config, stage = self.config.to_dict(), ("mode", "freeze_backbone", "optimizer")
        differing = [f"{k}: {v!r} there, {config.get(k)!r} here" for k, v in state["config"].items() if config.get(k) != v]
        differing += [f"{k}: {state['args'][k]!r} there, {getattr(self.args, k)!r} here" for k in stage
                      if state["args"][k] != getattr(self.args, k)]
        if differing:
            raise ValueError(f"{self.resume_file} is of another run ({'; '.join(differing)}); use its settings, another --save_weight, "
                             "or --from_resume 0")
        load_strict(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.muon is not None:
            self.muon.load_state_dict(state["muon"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.batches, self.skipped_steps = state["step"], state["batches"], state["skipped_steps"]
        self.bad_in_row = state.get("bad_in_row", 0)
        plan = self.data.plan.state()
        found = self.data.go_on_from(state["position"], plan == state["plan"]) if "position" in state else None
        if plan != state["plan"]:
            self.batches = self.data.plan.number_at(state["epoch"]) if found is None else found
            self.count_steps()
            log.warning("data or global batch changed (%s -> %s): continuing at epoch %.3f, not bit for bit; %s", state["plan"], plan,
                        state["epoch"], "some rows may come twice or not at all" if found is None else "each row still comes once an epoch")
        each = self.args.accumulation_steps
        if self.args.max_steps:  # exactly so many steps, whatever a step is now
            self.total_batches = self.batches + max(0, self.total_steps - self.step) * each
        else:  # as many are left as the batches that are left make
            self.step = self.total_steps - math.ceil((self.total_batches - self.batches) / each)
        if state["args"]["accumulation_steps"] != each:
            log.warning("--accumulation_steps changed (%d -> %d): continuing, not bit for bit", state["args"]["accumulation_steps"], each)
        if len(state["ranks"]) == self.procs.world:
            mine = state["ranks"][self.procs.rank]
            set_rng_state(mine["rng"], self.device)
            self.skipped_rows = mine["skipped_rows"]
            self.window.copy_(mine["window"])
            self.recent = [(good.to(self.device), range(*batches)) for good, batches in mine.get("recent", [])]
        else:
            self.skipped_rows = sum(r["skipped_rows"] for r in state["ranks"]) if self.procs.main else 0
        log.info("continuing %s at step %d of %d", self.resume_file, self.step, self.total_steps)


def main(argv: list[str] | None = None, speak: Callable[[MiniMindOmni, Path], None] | None = None) -> int:
    """0 at the end of a training, or of an orderly stop; 2 for wrong input or a full disk, with one line that says so."""
    args, procs = parse_args(argv), None
    try:
        procs = init_distributed(args.device)
        logging.basicConfig(level=logging.INFO if procs.main else logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
        Trainer(args, procs, speak).fit()
    except (ValueError, OSError) as error:
        if procs and not procs.main:
            raise
        log.error("%s", error)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
