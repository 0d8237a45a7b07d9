"""Matrix products with weights in the layout that a CPU's kernels read fastest (oneDNN's), packed once when loading.

`linear(x, pack(weight))` is F.linear(x, weight). With few rows, as when generating, it takes a third to a half of the time: a plain
weight is read row by row, or rearranged at every call. Weights that gain nothing stay plain tensors: those on other devices,
those of small products, and all where PyTorch has no oneDNN.
"""
import itertools
import weakref

import torch
import torch.nn.functional as F
from torch import Tensor

# multiply-adds of one product from which packing pays: below, calling oneDNN takes longer than the product
WORTH = {torch.float32: 2**19, torch.bfloat16: 2**16}
MANY_ROWS = 8  # the layout chosen for so many rows is also the fastest for fewer

_numbers = itertools.count()
_packed: "weakref.WeakValueDictionary[int, Packed]" = weakref.WeakValueDictionary()


class Packed:
    """A weight (out, in) in oneDNN's layout. `number` is how compiled code refers to it: tracing cannot look into such a tensor."""

    def __init__(self, weight: Tensor, rows: int):
        self.shape, self.dtype, self.num_bytes = weight.shape, weight.dtype, weight.numel() * weight.element_size()
        self.tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), max(rows, MANY_ROWS))
        self.number = next(_numbers)
        _packed[self.number] = self

    def numel(self) -> int:
        return self.shape.numel()


def pack(weight: Tensor, rows: int = 1) -> "Tensor | Packed":
    """The weight (out, in) of products with `rows` rows or more, packed where that pays."""
    worth = WORTH.get(weight.dtype)
    if weight.device.type != "cpu" or worth is None or weight.numel() * rows < worth or not torch.backends.mkldnn.is_available():
        return weight
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return weight
    return Packed(weight.detach(), rows)


def linear(x: Tensor, weight: "Tensor | Packed", bias: Tensor | None = None) -> Tensor:
    """x (..., in) @ weight (out, in).T + bias (out,). For inference: a packed weight has no gradients."""
    if not isinstance(weight, Packed):
        return F.linear(x, weight, bias)
    if torch.compiler.is_compiling():
        return _by_number(x, weight.number, weight.shape[0], bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight.tensor, bias, "none", [], "")


@torch.library.custom_op("minimind_o::packed_linear", mutates_args=())
def _by_number(x: Tensor, number: int, out: int, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, _packed[number].tensor, bias, "none", [], "")


@_by_number.register_fake
def _(x, number, out, bias):
    return x.new_empty(*x.shape[:-1], out)
