"""MiniMind-O: a Thinker that reads text, audio and images, and a Talker that speaks while it thinks.

- Nine parallel streams (B, 9, T): rows 0-7 are Mimi codes, row 8 is text (laid out by sequence.py).
- The Talker reads the Thinker's hidden state half-way up (the bridge) and the codes spoken so far; all 8 codebooks in one forward.
- Audio and image features enter through two small projectors, at the pads that hold their places.
- The model never owns a frozen encoder: it is given their outputs.
- `omni_loss` is the only place where the training loss is written down.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import IGNORE, NUM_CODEBOOKS, NUM_STREAMS, OmniConfig
from model.kv_cache import KVCache
from model.model_minimind import Block, Past, RMSNorm, Rope, Thinker

ADAPTER_RANK = 256  # inner width of the per-codebook adapters
STOP_WEIGHT = 10.0  # a stop token is one frame in a hundred, and the one that must not be missed


@dataclass
class OmniOutput:
    """logits (B, T, vocab), audio_logits (B, 8, T, audio_vocab), aux_loss scalar (0 in eval and for dense models).

    logits are None where only the speech was asked for.
    """
    logits: Tensor | None
    audio_logits: Tensor
    aux_loss: Tensor


@dataclass
class OmniLosses:
    """total = text + audio + aux, scalars with gradient; per_codebook (8,) is detached, for logs."""
    total: Tensor
    text: Tensor
    audio: Tensor
    aux: Tensor
    per_codebook: Tensor


class Projector(nn.Module):
    """Frozen-encoder features -> Thinker embeddings: LayerNorm, Linear, GELU, Linear."""

    def __init__(self, source: int, target: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.LayerNorm(source), nn.Linear(source, target), nn.GELU(), nn.Linear(target, target))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class CodeEmbedding(nn.Module):
    """8 codes of one position -> one vector: mean over codebooks of a shared table plus a low-rank table of its own."""

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.base = nn.Embedding(vocab, width)
        self.adapters = nn.ModuleList(
            nn.Sequential(nn.Embedding(vocab, ADAPTER_RANK), nn.GELU(), nn.Linear(ADAPTER_RANK, width, bias=False))
            for _ in range(NUM_CODEBOOKS))

    def forward(self, codes: Tensor) -> Tensor:
        """codes (B, 8, T) -> (B, T, C)."""
        vocab = self.base.num_embeddings
        if codes.shape[0] * codes.shape[2] > vocab:  # training: cheaper to send every code through its adapter once, and to look it up
            table = torch.cat([self.base.weight + linear(gelu(own.weight)) for own, gelu, linear in self.adapters])
            rows = codes + vocab * torch.arange(NUM_CODEBOOKS, device=codes.device)[:, None]
            mean = F.embedding_bag(rows.transpose(1, 2).reshape(-1, NUM_CODEBOOKS), table, mode="mean")
            return mean.view(codes.shape[0], codes.shape[2], -1)
        own = torch.stack([adapter(codes[:, i]) for i, adapter in enumerate(self.adapters)], dim=1)
        return (self.base(codes) + own).mean(dim=1)


class CodeHead(nn.Module):
    """Multi-token prediction head: one hidden state -> logits of all 8 codebooks, a shared projection plus low-rank ones."""

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.base = nn.Linear(width, vocab, bias=False)
        self.adapters = nn.ModuleList(
            nn.Sequential(nn.Linear(width, ADAPTER_RANK, bias=False), nn.GELU(), nn.Linear(ADAPTER_RANK, vocab, bias=False))
            for _ in range(NUM_CODEBOOKS))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, 8, T, vocab)."""
        base = self.base(x)
        return torch.stack([base + adapter(x) for adapter in self.adapters], dim=1)


class Talker(nn.Module):
    """Speaks: bridge state + codes so far -> logits of the next code in each codebook."""

    def __init__(self, config: OmniConfig):
        super().__init__()
        width, blocks = config.talker_hidden_size, config.talker_block_config()
        self.spk_token = config.audio_spk_token
        self.embed_tokens = CodeEmbedding(config.audio_vocab_size, width)
        self.lm_head = CodeHead(config.audio_vocab_size, width)
        self.codec_proj = _input_proj(width, width, config.rms_norm_eps)
        self.embed_proj = _input_proj(config.hidden_size, width, config.rms_norm_eps)
        self.spk_proj = nn.Linear(config.spk_emb_size, width, bias=False)
        self.text_scale = nn.Parameter(torch.tensor(3.0))
        self.audio_scale = nn.Parameter(torch.tensor(1.0))
        self.layers = nn.ModuleList(Block(blocks) for _ in range(config.num_talker_hidden_layers))
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.rope = Rope(blocks)

    def forward(self, codes: Tensor, bridge: Tensor, spk_emb: Tensor | None, past: Past | None, first_layer: int) -> Tensor:
        """codes (B, 8, T), bridge (B, T, H), spk_emb (B, 192) or None -> hidden after the norm (B, T, C).

        first_layer: the cache slot of our first block (the Thinker's blocks come before ours).
        """
        x = self.embed(codes, bridge, spk_emb)
        rope = self.rope(x.shape[1], past)
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, past, first_layer + i)
        return self.norm(x)

    def embed(self, codes: Tensor, bridge: Tensor, spk_emb: Tensor | None) -> Tensor:
        """What the first block reads: codes, or the speaker, and the bridge, each on its own scale (B, T, C)."""
        x = self.embed_tokens(codes)
        if spk_emb is not None:
            speaker = self.spk_proj(spk_emb.type_as(self.spk_proj.weight))[:, None]
            x = torch.where((codes[:, 0] == self.spk_token)[..., None], speaker.type_as(x), x)
        return self.embed_proj(bridge) * self.text_scale + self.codec_proj(x) * self.audio_scale


def _input_proj(source: int, target: int, eps: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(source, source), nn.GELU(), nn.Linear(source, target), RMSNorm(target, eps))


class MiniMindOmni(nn.Module):
    """The trainable model. `model` is the Thinker (the checkpoints' name for it), `talker` speaks, two projectors hear and see."""

    def __init__(self, config: OmniConfig):
        super().__init__()
        self.config = config
        self.model = Thinker(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.talker = Talker(config)
        self.audio_proj = Projector(config.audio_hidden_size, config.hidden_size)
        self.vision_proj = Projector(config.image_hidden_size, config.hidden_size)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)
        self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids: Tensor, audio_features: Tensor | None = None, audio_lens: Tensor | None = None,
                image_features: Tensor | None = None, spk_emb: Tensor | None = None, cache: KVCache | None = None,
                last_only: bool = False, positions: Tensor | None = None, speech_only: bool = False, text_only: bool = False,
                average: Callable[[Tensor], Tensor] | None = None) -> OmniOutput:
        """One forward over T new positions.

        input_ids: (B, 9, T) int64, or (B, T) text alone (no speech: the code rows are all pad).
        audio_features: (B, L, 512) from the audio encoder, of which row b has audio_lens[b] valid (all, when None).
        image_features: (B, 64, 768), or (B, N, 64, 768) for N images a row.
        spk_emb: (B, 192), used where the code rows hold the speaker token.
        cache: continue it; features are needed only in the forward that carries their pads.
        last_only: logits of the last position only (T becomes 1 in the output): all that generation needs.
        positions: (B, R) where logits are wanted (T becomes R): in training only the reply has targets, half of a row or less.
        speech_only: no text logits, so the Thinker need not run beyond the bridge. text_only: no audio logits, the Talker does not run.
        average: mean of a tensor over the processes that share a batch: experts are balanced over all of it, not over each part.
        Raises ValueError for a wrong shape.
        """
        codes, text = self._split(input_ids)
        x = self.embed(text, audio_features, audio_lens, image_features)
        past = Past(cache, text.shape[1]) if cache is not None else None
        hidden, bridge = self.model(x, past, bridge_only=speech_only)
        spoken = None if text_only else self.talker(codes, bridge, spk_emb, past, first_layer=len(self.model.layers))
        if cache is not None:
            cache.advance(text.shape[1])
        if last_only:
            positions = torch.full((text.shape[0], 1), text.shape[1] - 1, device=text.device)
        aux_loss = self._aux_loss(codes, text, text_only, average)
        return OmniOutput(None if hidden is None else self.lm_head(_at(hidden, positions)),
                          None if spoken is None else self.talker.lm_head(_at(spoken, positions)), aux_loss)

    def new_cache(self, batch: int, max_length: int) -> KVCache:
        """An empty cache for `batch` rows of at most `max_length` positions, on the model's device and in its dtype."""
        c, t = self.config, self.config.talker_block_config()
        shapes = [(c.num_key_value_heads, c.head_dim)] * c.num_hidden_layers
        shapes += [(t.num_key_value_heads, t.head_dim)] * c.num_talker_hidden_layers
        weight = self.lm_head.weight
        return KVCache(shapes, batch, max_length, weight.device, weight.dtype)

    def _split(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        if input_ids.dim() == 2:
            pads = torch.full((input_ids.shape[0], NUM_CODEBOOKS, input_ids.shape[1]), self.config.audio_pad_token, device=input_ids.device)
            return pads, input_ids
        if input_ids.dim() != 3 or input_ids.shape[1] != NUM_STREAMS:
            raise ValueError(f"input_ids must be (B, {NUM_STREAMS}, T) or (B, T), got {tuple(input_ids.shape)}")
        return input_ids[:, :NUM_CODEBOOKS], input_ids[:, NUM_CODEBOOKS]

    def embed(self, text: Tensor, audio: Tensor | None, audio_lens: Tensor | None, images: Tensor | None) -> Tensor:
        """Text embeddings (B, T, C) with audio and image features at their pads."""
        x = self.model.embed_tokens(text)
        if audio is not None:
            if audio_lens is None:
                audio_lens = torch.full((len(audio),), audio.shape[1], device=audio.device)
            vectors = self.audio_proj(audio.type_as(self.audio_proj.mlp[0].weight))[:, None]
            x = inject(x, text, self.config.audio_ids, vectors, audio_lens[:, None])
        if images is not None:
            if images.dim() == 3:
                images = images[:, None]
            vectors = self.vision_proj(images.type_as(self.vision_proj.mlp[0].weight))
            x = inject(x, text, self.config.image_ids, vectors)
        return x

    def _aux_loss(self, codes: Tensor, text: Tensor, text_only: bool = False, average: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Load-balancing term (Fedus et al. 2021, eq. 4), summed over the layers that ran.

        Padding is left out: it would make the loss depend on how rows are put into batches.
        """
        if not (self.training and self.config.use_moe):
            return self.lm_head.weight.new_zeros((), dtype=torch.float32)
        valid = (text != self.config.pad_token_id) | (codes != self.config.audio_pad_token).any(1)
        blocks = [*self.model.layers, *([] if text_only else self.talker.layers)]
        load, chance = torch.stack([block.mlp.routed(valid) for block in blocks], dim=1)
        tokens = valid.sum()[None].float()
        if average is not None:
            shared = average(torch.cat([load.flatten(), tokens]))
            load, tokens = shared[:-1].view_as(load), shared[-1:]
        tokens = tokens.clamp(min=1)
        return self.config.router_aux_loss_coef * self.config.num_experts * (load / tokens * chance / tokens).sum()


def _at(x: Tensor, positions: Tensor | None) -> Tensor:
    """x (B, T, C) at positions (B, R), everywhere for None."""
    return x if positions is None else x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


def inject(x: Tensor, text: Tensor, pad_ids: list[int], vectors: Tensor, lens: Tensor | None = None) -> Tensor:
    """Put vectors (B, N, L, C) into x (B, T, C): the k-th run of pads in `text` (B, T) takes item k, as many as fit.

    lens (B, N): how many of an item's L vectors are valid (default all). Surplus pads keep their text embedding.
    Written without a host sync or a data-dependent shape, so that it compiles and batches freely.
    """
    B, T = text.shape
    _, N, L, C = vectors.shape
    pads = torch.isin(text, torch.tensor(pad_ids, device=text.device))
    starts = pads & ~F.pad(pads, (1, -1))
    run = starts.cumsum(1) - 1  # which run a pad belongs to
    index = torch.arange(T, device=text.device).expand(B, T)
    offset = index - torch.where(starts, index, 0).cummax(1).values  # how far into its run it stands
    item = run.clamp(0, N - 1)
    valid = torch.full_like(offset, L) if lens is None else lens.long().gather(1, item)
    use = pads & (run < N) & (offset < valid) & (offset < L)
    flat = (item * L + offset.clamp(0, L - 1))[..., None].expand(B, T, C)
    return torch.where(use[..., None], vectors.reshape(B, N * L, C).gather(1, flat).type_as(x), x)


def omni_loss(out: OmniOutput, text_labels: Tensor, audio_labels: Tensor, config: OmniConfig, counts: Tensor | None = None,
              fused: bool = True, weights: Tensor | None = None) -> OmniLosses:
    """text_labels (B, T) and audio_labels (B, 8, T), aligned with the logits, IGNORE where there is no target.

    Text: mean cross-entropy over the labelled positions. Audio: mean over codebooks of sum(w * CE) / labelled positions, w = 10 on stop
    tokens. A term without labels is 0 and keeps the graph; one without logits is 0.
    counts: divide by these, as of `label_counts`, instead of by this batch's own (processes share a batch). fused: all codebooks
    in one cross-entropy, else one each: the same numbers. weights (8,): how much each codebook counts in the mean, default alike.
    """
    counts = label_counts(text_labels, audio_labels).clamp(min=1) if counts is None else counts
    text, per_codebook = out.aux_loss.new_zeros(()), out.aux_loss.new_zeros(NUM_CODEBOOKS)
    if out.logits is not None:
        text = F.cross_entropy(out.logits.flatten(0, 1).float(), text_labels.flatten(), ignore_index=IGNORE, reduction="sum") / counts[-1]
    if out.audio_logits is not None:
        if fused:
            audio = _unreduced(out.audio_logits, audio_labels)
        else:
            audio = torch.stack([_unreduced(out.audio_logits[:, k], audio_labels[:, k]) for k in range(NUM_CODEBOOKS)], dim=1)
        weight = torch.where(audio_labels == config.audio_stop_token, STOP_WEIGHT, 1.0)
        per_codebook = (audio * weight).sum((0, 2)) / counts[:-1]
    audio = per_codebook.mean() if weights is None else (per_codebook * weights).sum() / weights.sum()
    return OmniLosses(text + audio + out.aux_loss, text, audio, out.aux_loss, per_codebook.detach())


def label_counts(text_labels: Tensor, audio_labels: Tensor) -> Tensor:
    """Targets of each stream, (9,) int64: the 8 codebooks, then text."""
    return torch.cat([(audio_labels != IGNORE).sum((0, 2)), (text_labels != IGNORE).sum()[None]])


def _unreduced(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (..., vocab) for labels (...), 0 where they are IGNORE."""
    loss = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE, reduction="none")
    return loss.view(labels.shape)


def init_talker_from_thinker(model: MiniMindOmni) -> None:
    """Start the Talker's blocks as copies of the Thinker's last ones (for a weight that has no Talker yet).

    Raises ValueError when the two have different shapes (other width, heads or expert count): nothing is copied then.
    """
    talker = model.talker.layers
    source = model.model.layers[-len(talker):]
    shapes = [[tuple(p.shape) for p in layers.parameters()] for layers in (source, talker)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the Talker ({len(talker)} layers, width {model.config.talker_hidden_size}) cannot start from the Thinker "
                         f"({len(model.model.layers)} layers, width {model.config.hidden_size}): shapes differ")
    with torch.no_grad():
        for target, origin in zip(talker, source):
            target.load_state_dict(origin.state_dict())
