"""How the nano codec is judged while it learns: log-mel and linear magnitudes at four resolutions.

No phase is compared, so the decoder is free to choose one.
"""
import torch
import torch.nn.functional as F

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
