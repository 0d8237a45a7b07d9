"""Every published table, measured again: one command for all, or one per table; results as JSON, Markdown, PNG and a page to listen to.

- Tables: consistency (I), cloning (II), t2a (III), pictures (IV), latency, a2a. What needs a module or inputs that are not there is
  skipped and says why; put the module into the pack and the same command measures it.
- `--preset nano` examines the shipped pack, `base` and `moe` the released weights (scripts/download_models.py), and puts the published
  figures beside ours. `--ablation FILE.pth ...` adds rows with other Talker widths to table I.
- Errors are jiwer's on texts normalised as evals/metrics.py says; --asr chooses who listens (evals/asr.py). Intervals are 95 %, by
  bootstrap over items. Everything is seeded.

    python -m evals.run all --preset nano
    python -m evals.run consistency t2a --preset base --asr transformers:Qwen/Qwen3-ASR-0.6B
"""
import argparse
import platform
import shlex
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  (the root has to be importable first)

from engine.chat import Chat, find_weights, pick_device  # noqa: E402
from engine.precision import DTYPES  # noqa: E402
from evals import report  # noqa: E402
from evals.asr import load_recogniser  # noqa: E402
from evals.command import exit_code, pack_parser  # noqa: E402
from evals.results import Skipped, Table  # noqa: E402
from evals.samples import Examinee  # noqa: E402
from evals.tables import TABLES, TITLES, Plan, consistency  # noqa: E402
from model.checkpoint import read_sidecar  # noqa: E402
from model.config import OmniConfig  # noqa: E402
from model.weight_files import infer_config, load_weights, migrate  # noqa: E402

PLACES = {"nano": ("model/nano", "model/nano"), "base": ("model", "out"), "moe": ("model", "out")}  # preset: pack, folder of the weights
ALL = "all"


def build_parser() -> argparse.ArgumentParser:
    parser = pack_parser(__doc__.splitlines()[0])
    parser.set_defaults(pack=None)  # the preset's
    parser.add_argument("tables", nargs="+", choices=[ALL, *TABLES], metavar="TABLE", help=f"{ALL}, {', '.join(TABLES)}")
    parser.add_argument("--preset", choices=PLACES, default="nano", help="the model and where it lies; --pack and --save_dir say otherwise")
    parser.add_argument("--n", type=int, default=60, help="questions per table (the released model has 26)")
    parser.add_argument("--clone_n", type=int, default=8, help="questions per voice in table II")
    parser.add_argument("--asr", default="pocketsphinx", help="pocketsphinx, sensevoice[:FOLDER] or transformers:FOLDER_OR_NAME")
    parser.add_argument("--ablation", nargs="*", default=[], type=Path, metavar="FILE", help="further weights for table I")
    parser.add_argument("--data", default="out/nano/data", type=Path, help="the nano world's held-out sets, if they were built")
    parser.add_argument("--examples_dir", type=Path, help="example sounds and pictures (default: <pack>/examples)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="number format of the weights")
    parser.add_argument("--samples", type=int, default=8, help="of each kind on the page")
    parser.add_argument("--output_dir", type=Path, help="default: out/evals/<preset>")
    return parser


def located(path: str | Path) -> Path:
    """A path as given, else the same from the repository's root."""
    return Path(path) if Path(path).exists() else ROOT / path


def load_examinee(args, pack: Path, weights: Path, recogniser) -> Examinee:
    config = None if read_sidecar(weights) else infer_config(migrate(load_weights(weights)))
    chat = Chat.load(pack, weights, config, pick_device(args.device), dtype=args.dtype)
    chat.use_few_threads()
    return Examinee(chat, recogniser, "nano" if chat.config.vocab_size < OmniConfig.vocab_size else "general", args.seed)


def measure(name: str, examinee: Examinee, plan: Plan) -> Table:
    """The table, or an empty one that says why it was skipped."""
    try:
        return TABLES[name](examinee, plan)
    except Skipped as reason:
        return Table(name, TITLES[name], skipped=str(reason))


def run(args) -> None:
    began = time.monotonic()
    if missing := [path for path in args.ablation if not path.is_file()]:
        raise FileNotFoundError(f"--ablation {missing[0]} is not there: give .pth files")
    pack, save_dir = (located(given or usual) for given, usual in zip((args.pack, args.save_dir), PLACES[args.preset]))
    released = args.preset != "nano"
    weights = find_weights(save_dir, args.weight, 768 if released else None, args.preset == "moe")
    recogniser = load_recogniser(args.asr, pack, args.device)
    examinee = load_examinee(args, pack, weights, recogniser)
    plan = Plan(args.n, args.clone_n, pack, "moe" if args.preset == "moe" else "dense", located(args.data),
                args.examples_dir or pack / "examples", released)
    names = list(TABLES) if ALL in args.tables else list(dict.fromkeys(args.tables))
    tables = [measure(name, examinee, plan) for name in names]
    for path in args.ablation if "consistency" in names else ():
        other = consistency(load_examinee(args, pack, path, recogniser), plan)
        table = tables[names.index("consistency")]
        for field in ("rows", "samples", "clips"):
            getattr(table, field).extend(getattr(other, field))
    if all(table.skipped for table in tables):
        raise ValueError("nothing could be measured: " + "; ".join(f"{table.key}: {table.skipped}" for table in tables))
    values = {"weights": weights.name, "recogniser": args.asr, "seed": args.seed, "n": args.n, "dtype": examinee.chat.engine.precision.name,
              "device": device_name(args.device), "torch": torch.__version__, "threads": torch.get_num_threads(),
              "minutes": round((time.monotonic() - began) / 60, 1)}
    settings = report.Settings(f"MiniMind-O evaluation: {args.preset}", args.command, values)
    paths = report.write(settings, tables, args.output_dir or ROOT / "out" / "evals" / args.preset, args.samples)
    print(report.markdown(settings, tables))
    print(*paths, sep="\n")


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU ({platform.machine()})"


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    args.command = shlex.join(["python", "-m", "evals.run", *argv])
    return exit_code(run, args)


if __name__ == "__main__":
    sys.exit(main())
