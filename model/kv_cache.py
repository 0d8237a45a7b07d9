"""Static key/value cache with one position per row.

- Buffers are allocated once; `update` writes the new keys and values in place, `advance` moves the positions.
- Rows stand at different positions (`pos` is (B,)), so a reply can start while its neighbour is in the middle.
- Layers may differ in heads and width: one cache serves the Thinker's layers followed by the Talker's.
- It does not know what a token is.
"""
import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer: lists of (B, kv_heads, max_length, head_dim).

    layer_shapes: (kv_heads, head_dim) of each layer. All tensors live on `device` in `dtype`.
    """

    def __init__(self, layer_shapes: list[tuple[int, int]], batch: int, max_length: int, device="cpu", dtype=torch.float32):
        self.k = [torch.zeros(batch, heads, max_length, dim, device=device, dtype=dtype) for heads, dim in layer_shapes]
        self.v = [torch.zeros_like(k) for k in self.k]
        self.pos = torch.zeros(batch, dtype=torch.long, device=device)
        self.max_length = max_length
        self.used = 0  # upper bound of pos over the rows, kept on the host so that slicing needs no device sync

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
        rows = torch.arange(k.shape[0], device=k.device)[:, None]
        # index (B, T) on dims 0 and 2 puts the indexed dims first: the value to assign is (B, T, heads, D)
        self.k[layer][rows, :, positions] = k.transpose(1, 2).to(self.k[layer].dtype)
        self.v[layer][rows, :, positions] = v.transpose(1, 2).to(self.v[layer].dtype)
        end = self.used + k.shape[2]
        return self.k[layer][:, :, :end], self.v[layer][:, :, :end]

    def advance(self, length: int) -> None:
        """Count `length` tokens as written in every row; call once per forward, after the last layer."""
        self.pos += length
        self.used += length

    def reset(self) -> None:
        """Forget everything. Old keys stay in memory but no mask lets a query see them."""
        self.pos.zero_()
        self.used = 0
