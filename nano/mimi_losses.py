"""How the nano codec is judged while it learns: multi-resolution STFT distances, and a small discriminator for naturalness.

- `stft_loss` compares log-mel and linear magnitudes at four resolutions; no phase, so the decoder is free to choose one.
- `Discriminator` looks at complex spectrograms at three resolutions; hinge loss and feature matching.
"""
import torch
import torch.nn.functional as F
from torch import nn

from nano.mimi_targets import mel_filterbank

RESOLUTIONS = ((256, 20), (512, 40), (1024, 64), (2048, 80))  # (window, mel bands); the hop is a quarter of the window
MAX_HZ = 12_000.0


def spectrum(wav, window):
    """wav (B, S) -> complex spectrogram (B, window // 2 + 1, frames), hop window / 4."""
    return torch.stft(wav, window, window // 4, window=torch.hann_window(window, device=wav.device), return_complex=True)


def mel_banks(device):
    """The filters stft_loss needs, one per resolution: list of (bins, bands)."""
    return [mel_filterbank(bands, window, MAX_HZ, device) for window, bands in RESOLUTIONS]


def stft_loss(fake, real, banks):
    """fake, real (B, S) -> mean over resolutions of L1 of log-mel plus spectral convergence (scalar)."""
    total = 0.0
    for (window, _), filters in zip(RESOLUTIONS, banks):
        a, b = (_magnitude(spectrum(wav, window)) for wav in (fake, real))
        mel_a, mel_b = ((m.transpose(1, 2) @ filters).clamp(min=1e-2).log() for m in (a, b))
        total = total + F.l1_loss(mel_a, mel_b) + (a - b).norm() / b.norm().clamp(min=1e-3)
    return total / len(RESOLUTIONS)


def _magnitude(spec):
    return (spec.real.square() + spec.imag.square() + 1e-7).sqrt()  # abs() has no finite gradient at 0


class Discriminator(nn.Module):
    """Judges of complex spectrograms at several resolutions; forward gives per judge its list of feature maps, the last the verdict."""

    def __init__(self, width, windows=(512, 1024, 2048)):
        super().__init__()
        self.windows = windows
        self.judges = nn.ModuleList(nn.ModuleList([
            _conv(2, width, (3, 9), (1, 1)),
            _conv(width, width, (3, 9), (1, 2)),
            _conv(width, width, (3, 9), (1, 2)),
            _conv(width, width, (3, 9), (1, 2)),
            _conv(width, width, (3, 3), (1, 1)),
            _conv(width, 1, (3, 3), (1, 1)),
        ]) for _ in windows)

    def forward(self, wav):
        """wav (B, S) -> list over judges of lists of (B, C, frames, bins) feature maps."""
        return [self._look(wav, window, judge) for window, judge in zip(self.windows, self.judges)]

    @staticmethod
    def _look(wav, window, judge):
        spec = spectrum(wav, window)
        # a fourth root keeps quiet partials visible beside loud ones; the phase stays
        spec = spec * _magnitude(spec).pow(-0.5)
        x = torch.stack((spec.real, spec.imag), 1).transpose(2, 3)
        maps = []
        for layer in judge:
            x = layer(x if not maps else F.leaky_relu(x, 0.2))
            maps.append(x)
        return maps


def _conv(channels_in, channels_out, kernel, stride):
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(channels_in, channels_out, kernel, stride, padding))


def hinge_loss(fake_maps, real_maps):
    """Discriminator's loss: verdicts on real above 1, on fake below -1 (scalar)."""
    return sum(F.relu(1 + fake[-1]).mean() + F.relu(1 - real[-1]).mean() for fake, real in zip(fake_maps, real_maps)) / len(fake_maps)


def deceive_loss(fake_maps):
    """Generator's adversarial loss (scalar)."""
    return sum(-fake[-1].mean() for fake in fake_maps) / len(fake_maps)


def match_loss(fake_maps, real_maps):
    """Feature matching: distance of the judges' feature maps, relative to their size (scalar)."""
    terms = [F.l1_loss(a, b.detach()) / b.detach().abs().mean().clamp(min=1e-3)
             for fake, real in zip(fake_maps, real_maps) for a, b in zip(fake[:-1], real[:-1])]
    return sum(terms) / len(terms)
