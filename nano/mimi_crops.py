"""The speech that the nano codec learns from: shards -> one long array -> batches of random crops at 24 kHz, all on the device."""
import math
from pathlib import Path

import numpy as np
import torch

from nano.speech import read_shard

INPUT_RATE, SAMPLE_RATE = 16_000, 24_000
TAPS, PHASES = 32, 1536  # of the resampling kernel: input samples it spans, sub-sample positions (a multiple of 3: exact at 2 / 3)


def read_speech(folder):
    """The speech of nano.speech's shards in `folder`, one clip after another: (N,) int16 at 16 kHz. FileNotFoundError if there is none.

    As much of every voice as the least heard one has: the main voice speaks most of the sentences, but the codec is for all of them.
    """
    indexes = [index for index in sorted(Path(folder).glob("*.json")) if index.with_suffix(".npy").exists()]
    if not indexes:
        raise FileNotFoundError(f"no speech shards (KEY.json + KEY.npy) in {folder}: make them with `python -m nano.speech`")
    voices = {}
    for index in indexes:
        for utterance, pcm in read_shard(index):
            voices.setdefault(utterance.voice, []).append(pcm)
    voices = [np.concatenate(clips) for clips in voices.values()]
    return np.concatenate([samples[:min(map(len, voices))] for samples in voices])


def resampling_kernels(device):
    """Windowed-sinc weights of TAPS input samples for every sub-sample position: (PHASES, TAPS)."""
    tap = torch.arange(1 - TAPS // 2, TAPS // 2 + 1, device=device)
    distance = tap - torch.arange(PHASES, device=device)[:, None] / PHASES
    return torch.sinc(distance) * torch.cos(distance * (math.pi / (TAPS + 2))).square()


def resample_at(speech, starts, rates, samples, kernels):
    """Crops at 24 kHz, every one with its own speed.

    speech (N,) int16 at 16 kHz, starts (B,) first input sample, rates (B,) input seconds per output second (above 1 is faster and
    higher) -> (B, samples) float32 in [-1, 1]. Above 1 the kernel still passes everything: 8 kHz * 1.2 is below 12 kHz.
    """
    where = torch.arange(samples, device=speech.device) * (INPUT_RATE / SAMPLE_RATE) * rates[:, None]
    phase = (where * PHASES).round().long()
    left = starts[:, None] + phase // PHASES + 1 - TAPS // 2
    windows = speech.unfold(0, TAPS, 1)  # a view: row i is speech[i:i + TAPS]
    return torch.einsum("bst,bst->bs", windows[left.clamp(0, len(windows) - 1)].float() / 32768, kernels[phase % PHASES])


def draw_crops(speech, batch_size, samples, generator, kernels, variants=0.3, gains=(0.6, 1.8)):
    """A batch of random crops: (B, samples) float32 at 24 kHz. A share `variants` of them is sped up or down, which makes other
    speakers; every one has a gain between `gains`. Rarer variants leave the books more codes for the voices as they are."""
    def uniform(low, high):
        return low + (high - low) * torch.rand(batch_size, generator=generator, device=speech.device)
    rates = torch.where(uniform(0, 1) < variants, uniform(0.85, 1.2), torch.ones((), device=speech.device))
    starts = (uniform(0, 1).double() * (len(speech) - samples)).long()  # an input crop is shorter than its output: 1.2 * 2 / 3 < 1
    gain = torch.exp(uniform(*map(math.log, gains)))
    return (resample_at(speech, starts, rates, samples, kernels) * gain[:, None]).clamp(-1, 1)
