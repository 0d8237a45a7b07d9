"""How fast the trainer is on this machine, what each of its optimisations is worth, and how long the published recipes would take.

- Made-up data of realistic lengths (scripts/synthetic_rows.py), random weights, frozen encoders of the released sizes.
- Every configuration runs in a process of its own over the very same rows, one whole epoch after a warm-up: its peak memory and its
  compiled code are its own.
- "all on" is the trainer as it is; then one optimisation less at a time; "all off" pads to --max_seq_len, computes all logits and eight
  separate losses, in the same number format.
- A table, a PNG and a JSON file in --output_dir; the last line printed is the same JSON.

    python -m scripts.bench_train --preset base --tasks t2a --batch_size 8 --steps 12 --threads 2     # a CPU
    python -m scripts.bench_train --preset base moe --tasks t2a a2a i2t --batch_size 32 --steps 100 --use_compile 1 --num_workers 8
"""
import argparse
import json
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm import tqdm

from engine.chat import pick_device
from model.checkpoint import save_json
from model.config import PRESETS, OmniConfig
from model.refusal import refuse
from scripts.bench_table import table_line
from scripts.synthetic_rows import TASKS, speech_hours, write_rows
from trainer.options import DTYPES, OPTIMISATIONS
from trainer.throughput import Meter, ModelFlops, peak_flops
from trainer.train_sft_omni import Trainer, parse_args
from trainer.trainer_utils import ROOT, Processes

WARM_UP = 3  # batches; compiled code is made during them
SENSEVOICE = dict(output_size=512, attention_heads=4, linear_units=2048, num_blocks=50, tp_blocks=20, dropout_rate=0.1,
                  positional_dropout_rate=0.1, attention_dropout_rate=0.1, input_layer="pe", kernel_size=11, sanm_shfit=0,
                  pos_enc_class="SinusoidalPositionEncoder", normalize_before=True, selfattention_layer_type="sanm")
FRONTEND = dict(fs=16000, window="hamming", n_mels=80, frame_length=25, frame_shift=10, lfr_m=7, lfr_n=6, dither=0.0, cmvn_file=None)
SIGLIP = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=256, patch_size=32)
SMALL = {"audio": dict(num_blocks=2, tp_blocks=1, linear_units=64), "image": dict(num_hidden_layers=1, num_attention_heads=4)}
# (hours of speech, times it is gone through) by task: A2A trains the projector first, then everything
RECIPES = {"mini": {"t2a": (470, 1), "a2a": (75, 2)}, "full": {"t2a": (1636, 1), "a2a": (1712, 2)}}
COLUMNS = (("preset", "preset"), ("task", "task"), ("configuration", "configuration"), ("samples/s", "samples_per_s"),
           ("x all off", "gain"), ("tokens/s", "tokens_per_s"), ("MFU", "mfu"), ("padding", "padding"), ("data wait", "data_wait"),
           ("MiB", "memory_mib"))


def configurations(args: argparse.Namespace, preset: str) -> dict[str, list[str]]:
    """The trainer's extra flags by the name of a row; the first is "all on", the last "all off". ValueError for an unknown --rows."""
    known = [name for name in OPTIMISATIONS if name != "grouped_experts" or PRESETS[preset].get("use_moe")]
    rows = {"all on": []}
    rows.update({f"without {name}": ["--without", name] for name in known})
    if args.use_compile:
        rows["without compiling"] = ["--use_compile", "0"]
    if args.dtype != "float32":
        rows["in float32"] = ["--dtype", "float32"]
    rows["with max_tokens"] = ["--max_tokens", str(args.batch_size * args.median)]
    rows["with gradient_checkpointing"] = ["--gradient_checkpointing", "1"]
    rows["all off"] = ["--without", *known, "--use_compile", "0"]
    unknown = [name for name in args.rows or () if name not in rows]
    if unknown:
        raise ValueError(f"--rows {unknown[0]!r} is none of preset {preset}'s; choose from: {', '.join(rows)}")
    return rows if args.rows is None else {name: flags for name, flags in rows.items() if name in args.rows}


def frozen_audio(device: torch.device, width: int, small: bool):
    """A SenseVoice of the released size with random weights."""
    from model.encoders import SenseVoice, _funasr_classes
    encoder, frontend = _funasr_classes(("funasr.models.sense_voice.model", "SenseVoiceEncoderSmall"),
                                        ("funasr.frontends.wav_frontend", "WavFrontend"))
    options = {**SENSEVOICE, **(SMALL["audio"] if small else {}), "output_size": width}
    return SenseVoice(encoder(input_size=560, **options).to(device).eval().requires_grad_(False), frontend(**FRONTEND))


def frozen_vision(device: torch.device, width: int, small: bool):
    """A SigLIP2 vision tower of the released size with random weights."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    from model.encoders import SigLIP2
    model = SiglipVisionModel(SiglipVisionConfig(**{**SIGLIP, **(SMALL["image"] if small else {}), "hidden_size": width}))
    return SigLIP2(model.to(device).eval().requires_grad_(False), (256, 256), 2, 1 / 255, [0.5] * 3, [0.5] * 3)


def measure(argv: list[str], task: str, threads: int | None, small: bool) -> dict:
    """Figures of one epoch of the trainer with these flags."""
    if threads:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    args = parse_args(argv)
    device = torch.device(args.device)
    procs = Processes(0, 1, device)
    trainer = Trainer(args, procs)
    if task == "a2a":
        trainer.frontends.audio_encoder = frozen_audio(device, trainer.config.audio_hidden_size, small)
    if task == "i2t":
        trainer.frontends.image_encoder = frozen_vision(device, trainer.config.image_hidden_size, small)
    plan = trainer.data.plan
    start, stop = plan.first_of(1), plan.first_of(2)
    meter = Meter(ModelFlops(trainer.model), peak_flops(device, trainer.dtype))
    batches = iter(trainer.data.loader(start - min(WARM_UP, start), stop))

    def run(count: int) -> None:
        for _ in range(count):
            trainer.train_step(meter.fetch(batches, 1))
        if device.type == "cuda":
            torch.cuda.synchronize()

    run(min(WARM_UP, start))
    meter.restart()
    run(stop - start)
    figures = meter.figures(procs)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**figures, "memory_mib": memory / 2**20}


def alone(function, *arguments):
    """function(*arguments) in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def bench(preset: str, task: str, args: argparse.Namespace) -> tuple[list[dict], float]:
    """The rows of one task, and the hours of speech that "all on" goes through in an hour."""
    config = OmniConfig.preset(preset)
    path = Path(args.output_dir) / f"{task}_{config.num_codes}.parquet"
    write_rows(path, task, args.batch_size * args.steps, config, args.median, args.max_seq_len)
    common = ["--preset", preset, "--from_weight", "none", "--data_path", str(path), "--save_dir", args.output_dir, "--tokenizer_dir",
              str(ROOT / "model" / "nano"), "--system_share", "0", "--device", args.device, "--dtype", args.dtype, "--use_compile",
              str(args.use_compile), "--epochs", "2", *(f"--{name}={getattr(args, name)}" for name in ("batch_size", "max_seq_len",
                                                                                                      "num_workers"))]
    if args.tiny:
        common += ["--hidden_size", "64", "--num_hidden_layers", "2", "--talker_hidden_size", "64"]
    rows = []
    for name, flags in tqdm(configurations(args, preset).items(), desc=f"{preset} {task}"):
        figures = alone(measure, [*common, *flags], task, args.threads, args.tiny)
        rows.append({"preset": preset, "task": task, "configuration": name, **figures})
    off = rows[-1]["samples_per_s"] if rows[-1]["configuration"] == "all off" else None
    for row in rows:
        row["gain"] = off and row["samples_per_s"] / off
    hours_per_row = speech_hours(path, task) / (args.batch_size * args.steps)
    return rows, rows[0]["samples_per_s"] * hours_per_row * 3600


def recipe_hours(speed: dict[str, float]) -> dict[str, float]:
    """Estimated hours of each recipe whose tasks were all measured; speed: hours of speech per hour by task."""
    return {name: sum(times * hours / speed[task] for task, (hours, times) in parts.items())
            for name, parts in RECIPES.items() if set(parts) <= set(speed)}


def plot(rows: list[dict], path: Path) -> None:
    """Samples per second, one bar a row."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 1 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{row['preset']} {row['task']}: {row['configuration']}" for row in rows]
    axes.barh(range(len(rows)), [row["samples_per_s"] for row in rows])
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="samples per second, scaled by logarithm", xscale="log")
    figure.savefig(path, dpi=120)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--preset", nargs="+", choices=sorted(PRESETS), default=["base"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["t2a"])
    parser.add_argument("--rows", nargs="+", help='only these configurations, such as "all on" "all off"')
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="batches of the epoch that is measured")
    parser.add_argument("--median", type=int, default=180, help="positions of half of the rows at most")
    parser.add_argument("--max_seq_len", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="default: bfloat16 on CUDA, else float32")
    parser.add_argument("--use_compile", type=int, choices=(0, 1), default=0)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--tiny", action="store_true", help="a model of width 64 and small encoders: to try this script")
    parser.add_argument("--output_dir", default="out/bench")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        device = pick_device(args.device)
        args.dtype = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
        for preset in args.preset:
            configurations(args, preset)
    except ValueError as error:
        return refuse(error)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {args.threads or torch.get_num_threads()} threads"
    result = {"device": name, "settings": vars(args), "rows": [], "recipes": {}}
    for preset in args.preset:
        speed = {}
        for task in args.tasks:
            rows, speed[task] = bench(preset, task, args)
            result["rows"] += rows
        result["recipes"][preset] = {"speech_hours_per_hour": speed, "hours": recipe_hours(speed)}
    print(f"{name}\n\n{table_line(COLUMNS)}\n" + "\n".join(table_line(COLUMNS, row) for row in result["rows"]) + "\n")
    for preset, estimate in result["recipes"].items():
        for recipe, hours in estimate["hours"].items():
            print(f"{preset}, {recipe} recipe ({', '.join(RECIPES[recipe])}): about {hours:.1f} h at this speed")
    plot(result["rows"], Path(args.output_dir) / "bench_train.png")
    save_json(result, Path(args.output_dir) / "bench_train.json")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
