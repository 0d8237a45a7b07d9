"""OmniConfig: every size and every special id of MiniMind-O, exactly once.

- Field names are those of the released checkpoints' config (model_type "minimind-o").
- PRESETS name the three models of this project: `nano` (trained from zero, offline), `base` (released dense), `moe` (released MoE).
- A config is plain data: `to_dict()` is what a checkpoint's JSON sidecar holds, `OmniConfig(**that)` restores it.
"""
import math
from dataclasses import asdict, dataclass, field, fields, replace

NUM_CODEBOOKS = 8  # Mimi codebooks the Talker speaks; row 8 of a sequence is text
NUM_STREAMS = NUM_CODEBOOKS + 1
AUDIO_SPECIALS = 64  # ids above the codec's own codes: pad, stop, speaker and spares
FRAME_SAMPLES = 1920  # one Mimi frame: 80 ms at 24 kHz
SAMPLE_RATE = 24_000  # of generated speech
INPUT_RATE = 16_000  # of everything that is heard: SenseVoice and CAM++ both listen at 16 kHz
IGNORE = -100  # a label that is not a target
KINDS = {float: (int, float), list[int]: list}  # what a field of OmniConfig takes, where that is not its type


@dataclass
class OmniConfig:
    # Thinker
    vocab_size: int = 6400
    hidden_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    intermediate_size: int | None = None  # derived: ceil(hidden * pi / 64) * 64
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    inference_rope_scaling: bool = False  # YaRN, see model_minimind.rope_table
    dropout: float = 0.0
    # mixture of experts
    use_moe: bool = False
    num_experts: int = 4
    num_experts_per_tok: int = 1
    router_aux_loss_coef: float = 5e-4
    # text ids
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2
    think_end_ids: list[int] = field(default_factory=lambda: [26, 234, 234])  # "</think>\n\n"
    # Talker
    bridge_layer: int | None = None  # derived: num_hidden_layers // 2 - 1
    num_talker_hidden_layers: int = 4
    talker_hidden_size: int = 768
    audio_vocab_size: int = 2112
    audio_pad_token: int = 2049
    audio_stop_token: int = 2050
    audio_spk_token: int = 2051
    spk_emb_size: int = 192
    # inputs that come from frozen encoders
    audio_ids: list[int] = field(default_factory=lambda: [16])
    audio_special_token: str = "<|audio_pad|>"
    audio_hidden_size: int = 512
    image_ids: list[int] = field(default_factory=lambda: [12])
    image_special_token: str = "<|image_pad|>"
    image_hidden_size: int = 768
    image_token_len: int = 64
    model_type: str = "minimind-o"

    def __post_init__(self):
        for f in fields(self):
            value, least = getattr(self, f.name), 0 if f.name.endswith(("_token", "_token_id")) else 1
            if f.type is int and (type(value) is not int or value < least):
                raise ValueError(f"{f.name} is {value!r}, which is no whole number from {least} up")
            if not isinstance(value, KINDS.get(f.type, f.type)):
                raise ValueError(f"{f.name} is {value!r}, which is no {getattr(f.type, '__name__', f.type)}")
        if self.intermediate_size is None:
            self.intermediate_size = math.ceil(self.hidden_size * math.pi / 64) * 64
        if self.bridge_layer is None:
            self.bridge_layer = self.num_hidden_layers // 2 - 1
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                             f"{self.num_key_value_heads}")
        if not 0 <= self.bridge_layer < self.num_hidden_layers:
            raise ValueError(f"bridge_layer {self.bridge_layer} is outside the Thinker's {self.num_hidden_layers} layers")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_codes(self) -> int:
        """Codes of one codebook; ids from here on are specials and are never decoded."""
        return self.audio_vocab_size - AUDIO_SPECIALS

    def talker_block_config(self) -> "OmniConfig":
        """Config of the Talker's blocks: MiniMind's defaults with only the width and `use_moe` taken over.

        The positions are the Thinker's, too: both stacks run over one sequence, and YaRN stretches both or neither.
        """
        return OmniConfig(hidden_size=self.talker_hidden_size, use_moe=self.use_moe,
                          max_position_embeddings=self.max_position_embeddings, inference_rope_scaling=self.inference_rope_scaling)

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "OmniConfig":
        """Build from a dict; a key that is not a field raises ValueError and is named."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown OmniConfig fields {unknown}; known: {sorted(f.name for f in fields(cls))}")
        return cls(**values)

    @classmethod
    def preset(cls, name: str, **overrides) -> "OmniConfig":
        """One of PRESETS with `overrides` on top (ValueError for an unknown name)."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; choose from {sorted(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})


def audio_ids_for(num_codes: int) -> dict:
    """Audio vocabulary fields for a codec of `num_codes` codes: the specials keep the released offsets (+1, +2, +3)."""
    return dict(audio_vocab_size=num_codes + AUDIO_SPECIALS, audio_pad_token=num_codes + 1,
                audio_stop_token=num_codes + 2, audio_spk_token=num_codes + 3)


PRESETS = {  # fields that differ from the defaults; sizes left out are derived
    "nano": dict(vocab_size=1024, hidden_size=256, num_hidden_layers=4, talker_hidden_size=256,
                 max_position_embeddings=2048, image_hidden_size=256, **audio_ids_for(512)),
    "base": {},
    "moe": dict(use_moe=True),
}
