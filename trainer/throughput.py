"""How fast a training runs, and what share of the machine it uses: samples, positions and model FLOPs per second.

- MFU counts what the model must compute (Chowdhery et al. 2022, appendix B): positions that are not padding, causal attention at half
  price, logits at the targets only, the chosen experts only. Recomputed activations and the frozen encoders do not count.
- The peak is the data sheet's dense rate where the GPU is known, else a large matrix product's, measured here.
"""
import time
from functools import lru_cache
from typing import Iterator

import torch
import torch.distributed as dist

from model.model_minimind import MoE
from model.model_omni import MiniMindOmni
from trainer.trainer_utils import Processes

# dense bf16 and fp16 tensor-core rates by a part of the device's name; a GeForce multiplies at half its rate when it sums in fp32
PEAK_FLOPS = (("H200", 989e12), ("H100 PCIe", 756e12), ("H100", 989e12), ("A100", 312e12), ("L40S", 362e12), ("RTX 4090", 165e12),
              ("RTX 3090", 71e12))


@lru_cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second that `device` is able to in products of `dtype`."""
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        known = [peak for part, peak in PEAK_FLOPS if part in name]
        if known:
            return known[0]
    size = 512 if device.type == "cpu" else 8192
    a, b = torch.ones(2, size, size, device=device, dtype=dtype)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        c = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    del c
    return 2 * size ** 3 / min(times[1:])


class ModelFlops:
    """FLOPs of a training step by what its batch holds: `per_token`, `per_target` (the heads) and `per_pair`.

    A row of T positions has T^2 pairs, of which causal attention needs half.
    """

    def __init__(self, model: MiniMindOmni):
        thinker, talker = model.model, model.talker
        # one product forward, one back to the input, one for the weight's gradient
        trains_thinker, trains_talker = (any(p.requires_grad for p in part.parameters()) for part in (thinker, talker))
        passes = trains_thinker or not trains_talker  # else a frozen Thinker, of which the half before the bridge is enough
        talks = trains_talker or not trains_thinker  # --mode thinker leaves it out
        factor, factor_talker = 1 + passes + trains_thinker, talks * (2 + trains_talker)
        layers = thinker.layers if passes else thinker.layers[:thinker.bridge_layer + 1]
        inputs = torch.nn.ModuleList([talker.codec_proj, talker.embed_proj])
        self.per_token = 2 * (factor * matrices(layers) + factor_talker * (matrices(talker.layers) + matrices(inputs)))
        self.per_target = 2 * (passes * factor * model.lm_head.weight.numel() + factor_talker * matrices(talker.lm_head))
        self.per_pair = 2 * ((1 + 2 * passes) * model.config.hidden_size * len(layers)
                             + 3 * talks * model.config.talker_hidden_size * len(talker.layers))


def matrices(module: torch.nn.Module) -> int:
    """Numbers in the matrices a position meets in `module`; of experts, as many as it is sent to."""
    if isinstance(module, MoE):
        return module.gate.weight.numel() + sum(map(matrices, module.experts)) * module.top_k // len(module.experts)
    own = sum(p.numel() for p in module.parameters(recurse=False) if p.ndim == 2)
    return own + sum(map(matrices, module.children()))


class Meter:
    """Throughput since the last log, counted on the host: rows, tokens, padded places, FLOPs, and the time spent waiting for data."""

    def __init__(self, flops: ModelFlops, peak: float):
        self.flops, self.peak = flops, peak
        self.restart()

    def restart(self) -> None:
        self.rows = self.tokens = self.places = self.work = 0
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
            self.work += (self.flops.per_token * batch["num_tokens"] + self.flops.per_target * batch["num_targets"]
                          + self.flops.per_pair * batch["num_pairs"])
        return fetched

    def figures(self, procs: Processes) -> dict:
        """Averages over all processes since `restart`, by name."""
        seconds = time.perf_counter() - self.started
        counts = torch.tensor([self.rows, self.tokens, self.places, self.waited, self.work], dtype=torch.float64).to(procs.device)
        if procs.world > 1:
            dist.all_reduce(counts)
        rows, tokens, places, waited, work = counts.tolist()
        return {"samples_per_s": round(rows / seconds, 2), "tokens_per_s": round(tokens / seconds, 1),
                "padding": round(1 - tokens / max(places, 1), 4), "data_wait": round(waited / procs.world / seconds, 4),
                "mfu": round(work / seconds / procs.world / self.peak, 4)}
