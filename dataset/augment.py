"""Augmentation of spoken input: small, explicit, waveform in, waveform out (numpy, scipy, soxr).

- Wavs are float32 (S,) in [-1, 1] at 16 kHz; every function returns a new array of the same kind.
- All randomness comes from the numpy Generator that is passed in.
- `augment` applies the effects in the order in which a room, a microphone and a bad line would.
"""
from dataclasses import dataclass

import numpy as np

RATE = 16_000


@dataclass(frozen=True)
class AugmentOptions:
    """Probability of each effect, and its range where there is one."""
    speed: float = 0.5
    speed_range: tuple[float, float] = (0.7, 1.6)
    reverb: float = 0.2
    reverb_seconds: tuple[float, float] = (0.1, 0.5)  # time to fall by 60 dB
    white_noise: float = 0.2
    pink_noise: float = 0.2
    snr_db: tuple[float, float] = (10.0, 35.0)
    lowpass: float = 0.2
    lowpass_hz: tuple[float, float] = (2500.0, 7000.0)
    gain: float = 0.5
    gain_db: tuple[float, float] = (-12.0, 6.0)
    time_mask: float = 0.2
    time_mask_seconds: tuple[float, float] = (0.02, 0.15)


def augment(wav: np.ndarray, rng: np.random.Generator, options: AugmentOptions = AugmentOptions()) -> np.ndarray:
    """(S,) -> (S',): each effect by its own probability; only the speed changes the length. The result is within [-1, 1]."""
    if rng.random() < options.speed:
        wav = change_speed(wav, rng.uniform(*options.speed_range))
    if rng.random() < options.reverb:
        wav = add_reverb(wav, rng.uniform(*options.reverb_seconds), rng)
    if rng.random() < options.white_noise:
        wav = add_noise(wav, rng.standard_normal(len(wav)), rng.uniform(*options.snr_db))
    if rng.random() < options.pink_noise:
        wav = add_noise(wav, pink_noise(len(wav), rng), rng.uniform(*options.snr_db))
    if rng.random() < options.lowpass:
        wav = low_pass(wav, rng.uniform(*options.lowpass_hz))
    if rng.random() < options.gain:
        wav = wav * 10 ** (rng.uniform(*options.gain_db) / 20)
    if rng.random() < options.time_mask:
        wav = mask_time(wav, rng.uniform(*options.time_mask_seconds), rng)
    return np.clip(wav, -1, 1).astype(np.float32)


def change_speed(wav: np.ndarray, factor: float) -> np.ndarray:
    """(S,) -> about S / factor samples: faster and higher for factor > 1, as a tape."""
    import soxr
    return soxr.resample(wav.astype(np.float32), RATE * factor, RATE, quality="MQ")


def add_noise(wav: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise (S,) of any level, scaled to `snr_db` below the wav's mean power; silence stays silent."""
    noise_power = np.mean(noise ** 2)
    if noise_power == 0:
        return wav
    scale = np.sqrt(np.mean(wav ** 2) / noise_power) * 10 ** (-snr_db / 20)
    return (wav + scale * noise).astype(np.float32)


def pink_noise(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """(S,) noise whose power falls with 1 / frequency."""
    from scipy.fft import irfft, next_fast_len, rfft
    size = next_fast_len(max(num_samples, 2), real=True)
    spectrum = rfft(rng.standard_normal(size))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    spectrum[0] = 0  # no constant offset
    return irfft(spectrum, size)[:num_samples]


def low_pass(wav: np.ndarray, cutoff_hz: float) -> np.ndarray:
    """(S,) -> (S,): Butterworth of 4th order, as a narrow-band line."""
    from scipy.signal import butter, sosfilt
    return sosfilt(butter(4, cutoff_hz, fs=RATE, output="sos"), wav).astype(np.float32)


def add_reverb(wav: np.ndarray, fall_seconds: float, rng: np.random.Generator) -> np.ndarray:
    """(S,) -> (S,): convolved with the direct sound plus noise that falls by 60 dB in `fall_seconds`; the level is kept."""
    from scipy.signal import fftconvolve
    time = np.arange(int(fall_seconds * RATE)) / RATE
    room = rng.standard_normal(len(time)) * 10 ** (-3 * time / fall_seconds)
    room *= rng.uniform(0.3, 0.9) / np.sqrt(np.sum(room ** 2))
    room[0] = 1.0
    out = fftconvolve(wav, room)[:len(wav)]
    return (out * np.sqrt(np.mean(wav ** 2) / max(np.mean(out ** 2), 1e-12))).astype(np.float32)


def mask_time(wav: np.ndarray, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """(S,) -> (S,): one stretch set to zero, as a lost packet; at most a tenth of the wav, so that no word goes missing."""
    length = min(int(seconds * RATE), len(wav) // 10)
    start = rng.integers(len(wav) - length + 1)
    wav = wav.copy()
    wav[start:start + length] = 0
    return wav
