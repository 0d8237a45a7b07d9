"""Static key/value cache with one position per row.

- Buffers are allocated once; writing is in place, so that a step has static shapes and can be captured in a CUDA graph.
- Rows stand at different positions (`pos` is (B,)): a reply can start while its neighbour is in the middle.
- Two ways in: a whole-batch forward uses `positions`/`mask`/`update`/`advance`; an engine addresses any rows with `write`/`read`.
- A row can be saved, loaded, moved and cleared alone: conversations come and go while the others speak.
- Layers may differ in heads and width: one cache serves the Thinker's layers followed by the Talker's.
- Beside them a row may keep one vector per position (`extra`), for what else a later forward needs to know of the past.
- It does not know what a token is.
"""
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class SavedRow:
    """The first positions of one row, copied out: per layer keys and values (heads, length, D), and extra (length, W)."""
    k: list[Tensor]
    v: list[Tensor]
    extra: Tensor

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.k, *self.v, self.extra))


class KVCache:
    """Keys and values of every layer: lists of (B, kv_heads, max_length, head_dim).

    layer_shapes: (kv_heads, head_dim) of each layer. All tensors live on `device` in `dtype`; `extra` is float32 (B, max_length,
    extra_width).
    """

    def __init__(self, layer_shapes: list[tuple[int, int]], batch: int, max_length: int, device="cpu", dtype=torch.float32,
                 extra_width: int = 0):
        self.k = [torch.zeros(batch, heads, max_length, dim, device=device, dtype=dtype) for heads, dim in layer_shapes]
        self.v = [torch.zeros_like(k) for k in self.k]
        self.extra = torch.zeros(batch, max_length, extra_width, device=device)
        self.pos = torch.zeros(batch, dtype=torch.long, device=device)
        self.max_length = max_length
        self.used = 0  # upper bound of pos over the rows, kept on the host so that slicing needs no device sync

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.k, *self.v, self.extra))

    # ---- a forward of all rows

    def positions(self, length: int) -> Tensor:
        """(B, T) absolute positions of the next `length` tokens. ValueError when they do not fit."""
        if self.used + length > self.max_length:
            raise ValueError(f"the KV cache holds {self.max_length} positions; {self.used} are used and {length} more were asked for")
        return self.pos[:, None] + torch.arange(length, device=self.pos.device)

    def mask(self, positions: Tensor) -> Tensor:
        """(B, 1, T, used + T) bool, True where a query at `positions` (B, T) may look: slots up to its own."""
        slots = torch.arange(self.used + positions.shape[1], device=positions.device)
        return (slots <= positions[..., None])[:, None]

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, heads, T, D) at `positions` (B, T); return all keys and values so far (B, heads, used + T, D)."""
        rows = torch.arange(k.shape[0], device=k.device)
        self.write(layer, k.transpose(1, 2), v.transpose(1, 2), rows, positions)
        return self.read(layer, slice(None), self.used + k.shape[2])

    def advance(self, length: int) -> None:
        """Count `length` tokens as written in every row; call once per forward, after the last layer."""
        self.pos += length
        self.used += length

    def reset(self) -> None:
        """Forget everything. Old keys stay in memory but no mask lets a query see them."""
        self.pos.zero_()
        self.used = 0

    # ---- any rows

    def write(self, layer: int, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor) -> None:
        """Put k, v (B', T, heads, D) at `positions` (B', T) of `rows` (B',)."""
        # indices on dims 0 and 2 put the indexed dims first: the value to assign is (B', T, heads, D)
        self.k[layer][rows[:, None], :, positions] = k.to(self.k[layer].dtype)
        self.v[layer][rows[:, None], :, positions] = v.to(self.v[layer].dtype)

    def read(self, layer: int, rows: slice | Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B', heads, end, D) of `rows`: views for a slice, copies for a tensor of row numbers."""
        return self.k[layer][rows, :, :end], self.v[layer][rows, :, :end]

    def save_row(self, row: int, length: int) -> SavedRow:
        """A copy of the first `length` positions of `row`."""
        return SavedRow([k[row, :, :length].clone() for k in self.k], [v[row, :, :length].clone() for v in self.v],
                        self.extra[row, :length].clone())

    def load_row(self, row: int, saved: SavedRow, length: int) -> None:
        """Put the first `length` saved positions into `row`; its `pos` is left to the caller."""
        for own, other in ((self.k, saved.k), (self.v, saved.v)):
            for target, source in zip(own, other):
                target[row, :, :length] = source[:, :length]
        self.extra[row, :length] = saved.extra[:length]

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions and `pos` of row `source` to row `target`."""
        for layer in (*self.k, *self.v):
            layer[target, :, :length] = layer[source, :, :length]
        self.extra[target, :length] = self.extra[source, :length]
        self.pos[target] = self.pos[source]

    def clear_row(self, row: int, length: int) -> None:
        """Zero the first `length` positions of `row`: masked slots still meet a zero weight, and 0 * NaN is NaN."""
        for layer in (*self.k, *self.v):
            layer[row, :, :length] = 0
        self.pos[row] = 0
