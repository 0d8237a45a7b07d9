"""Spelling: teach the audio projector, and with it the Thinker, which word is being heard.

- From answers alone a Thinker has to find out at once where in the sound the words are and what it calls them. With little data it
  learns what kind of question is asked, and long after that, or never, its words.
- Here every projected frame is compared with the Thinker's token embeddings: CTC (Graves et al. 2006) over these scores asks for the
  question's text, and the audio pad, whose place the frame takes, is the blank.
- A frame is also drawn to the mean of the embeddings that it is like, weighted by how much it is: words that are heard then reach the
  Thinker's blocks in the form in which these know them from reading.
- The embeddings stay what they are. Training only; any encoder and tokenizer will do.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import IGNORE

SHARPNESS = 12.0  # logits of a frame that is exactly an average token's embedding, against one that has nothing to do with it
DISTANCE = 0.5  # weight of being far from the embeddings, which is 1 for the zero vector


@torch.compiler.disable  # how many rows are spoken differs from batch to batch, and CTC is a kernel of its own anyway
def spelling_loss(vectors: Tensor, lens: Tensor, spoken: Tensor, embeddings: Tensor, blank: int) -> Tensor:
    """vectors (B, L, C) of the audio projector, of which row b has lens[b] (B,) valid; spoken (B, S) int64, the tokens of what is said,
    IGNORE behind them and in rows whose words are not known; embeddings (V, C); blank: id of the audio pad.

    Returns a scalar: nats a token, and the distance. 0 (with a graph) when no row has both sound and words. Reads back from the device.
    """
    counts = (spoken != IGNORE).sum(1)
    rows = torch.nonzero((counts > 0) & (lens > 0)).flatten()
    if not len(rows):
        return vectors.sum() * 0.0
    vectors, lens, counts, table = vectors[rows].float(), lens[rows], counts[rows], embeddings.detach().float()
    size = table.square().sum(1).mean()
    scores = (vectors @ table.T * (SHARPNESS / size)).log_softmax(-1)
    # a clip too short for its words has no way to say them: inf, which counts as 0
    ctc = F.ctc_loss(scores.transpose(0, 1), spoken[rows].clamp(min=0), lens, counts, blank, reduction="sum", zero_infinity=True)
    valid = torch.arange(vectors.shape[1], device=lens.device) < lens[:, None]
    meant = scores.detach().exp() @ table
    distance = (vectors - meant).square().sum(-1) / size
    return ctc / counts.sum() + DISTANCE * (distance * valid).sum() / valid.sum()
