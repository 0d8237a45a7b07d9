"""MiniMind-O as a Transformers model. scripts/convert_omni.py copies this file, and those it imports, into the folders it writes.

- `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` finds it there; tested with Transformers 4.57 and 5.23.
  (Transformers has no MiniMind-O of its own, so a folder brings its code: load only folders whose code you trust, such as your own.)
- The layers are the project's own, so the logits are the same by construction; this file only adapts configuration and cache.
- `generate()` writes text, for padded batches too. With nine rows (B, 9, T) `forward` gives the speech logits as well; turning
  those into a stream of sound is the work of the project's engine, not of this file.
"""
from dataclasses import dataclass, fields
from typing import Optional

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

# All files are imported here, even if only through one another: Transformers 4.57 copies what the first file names, and no more.
from model.config import OmniConfig
from model.kv_cache import KVCache
from model.model_minimind import Past, Rope, rope_table
from model.model_omni import MiniMindOmni as NativeOmni


class MiniMindOConfig(PretrainedConfig):
    """OmniConfig's fields as attributes, and whatever else Transformers keeps in a config.json."""
    model_type = "minimind-o"

    def __init__(self, **kwargs):
        names = [f.name for f in fields(OmniConfig) if f.name != "model_type"]
        omni = OmniConfig(**{name: kwargs.pop(name) for name in names if name in kwargs})
        for name in names:
            setattr(self, name, getattr(omni, name))
        for name in ("rope_scaling", "rope_parameters"):  # inference_rope_scaling and rope_theta say it; 5.x warns about the first
            kwargs.pop(name, None)
        ids = {name: getattr(omni, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        super().__init__(**{"tie_word_embeddings": True, **kwargs, **ids})

    def to_omni(self) -> OmniConfig:
        return OmniConfig(**{f.name: getattr(self, f.name) for f in fields(OmniConfig)})


@dataclass
class OmniCausalLMOutput(CausalLMOutputWithPast):
    """audio_logits (B, 8, T, audio_vocab), None for text alone; aux_loss as in the native model."""
    audio_logits: Optional[Tensor] = None
    aux_loss: Optional[Tensor] = None


class ExactRope(Rope):
    """The rotary table as plain tensors, computed at the first forward on a device.

    Transformers builds models on the meta device and fills in what the file holds; a buffer that is not in the file would be
    left as whatever memory held. There is none here, and no cast to half precision can reach the table either.
    """

    def __init__(self, config: OmniConfig):
        nn.Module.__init__(self)
        self.config = config
        self.cos: Optional[Tensor] = None
        self.sin: Optional[Tensor] = None

    def place(self, device: torch.device) -> None:
        if self.cos is None or self.cos.device != device:
            with torch.inference_mode(False):  # the table must serve training, too, if its first use is inference
                self.cos, self.sin = (table.to(device) for table in rope_table(self.config))


class CacheView:
    """A Transformers cache as our layers expect one (see KVCache), with a padded batch's attention mask (B, past + T)."""

    def __init__(self, cache, attention_mask: Optional[Tensor], text: Tensor):
        self.cache, self.batch, self.device = cache, text.shape[0], text.device
        self.past = 0 if cache is None else int(cache.get_seq_length())
        self.attention_mask = attention_mask
        if attention_mask is not None and tuple(attention_mask.shape) != (self.batch, self.past + text.shape[1]):
            raise ValueError(f"attention_mask must be {(self.batch, self.past + text.shape[1])}, got {tuple(attention_mask.shape)}")

    def positions(self, length: int) -> Tensor:
        """(B, T): pads on the left do not count."""
        if self.attention_mask is None:
            return torch.arange(self.past, self.past + length, device=self.device).expand(self.batch, length)
        return (self.attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]

    def mask(self, positions: Tensor) -> Tensor:
        """(B or 1, 1, T, past + T) bool."""
        slots = torch.arange(self.past + positions.shape[1], device=self.device)
        queries = slots[self.past:, None]
        seen = (slots <= queries)[None, None]
        if self.attention_mask is not None:
            # a pad sees itself: a query that sees nothing would be NaN, and NaN spreads through the values of the next layer
            seen = seen & (self.attention_mask.bool()[:, None, None] | (slots == queries))
        return seen

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return (k, v) if self.cache is None else self.cache.update(k, v, layer)


class MiniMindOmni(PreTrainedModel, GenerationMixin):
    """The trainable model with the released key names. Features of the frozen encoders are passed in, as in the native forward."""
    config_class = MiniMindOConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _no_split_modules = ["Block"]
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # 4.57 reads the keys only
    _split, embed, _aux_loss = NativeOmni._split, NativeOmni.embed, NativeOmni._aux_loss

    def __init__(self, config: MiniMindOConfig):
        super().__init__(config)
        omni = config.to_omni()
        for name, part in NativeOmni(omni).named_children():
            self.add_module(name, part)
        self.model.rope, self.talker.rope = ExactRope(omni), ExactRope(omni.talker_block_config())
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def forward(self, input_ids: Tensor, attention_mask: Optional[Tensor] = None, past_key_values=None,
                use_cache: Optional[bool] = None, logits_to_keep: int = 0, audio_features: Optional[Tensor] = None,
                audio_lens: Optional[Tensor] = None, image_features: Optional[Tensor] = None, spk_emb: Optional[Tensor] = None,
                token_type_ids: Optional[Tensor] = None, return_dict: Optional[bool] = None, **ignored):
        """input_ids (B, T) text, or (B, 9, T) with 8 rows of codes above it: only then does the Talker run.

        attention_mask (B, past + T), 0 at pads. logits_to_keep: only the last so many positions (0: all). The rest as in
        model_omni.py. past_key_values: a Transformers cache; one for (B, 9, T) must have room for the Talker's layers, too
        (`DynamicCache()` has). token_type_ids mean nothing: tokenizers give them, and generate() insists on a name for all it is
        given. Returns OmniCausalLMOutput.
        """
        codes, text = self._split(input_ids)
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache()
        if past_key_values is None and attention_mask is not None and bool(attention_mask.all()):
            attention_mask = None  # then the forward is the native one to the last bit
        past = None
        if past_key_values is not None or attention_mask is not None:
            past = Past(CacheView(past_key_values, attention_mask, text), text.shape[1])
        for stack in (self.model, self.talker):
            stack.rope.place(text.device)
        keep = slice(-logits_to_keep, None) if logits_to_keep else slice(None)
        hidden, bridge = self.model(self.embed(text, audio_features, audio_lens, image_features), past)
        audio_logits = aux_loss = None
        if input_ids.dim() == 3:
            spoken = self.talker(codes, bridge, spk_emb, past, first_layer=len(self.model.layers))
            audio_logits, aux_loss = self.talker.lm_head(spoken[:, keep]), self._aux_loss(codes, text)
        out = OmniCausalLMOutput(logits=self.lm_head(hidden[:, keep]), past_key_values=past_key_values, audio_logits=audio_logits,
                                 aux_loss=aux_loss)
        return out.to_tuple() if return_dict is False else out
