"""The MiniMind language model: the Thinker's backbone, and the blocks the Talker is made of.

- Pre-norm decoder, RMSNorm in fp32, no biases, tied embeddings (tied by model_omni).
- Grouped-query attention with per-head RMSNorm on q and k before RoPE.
- SwiGLU feed-forward, or four experts with a top-1 router.
- RoPE in the half-split layout; YaRN stretching as an inference option.
- Knows nothing of audio, images or sampling.
"""
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import OmniConfig
from model.kv_cache import KVCache

eager_grouped_mm = F.grouped_mm  # replaced by `compiled`
VARIANTS = 32  # of a block's graph: learnt or frozen, with a gradient to hand on or without, few positions or many
YARN_FACTOR, YARN_ORIGINAL_LENGTH, YARN_BETA_FAST, YARN_BETA_SLOW = 16, 2048, 32, 1


def compiled(function, **options):
    """torch.compile(function, **options), with grouped_mm left out of the graphs that are not in bfloat16: the compiler cannot do them.

    Only now: to import torch's compiler takes 1.5 s and 70 MB.
    """
    global eager_grouped_mm
    eager_grouped_mm = torch.compiler.disable(F.grouped_mm)
    return torch.compile(function, **options)


def compile_blocks(blocks: Iterable["Block"]) -> None:
    """torch.compile, block by block, for training: all blocks share the code of one, which is made many times sooner than a graph of them
    all, and runs about as fast (docs/training.md). A block's hooks stay outside of its graph."""
    torch._dynamo.config.recompile_limit = VARIANTS
    for block in blocks:
        block.forward = compiled(block.forward, dynamic=True)  # lengths differ from batch to batch: one graph for all of them


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in fp32 whatever the input's dtype (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).type_as(x)


def rope_table(config: OmniConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles, each (max_position_embeddings, head_dim / 2) fp32 (Su et al. 2021).

    With `inference_rope_scaling` and a table longer than 2048, frequencies are stretched by YaRN (Peng et al. 2023, section 3.2).
    """
    dim, theta = config.head_dim, config.rope_theta
    frequencies = theta ** (-torch.arange(0, dim, 2).float() / dim)
    if config.inference_rope_scaling and config.max_position_embeddings > YARN_ORIGINAL_LENGTH:
        def dim_of(beta):  # the (fractional) frequency index that turns `beta` times within the original length
            return dim * math.log(YARN_ORIGINAL_LENGTH / (2 * math.pi * beta)) / (2 * math.log(theta))

        low = max(math.floor(dim_of(YARN_BETA_FAST)), 0)
        high = min(math.ceil(dim_of(YARN_BETA_SLOW)), dim // 2 - 1)
        ramp = ((torch.arange(dim // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)
        frequencies = frequencies * (1 - ramp + ramp / YARN_FACTOR)
    angles = torch.outer(torch.arange(config.max_position_embeddings).float(), frequencies)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (B, H, T, D) by cos/sin, each broadcastable to (B, 1, T, D / 2): pairs are (i, i + D / 2)."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


class Attention(nn.Module):
    """Causal grouped-query self-attention; with a cache, over everything cached so far."""

    def __init__(self, config: OmniConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.dropout = config.dropout
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], past: "Past | None" = None, layer: int = 0) -> Tensor:
        """x (B, T, C) -> (B, T, C). `past` carries the cache and this forward's positions and mask; `layer` is our slot in it."""
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(B, T, self.heads, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(B, T, self.kv_heads, self.head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        mask = None
        if past is not None:
            k, v = past.cache.update(layer, k, v, past.positions)
            mask = past.mask
        # On a CPU the fused kernel's backward is three times slower in bfloat16 than in float32.
        dtype = torch.float32 if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled() else q.dtype
        with torch.autocast(q.device.type, enabled=False):
            out = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype), attn_mask=mask, is_causal=mask is None,
                                                 dropout_p=self.dropout if self.training else 0.0, enable_gqa=True)
        return self.o_proj(out.type_as(x).transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU feed-forward (Shazeer 2020)."""

    def __init__(self, config: OmniConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(nn.Module):
    """Top-k routed experts.

    Training sends the tokens, sorted by expert, through one grouped product per matrix: no loop, and no host sync where the device
    has a kernel for it. Generation, with its few tokens, loops over the experts and copies no weights. Both give the same numbers.
    """

    def __init__(self, config: OmniConfig):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(MLP(config) for _ in range(config.num_experts))
        self.grouped = True  # False: training loops, too
        self.routing: tuple[Tensor, Tensor] | None = None  # of the last training forward: chosen (N, top_k), probabilities (N, experts)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        probs = self.gate(tokens).float().softmax(-1)
        weights, chosen = probs.topk(self.top_k, dim=-1)
        weights = (weights / weights.sum(-1, keepdim=True)).type_as(x)
        if self.training:
            self.routing = chosen, probs
        run = self._grouped if self.training and self.grouped else self._looped
        return run(tokens, weights, chosen).view_as(x)

    def routed(self, valid: Tensor) -> Tensor:
        """Of the last training forward, over the positions where `valid` (B, T): tokens sent to each expert, and its probabilities summed;
        together (2, experts)."""
        chosen, probs = self.routing
        load = F.one_hot(chosen, len(self.experts)).float().mean(1)
        return (torch.stack([load, probs]) * valid.flatten().float()[:, None]).sum(1)

    def _looped(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        out = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == e)
            out = out.index_add(0, token, (expert(tokens[token]) * weights[token, slot, None]).type_as(out))
        return out

    def _grouped(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        device = tokens.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype  # autocast does not know grouped_mm
        order = chosen.flatten().argsort(stable=True)  # places (token * top_k + slot), those of expert 0 first
        ends = (chosen.flatten()[:, None] == torch.arange(len(self.experts), device=tokens.device)).sum(0).cumsum(0).int()

        def product(x: Tensor, name: str) -> Tensor:
            matrices = torch.stack([getattr(expert, name).weight.to(dtype) for expert in self.experts])
            multiply = F.grouped_mm if dtype == torch.bfloat16 else eager_grouped_mm
            return multiply(x, matrices.transpose(1, 2), offs=ends)

        x = tokens[order // self.top_k].to(dtype)
        x = product(F.silu(product(x, "gate_proj")) * product(x, "up_proj"), "down_proj")
        back = x[order.argsort()].view(*chosen.shape, -1)
        return (back * weights[..., None]).sum(1).type_as(tokens)


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: OmniConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config) if config.use_moe else MLP(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], past: "Past | None" = None, layer: int = 0) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, past, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Past:
    """A cache together with what every layer of one forward shares: where the new tokens stand and what they may see."""

    def __init__(self, cache: KVCache, length: int):
        self.cache = cache
        self.positions = cache.positions(length)  # (B, T)
        self.mask = cache.mask(self.positions)


class Rope(nn.Module):
    """The rotary table of one stack of layers. Not in the state dict: it follows from the config."""

    def __init__(self, config: OmniConfig):
        super().__init__()
        cos, sin = rope_table(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, length: int, past: Past | None) -> tuple[Tensor, Tensor]:
        """cos, sin for `length` new tokens: (T, D / 2) without a cache, (B, 1, T, D / 2) with one."""
        if past is None:
            if length > self.cos.shape[0]:
                raise ValueError(f"a sequence of {length} tokens is longer than max_position_embeddings = {self.cos.shape[0]}")
            return self.cos[:length], self.sin[:length]
        return self.cos[past.positions][:, None], self.sin[past.positions][:, None]


class Thinker(nn.Module):
    """Embedding, blocks and final norm. `forward` also returns the bridge: what the Talker reads."""

    def __init__(self, config: OmniConfig):
        super().__init__()
        self.bridge_layer = config.bridge_layer
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rope = Rope(config)

    def forward(self, x: Tensor, past: Past | None = None, bridge_only: bool = False) -> tuple[Tensor | None, Tensor]:
        """x (B, T, C) embeddings -> (final hidden after the norm, hidden leaving `bridge_layer`), both (B, T, C).

        bridge_only: stop there; the final hidden is None.
        """
        rope = self.rope(x.shape[1], past)
        bridge = x
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, past, i)
            if i == self.bridge_layer:
                bridge = x
                if bridge_only:
                    return None, bridge
        return self.norm(x), bridge
