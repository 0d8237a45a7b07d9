"""How well speech survives a Mimi codec: waveform -> 8 codes per 80 ms -> waveform, judged by an independent recogniser.

- The fixed 24 utterances: 8 sentences by the flite voices slt, rms and awb; raw, they score a word error rate of 0.157.
- `--codes 4` decodes only the first codebooks, `--voices kal16` is a voice that the nano world's own speech does not have.
- Also: log-mel distance, perplexity and codes used per codebook, and how fast one CPU thread decodes. Last line is JSON.

    python -m evals.codec_wer out/nano/codec/mimi
    python -m evals.codec_wer model/nano/mimi --wavs list.jsonl      (lines {"wav": path, "text": words spoken})
"""
import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from transformers import MimiModel

from evals.asr import load_recogniser
from evals.command import exit_code
from evals.metrics import wer
from model.audio import read_audio, write_wav
from model.config import FRAME_SAMPLES, NUM_CODEBOOKS, SAMPLE_RATE

SENTENCES = (
    "The sky is blue because air scatters short wavelengths of light.",
    "Cats like to chase mice.",
    "The capital of France is Paris.",
    "Two plus three equals five.",
    "A black hole is a place where gravity is very strong.",
    "I am a small model that can listen, see and speak.",
    "You can make coffee with hot water and ground beans.",
    "Apples are red and bananas are yellow.",
)
VOICES = ("slt", "rms", "awb")


@dataclass
class Clip:
    name: str
    text: str
    wav: np.ndarray  # (S,) float32 at 24 kHz


def flite(text, voice, rate):
    """Speech by the flite program: (S,) float32 at `rate` Hz. FileNotFoundError without it."""
    if shutil.which("flite") is None:
        raise FileNotFoundError("the flite program is missing: apt-get install flite")
    command = ["flite", "-voice", voice, "-t", text, "-o", "/dev/stdout"]
    return read_audio(subprocess.run(command, check=True, capture_output=True).stdout, rate)


def fixed_clips(voices=VOICES):
    """The fixed utterances, by flite: list of Clip. FileNotFoundError without flite."""
    return [Clip(f"{voice}-{number}", text, flite(text, voice, SAMPLE_RATE))
            for voice in voices for number, text in enumerate(SENTENCES, 1)]


def listed_clips(path):
    """Clips of a JSON-lines file with `wav` (a path) and `text`: list of Clip. ValueError for other lines."""
    items = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not items or not all(isinstance(item, dict) and {"wav", "text"} <= set(item) for item in items):
        raise ValueError(f'{path} does not hold lines of {{"wav": path, "text": words spoken}}')
    return [Clip(Path(item["wav"]).stem, item["text"], read_audio(item["wav"], SAMPLE_RATE)) for item in items]


@torch.inference_mode()
def round_trip(mimi, wav, codebooks=NUM_CODEBOOKS):
    """wav (S,) at 24 kHz -> (decoded (S,) float32, codes (8, T), seconds the decoder took); the first `codebooks` are decoded."""
    x = torch.from_numpy(wav)[None, None]
    codes = mimi.encode(x, num_quantizers=NUM_CODEBOOKS).audio_codes
    start = time.perf_counter()
    decoded = mimi.decode(codes[:, :codebooks]).audio_values[0, 0]
    return decoded[:len(wav)].numpy(), codes[0], time.perf_counter() - start


def log_mel(wav, bands=80, window=1024, hop=256):
    """(S,) at 24 kHz -> (frames, bands) natural log of mel magnitudes, floored 60 dB below full scale speech."""
    from librosa.filters import mel

    spec = torch.stft(torch.from_numpy(wav), window, hop, window=torch.hann_window(window), return_complex=True).abs()
    return (torch.from_numpy(mel(sr=SAMPLE_RATE, n_fft=window, n_mels=bands, norm=None)) @ spec).T.clamp(min=1e-2).log()


def codebook_use(codes, size):
    """codes (K, N) -> per codebook (perplexity, distinct codes used): two lists."""
    perplexity, used = [], []
    for row in codes:
        share = torch.bincount(row, minlength=size).double() / row.numel()
        perplexity.append(round(math.exp(-float(torch.xlogy(share, share).sum())), 1))
        used.append(int((share > 0).sum()))
    return perplexity, used


def judge(mimi, clips, codebooks=NUM_CODEBOOKS, recogniser=None, save_to=None, say=lambda line: None):
    """Round trip of every clip -> dict of figures: wer, wer_by_voice (by the part of the name before '-'), raw_wer, mel_distance
    (mean |difference| of log-mel, nepers), perplexity and used codes per codebook, decode_ms per 80 ms frame, frames, clips."""
    recogniser = recogniser or load_recogniser("pocketsphinx")
    heard, raw, distances, all_codes, seconds = [], [], [], [], 0.0
    for clip in clips:
        decoded, codes, took = round_trip(mimi, clip.wav, codebooks)
        heard.append((clip.text, recogniser.transcribe(decoded, SAMPLE_RATE)))
        raw.append((clip.text, recogniser.transcribe(clip.wav, SAMPLE_RATE)))
        distances.append(float((log_mel(decoded) - log_mel(clip.wav)).abs().mean()))
        all_codes.append(codes)
        seconds += took
        say(f"{clip.name:8s} {heard[-1][0]} | {heard[-1][1]}")
        if save_to:
            write_wav(Path(save_to) / f"{clip.name}.wav", decoded, SAMPLE_RATE)
    codes = torch.cat(all_codes, dim=1)
    perplexity, used = codebook_use(codes, mimi.config.codebook_size)
    groups = dict.fromkeys(clip.name.split("-")[0] for clip in clips)
    by_voice = {g: round(wer([pair for clip, pair in zip(clips, heard) if clip.name.split("-")[0] == g]), 3) for g in groups}
    frames = codes.shape[1]
    return dict(wer=round(wer(heard), 4), wer_by_voice=by_voice, raw_wer=round(wer(raw), 4),
                mel_distance=round(float(np.mean(distances)), 4), perplexity=perplexity, used=used,
                decode_ms=round(1000 * seconds / frames, 2), frames=frames, clips=len(clips))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", help="a folder MimiModel.from_pretrained loads")
    parser.add_argument("--wavs", help="JSON lines with wav and text, instead of the fixed utterances")
    parser.add_argument("--voices", nargs="+", default=list(VOICES), help="flite voices of the fixed sentences")
    parser.add_argument("--codes", type=int, default=NUM_CODEBOOKS, help="how many codebooks are decoded")
    parser.add_argument("--output_dir", help="save the decoded WAVs here")
    return exit_code(run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    if not Path(args.folder).is_dir():
        raise FileNotFoundError(f"no codec folder {args.folder}: train one with `python -m nano.train_mimi`")
    torch.set_num_threads(1)
    clips = listed_clips(args.wavs) if args.wavs else fixed_clips(args.voices)
    mimi = MimiModel.from_pretrained(args.folder).eval()
    if mimi.config.frame_size != FRAME_SAMPLES:
        raise ValueError(f"{args.folder} has frames of {mimi.config.frame_size} samples, not {FRAME_SAMPLES}: it is no codec of this model")
    if args.output_dir:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    print(json.dumps(judge(mimi, clips, args.codes, save_to=args.output_dir, say=print)))


if __name__ == "__main__":
    sys.exit(main())
