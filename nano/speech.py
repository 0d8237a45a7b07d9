"""Text to speech with flite, the offline synthesiser whose voices the nano world is taught with.

- `synthesise` renders one sentence; a voice is a flite voice, optionally sped up (`rate`) or shifted in pitch and formants together
  (`pitch`, by resampling with the duration given back), which makes further speakers out of the four.
- `render` does many of them with a pool of processes into shards that are written atomically; a second run skips finished shards.
- Needs the `flite` program (apt-get install flite) and nothing from the rest of the project.

    python -m nano.speech --texts out/nano/corpus/train.jsonl --out out/nano/speech --workers 2
"""
import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from tqdm import tqdm

RATE = 16_000  # what flite produces for these voices
VOICES = ("slt", "rms", "awb", "kal16")
TRAIN_VOICES = ("slt", "rms", "awb")  # kal16 is kept as a voice that no training has heard
LOUDNESS = 2600.0  # root mean square of every utterance: the voices differ by 6 dB, which a codec should not spend bits on
QUIET = 200  # |sample| below this at either end is silence
LEAD_SAMPLES, TAIL_SAMPLES = 1920, 1920  # silence kept at the ends, 120 ms


@dataclass(frozen=True)
class Utterance:
    """One thing to say: `rate` > 1 is faster, `pitch` > 1 is higher (a smaller person)."""
    text: str
    voice: str
    rate: float = 1.0
    pitch: float = 1.0


def synthesise(text, voice, rate=1.0, pitch=1.0, f0=1.0):
    """Speech for `text`: (S,) int16 at 16 kHz, silence at the ends trimmed to 120 ms, all voices equally loud.

    `f0` multiplies the fundamental alone, formants untouched (slt, rms and awb only).

    Raises FileNotFoundError without flite, ValueError for an unknown voice, an empty text or a rate or pitch outside 0.5-2.
    """
    if voice not in VOICES:
        raise ValueError(f"unknown voice {voice!r}; choose from {VOICES}")
    if not text.strip():
        raise ValueError("nothing to say: the text is empty")
    if not (0.5 <= rate <= 2 and 0.5 <= pitch <= 2):
        raise ValueError(f"rate {rate} and pitch {pitch} must lie in 0.5-2")
    program = shutil.which("flite")
    if program is None:
        raise FileNotFoundError("the flite program is missing: apt-get install flite")
    # flite stretches by pitch / rate, playing it `pitch` times as fast then leaves the wanted duration
    command = [program, "-voice", voice, "--setf", f"duration_stretch={pitch / rate:.4f}", "-t", text, "-o", "/dev/stdout"]
    if f0 != 1.0:
        command += ["--setf", f"f0_shift={f0:.4f}"]
    wav_bytes = subprocess.run(command, check=True, capture_output=True).stdout
    wav, sample_rate = sf.read(io.BytesIO(wav_bytes), dtype="float32")
    assert sample_rate == RATE, sample_rate
    if pitch != 1.0:
        wav = soxr.resample(wav, RATE * pitch, RATE).astype(np.float32)
    return _level(_trim(wav * 32768))


def _trim(wav):
    loud = np.flatnonzero(np.abs(wav) > QUIET)
    assert len(loud), "flite returned silence"
    return wav[max(loud[0] - LEAD_SAMPLES, 0):loud[-1] + 1 + TAIL_SAMPLES]


def _level(wav):
    """Scale to LOUDNESS, less where the loudest peak would clip; (S,) float in int16 units -> int16."""
    gain = min(LOUDNESS / np.sqrt(np.mean(np.square(wav, dtype=np.float64))), 32000 / np.abs(wav).max())
    return np.round(wav * gain).astype(np.int16)


def render(utterances, out, workers=2, shard_size=256):
    """Synthesise a list of Utterance into `out`; returns the shard index files, in order.

    A shard is `<key>.npy` (all samples after one another, int16) and `<key>.json` (utterances and their lengths); the key names the
    content, so unchanged shards are not made again. The index is renamed into place last: a shard without one does not exist.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    shards = [utterances[i:i + shard_size] for i in range(0, len(utterances), shard_size)]
    indexes = [out / f"{_key(shard)}.json" for shard in shards]
    missing = [(shard, index) for shard, index in zip(shards, indexes) if not index.exists()]
    with ProcessPoolExecutor(workers) as pool:
        jobs = pool.map(_render_shard, *zip(*missing)) if missing else []
        for _ in tqdm(jobs, total=len(missing), desc=f"speech ({shard_size} a shard)", unit="shard"):
            pass
    return indexes


def _key(shard):
    return hashlib.sha256(json.dumps([asdict(u) for u in shard]).encode()).hexdigest()[:16]


def _render_shard(shard, index):
    wavs = [synthesise(**asdict(utterance)) for utterance in shard]
    _replace(index.with_suffix(".npy"), partial(np.save, arr=np.concatenate(wavs)))
    items = [dict(asdict(u), samples=len(wav)) for u, wav in zip(shard, wavs)]
    _replace(index, lambda file: file.write(json.dumps(items).encode()))


def _replace(path, write):
    """Write through a temporary file in the same folder, so that a killed run leaves no half file under `path`."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_shard(index):
    """Yield (Utterance, (S,) int16) of one shard; `index` is its .json file."""
    index = Path(index)
    samples = np.load(index.with_suffix(".npy"), mmap_mode="r")
    start = 0
    for item in json.loads(index.read_text(encoding="utf-8")):
        count = item.pop("samples")
        yield Utterance(**item), np.array(samples[start:start + count])
        start += count
    assert start == len(samples), (index, start, len(samples))


def read_texts(path, field, voices, rate, pitch):
    """Utterances of a file: JSON lines (`text` or `field`, with optional voice, rate, pitch) or one plain sentence a line."""
    utterances = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        item = json.loads(line) if line.startswith("{") else {"text": line}
        text = item.get("text", item.get(field))
        if not text:
            raise ValueError(f"{path}: a line has neither 'text' nor {field!r}: {line[:80]!r}")
        spoken_by = [item["voice"]] if "voice" in item else voices
        utterances += [Utterance(text, voice, item.get("rate", rate), item.get("pitch", pitch)) for voice in spoken_by]
    return list(dict.fromkeys(utterances))


def main():
    parser = argparse.ArgumentParser(description="Synthesise sentences with flite into shards.")
    parser.add_argument("--texts", required=True, help="JSON lines with text/answer and optional voice, rate, pitch; or plain lines")
    parser.add_argument("--field", default="answer", help="field to speak where a line has no 'text'")
    parser.add_argument("--voices", nargs="+", default=list(TRAIN_VOICES), choices=VOICES)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--pitch", type=float, default=1.0)
    parser.add_argument("--out", default="out/nano/speech")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    utterances = read_texts(args.texts, args.field, args.voices, args.rate, args.pitch)
    indexes = render(utterances, args.out, args.workers)
    samples = sum(item["samples"] for index in indexes for item in json.loads(index.read_text(encoding="utf-8")))
    print(f"{len(utterances)} utterances, {samples / RATE / 3600:.2f} h of speech in {len(indexes)} shards under {args.out}")


if __name__ == "__main__":
    main()
