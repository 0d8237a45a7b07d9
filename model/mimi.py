"""Mimi, the speech codec: 24 kHz sound <-> 8 codes per 80 ms frame, whole clips or exactly as a stream.

- Folders are transformers' `MimiModel` folders; its code only loads the weights. They are rearranged once into a short list
  of layers, and everything below runs on (B, T, C) tensors, so that each convolution is one matrix product.
- The state of a stream is explicit and passed in: one set of weights serves any number of streams. Each batch row has its own
  position, can be frozen for a step (`active`) and reset alone.
- Streams are exact: however the frames are chunked, the samples equal those of the whole clip, past the attention window too.
  Whole clips are therefore decoded as a stream of large chunks, in bounded memory.
- `decode_step` has no host synchronisation and updates its state in place: it can be captured in a CUDA graph.

A transposed convolution of kernel 2s and stride s is a causal convolution of kernel 2 with s times the output channels,
reshaped: out[t] = [x[t-1], x[t]] @ W. So one `Conv` covers up- and downsampling, and its state is its last inputs.
"""
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import FRAME_SAMPLES, NUM_CODEBOOKS, SAMPLE_RATE
from model.packed import Packed, linear, pack
from model.weight_files import names_folder

CHUNK_FRAMES = 8  # frames per inner step unless the state says otherwise
CPU_FRAMES = 32  # of all rows in an inner step of `encode` on a CPU: its largest tensors are then 16 MB when of the released size
FEW_STEPS = 256  # fewer output steps a row than this, and a CPU is better off with all rows in one product
ENCODER_PARTS = ("encoder.", "encoder_transformer.", "downsample.")  # state-dict prefixes absent from a decoder-only folder


@dataclass
class Conv:
    """Causal convolution over (B, T, C): kernel `span` samples wide (dilation included), moving `stride`."""
    weight: Tensor | Packed  # (upsample * C_out, taps * C_in)
    bias: Tensor | None
    span: int
    stride: int = 1
    dilation: int = 1
    upsample: int = 1  # outputs per input step: the stride of a transposed convolution
    elu: bool = False  # ELU on the input
    replicate: bool = False  # the silence before the first sample repeats it instead of being zero

    @property
    def left(self) -> int:
        """Past input steps the next output needs."""
        return self.span - self.stride


@dataclass
class Residual:
    convs: list[Conv]


@dataclass
class Block:
    """Weights of one transformer layer; layer scale is folded into `out` and `down`."""
    norm1: tuple[Tensor, Tensor]
    qkv: Tensor | Packed  # (3 * H * D, C)
    out: Tensor | Packed
    norm2: tuple[Tensor, Tensor]
    up: Tensor | Packed
    down: Tensor | Packed


@dataclass
class Transformer:
    blocks: list[Block]
    heads: int
    window: int  # a position sees itself and the window - 1 before it
    eps: float
    inv_freq: Tensor  # (D / 2,) float32


@dataclass
class Half:
    """Encoder or decoder: convolutions, transformer at 25 Hz, convolutions."""
    before: list
    transformer: Transformer
    after: list

    def convs(self) -> list[Conv]:
        """Every convolution in the order of its state."""
        return [c for layer in self.before + self.after for c in (layer.convs if isinstance(layer, Residual) else [layer])]


@dataclass
class Chain:
    """Codebooks that quantise one another's residuals, float32."""
    tables: Tensor  # (K', N, d)
    inward: Tensor  # (d, C)
    outward: Tensor  # (C, d)


@dataclass
class MimiState:
    """What a batch of streams remembers; updated in place by `decode_step` / `encode_step`."""
    inputs: list[Tensor]  # per convolution (B, left, C_in): its last inputs
    keys: Tensor  # (layers, B, H, R, D): ring, position p in slot p % R
    values: Tensor
    position: Tensor  # (B,) int64: transformer positions seen, 2 per frame
    max_frames: int  # most frames one inner step may take: the ring has room for them beside the window

    def reset(self, rows=None) -> None:
        """Start the given rows anew: None for all, a bool mask (B,), or a list/tensor of row numbers."""
        if rows is None:
            mask = torch.ones_like(self.position, dtype=torch.bool)
        elif isinstance(rows, Tensor) and rows.dtype == torch.bool:
            assert rows.shape == self.position.shape, rows.shape
            mask = rows.to(self.position.device)
        else:
            mask = torch.zeros_like(self.position, dtype=torch.bool)
            mask[torch.as_tensor(rows, device=mask.device, dtype=torch.long)] = True
        self.position.masked_fill_(mask, 0)
        for past in self.inputs:
            past.masked_fill_(mask[:, None, None], 0)
        for ring in (self.keys, self.values):  # masked slots still meet a zero weight, and 0 * NaN is NaN
            ring.masked_fill_(mask[None, :, None, None, None], 0)

    def first(self, rows: int) -> "MimiState":
        """The first `rows` streams as a state of their own: a view, so that stepping it advances this state."""
        return MimiState([past[:rows] for past in self.inputs], self.keys[:, :rows], self.values[:, :rows], self.position[:rows],
                         self.max_frames)

    def move_row(self, source: int, target: int) -> None:
        """Let stream `target` go on where `source` is; `source` is then free to be reset."""
        for past in (*self.inputs, self.position):
            past[target] = past[source]
        for ring in (self.keys, self.values):
            ring[:, target] = ring[:, source]

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.inputs, self.keys, self.values))


class Mimi:
    """The codec on one device. `encode` and `decode` take whole clips, the `_step` functions any piece of a stream."""

    sample_rate = SAMPLE_RATE
    frame_samples = FRAME_SAMPLES

    def __init__(self, model, device="cpu", dtype=torch.float32, encoder: bool = True):
        """Take over the weights of a transformers `MimiModel` (ValueError for a variant that cannot be streamed)."""
        _check_config(model.config)
        self.config, self.device, self.dtype = model.config, torch.device(device), dtype
        encode_half, decode_half = _halves(model)
        with torch.no_grad():
            self.decoder = _to(decode_half, self.device, dtype, 1)
            self.encoder = _to(encode_half, self.device, dtype, FRAME_SAMPLES) if encoder else None
            chains = _codebook_chains(model.quantizer)
            # decoding needs only the projected entries, so dequantising is a look-up and a sum
            self.decode_table = torch.cat([chain.tables @ chain.outward.T for chain in chains]).to(self.device, dtype)
            self.encode_chains = [Chain(*(part.to(self.device) for part in vars(chain).values())) for chain in chains]
        self.codebook_index = torch.arange(NUM_CODEBOOKS, device=self.device)[None, :, None]

    @classmethod
    @names_folder
    def load(cls, folder, device="cpu", encoder: bool = True, dtype=torch.float32) -> "Mimi":
        """Load a local MimiModel folder; with encoder=False it may lack the encoder's weights.

        FileNotFoundError names a missing folder and how to get it; ValueError names weights the folder lacks.
        """
        from transformers import MimiModel

        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(f"no Mimi codec in {folder}: run `modelscope download --model gongjy/mimi --local_dir {folder}`")
        with quiet_transformers():  # what it would report, `info` says
            model, info = MimiModel.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True,
                                                    output_loading_info=True)
        missing = [key for key in info["missing_keys"] if encoder or not key.startswith(ENCODER_PARTS)]
        if missing or info["mismatched_keys"]:
            raise ValueError(f"Mimi folder {folder} is incomplete: missing {sorted(missing)[:5]} ({len(missing)} in all), "
                             f"of another shape {list(info['mismatched_keys'])[:5]}; download it anew")
        return cls(model.eval(), device, dtype, encoder)

    @property
    def num_codes(self) -> int:
        """Entries of one codebook."""
        return self.decode_table.shape[1]

    # ---- whole clips

    @torch.no_grad()
    def encode(self, wav: Tensor) -> Tensor:
        """wav (S,) or (B, S) float at 24 kHz -> codes (B, 8, ceil(S / 1920)) int64; the last frame is padded."""
        wav = torch.as_tensor(wav, dtype=self.dtype, device=self.device)
        wav = wav[None] if wav.ndim == 1 else wav
        if wav.ndim != 2 or not wav.shape[1]:
            raise ValueError(f"encode needs audio of shape (S,) or (B, S) with S > 0, got {tuple(wav.shape)}")
        return self.encode_ending(wav, [-(-wav.shape[1] // FRAME_SAMPLES)] * len(wav))

    @torch.no_grad()
    def encode_ending(self, wav: Tensor, frames: list[int]) -> Tensor:
        """As `encode` of wav (B, S), whose row b ends after frames[b] frames, longest first: a row takes no time once it has ended.

        Codes behind a row's end are zero or mean nothing.
        """
        assert frames == sorted(frames, reverse=True) and len(frames) == len(wav), frames
        wav = torch.as_tensor(wav, dtype=self.dtype, device=self.device)
        step = 4 * CHUNK_FRAMES
        if self.device.type == "cpu":
            step = max(min(step, CPU_FRAMES // len(wav)), 1)
        state = self.init_encode_state(len(wav), max_frames=step)
        codes = torch.zeros(len(wav), NUM_CODEBOOKS, frames[0], dtype=torch.long, device=self.device)
        for start in range(0, frames[0], step):
            rows = sum(count > start for count in frames)
            piece = wav[:rows, start * FRAME_SAMPLES:(start + step) * FRAME_SAMPLES]
            codes[:rows, :, start:start + step] = self._encode_chunk(piece, state.first(rows), None)
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """codes (B, 8, T) or (8, T) -> wav (B, T * 1920) float in about [-1, 1]. ValueError for codes out of range."""
        codes = torch.as_tensor(codes, dtype=torch.long, device=self.device)
        codes = codes[None] if codes.ndim == 2 else codes
        if codes.ndim != 3 or codes.shape[1] != NUM_CODEBOOKS:
            raise ValueError(f"decode needs codes of shape (B, {NUM_CODEBOOKS}, T), got {tuple(codes.shape)}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.num_codes:
            raise ValueError(f"codes must lie in 0..{self.num_codes - 1}, got {int(codes.min())}..{int(codes.max())}")
        if not codes.shape[2]:
            return torch.zeros(codes.shape[0], 0, dtype=self.dtype, device=self.device)
        return self.decode_step(codes, self.init_state(codes.shape[0], max_frames=4 * CHUNK_FRAMES))

    # ---- streams

    def init_state(self, batch: int, max_frames: int = CHUNK_FRAMES) -> MimiState:
        """State of `batch` fresh decoding streams; longer steps than `max_frames` are cut into several."""
        return _new_state(self.decoder, batch, max_frames)

    def init_encode_state(self, batch: int, max_frames: int = CHUNK_FRAMES) -> MimiState:
        """State of `batch` fresh encoding streams."""
        assert self.encoder is not None, "loaded with encoder=False"
        return _new_state(self.encoder, batch, max_frames)

    @torch.no_grad()
    def decode_step(self, codes: Tensor, state: MimiState, active: Tensor | None = None) -> Tensor:
        """The next t frames of every stream: codes (B, 8, t) -> wav (B, t * 1920), advancing `state`.

        Rows where `active` (B,) bool is False may hold any codes: they yield zeros and keep their state.
        """
        assert codes.shape[:2] == (state.position.shape[0], NUM_CODEBOOKS), codes.shape
        if active is not None:
            codes = torch.where(active[:, None, None], codes, 0)
        pieces = [self._decode_chunk(piece, state, active) for piece in codes.split(state.max_frames, dim=2)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    @torch.no_grad()
    def encode_step(self, wav: Tensor, state: MimiState, active: Tensor | None = None) -> Tensor:
        """The next t whole frames of every stream: wav (B, t * 1920) -> codes (B, 8, t); frozen rows yield zeros."""
        assert wav.shape[1] % FRAME_SAMPLES == 0, wav.shape
        assert wav.shape[0] == state.position.shape[0], (wav.shape, state.position.shape)
        pieces = [self._encode_chunk(piece, state, active)
                  for piece in wav.to(self.dtype).split(state.max_frames * FRAME_SAMPLES, dim=1)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)

    def _decode_chunk(self, codes, state, active):
        latents = self.decode_table[self.codebook_index, codes].sum(dim=1)  # (B, t, C)
        wav = _run(latents, self.decoder, state, active).flatten(1)
        return wav if active is None else torch.where(active[:, None], wav, 0)

    def _encode_chunk(self, wav, state, active):
        latents = _run(wav[:, :, None], self.encoder, state, active).float()  # (B, t, C)
        codes = _quantize(latents, self.encode_chains)
        return codes if active is None else torch.where(active[:, None, None], codes, 0)


# ---- one step of a stream

def _run(x: Tensor, half: Half, state: MimiState, active: Tensor | None) -> Tensor:
    """(B, T, C) through an encoder or a decoder, updating `state` of the active rows."""
    fresh = state.position == 0  # read before the transformer advances it
    inputs = iter(state.inputs)
    for layer in half.before:
        x = _conv_layer(x, layer, inputs, fresh, active)
    x = _transformer(x, half.transformer, state, active)
    for layer in half.after:
        x = _conv_layer(x, layer, inputs, fresh, active)
    return x


def _conv_layer(x, layer, inputs, fresh, active):
    if isinstance(layer, Conv):
        return _conv(x, layer, next(inputs), fresh, active)
    y = x
    for conv in layer.convs:
        y = _conv(y, conv, next(inputs), fresh, active)
    return x + y


def _conv(x: Tensor, conv: Conv, past: Tensor, fresh: Tensor, active: Tensor | None) -> Tensor:
    """x (B, T, C_in) with the last `left` inputs of the stream in front -> (B, T * upsample / stride, C_out)."""
    if conv.elu:
        x = F.elu(x)
    if x.shape[1] % conv.stride:  # only at the end of a clip: complete the last output
        missing = conv.stride - x.shape[1] % conv.stride
        x = torch.cat([x, x[:, -1:].expand(-1, missing, -1) if conv.replicate else x.new_zeros(len(x), missing, x.shape[2])], 1)
    if conv.left:
        before = torch.where(fresh[:, None, None], x[:, :1], past) if conv.replicate else past
        x = torch.cat([before, x], dim=1)
        _keep(past, x[:, -conv.left:], active)
    if conv.span > 1:  # (B, T, taps * C_in), a view: neighbouring steps lie side by side in memory
        x = x.unfold(1, conv.span, conv.stride)[..., ::conv.dilation].transpose(2, 3).flatten(2)
        if len(x) > 1 and x.shape[1] < FEW_STEPS and x.device.type == "cpu":
            x = x.contiguous()  # a view is multiplied row by row, the weights packed anew for each: up to 200 times slower in bfloat16
    y = linear(x, conv.weight, conv.bias)
    return y.reshape(y.shape[0], y.shape[1] * conv.upsample, -1)


def _keep(old: Tensor, new: Tensor, active: Tensor | None) -> None:
    """Overwrite the active rows of `old` in place."""
    if active is not None:
        new = torch.where(active.view(-1, *[1] * (old.ndim - 1)), new, old)
    old.copy_(new)


def _transformer(x: Tensor, net: Transformer, state: MimiState, active: Tensor | None) -> Tensor:
    """x (B, t, C) at 25 Hz. Keys and values go into the ring first; the mask then gives each query its own window."""
    B, t, C = x.shape
    ring = state.keys.shape[3]
    assert t <= ring - net.window + 1, (t, ring)
    query = state.position[:, None] + torch.arange(t, device=x.device)  # (B, t)
    slots = torch.arange(ring, device=x.device)
    last = query[:, -1:]
    held = (last - (last - slots) % ring)[:, None]  # (B, 1, R): the position in each slot, negative where none yet
    visible = (held <= query[..., None]) & (held > query[..., None] - net.window) & (held >= 0)
    mask = torch.zeros_like(visible, dtype=x.dtype).masked_fill_(~visible, float("-inf"))[:, None]  # (B, 1, t, R)
    angles = query[..., None].float() * net.inv_freq
    cos, sin = (f(torch.cat([angles, angles], dim=-1)).to(x.dtype)[:, :, None] for f in (torch.cos, torch.sin))
    index = (query % ring)[:, None, :, None].expand(-1, net.heads, -1, state.keys.shape[4])
    for block, keys, values in zip(net.blocks, state.keys, state.values):
        qkv = linear(F.layer_norm(x, (C,), *block.norm1, net.eps), block.qkv).view(B, t, 3, net.heads, -1)
        q, k, v = (part.transpose(1, 2) for part in (_rotate(qkv[:, :, 0], cos, sin), _rotate(qkv[:, :, 1], cos, sin), qkv[:, :, 2]))
        for store, new in ((keys, k), (values, v)):
            if active is not None:
                new = torch.where(active[:, None, None, None], new, store.gather(2, index))
            store.scatter_(2, index, new)
        seen = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)  # (B, H, t, D)
        x = x + linear(seen.transpose(1, 2).flatten(2), block.out)
        x = x + linear(F.gelu(linear(F.layer_norm(x, (C,), *block.norm2, net.eps), block.up)), block.down)
    state.position += t if active is None else t * active
    return x


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-split layout."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


def _quantize(latents: Tensor, chains: list[Chain]) -> Tensor:
    """Nearest neighbours of residuals: latents (B, t, C) -> codes (B, 8, t)."""
    codes = []
    for chain in chains:
        residual = F.linear(latents, chain.inward).flatten(0, 1)  # (B * t, d)
        for table in chain.tables:
            codes.append(torch.cdist(residual, table).argmin(dim=-1))
            residual = residual - table[codes[-1]]
    return torch.stack(codes, dim=-1).view(*latents.shape[:2], -1).transpose(1, 2)


# ---- taking over the weights

@contextmanager
def quiet_transformers():
    """No progress bars and load reports: they would cut through a streamed reply. What was set before comes back."""
    from transformers.utils import logging as transformers_logging

    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _check_config(config) -> None:
    wanted = dict(use_causal_conv=True, pad_mode="constant", trim_right_ratio=1.0, use_conv_shortcut=False, hidden_act="gelu",
                  attention_bias=False, audio_channels=1, sampling_rate=SAMPLE_RATE, frame_size=FRAME_SAMPLES)
    wrong = {name: getattr(config, name) for name, value in wanted.items() if getattr(config, name) != value}
    if config.num_quantizers < NUM_CODEBOOKS:
        wrong["num_quantizers"] = config.num_quantizers
    if config.rope_parameters["rope_type"] != "default":
        wrong["rope_type"] = config.rope_parameters["rope_type"]
    if wrong:
        raise ValueError(f"this Mimi variant cannot be streamed: {wrong}; supported: {wanted}, num_quantizers >= {NUM_CODEBOOKS}")


def _halves(model) -> tuple[Half, Half]:
    """The two halves of a MimiModel; transformers 5.17 keeps their parts flat on the model, newer ones group them."""
    if hasattr(model.decoder, "decoder_seanet"):
        encoder, decoder = model.encoder, model.decoder
        parts = (encoder.encoder_seanet, encoder.encoder_transformer, encoder.downsample,
                 decoder.upsample, decoder.decoder_transformer, decoder.decoder_seanet)
    else:
        parts = (model.encoder, model.encoder_transformer, model.downsample, model.upsample, model.decoder_transformer, model.decoder)
    seanet_in, transformer_in, down, up, transformer_out, seanet_out = parts
    return (Half(_seanet(seanet_in), _prepare_transformer(transformer_in, model.config), [_prepare_conv(down)]),
            Half([_prepare_conv(up)], _prepare_transformer(transformer_out, model.config), _seanet(seanet_out)))


def _seanet(seanet) -> list:
    layers, elu = [], False
    for layer in seanet.layers:
        if isinstance(layer, nn.ELU):
            elu = True
            continue
        layers.append(Residual([_prepare_conv(layer.block[1], elu=True), _prepare_conv(layer.block[3], elu=True)])
                      if hasattr(layer, "block") else _prepare_conv(layer, elu))
        elu = False
    return layers


def _prepare_conv(layer, elu: bool = False) -> Conv:
    conv = layer.conv
    kernel, stride, dilation = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
    weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    if not isinstance(conv, nn.ConvTranspose1d):
        assert conv.groups == 1, conv.groups
        return Conv(weight.transpose(1, 2).flatten(1), bias, (kernel - 1) * dilation + 1, stride, dilation, elu=elu,
                    replicate=layer.pad_mode == "replicate")
    assert kernel == 2 * stride and dilation == 1, (kernel, stride, dilation)
    dense = _dense_transposed(weight, conv.groups)  # (C_in, C_out, 2s)
    now, later = dense.split(stride, dim=2)
    matrix = torch.stack([later, now])  # the older of the two inputs adds its second half
    return Conv(matrix.permute(3, 2, 0, 1).reshape(stride * dense.shape[1], -1),
                None if bias is None else bias.repeat(stride), span=2, upsample=stride, elu=elu)


def _dense_transposed(weight: Tensor, groups: int) -> Tensor:
    """Weight (C_in, C_out / groups, k) of a grouped transposed convolution -> (C_in, C_out, k) with the zeros written out."""
    C_in, per_group, kernel = weight.shape
    dense = weight.new_zeros(groups, C_in // groups, groups, per_group, kernel)
    index = torch.arange(groups)
    dense[index, :, index] = weight.view(groups, C_in // groups, per_group, kernel)
    return dense.view(C_in, groups * per_group, kernel)


def _prepare_transformer(net, config) -> Transformer:
    groups = config.num_attention_heads // config.num_key_value_heads

    def per_head(weight):  # each query head gets its own copy of a shared key/value head
        return weight.detach().unflatten(0, (-1, config.head_dim)).repeat_interleave(groups, dim=0).flatten(0, 1)

    blocks = []
    for layer in net.layers:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = torch.cat([attention.q_proj.weight.detach(), per_head(attention.k_proj.weight), per_head(attention.v_proj.weight)])
        norms = [(n.weight.detach(), n.bias.detach()) for n in (layer.input_layernorm, layer.post_attention_layernorm)]
        out = layer.self_attn_layer_scale.scale.detach()[:, None] * attention.o_proj.weight.detach()
        down = layer.mlp_layer_scale.scale.detach()[:, None] * mlp.fc2.weight.detach()
        blocks.append(Block(norms[0], qkv, out, norms[1], mlp.fc1.weight.detach(), down))
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return Transformer(blocks, config.num_attention_heads, config.sliding_window, config.norm_eps,
                       1.0 / config.rope_parameters["rope_theta"] ** exponent)


def _codebook_chains(quantizer) -> list[Chain]:
    """The first 8 codebooks: the semantic chain, then the acoustic one."""
    chains, wanted = [], NUM_CODEBOOKS
    for part in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
        books = [layer.codebook for layer in part.layers[:wanted]]
        if not books:
            continue
        wanted -= len(books)
        tables = torch.stack([b.embed_sum.float() / b.cluster_usage.float().clamp(min=b.epsilon)[:, None] for b in books])
        inward = outward = torch.eye(tables.shape[2], device=tables.device)
        if part.input_proj is not None:
            inward, outward = (p.weight.detach()[..., 0].float() for p in (part.input_proj, part.output_proj))
        chains.append(Chain(tables, inward, outward))
    return chains


def _to(half: Half, device, dtype, rows: int) -> Half:
    """Move a prepared half, which takes `rows` inputs a frame; rotary frequencies stay float32 because positions grow large."""
    def move(tensor):
        return None if tensor is None else tensor.to(device, dtype, copy=True).contiguous()

    for conv in half.convs():
        rows //= conv.stride
        conv.weight, conv.bias = pack(move(conv.weight), rows), move(conv.bias)
        rows *= conv.upsample
    half.transformer.inv_freq = half.transformer.inv_freq.to(device)
    half.transformer.blocks = [Block(tuple(map(move, b.norm1)), pack(move(b.qkv), 2), pack(move(b.out), 2), tuple(map(move, b.norm2)),
                                     pack(move(b.up), 2), pack(move(b.down), 2)) for b in half.transformer.blocks]
    return half


def _new_state(half: Half, batch: int, max_frames: int) -> MimiState:
    net = half.transformer
    width, first = net.blocks[0].qkv.shape[0] // 3 // net.heads, net.blocks[0].norm1[0]
    ring = net.window + 2 * max_frames - 1  # a step of 2 * max_frames positions must not overwrite what its first query sees
    inputs = [first.new_zeros(batch, c.left, c.weight.shape[1] // len(range(0, c.span, c.dilation))) for c in half.convs()]
    keys, values = (first.new_zeros(len(net.blocks), batch, net.heads, ring, width) for _ in range(2))
    return MimiState(inputs, keys, values, torch.zeros(batch, dtype=torch.long, device=first.device), max_frames)
