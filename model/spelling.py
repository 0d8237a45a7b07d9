"""Spelling: teach the audio projector, and with it the Thinker, which word is being heard.

- From answers alone a Thinker has to find out at once where in the sound the words are and what it calls them. With little data it
  learns what kind of question is asked, and long after that, or never, its words.
- Here every projected frame is compared with the Thinker's token embeddings: CTC (Graves et al. 2006) over these scores asks for the
  question's text, and the audio pad, whose place the frame takes, is the blank.
- Scores are cosines, and a frame is asked to be as long as an embedding: what is heard then reaches the Thinker's blocks in the form
  in which they know it from reading. (Scored by plain products it became ten times as long.)
- The embeddings stay what they are. Training only; any encoder and tokenizer will do.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import IGNORE

SHARPNESS = 30.0  # logit of a frame that points where a token's embedding does, against one at right angles
ALIKE = 0.9  # cosine: tokens that no text has had look like one another and like the pad; none of them can be what is said
IMPOSSIBLE = -100.0  # logit
LENGTH = 0.1  # weight of being longer or shorter than the embeddings of what is said


def spelling_loss(vectors: Tensor, lens: Tensor, spoken: Tensor, embeddings: Tensor, blank: int) -> Tensor:
    """vectors (B, L, C) of the audio projector, of which row b has lens[b] (B,) valid; spoken (B, S) int64, the tokens of what is said,
    IGNORE behind them and in rows whose words are not known; embeddings (V, C); blank: id of the audio pad.

    Returns a scalar: nats a token, and a little for the length. 0 (with a graph) when no row has both sound and words. Reads back from
    the device.
    """
    counts = (spoken != IGNORE).sum(1)
    rows = torch.nonzero((counts > 0) & (lens > 0)).flatten()
    if not len(rows):
        return vectors.sum() * 0.0
    vectors, lens, counts, spoken = vectors[rows].float(), lens[rows], counts[rows], spoken[rows]
    table, said = embeddings.detach().float(), spoken[spoken != IGNORE]
    directions = F.normalize(table, dim=1)
    unlearnt = directions @ directions[blank] > ALIKE
    unlearnt[said] = unlearnt[blank] = False
    scores = SHARPNESS * F.normalize(vectors, dim=-1) @ directions.T
    scores = scores.masked_fill(unlearnt, IMPOSSIBLE).log_softmax(-1)
    # a clip too short for its words has no way to say them: inf, which counts as 0
    ctc = F.ctc_loss(scores.transpose(0, 1), said, lens, counts, blank, reduction="sum", zero_infinity=True) / len(said)
    valid = torch.arange(vectors.shape[1], device=lens.device) < lens[:, None]
    length = vectors.norm(dim=-1) / table[said].norm(dim=1).mean() - 1
    return ctc + LENGTH * (length.square() * valid).sum() / valid.sum()
