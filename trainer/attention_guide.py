"""Guided attention: teach a few of the Talker's heads early on which word of the reply is being said.

- Left alone, a Talker with little speech to learn from first becomes a model of what is usually said, and reads the text late or never.
- The loss asks that the guided heads put their attention on the letter that a frame says, where the data tell (`answer_letters`).
- Elsewhere near it: speech and text run at nearly the same pace, after a third of the frames about a third of the letters have been said.
- After Tachibana et al. 2017 (section 4.1), with a log-likelihood in place of the penalty. Training only: the model stays as it is.
"""
import math

import torch
from torch import Tensor

from model.config import IGNORE
from model.model_minimind import Attention, Block, apply_rope
from model.model_omni import MiniMindOmni

LAYERS = (1, 2)  # of the Talker
HEADS = 2  # of each
WIDTH = 3.0  # letters: standard deviation of how far the speech may be from the even pace ...
KNOWN_WIDTH = 0.5  # ... and of how far from a letter that is known
SILENCE = 1.5  # frames before the first and after the last sound
NOWHERE = -1e4  # logarithm of no attention


class AttentionGuide:
    """Watches `model`'s guided layers; call it after a forward to have the loss.

    letters (vocab,), on the model's device: how many letters of text each token stands for, 0 for special ones.
    Raises ValueError for a Talker without these layers or heads.
    """

    def __init__(self, model: MiniMindOmni, letters: Tensor):
        if len(model.talker.layers) <= max(LAYERS) or model.talker.layers[0].self_attn.heads < HEADS:
            raise ValueError(f"guided attention needs a Talker of {max(LAYERS) + 1} layers and {HEADS} heads or more")
        self.letters, self.seen = letters.float(), {}
        self.loss = attention_loss
        for i in LAYERS:
            model.talker.layers[i].register_forward_pre_hook(self._keep)

    def _keep(self, block: Block, inputs: tuple) -> None:
        self.seen[block] = inputs[:2]

    def __call__(self, positions: Tensor, text_labels: Tensor, audio_labels: Tensor, letters: Tensor, stop_token: int) -> Tensor:
        """positions (B, R) of the labels; text_labels (B, R), audio_labels (B, 8, R), IGNORE where there is none; letters (B, R) being
        said, NaN where that is not known -> loss, a scalar: how unlikely the guided heads are to attend near the letter being said, in
        nats, averaged over heads and frames."""
        wanted, spoken = self.expected(text_labels, audio_labels, letters, stop_token)
        earlier = positions[:, None] + 1 <= positions[..., None]  # token r of the labels stands at positions[r] + 1
        wanted = torch.where(earlier, wanted, NOWHERE)
        spoken = spoken & (wanted.amax(-1) > NOWHERE / 2)  # speech that is ahead of its text has nothing to look at
        losses = [self.loss(block.self_attn, block.input_layernorm(x), rope, positions, wanted) for block, (x, rope) in self.seen.items()]
        self.seen.clear()
        loss = torch.stack(losses).mean((0, 2))
        return (loss * spoken).sum() / spoken.sum().clamp(min=1)

    def expected(self, text_labels: Tensor, audio_labels: Tensor, said_letters: Tensor, stop_token: int) -> tuple[Tensor, Tensor]:
        """Log-weights (B, R, R) of attending from each label's frame to each label's token, and which labels are guided (B, R)."""
        frames = audio_labels[:, 0]
        spoken = (frames != IGNORE) & (frames != stop_token)
        sound = (spoken.sum(1, keepdim=True) - 2 * SILENCE).clamp(min=1)
        said = ((spoken.cumsum(1) - 0.5 - SILENCE) / sound).clamp(0, 1)  # share of the reply that is said in the middle of the frame
        letters = torch.where(text_labels != IGNORE, self.letters[text_labels.clamp(min=0)], 0.0)
        end = letters.cumsum(1)
        known = ~said_letters.isnan()
        letter = torch.where(known, said_letters.nan_to_num(), said * end[:, -1:])[..., None]
        width = torch.where(known, KNOWN_WIDTH, WIDTH)[..., None]
        first, last = (end - letters)[:, None], end[:, None]
        distance = (first - letter).clamp(min=0) + (letter - last).clamp(min=0)
        wanted = torch.where(letters[:, None] > 0, -0.5 * (distance / width).square(), NOWHERE)
        return wanted.clamp(min=NOWHERE), spoken & (end[:, -1:] > 0)


def attention_loss(layer: Attention, x: Tensor, rope: tuple[Tensor, Tensor], positions: Tensor, wanted: Tensor) -> Tensor:
    """How unlikely the layer's first HEADS heads are, on x (B, T, C), to attend from `positions` (B, R) to one position after those that
    `wanted` (B, R, R) has log-weights for: (B, HEADS, R), in nats."""
    B, T, _ = x.shape
    q = layer.q_norm(layer.q_proj(x).view(B, T, layer.heads, layer.head_dim)[:, :, :HEADS]).transpose(1, 2)
    k = layer.k_norm(layer.k_proj(x).view(B, T, layer.kv_heads, layer.head_dim)).transpose(1, 2)
    k = k.repeat_interleave(layer.heads // layer.kv_heads, dim=1)[:, :HEADS]
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    q = q.gather(2, positions[:, None, :, None].expand(-1, HEADS, -1, layer.head_dim))
    scores = (q @ k.transpose(-2, -1)).float() / math.sqrt(layer.head_dim)
    future = torch.arange(T, device=x.device) > positions[..., None]
    scores = scores.masked_fill(future[:, None], NOWHERE)
    columns = (positions + 1).clamp(max=T - 1)[:, None, None].expand(-1, *scores.shape[1:3], -1)
    return scores.logsumexp(-1) - (scores.gather(3, columns) + wanted[:, None]).logsumexp(-1)


def count_letters(tokenizer, vocab_size: int) -> Tensor:
    """Letters of each token's text (vocab_size,), 0 for special tokens and white space alone."""
    special = set(tokenizer.get_added_vocab().values())
    texts = tokenizer.batch_decode([[i] for i in range(vocab_size)])
    return torch.tensor([0.0 if i in special else float(len(text.strip())) for i, text in enumerate(texts)])
