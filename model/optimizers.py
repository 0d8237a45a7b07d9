"""The optimizers of every training here: AdamW, and Muon for the matrices of a network's blocks."""
from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.hardware import fast_bfloat16

WEIGHT_DECAY = 0.01
MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic that Jordan et al. 2024 chose, and how often it is applied
NEWTON_SCHULZ_STEPS = 5
ADAMW_RMS = 0.2  # of an AdamW update, about: Liu et al. 2025, section 2.2


class Muon(torch.optim.Optimizer):
    """Momentum whose step is the nearest orthogonal matrix (Jordan et al. 2024), of AdamW's size (Liu et al. 2025): one rate serves both.

    Like torch.optim.Muon with adjust_lr_fn="match_rms_adamw", but matrices of one shape are orthogonalised together, shared among the
    processes of a training, and in float32 on processors that are slower in bfloat16: without instructions for it torch's takes eighty
    times as long. All processes must step at once, with the same gradients, as DistributedDataParallel leaves them.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float = WEIGHT_DECAY):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        if any(matrix.ndim != 2 for group in self.param_groups for matrix in group["params"]):
            raise ValueError("Muon is for matrices: give it parameters of two dimensions")

    @torch.no_grad()
    def step(self) -> None:
        """One step for every matrix that has a gradient."""
        for group in self.param_groups:
            updates = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
                updates[matrix.shape].append((matrix, matrix.grad.lerp(momentum, MOMENTUM)))  # Nesterov's
            for (rows, columns), found in updates.items():
                matrices, wanted = zip(*found)
                directions = orthogonalise_together(torch.stack(wanted)).to(matrices[0].dtype)
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, directions.unbind(), alpha=-group["lr"] * ADAMW_RMS * max(rows, columns) ** 0.5)


def orthogonalise_together(matrices: Tensor) -> Tensor:
    """`orthogonalise` of what all processes hold alike, each doing an equal part; what is then left over each does by itself."""
    size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    each = len(matrices) // size
    if size == 1 or not each:
        return orthogonalise(matrices)
    begin = dist.get_rank() * each
    part = orthogonalise(matrices[begin:begin + each]).contiguous()
    shared = part.new_empty(size * each, *part.shape[1:])
    # as bytes: gloo does not know every number format
    dist.all_gather(list(shared.view(torch.uint8).chunk(size)), part.view(torch.uint8))
    return torch.cat([shared, orthogonalise(matrices[size * each:])]) if len(matrices) % size else shared


def orthogonalise(matrices: Tensor) -> Tensor:
    """(N, R, C) -> about the nearest matrix with orthonormal rows or columns to each: its singular values become 0.7-1.2."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x.to(torch.bfloat16 if fast_bfloat16(x.device) else torch.float32)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def adamw_and_muon(parameters: Iterable[nn.Parameter], matrices: Iterable[nn.Parameter], rate: float, fused: bool = True,
                   **adamw) -> tuple[torch.optim.AdamW, Muon | None]:
    """Muon for `matrices` (None when there are none), and AdamW, with further options, for all other `parameters`.

    fused: one kernel for all of AdamW, which can skip a step by a flag that lives on the device.
    """
    matrices = list(matrices)
    taken = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in parameters if id(parameter) not in taken]
    first = torch.optim.AdamW(others, lr=rate, weight_decay=WEIGHT_DECAY, fused=fused, **adamw)
    return first, Muon(matrices, rate) if matrices else None


def take_step(optimizers: Iterable[torch.optim.Optimizer | None], parameters: Iterable[nn.Parameter], rate: float) -> None:
    """Clip the gradient of `parameters` to a norm of 1; a step at `rate` by every optimizer that is not None; no gradients are left."""
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in filter(None, optimizers):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
