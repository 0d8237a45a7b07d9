"""All that the training wants of the model, as one number: `LossModel`, which DDP wraps and torch.compile makes fast."""
import torch
from torch import Tensor, nn

from model.config import NUM_CODEBOOKS
from model.model_minimind import compile_blocks, compiled
from model.model_omni import MiniMindOmni, OmniLosses, omni_loss
from model.spelling import spelling_loss
from trainer.attention_guide import AttentionGuide
from trainer.trainer_utils import mean_over_processes

TARGETS = ("text_labels", "audio_labels", "letters", "spoken")  # what LossModel takes beside the inputs
LOSSES = ("total", "text", "audio", "aux", "guide", "spelling", *(f"codebook_{i}" for i in range(NUM_CODEBOOKS)))


class LossModel(nn.Module):
    """Model and loss as one module: DDP wraps all device work, and no logits leave it."""

    def __init__(self, model: MiniMindOmni, fused: bool = True, guide: AttentionGuide | None = None, guide_weight: float = 0.0,
                 codebook_weights: Tensor | None = None, spelling_weight: float = 0.0, spelling_only: bool = False):
        super().__init__()
        self.model, self.omni_loss, self.fused, self.codebook_weights = model, omni_loss, fused, codebook_weights
        self.guide, self.guide_weight, self.spelling_weight, self.spelling_only = guide, guide_weight, spelling_weight, spelling_only

    def compile_parts(self) -> None:
        """torch.compile where the time goes: the blocks, all that is as wide as the codes' vocabulary, and the losses."""
        talker = self.model.talker
        compile_blocks((*self.model.model.layers, *talker.layers))
        talker.embed = compiled(talker.embed, dynamic=True)
        talker.lm_head.forward = compiled(talker.lm_head.forward, dynamic=True)
        self.omni_loss = compiled(omni_loss, dynamic=True)
        if self.guide is not None:
            self.guide.loss = compiled(self.guide.loss, dynamic=True)

    def forward(self, inputs: dict, text_labels: Tensor, audio_labels: Tensor, letters: Tensor, spoken: Tensor,
                counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-> (loss with gradient, detached (14,) in the order of LOSSES). letters: see AttentionGuide; spoken: see spelling_loss; counts:
        see omni_loss."""
        config, zero = self.model.config, text_labels.new_zeros((), dtype=torch.float32)
        average = None if counts is None else mean_over_processes
        losses = OmniLosses(zero, zero, zero, zero, zero.expand(NUM_CODEBOOKS))
        if not self.spelling_only:
            losses = self.omni_loss(self.model(**inputs, average=average), text_labels, audio_labels, config, counts, self.fused,
                                    self.codebook_weights)
        guide = spelling = zero
        if self.guide is not None:
            guide = self.guide(inputs["positions"], text_labels, audio_labels, letters, config.audio_stop_token)
        if self.spelling_weight and inputs["audio_features"] is not None:
            vectors = self.model.audio_proj(inputs["audio_features"])
            spelling = spelling_loss(vectors, inputs["audio_lens"], spoken, self.model.model.embed_tokens.weight, config.audio_ids[0])
        total = losses.total + self.guide_weight * guide + self.spelling_weight * spelling
        parts = torch.stack([total, losses.text, losses.audio, losses.aux, guide, spelling]).detach()
        return total, torch.cat([parts, losses.per_codebook])
