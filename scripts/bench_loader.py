"""How many samples a second one worker of the loader makes, how soon the first batch comes, and what memory that takes.

- The large data set is the small one's file under many names (links): the reader cannot tell, and no disk is filled.
- Each size is measured in a process of its own, in the trainer's order, lengths and batches, T2A.
- A table and a JSON file in --output_dir; the last line printed is the same JSON.

    python -m scripts.bench_loader                                    # 0.2 GB and 20 GB
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from model.checkpoint import save_json
from model.config import OmniConfig
from scripts.bench_train import alone
from scripts.bench_table import table_line
from scripts.synthetic_rows import write_rows
from trainer.options import load_tokenizer
from trainer.train_sft_omni import parse_args
from trainer.trainer_data import open_data
from trainer.trainer_utils import ROOT, Processes

COLUMNS = (("GB", "gigabytes"), ("rows", "rows"), ("first batch s", "first_batch_s"), ("samples/s", "samples_per_s"),
           ("RSS MiB", "rss_mib"))


def rss_mib() -> float:
    """Resident memory of this process now, less the pages of mapped files, which the system takes back when it needs them."""
    resident, shared = (int(n) for n in Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(folder: str, batch_size: int, batches: int) -> dict:
    """Figures of the first `batches` batches of a folder's files, made in this process as a worker would."""
    torch.set_num_threads(1)  # as a DataLoader does in its workers
    args = parse_args(["--data_path", folder, "--batch_size", str(batch_size), "--num_workers", "0", "--device", "cpu", "--tokenizer_dir",
                       str(ROOT / "model" / "nano")])
    config, tokenizer = OmniConfig.preset("base"), load_tokenizer(args)
    started = time.perf_counter()
    data = open_data([folder], tokenizer, config, args, Processes(0, 1, torch.device("cpu")))
    loader = iter(data.loader(0, batches + 1))
    next(loader)
    first = time.perf_counter() - started
    started, samples = time.perf_counter(), 0
    for batch in loader:
        samples += batch["num_rows"]
    return {"rows": data.plan.num_rows, "first_batch_s": first, "samples_per_s": samples / (time.perf_counter() - started),
            "rss_mib": rss_mib()}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.2, 20], help="sizes; the first is that of the file")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=600)
    parser.add_argument("--output_dir", default="out/bench")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    output, config = Path(args.output_dir), OmniConfig.preset("base")
    output.mkdir(parents=True, exist_ok=True)
    source = output / "loader_rows.parquet"
    write_rows(source, "t2a", 100, config)
    write_rows(source, "t2a", max(1, round(100 * args.gigabytes[0] * 1e9 / source.stat().st_size)), config)
    rows = []
    print(table_line(COLUMNS))
    for size in args.gigabytes:
        folder = output / f"loader_{size:g}"
        folder.mkdir(exist_ok=True)
        for link in folder.glob("*.parquet"):
            link.unlink()
        for number in range(max(1, round(size / args.gigabytes[0]))):
            (folder / f"{number:05d}.parquet").symlink_to(source.resolve())
        rows.append({"gigabytes": size, **alone(measure, str(folder), args.batch_size, args.batches)})
        print("| " + " | ".join(f"{rows[-1][name]:.4g}" for _, name in COLUMNS) + " |", flush=True)
    result = {"settings": vars(args), "rows": rows, "rss_growth_mib": rows[-1]["rss_mib"] - rows[0]["rss_mib"]}
    save_json(result, output / "bench_loader.json")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
