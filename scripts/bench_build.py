"""How fast the data builder is on this machine, stage by stage and as a whole, and what that means for a data set.

- `stages`: processor seconds of one core per stage, over the same utterances (synthesised, or noise with pauses where flite is missing).
  Mimi is timed in batches as the builder encodes, in float32 and bfloat16, then clip by clip, by this project's code and by transformers'.
  Random weights of the released size ("full") are as fast as trained ones. `cores_for_a_day`: how many such cores build --hours of speech
  in 24 hours. "Mimi, products alone" is what no encoder can beat: its multiplications at the rate of one large float32 product here.
- `whole`: builds of several sizes from text to validated shards, each in a process of its own: seconds, the share of the cores that was
  in use while parts were made, and the most memory that the builder and its workers held together (PSS: shared pages count once).
- Tables, then the same as JSON in the last line.

    python -m scripts.bench_build stages --codec full --speaker_encoder full --utterances 64 --hours 3000
    python -m scripts.bench_build whole --utterances 1000 10000 --workers 2
"""
import argparse
import io
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from threading import Event, Thread

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode

from dataset import validate
from dataset.build_parquet import finish, plan, write_shard
from dataset.build_stages import SCHEMA, Settings, encode_clips, frame_major
from dataset.clean import Gates, check_clip, check_speech, read_clip
from dataset.engines import Engine
from dataset.tts import Flite
from engine.chat import pick_device
from model.audio import resample
from model.config import FRAME_SAMPLES, INPUT_RATE, SAMPLE_RATE
from model.encoders import CAMPPlus, _funasr_classes
from model.mimi import Mimi
from model.refusal import INPUT_ERRORS, refuse
from scripts.bench_omni import best_s
from scripts.bench_table import table_line
from scripts.bench_train import alone

WHO = ("The farmer", "My sister", "The old teacher", "A young doctor", "Our neighbour", "The tall man", "His brother", "The driver",
       "Her mother", "The little boy", "My best friend", "The student")
DOES = ("reads a book", "buys fresh bread", "waits for the bus", "tells a long story", "looks for the keys", "plays the guitar",
        "writes a letter", "cooks some soup", "paints the door", "feeds the animals", "repairs a chair", "sings a song")
WHERE = ("in the garden", "near the river", "at the station", "in the kitchen", "behind the house", "at the market", "in a small town",
         "under the old tree", "on the farm", "in the evening", "every morning", "by the sea")
TEXTS = [f"{who} {does} {where}." for who, does, where in product(WHO, DOES, WHERE)]
DAY_HOURS = 24
PRODUCTS = "Mimi, products alone"
NOT_OF_A_BUILD = ("flite", "Mimi, batched, bfloat16", "Mimi, one by one", "Mimi, one by one, transformers", PRODUCTS)
STAGE_COLUMNS = (("stage", "stage"), ("hours of speech per core-hour", "speed"))
WHOLE_COLUMNS = (("utterances", "utterances"), ("hours of speech", "hours"), ("plan s", "plan_s"), ("parts s", "parts_s"),
                 ("shards s", "shards_s"), ("validate s", "validate_s"), ("cores in use, %", "cpu_percent"), ("memory MiB", "memory_mib"))


# ---- stages

def random_mimi():
    """A MimiModel of the released size whose random streams stay of order 1: its codes are as varied as real ones."""
    from transformers import MimiConfig, MimiModel

    model, generator = MimiModel(MimiConfig()).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("scale"):
                parameter.fill_(0.5)
            elif parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
        for module in model.modules():
            if hasattr(module, "embed_sum"):
                module.embed_sum.copy_(torch.randn(module.embed_sum.shape, generator=generator))
                module._embed = None  # transformers' cache of the divided sums
    return model


def load_speaker(name: str, device: str) -> CAMPPlus | None:
    """A CAM++ folder, "full": the released size with random weights, or "none"."""
    if name != "full":
        return None if name == "none" else CAMPPlus.load(name, device)
    return CAMPPlus(_funasr_classes(("funasr.models.campplus.model", "CAMPPlus"))[0](memory_efficient=False).eval().to(device))


def noise_speech(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """(S,) float32 at 16 kHz: noise in syllables, with pauses, so that it passes the gates."""
    time_axis = np.arange(int(seconds * INPUT_RATE)) / INPUT_RATE
    return (0.1 * np.clip(np.sin(2 * np.pi * 4 * time_axis), 0, None) * rng.standard_normal(len(time_axis))).astype(np.float32)


def cpu_seconds() -> float:
    """Of this process and the programs it has run."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class Stopwatch:
    """Seconds of one core per stage: processor time, or wall time where the work is another device's."""

    def __init__(self, device: str):
        self.clock = cpu_seconds if device == "cpu" else time.perf_counter
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, function, *args):
        """`function(*args)`, its time added to `stage`."""
        start = self.clock()
        result = function(*args)
        self.seconds[stage] = self.seconds.get(stage, 0) + self.clock() - start
        return result


def measure_stages(count: int, codec: str, speaker_encoder: str, device: str) -> dict:
    """{"hours_of_speech", "seconds": {stage: s}, "same_codes": {way: share}}; every stage sees the same utterances once."""
    from transformers import MimiModel

    model = random_mimi() if codec == "full" else MimiModel.from_pretrained(codec, dtype=torch.float32, local_files_only=True).eval()
    mimi, speaker = Mimi(model, device), load_speaker(speaker_encoder, device)
    watch, texts = Stopwatch(device), [TEXTS[i * 97 % len(TEXTS)] for i in range(count)]
    if shutil.which("flite"):
        flite = Flite()
        sounds = [watch.run("flite", flite.speak, text, flite.voices[i % len(flite.voices)]).wav for i, text in enumerate(texts)]
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
    encode_clips(mimi, wavs[:2])  # warm-up
    codes = {"Mimi, batched": watch.run("Mimi, batched", encode_clips, mimi, wavs)}
    codes["Mimi, one by one"] = watch.run("Mimi, one by one", lambda: [encode_clips(mimi, [wav])[0] for wav in wavs])
    half = Mimi(model, device, torch.bfloat16)
    encode_clips(half, wavs[:2])
    codes["Mimi, batched, bfloat16"] = watch.run("Mimi, batched, bfloat16", encode_clips, half, wavs)
    model.to(device)
    other = "Mimi, one by one, transformers"
    codes[other] = watch.run(other, lambda: [transformers_codes(model, wav) for wav in wavs])
    watch.seconds[PRODUCTS] = sum(clip.seconds for clip in clips) * products_per_second(model, wavs[0]) / product_rate(device)
    if speaker is not None:
        for wav in wavs:
            watch.run("CAM++", speaker, resample(wav, SAMPLE_RATE, INPUT_RATE))
    batched = codes["Mimi, batched"]
    rows = [dict.fromkeys(SCHEMA.names) | {"conversations": text, "answer_audios": [frame_major(c)], "seconds": clip.seconds}
            for text, c, clip in zip(texts, batched, clips)]
    with tempfile.TemporaryDirectory() as folder:
        watch.run("shard", write_shard, rows, Path(folder) / "shard.parquet")
    same = {way: float(np.mean(np.concatenate([(a == b).ravel() for a, b in zip(batched, other)]))) for way, other in codes.items()}
    return {"hours_of_speech": sum(clip.seconds for clip in clips) / 3600, "seconds": watch.seconds, "same_codes": same}


@torch.no_grad()
def transformers_codes(model, wav: np.ndarray) -> np.ndarray:
    wav = np.pad(wav, (0, -len(wav) % FRAME_SAMPLES))  # filled up with silence, as encode_clips does
    return model.encode(torch.from_numpy(wav)[None, None].to(model.device), num_quantizers=8).audio_codes[0].cpu().numpy()


def products_per_second(model, wav: np.ndarray) -> float:
    """Floating-point operations that encoding takes for each second of speech, by the shapes of its convolutions and products."""
    with FlopCounterMode(display=False) as counter:
        codes = transformers_codes(model, wav)
    return counter.get_total_flops() * SAMPLE_RATE / (codes.shape[1] * FRAME_SAMPLES)


def product_rate(device: str, size: int = 2048) -> float:
    """Floating-point operations a second in a large float32 product, the best of several."""
    a, b = torch.randn(2, size, size, device=device)
    return 2 * size**3 / best_s(lambda: a @ b, torch.device(device))


def report(measured: dict, hours: float) -> dict:
    """Speeds per stage and what they add up to: hours of speech per core-hour, and cores for `hours` of speech in a day."""
    speeds = {stage: measured["hours_of_speech"] * 3600 / seconds for stage, seconds in measured["seconds"].items()}
    recorded = [stage for stage in speeds if stage not in NOT_OF_A_BUILD]
    totals = {"from recordings": recorded, **({"from text": ["flite", *recorded]} if "flite" in speeds else {})}
    totals = {name: 1 / sum(1 / speeds[stage] for stage in stages) for name, stages in totals.items()}
    one_by_one = [stage for stage in speeds if stage.startswith("Mimi, one by one")]
    gains, limits = ({stage: speeds[way] / speeds[stage] for stage in one_by_one} for way in ("Mimi, batched", PRODUCTS))
    return {**measured, "hours_per_core_hour": speeds, "all_stages": totals, "batching_gains": gains, "batching_limits": limits,
            "cores_for_a_day": {name: hours / DAY_HOURS / speed for name, speed in totals.items()}}


def stages(args: argparse.Namespace) -> dict:
    torch.set_num_threads(1)  # per core, as the builder's workers run
    result = report(measure_stages(args.utterances[0], args.codec, args.speaker_encoder, args.device), args.hours)
    print(table_line(STAGE_COLUMNS))
    for stage, speed in (result["hours_per_core_hour"] | result["all_stages"]).items():
        print(table_line(STAGE_COLUMNS, {"stage": stage, "speed": speed}))
    for way, gain in result["batching_gains"].items():
        print(f"Mimi in batches is {gain:.2f} times as fast as {way.removeprefix('Mimi, ')}; its products alone allow "
              f"{result['batching_limits'][way]:.2f} times")
    print(", ".join(f"{way}: {share:.2%} of the codes as in batches" for way, share in result["same_codes"].items()))
    for name, cores in result["cores_for_a_day"].items():
        print(f"{args.hours:g} h of speech {name} in a day: {cores:.1f} cores")
    return result


# ---- whole builds

class MemoryWatch:
    """The most memory that this process and its descendants held together, looked at every half second."""

    def __enter__(self):
        self.peak, self.stop = 0, Event()
        self.thread = Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.stop.wait(0.5):
            self.peak = max(self.peak, sum(map(pss_bytes, family(os.getpid()))))

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def pss_bytes(pid: int) -> int:
    try:
        return int(re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1]) * 1024
    except (FileNotFoundError, ProcessLookupError, TypeError):
        return 0  # it has just ended


def measure_whole(count: int, settings: Settings, engine: Engine, folder: str) -> dict:
    """A row of WHOLE_COLUMNS: a build of `count` sentences into `folder`, in this process."""
    corpus, out = Path(folder) / "corpus.jsonl", Path(folder) / "out"
    lines = (json.dumps({"question": "Say something.", "answer": TEXTS[i % len(TEXTS)], "id": str(i)}) + "\n" for i in range(count))
    corpus.write_text("".join(lines))
    marks, used = [time.perf_counter()], []
    with MemoryWatch() as memory:
        blocks, key = plan([corpus], "auto", None, {"settings": settings.key(), "rows_per_shard": 512}, out / "work", (0, 1), settings.seed)
        marks.append(time.perf_counter())
        used.append(cpu_seconds())
        for _ in engine.run(blocks, settings):
            pass
        marks.append(time.perf_counter())
        used.append(cpu_seconds())
        manifest = finish(blocks, out, key, settings)
        marks.append(time.perf_counter())
        faulty = validate.main([str(out)])
        marks.append(time.perf_counter())
    if faulty:
        raise ValueError(f"the built files in {out} have faults")
    plan_s, parts_s, shards_s, validate_s = np.diff(marks).tolist()
    return {"utterances": count, "hours": manifest["hours"], "plan_s": plan_s, "parts_s": parts_s, "shards_s": shards_s,
            "validate_s": validate_s, "cpu_percent": 100 * (used[1] - used[0]) / (parts_s * engine.workers),
            "memory_mib": memory.peak / 2**20}


def whole(args: argparse.Namespace) -> dict:
    rows = []
    settings = Settings(args.codec, None if args.speaker_encoder == "none" else args.speaker_encoder, tts=args.tts, device=args.device)
    print(table_line(WHOLE_COLUMNS))
    for count in args.utterances:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(alone(measure_whole, count, settings, Engine(args.engine, args.workers), folder))
        print(table_line(WHOLE_COLUMNS, rows[-1]), flush=True)
    return {"engine": args.engine, "workers": args.workers, "rows": rows}


def main(argv=None) -> int:
    """0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("what", choices=("stages", "whole"))
    parser.add_argument("--codec", default="model/nano/mimi", help="MimiModel folder; stages: or 'full', the released size, random weights")
    parser.add_argument("--speaker_encoder", default="model/nano/campplus", help="CAM++ folder, or 'none'; stages: or 'full'")
    parser.add_argument("--utterances", type=int, nargs="+", default=[64], help="whole: a build of each size")
    parser.add_argument("--hours", type=float, default=3000, help="stages: of speech, to be built in a day")
    parser.add_argument("--tts", default="flite", help="whole: see dataset.build_parquet")
    parser.add_argument("--engine", default="processes", choices=("processes", "ray"), help="whole")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="whole")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    try:
        if min(args.utterances) < 1:
            raise ValueError("--utterances must be 1 or more")
        pick_device(args.device)
        result = {"stages": stages, "whole": whole}[args.what](args)
    except INPUT_ERRORS as error:
        return refuse(error)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
