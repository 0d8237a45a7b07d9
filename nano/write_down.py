"""Spoken questions together with what the ear writes down of them: for a Thinker that is shown both.

- Rows of the spoken sets whose last spoken question is roughened in a share of them, and whose words are then the ear's, mistakes
  included: where sound and words disagree, the Thinker has to find out which to believe.
- A row's sound and words depend on the seed and its place in the sets only. Each set is a shard of its own, written as a whole: what is
  there is not made again.

    python -m nano.write_down out/nano/data/a2a_train out/nano/data/more_train --limit 4500 --ear model/nano/SenseVoiceSmall \
        --out out/nano/data/heard_train
"""
import argparse
import io
import json
import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
import torch
from tqdm import tqdm

from dataset.augment import augment
from dataset.build_stages import SCHEMA
from dataset.omni_dataset import IMAGE_TAG
from dataset.parquet_rows import find_files
from model.audio import read_audio
from model.checkpoint import replace_atomic
from model.config import INPUT_RATE
from model.encoders import SenseVoice
from model.refusal import INPUT_ERRORS, refuse

ROUGH_SHARE = 0.6  # of the sounds


def read_rows(path: Path, limit: int, rng: random.Random) -> list[dict]:
    """`limit` rows of a set whose last question is spoken, in random order."""
    rows = [row for file in find_files([path]) for row in pq.read_table(file).to_pylist()]
    spoken = [row for row in rows if row["question_audios"] and row["question_audios"][-1]]
    return rng.sample(spoken, min(limit, len(spoken)))


def write_down(row: dict, transcribe, rng: np.random.Generator) -> dict | None:
    """The row with what `transcribe` (a (S,) tensor at 16 kHz -> text) hears in its last question; None where that is nothing."""
    *earlier, data = row["question_audios"]
    wav = read_audio(data, INPUT_RATE)
    if rng.random() < ROUGH_SHARE:
        wav, buffer = augment(wav, rng), io.BytesIO()
        sf.write(buffer, wav, INPUT_RATE, format="FLAC", subtype="PCM_16")
        data = buffer.getvalue()
    heard, messages = transcribe(torch.as_tensor(wav)), json.loads(row["conversations"])
    if not heard:
        return None
    question = next(message for message in reversed(messages) if message["role"] == "user")
    question["content"] = f"{IMAGE_TAG}\n" * question["content"].count(IMAGE_TAG) + heard
    # the earlier questions stay as words: a row has one sound
    return {**row, "conversations": json.dumps(messages), "question_audios": [None] * len(earlier) + [data]}


def write_set(path: Path, out: Path, limit: int, ear, seed: int) -> int:
    """The shard of one set; returns its number of rows."""
    rng = np.random.default_rng([seed, *path.name.encode()])
    rows = tqdm(read_rows(path, limit, random.Random(f"{seed} {path.name}")), desc=path.name, mininterval=5)
    found = [row for row in (write_down(row, ear.transcribe, rng) for row in rows) if row is not None]
    table = pa.Table.from_pylist(found, schema=SCHEMA)
    replace_atomic(out, partial(pq.write_table, table, compression="zstd", row_group_size=256))
    return len(found)


def main(argv=None) -> int:
    """0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("sets", nargs="+", type=Path, help="folders of nano.build_sets with spoken questions")
    parser.add_argument("--ear", default="model/nano/SenseVoiceSmall")
    parser.add_argument("--limit", type=int, default=4500, help="rows of each set")
    parser.add_argument("--out", type=Path, default=Path("out/nano/data/heard_train"))
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    try:
        ear = SenseVoice.load(args.ear)
        if not ear.can_transcribe:
            raise ValueError(f"{args.ear} cannot transcribe: it has no CTC head or no tokenizer")
        args.out.mkdir(parents=True, exist_ok=True)
        for path in args.sets:
            shard = args.out / f"{path.name}.parquet"
            print(f"{shard}: " + ("there already" if shard.exists() else f"{write_set(path, shard, args.limit, ear, args.seed)} rows"))
    except INPUT_ERRORS as error:
        return refuse(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
