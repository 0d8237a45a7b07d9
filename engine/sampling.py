"""Sampling as pure functions: logits in, ids out. No state, no host sync, randomness only from the generator given."""
import torch
from torch import Tensor


def sample(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """logits (..., V) -> ids (...) int64. Temperature 0 is argmax; top_k 0 and top_p 1 switch the filters off."""
    if temperature <= 0:
        return logits.argmax(-1)
    logits = keep_top_p(keep_top_k(logits.float() / temperature, top_k), top_p)
    # Exponential races: argmax(p / Exp(1)) is a draw from p, without the host sync of torch.multinomial.
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits.softmax(-1) / noise).argmax(-1)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """(..., V) with everything below the k-th largest logit set to -inf."""
    if not 0 < k < logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k, dim=-1).values[..., -1:], -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """(..., V) with all but the smallest set of likeliest ids that holds probability p set to -inf (Holtzman et al. 2020)."""
    if p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probs = ordered.softmax(-1)
    drop = probs.cumsum(-1) - probs >= p  # mass before this id already suffices; the first id always stays
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -torch.inf)


def penalize(logits: Tensor, recent: Tensor, penalty: float) -> Tensor:
    """Repetition penalty (Keskar et al. 2019), applied once per occurrence.

    logits (..., V); recent (..., n) ids, -1 where there is none. A positive logit is divided, a negative one multiplied.
    """
    if penalty == 1.0:
        return logits
    logits = logits.clone()
    for ids in recent.unbind(-1):
        ids, present = ids.clamp(min=0)[..., None], (ids >= 0)[..., None]
        old = logits.gather(-1, ids)
        new = torch.where(old > 0, old / penalty, old * penalty)
        logits.scatter_(-1, ids, torch.where(present, new, old))
    return logits
