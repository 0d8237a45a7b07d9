"""What the commands of this folder that examine a pack share: their common flags, the data they read, and how they end."""
import argparse
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from model.refusal import INPUT_ERRORS, refuse


def pack_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that say which pack is examined, from which seed and where."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--pack", default="model/nano")
    parser.add_argument("--save_dir", help="folder of the weights, when they are not in the pack")
    parser.add_argument("--weight", help="weights' name, e.g. sft_omni (default: the one the folder has)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def exit_code(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """0 after `run(args)`; 2, with one line on stderr, for wrong input."""
    try:
        run(args)
    except INPUT_ERRORS as error:
        return refuse(error)
    return 0


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A parquet file, or all of a folder of shards in order. FileNotFoundError for a folder without any."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"no *.parquet in {path}")
    return pa.concat_tables([pq.read_table(file, columns=columns) for file in files])
