"""Sound in and out: files, resampling, PCM16 and the log-mel features the frozen encoders listen to.

- `read_audio` accepts whatever libsndfile decodes (wav, flac, ogg, mp3) and refuses what would poison a batch: undecodable,
  empty or non-finite audio raises a ValueError that names the source.
- `encode_audio` writes the formats that are sent over a network, to bytes.
- `write_wav` never leaves half a file: it writes beside the target and renames.
- `fbank`, `stack_frames` and `lfr_frames` are the one copy of the 16 kHz front end (25 ms window, 10 ms hop, 80 mels), so the
  dataset can count audio tokens without running an encoder.
"""
import io
import math
import os
import tempfile
from pathlib import Path

import numpy as np

MAX_CHANNELS, MIN_RATE, MAX_RATE = 2, 8_000, 96_000  # of audio that strangers send
ENCODINGS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS")}

FBANK_RATE = 16_000
FBANK_WINDOW = 400  # samples: 25 ms
FBANK_HOP = 160  # samples: 10 ms
LFR_STACK = 7  # SenseVoice stacks 7 fbank frames ...
LFR_STRIDE = 6  # ... every 6, so one vector is 60 ms


def read_audio(source, rate: int, name: str | None = None, max_seconds: float | None = None) -> np.ndarray:
    """Decode a file (path) or an encoded file's bytes to float32 mono (S,) in [-1, 1] at `rate` Hz.

    `name` stands for the source in error messages. Raises FileNotFoundError for a missing path, and ValueError when the audio
    cannot be decoded, is empty, or holds NaN or infinity. With max_seconds, for what strangers send, also when it is longer or
    of an uncommon kind; nothing that would take a lot of memory is decoded first.
    """
    import soundfile

    is_bytes = isinstance(source, (bytes, bytearray, memoryview))
    name = name or (f"<{len(source)} bytes>" if is_bytes else str(source))
    if not is_bytes and not Path(source).is_file():
        raise FileNotFoundError(f"no audio file at {name}")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if is_bytes else str(source)) as file:
            frames, file_rate = -1, file.samplerate
            if max_seconds is not None:
                if file.channels > MAX_CHANNELS or not MIN_RATE <= file_rate <= MAX_RATE:
                    raise ValueError(f"audio {name} has {file.channels} channels at {file_rate} Hz; at most {MAX_CHANNELS} at "
                                     f"{MIN_RATE} to {MAX_RATE} Hz can be taken")
                frames = int(max_seconds * file_rate) + 1
            wav = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError) as error:
        raise ValueError(f"cannot decode audio {name}: {error}; use wav, flac, ogg or mp3") from error
    except MemoryError as error:  # a damaged header may claim terabytes
        raise ValueError(f"audio {name} says it is too long for this machine's memory: {error}") from error
    if not len(wav):
        raise ValueError(f"audio {name} is empty")
    if max_seconds is not None and len(wav) > max_seconds * file_rate:
        raise ValueError(f"audio {name} is longer than {max_seconds:g} s")
    if not np.isfinite(wav).all():
        raise ValueError(f"audio {name} holds NaN or infinite samples")
    return resample(wav.mean(axis=1), file_rate, rate)


def resample(wav: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """(S,) float at `from_rate` Hz -> (about S * to_rate / from_rate,) float32 at `to_rate` Hz (soxr, high quality)."""
    wav = np.asarray(wav, dtype=np.float32)
    assert wav.ndim == 1, wav.shape
    if from_rate == to_rate:
        return wav
    import soxr

    return soxr.resample(wav, from_rate, to_rate, quality="HQ").astype(np.float32, copy=False)


def to_pcm16(wav) -> bytes:
    """(S,) float in [-1, 1] -> little-endian PCM16 bytes; louder samples are clipped, `from_pcm16` is the exact inverse."""
    wav = np.asarray(wav, dtype=np.float32)
    assert wav.ndim == 1, wav.shape
    return np.clip(np.rint(wav * 32768.0), -32768, 32767).astype("<i2").tobytes()


def from_pcm16(pcm: bytes) -> np.ndarray:
    """Little-endian PCM16 bytes -> float32 (S,) in [-1, 1). ValueError for an odd number of bytes."""
    if len(pcm) % 2:
        raise ValueError(f"PCM16 needs an even number of bytes, got {len(pcm)}")
    return np.frombuffer(pcm, dtype="<i2").astype(np.float32) / 32768.0


def encode_audio(wav, rate: int, format: str) -> bytes:
    """(S,) float samples as the bytes of a mono file: "wav", "flac", "mp3", "opus", or "pcm16" without a header."""
    import soundfile

    if format == "pcm16":
        return to_pcm16(wav)
    container, subtype = ENCODINGS[format]
    if not len(wav):
        wav = np.zeros(rate // 100)  # without a sample an mp3 or flac would be no file at all
    file = io.BytesIO()
    soundfile.write(file, np.asarray(wav, np.float32), rate, format=container, subtype=subtype)
    return file.getvalue()


def write_wav(path, wav, rate: int) -> None:
    """Write (S,) float samples as a mono PCM16 WAV. A reader sees the old file or the complete new one, never a part."""
    import soundfile

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.frombuffer(to_pcm16(wav), dtype="<i2")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def fbank(wav: np.ndarray, window: str = "povey", scale: float = 1.0, num_mels: int = 80) -> np.ndarray:
    """Kaldi log-mel filter bank of 16 kHz audio: (S,) -> float32 (1 + (S - 400) // 160, num_mels), without dither.

    CAM++ wants window "povey" on samples in [-1, 1]; SenseVoice "hamming" on the int16 scale (`scale=32768`).
    Audio shorter than one window is padded with silence to exactly one.
    """
    import kaldi_native_fbank

    wav = np.asarray(wav, dtype=np.float32)
    assert wav.ndim == 1 and len(wav), wav.shape
    if len(wav) < FBANK_WINDOW:
        wav = np.pad(wav, (0, FBANK_WINDOW - len(wav)))
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = FBANK_RATE
    options.frame_opts.window_type = window
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = num_mels
    extractor = kaldi_native_fbank.OnlineFbank(options)
    extractor.accept_waveform(FBANK_RATE, wav * scale)
    extractor.input_finished()
    return np.stack([extractor.get_frame(i) for i in range(extractor.num_frames_ready)]).astype(np.float32, copy=False)


def stack_frames(frames: np.ndarray, stack: int = LFR_STACK, stride: int = LFR_STRIDE) -> np.ndarray:
    """Low frame rate: (F, M) -> (ceil(F / stride), stack * M), each row `stack` neighbouring frames; edges are repeated."""
    count = math.ceil(len(frames) / stride)
    centre = np.arange(count)[:, None] * stride
    index = (centre + np.arange(stack)[None, :] - (stack - 1) // 2).clip(0, len(frames) - 1)
    return frames[index].reshape(count, -1)


def fbank_frames(num_samples: int) -> int:
    """Frames `fbank` yields for that many 16 kHz samples (0 for none)."""
    return 1 + max(num_samples - FBANK_WINDOW, 0) // FBANK_HOP if num_samples > 0 else 0


def lfr_frames(num_samples: int) -> int:
    """Stacked 60 ms vectors for that many 16 kHz samples: 1 s -> 17, 5 s -> 83."""
    return math.ceil(fbank_frames(num_samples) / LFR_STRIDE)
