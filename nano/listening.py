"""What an ear in training hears: batches of speech, roughened and turned into filter banks, all on the device in torch.

- The effects and their ranges are those of dataset/augment.py; here they work on a whole batch at once, in the frequency domain, because
  a GPU trains faster than sixteen processor cores could roughen the speech for it.
- `fbank` and `stack` give what model/audio.py (kaldi) and funasr's front end give, within float rounding (tested).
- Two effects act on the filter banks: `warp` (another vocal tract) and `tilt` (another microphone); they are what lets a voice that was
  never heard be understood.
- All randomness comes from the torch Generator that is passed in, which must live on the batch's device.
"""
import math
from dataclasses import dataclass

import torch
from scipy.fft import next_fast_len

from dataset.augment import AugmentOptions
from model.audio import FBANK_HOP, FBANK_WINDOW, LFR_STACK, LFR_STRIDE

RATE = 16_000
NUM_MELS = 80
FFT = 512
LOW_HZ, HIGH_HZ = 20.0, 8000.0
FLOOR = torch.finfo(torch.float32).eps  # kaldi's floor of a mel energy
ROOM_SAMPLES = RATE // 2


@dataclass(frozen=True)
class HearingOptions:
    """Probabilities and ranges of what is done to the speech; `wave` is for the waveform, the rest for the filter banks."""
    wave: AugmentOptions = AugmentOptions(speed=0.6, speed_range=(0.75, 1.5), white_noise=0.25, pink_noise=0.4, snr_db=(4.0, 35.0))
    silence_seconds: float = 0.3  # at most so much before and after the speech
    warp: float = 0.6
    warp_range: tuple[float, float] = (0.85, 1.18)
    tilt: float = 0.5
    tilt_nepers: float = 0.8  # standard deviation at each of 5 points of the spectrum, in log energy
    masks: int = 2
    mask_frames: int = 10
    mask_bins: int = 10


def gather(samples, starts, counts, before, total):
    """Rows out of one long (N,) int16 tensor: (B, total) float32 in [-1, 1], row b silent but for its `counts` samples from `before`."""
    index = torch.arange(total, device=samples.device) - before[:, None]
    inside = (index >= 0) & (index < counts[:, None])
    found = samples[(starts[:, None] + index).clamp(0, len(samples) - 1)]
    return torch.where(inside, found, 0).float() / 32768


def pad_lengths(lengths, unit=8000):
    """The batch's width: a multiple of `unit`, so that few different sizes occur (FFT plans and memory blocks are kept)."""
    return math.ceil(int(lengths.max()) / unit) * unit


class Roughen:
    """Applies HearingOptions to batches; one generator decides everything."""

    def __init__(self, options, generator):
        self.options, self.generator, self.device = options, generator, generator.device

    def uniform(self, low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=self.generator, device=self.device)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def chosen(self, probability, rows):
        return self.uniform(0, 1, rows, 1) < probability

    def wave(self, wav, lens):
        """(B, S), lens (B,) -> (B, S'), lens': speed (one for the batch), room, noise, narrow band, gain, lost packet."""
        wave = self.options.wave
        if self.uniform(0, 1, 1).item() < wave.speed:
            wav, lens = change_speed(wav, lens, self.uniform(*wave.speed_range, 1).item())
        wav = self.spectrum(wav, lens)
        rows = len(wav)
        gain = torch.where(self.chosen(wave.gain, rows), self.uniform(*wave.gain_db, rows, 1), 0)
        wav = wav * 10 ** (gain / 20)
        length = torch.minimum(self.uniform(*wave.time_mask_seconds, rows, 1) * RATE, lens[:, None] / 10)
        start = self.uniform(0, 1, rows, 1) * (lens[:, None] - length)
        time = torch.arange(wav.shape[1], device=self.device)
        lost = self.chosen(wave.time_mask, rows) & (time >= start) & (time < start + length)
        silent = lost | (time >= lens[:, None])
        return torch.where(silent, 0, wav).clamp(-1, 1), lens

    def spectrum(self, wav, lens):
        """Room, white and pink noise and a narrow band, with one pass through the frequency domain. (B, S) -> (B, S)."""
        wave, (rows, samples) = self.options.wave, wav.shape
        size = 2 * next_fast_len((samples + ROOM_SAMPLES + 1) // 2)
        spectrum = torch.fft.rfft(wav, size)
        level = (wav.square().sum(1, keepdim=True) / lens[:, None]).sqrt()  # mean over the row's own time
        spectrum = spectrum * torch.fft.rfft(self.room(rows), size)
        spectrum = spectrum * (level / (_energy(spectrum, size) / lens[:, None]).sqrt().clamp(min=1e-9))
        hertz = torch.arange(spectrum.shape[1], device=self.device) * (RATE / size)
        noisy = spectrum
        for probability, fall in ((wave.white_noise, 0.0), (wave.pink_noise, 0.5)):
            noise = torch.complex(self.normal(*spectrum.shape), self.normal(*spectrum.shape)) * hertz.clamp(min=hertz[1]) ** -fall
            noise[:, 0] = 0  # no constant offset
            noise = noise / (_energy(noise, size) / size).sqrt()
            scale = level * 10 ** (-self.uniform(*wave.snr_db, rows, 1) / 20)
            noisy = noisy + noise * torch.where(self.chosen(probability, rows), scale, 0)
        cutoff = torch.where(self.chosen(wave.lowpass, rows), self.uniform(*wave.lowpass_hz, rows, 1), 1e6)
        noisy = noisy / (1 + (hertz / cutoff) ** 8).sqrt()  # Butterworth of 4th order
        return torch.fft.irfft(noisy, size)[:, :samples]

    def room(self, rows):
        """Impulse responses (rows, ROOM_SAMPLES): the direct sound, for some followed by noise that falls by 60 dB."""
        wave = self.options.wave
        time = torch.arange(ROOM_SAMPLES, device=self.device) / RATE
        tail = self.normal(rows, ROOM_SAMPLES) * 10 ** (-3 * time / self.uniform(*wave.reverb_seconds, rows, 1))
        tail = tail * self.uniform(0.3, 0.9, rows, 1) / tail.norm(dim=1, keepdim=True)
        tail = torch.where(self.chosen(wave.reverb, rows), tail, 0)
        tail[:, 0] = 1
        return tail

    def frames(self, frames, lens):
        """Filter banks (B, F, 80), lens (B,) -> the same shape, with warp, tilt and masks (SpecAugment)."""
        options, rows = self.options, len(frames)
        factor = torch.where(self.chosen(options.warp, rows), self.uniform(*options.warp_range, rows, 1), 1)
        frames = warp(frames, factor)
        knots = self.normal(rows, 1, 5) * options.tilt_nepers
        curve = torch.nn.functional.interpolate(knots, NUM_MELS, mode="linear", align_corners=True)
        frames = frames + torch.where(self.chosen(options.tilt, rows)[..., None], curve, 0)
        fill = frames.mean(dim=(1, 2), keepdim=True)
        time = torch.arange(frames.shape[1], device=self.device)
        band = torch.arange(NUM_MELS, device=self.device)
        for _ in range(options.masks):
            longest = (lens[:, None] // 10).clamp(max=options.mask_frames)
            hidden = self.span(band, torch.full_like(longest, options.mask_bins), NUM_MELS)[:, None, :]
            frames = torch.where(hidden | self.span(time, longest, lens[:, None])[:, :, None], fill, frames)
        return frames

    def span(self, positions, longest, size):
        """(rows, len(positions)) bool: a random stretch of at most `longest` within `size`."""
        rows = len(longest)
        length = (self.uniform(0, 1, rows, 1) * (longest + 1)).floor()
        start = (self.uniform(0, 1, rows, 1) * (size - length + 1)).floor()
        return (positions >= start) & (positions < start + length)


def change_speed(wav, lens, factor):
    """(B, S), lens (B,) -> about S / factor samples: faster and higher for factor > 1, exactly band-limited."""
    samples = wav.shape[1]
    target = next_fast_len(round(samples / factor), real=True)
    spectrum = torch.fft.rfft(wav)[:, :target // 2 + 1]
    wav = torch.fft.irfft(spectrum, target) * (target / samples)
    return wav, (lens * target / samples).long().clamp(1, target)


def _energy(spectrum, size):
    """Sum of squares of the time signal behind a real FFT of `size` (even), by Parseval: (B, 1)."""
    square = spectrum.real.square() + spectrum.imag.square()
    return (2 * square.sum(1, keepdim=True) - square[:, :1] - square[:, -1:]) / size


def _mel(hertz):
    return 1127 * math.log(1 + hertz / 700)


def mel_filters(device="cpu"):
    """Kaldi's triangles over the power spectrum: (FFT // 2 + 1, 80)."""
    low, step = _mel(LOW_HZ), (_mel(HIGH_HZ) - _mel(LOW_HZ)) / (NUM_MELS + 1)
    bins = 1127 * torch.log1p(torch.arange(FFT // 2 + 1, dtype=torch.float64) * (RATE / FFT) / 700)
    position = (bins[:, None] - low) / step - torch.arange(NUM_MELS)  # 0 left edge, 1 centre, 2 right edge of a triangle
    return torch.minimum(position, 2 - position).clamp(min=0).float().to(device)


def warp(frames, factor):
    """Filter banks (B, F, 80) heard as if all frequencies had been divided by factor (B, 1): another length of vocal tract."""
    low, step = _mel(LOW_HZ), (_mel(HIGH_HZ) - _mel(LOW_HZ)) / (NUM_MELS + 1)
    mels = low + (torch.arange(NUM_MELS, device=frames.device) + 1) * step
    hertz = 700 * torch.expm1(mels / 1127)
    position = ((1127 * torch.log1p(hertz * factor / 700) - low) / step - 1).clamp(0, NUM_MELS - 1)
    left = position.floor().clamp(max=NUM_MELS - 2)
    share = (position - left)[:, None, :]
    index = left.long()[:, None, :].expand_as(frames)
    return frames.gather(2, index) * (1 - share) + frames.gather(2, index + 1) * share


def fbank(wav, lens, filters):
    """Kaldi log-mel energies of 16 kHz speech on the int16 scale (hamming, no dither): (B, S), lens (B,) -> (B, F, 80), lens'.

    Frames beyond a row's length are computed too and mean nothing.
    """
    windows = wav.unfold(1, FBANK_WINDOW, FBANK_HOP) * 32768
    windows = windows - windows.mean(dim=2, keepdim=True)
    windows = windows - 0.97 * torch.cat([windows[..., :1], windows[..., :-1]], dim=2)
    windows = windows * torch.hamming_window(FBANK_WINDOW, periodic=False, device=wav.device)
    power = torch.view_as_real(torch.fft.rfft(windows, FFT)).square().sum(-1)
    return (power @ filters).clamp(min=FLOOR).log(), 1 + (lens - FBANK_WINDOW).clamp(min=0) // FBANK_HOP


def stack(frames, lens):
    """Low frame rate: (B, F, 80), lens -> (B, L, 560), lens': each vector 7 neighbouring frames, one every 6; edges are repeated."""
    count = -(-lens // LFR_STRIDE)
    centre = torch.arange(int(count.max()), device=frames.device) * LFR_STRIDE
    index = centre[:, None] + torch.arange(LFR_STACK, device=frames.device) - (LFR_STACK - 1) // 2
    index = torch.minimum(index.clamp(min=0)[None], lens[:, None, None] - 1)
    rows = torch.arange(len(frames), device=frames.device)[:, None, None]
    return frames[rows, index].flatten(2), count
