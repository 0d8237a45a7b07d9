"""What the nano codec's codes mean: a log-mel patch per 80 ms frame, its principal components, and a chain of k-means books over them.

- Giving the latents a meaning first is what makes a small codec trainable in minutes; end to end from noise it learns nothing.
- Every window ends inside its own frame (left padded), so frame f never needs audio after its last sample.
- The books of stage k quantise what stages 0..k-1 left over: one residual chain, in the order Mimi's quantizer decodes it.
"""
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

SAMPLE_RATE = 24_000
FRAME_SAMPLES = 1920
HOP, WINDOW, MELS, MAX_HZ = 240, 1024, 40, 8000.0  # the speech is 16 kHz, so there is nothing above 8 kHz to describe
LOG_FLOOR = 1e-3  # about the rounding noise of 16 bits


def mel_filterbank(bands, window, max_hz, device=None):
    """Triangular filters on the mel scale: (window // 2 + 1, bands), peak 1."""
    top = 2595.0 * torch.log10(torch.tensor(1.0 + max_hz / 700.0))
    edges = 700.0 * (10.0 ** (torch.linspace(0.0, float(top), bands + 2) / 2595.0) - 1.0)
    hz = torch.arange(window // 2 + 1)[:, None] * (SAMPLE_RATE / window)
    rise = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0.0).to(device)


def log_mel(wav, filters, hop=HOP):
    """wav (B, S) float, S a multiple of hop -> (B, S // hop, 40): window j ends at sample (j + 1) * hop."""
    return _log_mel(F.pad(wav, (WINDOW - hop, 0)).unfold(-1, WINDOW, hop), filters)


def log_mel_at(wav, filters, ends):
    """Log-mel of one clip where one likes: wav (S,) float, ends (N,) the sample before which each window ends, 0 to S -> (N, 40)."""
    return _log_mel(F.pad(wav, (WINDOW, 0)).unfold(-1, WINDOW, 1)[ends], filters)


def _log_mel(windows, filters):
    """windows (..., 1024) -> (..., 40)."""
    magnitude = torch.fft.rfft(windows * torch.hann_window(WINDOW, device=windows.device)).abs()
    return (magnitude @ filters).clamp(min=LOG_FLOOR).log()


def log_mel_patches(wav, filters):
    """wav (B, S) float, S a multiple of 1920 -> (B, S // 1920, 8 * 40) log-mel patches, causally aligned."""
    assert wav.shape[-1] % FRAME_SAMPLES == 0, wav.shape
    return log_mel(wav, filters).reshape(wav.shape[0], wav.shape[-1] // FRAME_SAMPLES, -1)


@dataclass
class LatentSpace:
    """Principal components of the patches, scaled to unit variance on average (not whitened: loud directions keep their weight)."""
    mean: torch.Tensor  # (P,)
    basis: torch.Tensor  # (P, D), columns by falling variance
    filters: torch.Tensor  # (WINDOW // 2 + 1, MELS)

    @classmethod
    def fit(cls, patches, dims):
        """patches (N, P) -> (LatentSpace of `dims` dimensions, share of the variance it keeps)."""
        mean = patches.mean(0)
        centred = (patches - mean).double()
        variance, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        variance, vectors = variance.flip(0), vectors.flip(1)
        scale = variance[:dims].mean().rsqrt()
        kept = float(variance[:dims].sum() / variance.sum())
        filters = mel_filterbank(MELS, WINDOW, MAX_HZ, patches.device)
        return cls(mean, (vectors[:, :dims] * scale).float(), filters), kept

    def encode(self, wav):
        """wav (B, S) -> target latents (B, D, F)."""
        return self.project(log_mel_patches(wav, self.filters))

    def project(self, patches):
        """Log-mel patches (B, F, P) -> latents (B, D, F)."""
        return ((patches - self.mean) @ self.basis).transpose(1, 2)

    def fine(self, wav, hop):
        """wav (B, S) -> its log-mel at another hop, each band centred, of unit variance on average: (B, S // hop, 40)."""
        level = self.mean.view(-1, MELS).mean(0)
        spread = (self.basis.shape[1] / self.basis[:, 0].square().sum() / len(self.mean)).sqrt()
        return (log_mel(wav, self.filters, hop) - level) / spread


def nearest(x, book):
    """Index of the nearest row of `book` (C, D) for each of x (N, D): (N,) int64."""
    return torch.cdist(x, book).argmin(1)


def kmeans(x, size, rounds, generator):
    """Lloyd's algorithm from random rows of x (N, D): book (size, D); an empty cluster restarts on a random row."""
    if len(x) < size:
        raise ValueError(f"{len(x)} frames are too few for {size} codes: give more speech or a smaller --codes")
    book = x[torch.randperm(len(x), generator=generator)[:size].to(x.device)].clone()
    for _ in range(rounds):
        owner = nearest(x, book)
        count = torch.bincount(owner, minlength=size)[:, None]
        total = torch.zeros_like(book).index_add_(0, owner, x)
        spare = x[torch.randint(len(x), (size,), generator=generator).to(x.device)]
        book = torch.where(count > 0, total / count.clamp(min=1), spare)
    return book


def residual_kmeans(latents, stages, size, rounds, generator):
    """latents (N, D) -> (books (stages, size, D), share of the variance left after each stage: list of floats)."""
    residual, books, left = latents, [], []
    total = latents.var(0).sum()
    for _ in range(stages):
        book = kmeans(residual, size, rounds, generator)
        residual = residual - book[nearest(residual, book)]
        books.append(book)
        left.append(float(residual.square().sum(1).mean() / total))
    return torch.stack(books), left


def quantise(latents, books):
    """latents (B, D, F), books (K, C, D) -> (quantised (B, D, F), codes (B, K, F))."""
    flat = latents.transpose(1, 2).reshape(-1, latents.shape[1])
    residual, codes = flat, []
    for book in books:
        codes.append(nearest(residual, book))
        residual = residual - book[codes[-1]]
    frames = latents.shape[2]
    return (flat - residual).reshape(-1, frames, latents.shape[1]).transpose(1, 2), torch.stack(codes).reshape(
        len(books), -1, frames).transpose(0, 1)


class Analyser:
    """Codes straight from the latent space and the books (`targets.pt` of nano.train_mimi): what the codec's encoder learns to give."""

    def __init__(self, space, books):
        self.space, self.books = space, books

    @classmethod
    def load(cls, path, device="cpu"):
        """From targets.pt; FileNotFoundError names the command that makes it."""
        if not Path(path).exists():
            raise FileNotFoundError(f"{path} is missing: python -m nano.train_mimi writes it when it starts")
        saved = torch.load(path, map_location=device, weights_only=True)
        return cls(LatentSpace(**saved["space"]), saved["books"].float())

    @torch.no_grad()
    def encode(self, wav):
        """wav (B, S) float at 24 kHz -> codes (B, 8, ceil(S / 1920)) int64; a short last frame is filled with silence."""
        wav = F.pad(wav, (0, -wav.shape[-1] % FRAME_SAMPLES)).to(self.books.device)
        return quantise(self.space.encode(wav), self.books)[1]

    @torch.no_grad()
    def encode_at(self, wav, ends):
        """Codes of one clip as if it were stretched: wav (S,) float at 24 kHz, ends (F * 8,) of word_grid.hop_ends -> (8, F)."""
        mel = log_mel_at(wav.to(self.books.device), self.space.filters, ends)
        return quantise(self.space.project(mel.reshape(1, -1, FRAME_SAMPLES // HOP * MELS)), self.books)[1][0]
