"""Number formats of inference: which one, and a linear layer in each of them.

- fp32, bf16, fp16: weights, activations of the matrix products and cache in that type; norms, residuals and logits stay float32.
- int8: weights in int8 with one scale per output, halving bf16's traffic again; activations and cache in bf16.
- `auto`: fp32 on CPUs; bf16 on GPUs, fp16 on those that only emulate it. What the others cost in quality: docs/evaluation.md.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.hardware import fast_bfloat16
from model.packed import Packed, linear, pack

DTYPES = ("auto", "fp32", "bf16", "fp16", "int8")
STREAMS = 4  # places of a weight read at a time by one_row: int8 at 8 GB/s from one, 17 from four, 12 from eight (two Xeon cores)
FEW_ROWS = 16  # for more, torch's int8 products on CPUs take longer than converting the weights first: a prompt of 60 130 ms, not 85


@dataclass(frozen=True)
class Precision:
    """name as in DTYPES; `activations` is the type of matrix-product inputs and of the cache; int8 tells how weights are kept.

    plain_rows: products with one row may be written out for the compiler, see `one_row`.
    """
    name: str
    activations: torch.dtype
    int8: bool = False
    plain_rows: bool = False


def choose(name: str, device: torch.device, compiled: bool = False) -> Precision:
    """The precision called `name` on `device`. ValueError for an unknown name or one that the device cannot run.

    compiled: for steps that torch.compile runs.
    """
    plain_rows = compiled and device.type == "cpu"
    if name == "auto":
        name = "fp32" if device.type == "cpu" else "bf16" if fast_bfloat16(device) else "fp16"
    if name == "fp32":
        return Precision(name, torch.float32, plain_rows=plain_rows)
    if name == "bf16":
        return Precision(name, torch.bfloat16, plain_rows=plain_rows)
    if name == "fp16" and device.type != "cpu":
        return Precision(name, torch.float16)
    if name == "int8":
        # torch's int8 kernel takes five times as long with float32 on the other side
        return Precision(name, torch.bfloat16, int8=True, plain_rows=plain_rows)
    raise ValueError(f"--dtype {name} on {device.type}: choose from {', '.join(DTYPES)} (fp16 on GPUs only)")


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(..., out, in) -> int8 of the same shape and scales (..., out) float32: symmetric, one scale per output.

    ValueError for a width that torch's int8 product on CPUs, which reads 16 numbers at a time, does not check and gets wrong.
    """
    if weight.shape[-1] % 16 and weight.device.type == "cpu":
        raise ValueError(f"--dtype int8: a layer of this model is {weight.shape[-1]} wide, not a multiple of 16; use --dtype bf16")
    scale = weight.float().abs().amax(-1).clamp(min=1e-12) / 127
    return (weight.float() / scale[..., None]).round().clamp(-127, 127).to(torch.int8), scale


def stored(x: Tensor) -> Tensor:
    """x, which the compiler is to compute once and keep; else all that led to it (a norm, an activation) is done anew for each use."""
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())


def in_streams(weight: Tensor) -> Tensor:
    """(..., out, in) -> (..., STREAMS, out, in / STREAMS), contiguous, for `one_row`; one stream where `in` cannot be divided."""
    streams = STREAMS if weight.shape[-1] % STREAMS == 0 else 1
    return weight.unflatten(-1, (streams, -1)).movedim(-2, -3).contiguous()


def one_row(x: Tensor, streams: Tensor, scale: Tensor | None) -> Tensor:
    """x (..., in) times a weight `in_streams`, each output times `scale` (..., out) -> (..., out) float32, for the compiler of a CPU.

    With one row a product only has to read its weights, and written out like this it becomes a loop that reads them as fast as the
    memory can. A core waits for few of its reads at once if all are of one place; so it reads STREAMS places at a time.
    """
    x = stored(x.float()).unflatten(-1, (streams.shape[-3], 1, -1))  # (..., STREAMS, 1, in / STREAMS)
    y = (x * streams.float()).sum(-3).sum(-1)
    return y if scale is None else y * scale.float()


class Matrix(nn.Module):
    """y = x @ weight.T + bias, (..., in) of any float type -> (..., out) in the precision's activation type.

    With `plain_rows` the weight is kept twice: packed for many rows, in streams for one.
    """

    def __init__(self, weight: Tensor, precision: Precision, bias: Tensor | None = None):
        super().__init__()
        self.dtype, self.int8 = precision.activations, precision.int8
        if self.int8:
            weight, scale = quantize(weight)
        self.register_buffer("scale", scale.to(self.dtype) if self.int8 else None)
        plain = weight.contiguous() if self.int8 else weight.to(self.dtype, copy=True).contiguous()
        weight = plain if self.int8 else pack(plain)
        if isinstance(weight, Tensor):
            self.register_buffer("weight", weight)
        else:
            self.weight = weight
        self.streams = in_streams(plain) if precision.plain_rows else None  # no buffer: num_bytes counts what one product reads
        self.register_buffer("bias", None if bias is None else bias.to(self.dtype, copy=True))

    @property
    def num_bytes(self) -> int:
        """What a product reads."""
        return sum(t.numel() * t.element_size() for t in self.buffers()) + (self.weight.num_bytes if isinstance(self.weight, Packed) else 0)

    @property
    def num_weights(self) -> int:
        return self.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.streams is not None and torch.compiler.is_compiling() and x.numel() == x.shape[-1]:
            y = one_row(x.flatten(), self.streams, self.scale)
            return (y if self.bias is None else y + self.bias).to(self.dtype).view(*x.shape[:-1], -1)
        if not self.int8:
            return linear(x, self.weight, self.bias)
        y = _int8_linear(x.flatten(0, -2), self.weight, self.scale).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class MatrixBank(nn.Module):
    """K matrices applied to K inputs at once: (K, N, in) -> (K, N, out)."""

    def __init__(self, weights: Tensor, precision: Precision):
        super().__init__()
        self.dtype, self.int8 = precision.activations, precision.int8
        if self.int8:
            weights, scale = quantize(weights)
        else:
            weights = weights.to(self.dtype)
        self.register_buffer("scale", scale.to(self.dtype) if self.int8 else None)
        self.register_buffer("weights", weights.contiguous().clone())  # (K, out, in)
        self.streams = in_streams(weights) if precision.plain_rows else None

    @property
    def num_bytes(self) -> int:
        """What a product reads."""
        return sum(t.numel() * t.element_size() for t in self.buffers())

    @property
    def num_weights(self) -> int:
        return self.weights.numel()

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.streams is not None and torch.compiler.is_compiling() and x.shape[1] == 1:
            return one_row(x[:, 0], self.streams, self.scale).to(self.dtype)[:, None]
        if not self.int8:
            return torch.bmm(x, self.weights.transpose(1, 2))
        return torch.stack([_int8_linear(*parts) for parts in zip(x, self.weights, self.scale)])


def _int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x (N, in) @ int8 weight (out, in).T, scaled per output."""
    if x.device.type == "cpu" and len(x) <= FEW_ROWS:  # reads the weights as int8; on a GPU the compiler fuses the conversion
        return torch._weight_int8pack_mm(x.contiguous(), weight, scale)
    return F.linear(x, weight.to(x.dtype)) * scale
