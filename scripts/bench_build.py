"""How fast the data builder is on this machine, stage by stage: hours of speech per core-hour, and what that means for a data set.

- One core does one stage at a time on the same utterances (synthesised, or noise with pauses where flite is missing).
- Mimi is timed batched as the builder does it, and clip by clip; random weights are as fast as trained ones.
- `cores_for_a_day` is how many such cores build --hours of speech in 24 hours when every stage of the row is needed.
- A table, then the same as JSON in the last line.

    python -m scripts.bench_build --codec full --utterances 64 --hours 3000
    python -m scripts.bench_build --codec model/nano/mimi --speaker_encoder none
"""
import argparse
import io
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import soundfile
import torch

from dataset.build_parquet import write_shard
from dataset.build_stages import SCHEMA, encode_clips, frame_major
from dataset.clean import Gates, check_clip, check_speech, read_clip
from dataset.tts import Flite
from model.audio import resample
from model.config import INPUT_RATE, SAMPLE_RATE
from model.encoders import CAMPPlus
from model.mimi import Mimi

TEXTS = ("The farmer grows vegetables near the river.", "Good morning, how are you today?",
         "My sister reads a good book in the garden, and my brother listens to music.", "Yes, I remember that your name is Anna.")
DAY_HOURS = 24


def load_codec(name: str, device: str) -> Mimi:
    """A MimiModel folder, or "full": the released size with random weights."""
    if name != "full":
        return Mimi.load(name, device)
    from transformers import MimiConfig, MimiModel

    return Mimi(MimiModel(MimiConfig()).eval(), device)


def noise_speech(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """(S,) float32 at 16 kHz: noise in syllables, with pauses, so that it passes the gates."""
    time_axis = np.arange(int(seconds * INPUT_RATE)) / INPUT_RATE
    return (0.1 * np.clip(np.sin(2 * np.pi * 4 * time_axis), 0, None) * rng.standard_normal(len(time_axis))).astype(np.float32)


class Stopwatch:
    """Seconds of one core per stage."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, function, *args):
        """`function(*args)`, its wall time added to `stage`."""
        start = time.perf_counter()
        result = function(*args)
        self.seconds[stage] = self.seconds.get(stage, 0) + time.perf_counter() - start
        return result


def measure(count: int, codec, speaker, device: str) -> dict:
    """{"hours_of_speech", "seconds": {stage: s}, "same_codes": share}; every stage sees the same utterances once."""
    watch, texts = Stopwatch(), [TEXTS[i % len(TEXTS)] for i in range(count)]
    if shutil.which("flite"):
        flite = Flite()
        sounds = [watch.run("flite", flite.speak, text, flite.voices[i % len(flite.voices)])[0] for i, text in enumerate(texts)]
    else:
        rng = np.random.default_rng(0)
        sounds = [noise_speech(len(text) / 15, rng) for text in texts]
    files = []
    for wav in sounds:
        buffer = io.BytesIO()
        soundfile.write(buffer, wav, INPUT_RATE, format="FLAC")
        files.append(buffer.getvalue())
    clips = [watch.run("read, resample, trim, level", read_clip, data, "bench", 30) for data in files]
    for text, clip in zip(texts, clips):
        watch.run("gates", lambda: (check_clip(clip, Gates()), check_speech(text, clip, Gates())))
    wavs = [clip.wav for clip in clips]
    encode_clips(codec, wavs[:2])  # warm-up
    codes = watch.run("Mimi, batched", encode_clips, codec, wavs)
    alone = watch.run("Mimi, one by one", lambda: [encode_clips(codec, [wav])[0] for wav in wavs])
    if speaker is not None:
        for wav in wavs:
            watch.run("CAM++", speaker, resample(wav, SAMPLE_RATE, INPUT_RATE))
    rows = [dict.fromkeys(SCHEMA.names) | {"conversations": text, "answer_audios": [frame_major(c)], "seconds": clip.seconds}
            for text, c, clip in zip(texts, codes, clips)]
    with tempfile.TemporaryDirectory() as folder:
        watch.run("shard", write_shard, rows, Path(folder) / "shard.parquet")
    equal = np.mean([np.mean(a == b) for a, b in zip(codes, alone)])
    return {"hours_of_speech": sum(clip.seconds for clip in clips) / 3600, "seconds": watch.seconds, "same_codes": float(equal)}


def report(measured: dict, hours: float) -> dict:
    """Speeds per stage and what they add up to: hours of speech per core-hour, and cores for `hours` of speech in a day."""
    speeds = {stage: measured["hours_of_speech"] * 3600 / seconds for stage, seconds in measured["seconds"].items()}
    recorded = [stage for stage in speeds if stage not in ("flite", "Mimi, one by one")]
    totals = {"from recordings": recorded, **({"from text": ["flite", *recorded]} if "flite" in speeds else {})}
    totals = {name: 1 / sum(1 / speeds[stage] for stage in stages) for name, stages in totals.items()}
    return {**measured, "hours_per_core_hour": speeds, "all_stages": totals,
            "cores_for_a_day": {name: hours / DAY_HOURS / speed for name, speed in totals.items()},
            "batching_gain": speeds["Mimi, batched"] / speeds["Mimi, one by one"]}


def main(argv=None) -> int:
    """0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--codec", default="full", help="MimiModel folder, or 'full': the released size, random weights")
    parser.add_argument("--speaker_encoder", default="none", help="CAM++ folder, or 'none'")
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--hours", type=float, default=3000, help="of speech, to be built in a day")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # per core, as the builder's workers run
    try:
        if args.utterances < 1:
            raise ValueError("--utterances must be 1 or more")
        codec = load_codec(args.codec, args.device)
        speaker = None if args.speaker_encoder == "none" else CAMPPlus.load(args.speaker_encoder, args.device)
        result = report(measure(args.utterances, codec, speaker, args.device), args.hours)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print("| stage | hours of speech per core-hour |\n|---|---|")
    for stage, speed in (result["hours_per_core_hour"] | result["all_stages"]).items():
        print(f"| {stage} | {speed:.1f} |")
    print(f"\nMimi in batches is {result['batching_gain']:.2f} times as fast as clip by clip; {result['same_codes']:.2%} equal codes.")
    for name, cores in result["cores_for_a_day"].items():
        print(f"{args.hours:g} h of speech {name} in a day: {cores:.1f} cores")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
