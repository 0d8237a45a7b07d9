"""The trained model rearranged for generation: the same function as MiniMindOmni, with fewer and larger operations.

- Query, key and value are one matrix product, gate and up another; grouped heads attend without copying keys.
- All 8 codebook heads are two products. The 8 code embeddings are one look-up and a sum: everything up to the first
  non-linearity behind them is linear in the code, so it is folded into one table per codebook when loading.
- One forward over any rows of a static cache at any positions; the Thinker and the Talker can be run apart, because a
  conversation's cache may be valid for the one further than for the other (see reuse.py).
- Norms, rotary angles, residuals and logits are float32 in every precision.
"""
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.precision import Matrix, MatrixBank, Precision, stored
from model import model_minimind as minimind
from model.config import NUM_CODEBOOKS
from model.kv_cache import KVCache
from model.model_omni import MiniMindOmni, inject


@dataclass
class Place:
    """Where the T new positions of B' rows stand in the cache, and how far one may look back.

    rows (B',) their numbers, and the same as an index (a slice reads views, a tensor copies); positions (B', T);
    reach = arange(end): the positions that are read, at least up to the largest of `positions`.
    mask (B', 1, T, end): 0 where a query may look, -inf elsewhere.
    """
    cache: KVCache
    rows: Tensor
    index: slice | Tensor
    positions: Tensor
    reach: Tensor
    mask: Tensor = field(init=False)

    def __post_init__(self):
        hidden = self.reach > self.positions[..., None]
        self.mask = torch.zeros_like(hidden, dtype=self.cache.k[0].dtype).masked_fill_(hidden, -torch.inf)[:, None]


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self, block: minimind.Block, precision: Precision):
        super().__init__()
        attention = block.self_attn
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self.eps = block.input_layernorm.eps
        self.qkv = Matrix(torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]), precision)
        self.out = Matrix(attention.o_proj.weight, precision)
        scale = torch.cat([attention.q_norm.weight.expand(self.heads, -1), attention.k_norm.weight.expand(self.kv_heads, -1)])
        self.register_buffer("qk_scale", scale.float())  # (H + kv, D)
        self.register_buffer("norm1", block.input_layernorm.weight.float().clone())
        self.register_buffer("norm2", block.post_attention_layernorm.weight.float().clone())
        self.mlp = Experts(block.mlp, precision) if isinstance(block.mlp, minimind.MoE) else MLP(block.mlp, precision)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], place: Place, layer: int) -> Tensor:
        """x (B, T, C) float32 -> the same; rope cos, sin (B, T, 1, D)."""
        B, T, _ = x.shape
        qkv = self.qkv(_norm(x, self.norm1, self.eps)).view(B, T, -1, self.head_dim)
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        qk = F.rms_norm(qk.float(), (self.head_dim,), eps=self.eps) * self.qk_scale
        qk = (qk * rope[0] + qk.roll(self.head_dim // 2, -1) * rope[1]).to(qkv.dtype)
        q, k = qk.split([self.heads, self.kv_heads], dim=2)
        place.cache.write(layer, k, v, place.rows, place.positions)
        keys, values = place.cache.read(layer, place.index, len(place.reach))
        # the query heads of one key head become further queries of it: (B, kv, group * T, D)
        q = q.view(B, T, self.kv_heads, -1, self.head_dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
        mask = place.mask if T == 1 else place.mask.repeat(1, 1, q.shape[2] // T, 1)
        seen = _attend(q, keys, values, mask)
        seen = seen.view(B, self.kv_heads, -1, T, self.head_dim).permute(0, 3, 1, 2, 4).reshape(B, T, -1)
        x = x + self.out(seen)
        return x + self.mlp(_norm(x, self.norm2, self.eps))


class MLP(nn.Module):
    def __init__(self, mlp: minimind.MLP, precision: Precision):
        super().__init__()
        self.gate_up = Matrix(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), precision)
        self.down = Matrix(mlp.down_proj.weight, precision)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Experts(nn.Module):
    """Top-k routed experts: on a CPU only those chosen are computed; else all of them, which needs no host sync."""

    def __init__(self, moe: minimind.MoE, precision: Precision):
        super().__init__()
        self.top_k = moe.top_k
        self.register_buffer("gate", moe.gate.weight.float().clone())  # routing decides between experts: never rounded
        self.experts = nn.ModuleList(MLP(expert, precision) for expert in moe.experts)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        best, chosen = F.linear(tokens.float(), self.gate).softmax(-1).topk(self.top_k, dim=-1)
        share = torch.zeros(len(tokens), len(self.experts), device=x.device).scatter_(1, chosen, best / best.sum(-1, keepdim=True))
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            out = torch.zeros_like(tokens)
            for e, expert in enumerate(self.experts):
                mine = share[:, e].nonzero()[:, 0]
                if len(mine):
                    out.index_add_(0, mine, expert(tokens[mine]).float() * share[mine, e, None])
            return out.view_as(x)
        return sum(expert(tokens).float() * share[:, e, None] for e, expert in enumerate(self.experts)).view_as(x)


class InputProj(nn.Module):
    """The Talker's input projections behind their first linear layer: GELU, Linear, RMSNorm times a learned scale."""

    def __init__(self, proj: nn.Sequential, scale: Tensor, precision: Precision):
        super().__init__()
        self.out = Matrix(proj[2].weight, precision, proj[2].bias)
        self.eps = proj[3].eps
        self.register_buffer("norm", proj[3].weight.float() * scale.float())

    def forward(self, x: Tensor) -> Tensor:
        return _norm(self.out(F.gelu(x)), self.norm, self.eps)


class Network(nn.Module):
    """Weights of one model for generation. The model itself is not needed afterwards.

    positions: rotary angles are kept for so many. Thinker layers come first in the cache, then the Talker's.
    """

    @torch.no_grad()
    def __init__(self, model: MiniMindOmni, precision: Precision, positions: int):
        super().__init__()
        config, talker = model.config, model.talker
        self.config, self.precision = config, precision
        self.eps, self.bridge_layer = config.rms_norm_eps, config.bridge_layer
        self.thinker = nn.ModuleList(Block(block, precision) for block in model.model.layers)
        self.talker = nn.ModuleList(Block(block, precision) for block in talker.layers)
        self.register_buffer("embedding", model.model.embed_tokens.weight.to(precision.activations, copy=True))
        self.register_buffer("final_norm", model.model.norm.weight.float().clone())
        self.text_head = Matrix(model.lm_head.weight, precision)
        self.audio_proj, self.vision_proj = model.audio_proj, model.vision_proj
        for name, rope in (("thinker", model.model.rope), ("talker", talker.rope)):
            cos, sin = rope.cos[:positions].float(), rope.sin[:positions].float()
            self.register_buffer(f"{name}_cos", torch.cat((cos, cos), -1)[:, None].clone())  # (positions, 1, D)
            self.register_buffer(f"{name}_sin", torch.cat((-sin, sin), -1)[:, None].clone())
        self.register_buffer("think_end", torch.tensor(config.think_end_ids, device=model.lm_head.weight.device))
        self._fold_talker_inputs(talker)
        self._stack_code_heads(talker)

    def _fold_talker_inputs(self, talker) -> None:
        """codec_proj's first layer applied to every code's embedding: table (8 * vocab, C), and the same for the speaker."""
        codes, first = talker.embed_tokens, talker.codec_proj[0]
        own = [adapter(torch.arange(codes.base.num_embeddings, device=first.weight.device)) for adapter in codes.adapters]
        table = torch.stack([F.linear((codes.base.weight + part).float(), first.weight.float()) / NUM_CODEBOOKS for part in own])
        self.register_buffer("code_table", table.flatten(0, 1).to(self.precision.activations))
        self.register_buffer("code_offset", torch.arange(NUM_CODEBOOKS, device=table.device)[:, None] * codes.base.num_embeddings)
        self.register_buffer("code_bias", first.bias.float().clone())
        self.register_buffer("speaker_weight", first.weight.float() @ talker.spk_proj.weight.float())
        self.codec_proj = InputProj(talker.codec_proj, talker.audio_scale, self.precision)
        self.bridge_in = Matrix(talker.embed_proj[0].weight, self.precision, talker.embed_proj[0].bias)
        self.embed_proj = InputProj(talker.embed_proj, talker.text_scale, self.precision)

    def _stack_code_heads(self, talker) -> None:
        head = talker.lm_head
        self.register_buffer("talker_norm", talker.norm.weight.float().clone())
        # the shared head and the 8 adapters' inner layers read the same vector: one product
        self.code_base = Matrix(torch.cat([head.base.weight, *(adapter[0].weight for adapter in head.adapters)]), self.precision)
        self.code_up = MatrixBank(torch.stack([adapter[2].weight for adapter in head.adapters]), self.precision)
        self.code_vocab = head.base.out_features

    # ---- inputs

    def embed_prompt(self, text: Tensor, audio: Tensor | None, audio_lens: Tensor | None, images: Tensor | None) -> Tensor:
        """Thinker inputs (P, C) float32 of text ids (P,) with features at their pads, as MiniMindOmni.forward places them.

        audio (1, L, 512), audio_lens (1,), images (1, N, 64, 768) or (1, 64, 768), or None.
        """
        text = text[None]
        x = self.embed_text(text)
        if audio is not None:
            lens = torch.tensor([audio.shape[1]], device=audio.device) if audio_lens is None else audio_lens
            vectors = self.audio_proj(audio.type_as(self.audio_proj.mlp[0].weight))[:, None]
            x = inject(x, text, self.config.audio_ids, vectors, lens[:, None])
        if images is not None:
            images = images[:, None] if images.dim() == 3 else images
            x = inject(x, text, self.config.image_ids, self.vision_proj(images.type_as(self.vision_proj.mlp[0].weight)))
        return x[0]

    def embed_text(self, text: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, C) float32."""
        return self.embedding[text].float()

    def embed_speaker(self, spk_emb: Tensor) -> Tensor:
        """(192,) -> (C,) float32: what stands in for the codes where the speaker token is."""
        return F.linear(spk_emb.float(), self.speaker_weight)

    # ---- the two stacks

    def think(self, x: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """x (B, T, C) float32 -> (hidden after the last layer, what the Talker reads of it), both (B, T, .) float32."""
        rope = self.thinker_cos[place.positions], self.thinker_sin[place.positions]
        bridge = x
        for i, block in enumerate(self.thinker):
            x = block(x, rope, place, i)
            if i == self.bridge_layer:
                bridge = x
        return x, self.embed_proj(self.bridge_in(bridge))

    def talk(self, codes: Tensor, bridge: Tensor, speaker: Tensor, has_speaker: Tensor, place: Place) -> Tensor:
        """codes (B, 8, T), bridge (B, T, W) from `think`, speaker (B, W) where has_speaker (B,) -> last hidden (B, T, W) float32."""
        x = self.code_table[(codes + self.code_offset).transpose(1, 2)].sum(2, dtype=torch.float32)
        at_speaker = (codes[:, 0] == self.config.audio_spk_token) & has_speaker[:, None]
        x = torch.where(at_speaker[..., None], speaker[:, None], x) + self.code_bias
        x = bridge + self.codec_proj(x)
        rope = self.talker_cos[place.positions], self.talker_sin[place.positions]
        for i, block in enumerate(self.talker):
            x = block(x, rope, place, len(self.thinker) + i)
        return x

    def text_logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, C) from `think` -> (B, vocab) float32."""
        return self.text_head(_norm(hidden, self.final_norm, self.eps)).float()

    def code_logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, W) from `talk` -> (B, 8, audio vocab) float32."""
        both = self.code_base(_norm(hidden, self.talker_norm, self.eps))
        base, inner = both[:, :self.code_vocab], F.gelu(both[:, self.code_vocab:])
        own = self.code_up(inner.unflatten(1, (NUM_CODEBOOKS, -1)).transpose(0, 1))  # (8, B, vocab)
        return (base.float() + own.float()).transpose(0, 1)

    @property
    def num_bytes(self) -> int:
        """Memory of all weights."""
        matrices = [m for m in self.modules() if isinstance(m, (Matrix, MatrixBank))]
        counted = {id(t) for m in matrices for t in m.buffers()}
        rest = sum(t.numel() * t.element_size() for t in (*self.parameters(), *self.buffers()) if id(t) not in counted)
        return rest + sum(m.num_bytes for m in matrices)

    def new_cache(self, rows: int, max_length: int) -> KVCache:
        """An empty cache for this network's layers; `extra` is for what the Talker reads of the Thinker (see `think`)."""
        shapes = [(block.kv_heads, block.head_dim) for block in (*self.thinker, *self.talker)]
        return KVCache(shapes, rows, max_length, self.embedding.device, self.precision.activations,
                       extra_width=self.config.talker_hidden_size)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm in float32."""
    return F.rms_norm(x.float(), weight.shape, weight, eps)


def _attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """q (B, heads, Q, D) looks at keys, values (B, heads, L, D) through mask (B, 1, 1 or Q, L) -> (B, heads, Q, D), any float type."""
    if q.device.type != "cpu" or not torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    # written out it is compiled together with what is around it; a call of torch's takes 45 us a layer, a tenth of an int8 step
    scores = stored(q.float())[..., None, :] * keys.float()[:, :, None]
    weights = (scores.sum(-1) * q.shape[-1] ** -0.5 + mask.float()).softmax(-1)
    return (weights[..., None] * values.float()[:, :, None]).sum(-2)
