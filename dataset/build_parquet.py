"""Bring your own data: texts and recordings -> checked training shards, on one machine or many.

- Input: JSONL conversations, folders of recordings with transcripts, or Hugging Face folders (sources.py); text alone with --tts.
- Output in --out: shard-00000.parquet ..., rejects.jsonl (what was left out, and why), card.html, and manifest.json, written last.
- Three steps, each resumable after a kill at any moment: the plan cuts the input into blocks, named by their content; workers turn blocks
  into parts (build_stages.py); the parts get their voice prompts, another utterance of the same speaker, and become shards.
- Equal input and settings give equal bytes, whatever the engine or the number of workers, or how often it was killed.
- Job arrays: `--shard 0/8` ... `--shard 7/8` build a share of the parts each, into one shared --out; then the same command without
  --shard makes the shards.

    python -m dataset.build_parquet LJSpeech-1.1 --codec model/mimi --speaker_encoder model/campplus --out out/ljspeech --workers 2
    python -m dataset.build_parquet corpus.jsonl --tts flite --codec model/nano/mimi --out out/corpus
"""
import argparse
import errno
import hashlib
import json
import os
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from dataset.build_stages import SCHEMA, Settings, choose, file_digest, part_path, rejects_path
from dataset.clean import Gates
from dataset.data_card import write_card
from dataset.engines import Engine
from dataset.manifest import MANIFEST, Summary, new_manifest, read_manifest
from dataset.sources import LAYOUTS, Item, Reject, read_source, to_dict
from dataset.tts import load_tts
from model.checkpoint import replace_atomic, save_json
from model.config import NUM_CODEBOOKS
from model.refusal import INPUT_ERRORS, refuse

ROW_GROUP = 256  # a training row costs decoding its row group once; small ones keep shuffled reading cheap
PROMPTS_PER_BLOCK = 16  # utterances of a speaker in each block that may serve as voice prompts: only they cost a speaker vector
SMALL_COLUMNS = ["id", "speaker", "language", "kind", "seconds", "tokens"]


def build(inputs: list, out, settings: Settings, engine: Engine = Engine(), shard: tuple[int, int] = (0, 1), rows_per_shard: int = 512,
          layout: str = "auto", limit: int | None = None) -> dict | None:
    """Build everything at `inputs` into the folder `out`; returns the manifest, or None when `shard` (i, n) asks for a part only.

    A call that was cut off is continued by the same call. ValueError when `out` holds another data set, or nothing could be used;
    OSError for a full disk, after which the same call goes on as well.
    """
    out = Path(out)
    if settings.tts:
        load_tts(settings.tts, settings.voices)  # a missing program is told before anything is begun
    names = {"settings": settings.key(), "rows_per_shard": rows_per_shard}
    work = out / "work"
    blocks, key = plan(inputs, layout, limit, names, work, shard, settings.seed)
    done = read_manifest(out)
    if done is not None:
        shutil.rmtree(work, ignore_errors=True)  # the plan just written, and what a kill right after the manifest left
        if done["key"] != key:
            raise ValueError(f"{out} holds a data set made from other input or settings: give another --out")
        return done
    mine = [block for i, block in enumerate(blocks) if i % shard[1] == shard[0]]
    missing = [block for block in mine if not part_path(block).exists()]
    for _ in tqdm(engine.run(missing, settings), total=len(mine), initial=len(mine) - len(missing), desc="blocks"):
        pass
    if shard[1] > 1:
        return None
    manifest = finish(blocks, out, key, settings)
    shutil.rmtree(work)
    return manifest


# ---- plan

def plan(inputs: list, layout: str, limit: int | None, names: dict, work: Path, shard: tuple[int, int],
         seed: int = 0) -> tuple[list[Path], str]:
    """Write the missing block files of this shard; returns the paths of all blocks and a name for the whole.

    A block's name tells its content and the settings, so a changed input is noticed block by block.
    """
    entries = unique(entry for path in inputs for entry in read_source(path, layout))
    entries = tqdm(islice(entries, limit), desc="plan", unit="item", mininterval=2)
    blocks, whole = [], hashlib.sha256()
    while block_entries := list(islice(entries, names["rows_per_shard"])):
        mark_prompts(block_entries, seed)
        text = "".join(json.dumps(to_dict(entry)) + "\n" for entry in block_entries).encode()
        digest = hashlib.sha256(json.dumps(names, sort_keys=True).encode() + text).hexdigest()[:16]
        block = work / f"{len(blocks):05d}-{digest}.jsonl"
        whole.update(digest.encode())
        if len(blocks) % shard[1] == shard[0] and not block.exists():
            replace_atomic(block, lambda file: file.write(text))
        blocks.append(block)
    if not blocks:
        raise ValueError(f"nothing to build in {', '.join(map(str, inputs))}")
    return blocks, whole.hexdigest()[:16]


def unique(entries: Iterable[Item | Reject]) -> Iterator[Item | Reject]:
    """Refuse items whose id was seen before; the ids are kept in a temporary file, so that memory does not grow with them."""
    with sqlite3.connect("") as seen:
        seen.execute("create table ids (id blob primary key) without rowid")
        for entry in entries:
            name = hashlib.sha256(entry.id.encode("utf-8", "surrogatepass")).digest()[:16]
            if isinstance(entry, Item) and not seen.execute("insert or ignore into ids values (?)", (name,)).rowcount:
                entry = Reject(entry.id, entry.source, "duplicate id")
            yield entry


def mark_prompts(entries: list[Item | Reject], seed: int) -> None:
    """Let the first PROMPTS_PER_BLOCK of each speaker, in the order of `prompt_rank`, be voice prompts; whoever has no name may always."""
    named = [entry for entry in entries if isinstance(entry, Item) and entry.speaker is not None]
    count: Counter[str] = Counter()
    for item in sorted(named, key=lambda item: prompt_rank(item.id, seed)):
        count[item.speaker] += 1
        item.may_prompt = count[item.speaker] <= PROMPTS_PER_BLOCK


def prompt_rank(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).hexdigest()


# ---- parts to shards

def finish(blocks: list[Path], out: Path, key: str, settings: Settings) -> dict:
    """Voice prompts, shards, rejects, card, and then the manifest, which is returned."""
    for stale in [*out.glob("shard-*.parquet"), *out.glob(".*.tmp")]:
        stale.unlink()  # of a run that was killed here
    references = collect_references(blocks, settings)
    summary, shards = Summary(), []
    for i, block in enumerate(tqdm(blocks, desc="shards")):
        rows = pq.read_table(part_path(block), columns=SCHEMA.names).to_pylist()
        rejects = [json.loads(line) for line in rejects_path(block).read_text(encoding="utf-8").splitlines()]
        summary.add_rejects(rejects)
        if not rows:
            continue
        for row in rows:
            give_reference(row, references, settings.seed)
            summary.add_row(row)
        shards.append(write_shard(rows, out / f"shard-{i:05d}.parquet"))
    replace_atomic(out / "rejects.jsonl", lambda file: [file.write(rejects_path(block).read_bytes()) for block in blocks])
    if not shards:
        raise ValueError(f"every item was rejected ({summary.first_reason}): see {out / 'rejects.jsonl'}")
    manifest = new_manifest(key, summary, shards, settings)
    write_card(manifest, out / "card.html")
    save_json(manifest, out / MANIFEST)
    return manifest


def collect_references(blocks: list[Path], settings: Settings) -> dict[str, list[tuple]]:
    """{speaker: up to `settings.prompts` of (rank, id, codes flat, speaker vector)}; their ids decide which ones, not their order.

    Those too short to be a prompt come last and without codes.
    """
    references: dict[str, list[tuple]] = {}
    shortest, longest = (frames * NUM_CODEBOOKS for frames in settings.prompt_frames)
    for block in tqdm(blocks, desc="voice prompts"):
        table = pq.read_table(part_path(block), columns=["id", "speaker", "answer_audios", "prompt", "spk_emb", "may_prompt"])
        for name, speaker, answers, prompt, vector, may_prompt in zip(*(table.column(c).to_pylist() for c in table.column_names)):
            codes = (prompt or next((answer for answer in answers if answer), []))[:longest]
            if speaker is None or not may_prompt or not codes:
                continue
            codes = codes if len(codes) >= shortest else []
            rank = not codes, prompt_rank(name, settings.seed)
            best = references.setdefault(speaker, [])
            if len(best) < settings.prompts or rank < best[-1][0]:
                best.append((rank, name, np.array(codes, np.int16), np.array(vector, np.float32)))
                best.sort(key=lambda entry: entry[:2])
                del best[settings.prompts:]
    return references


def give_reference(row: dict, references: dict[str, list[tuple]], seed: int) -> None:
    """Another utterance of the row's speaker as voice prompt, with its speaker vector.

    Where there is none that is long enough, a row keeps its own vector or takes that of a short one, and has no codes.
    """
    others = [entry for entry in references.get(row["speaker"], ()) if entry[1] != row["id"]]
    prompts = [entry for entry in others if len(entry[2])]
    if any(row["answer_audios"]) and (prompts or others and not len(row["spk_emb"])):
        _, _, row["ref_audios"], row["spk_emb"] = choose(prompts or others, seed, row["id"], "reference")


def write_shard(rows: list[dict], path: Path) -> dict:
    """The shard's entry in the manifest. Statistics only of the small columns: those of codes and sounds would be larger than useful."""
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    replace_atomic(path, lambda file: pq.write_table(table, file, compression="zstd", row_group_size=ROW_GROUP,
                                                     use_dictionary=["speaker", "language", "kind"],
                                                     write_statistics=SMALL_COLUMNS))
    return {"file": path.name, "rows": len(rows), "seconds": round(sum(row["seconds"] for row in rows), 2),
            "bytes": path.stat().st_size, "sha256": file_digest(path)}


# ---- command line

def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("inputs", nargs="+", help=".jsonl, .parquet, .arrow, or a folder; see dataset/sources.py")
    parser.add_argument("--out", required=True, help="folder of the data set")
    parser.add_argument("--codec", default="model/mimi", help="MimiModel folder, or module:Class=PATH")
    parser.add_argument("--codec_dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16 is faster and less exact")
    parser.add_argument("--speaker_encoder", default="model/campplus", help="CAM++ folder, module:Class=PATH, or 'none': no vectors")
    parser.add_argument("--recogniser", help="SenseVoice folder: refuse recordings in which it does not hear the transcript")
    parser.add_argument("--tokenizer", default="model/nano", help="folder of the tokenizer whose tokens are counted, or 'none'")
    parser.add_argument("--tts", help="speak what has no recording: flite, espeak-ng, a command of {text} {voice} {wav}, or module:Class")
    parser.add_argument("--voices", nargs="+", default=[], help="of --tts, drawn from by the item's speaker, or by its id")
    parser.add_argument("--speak_questions", action="store_true", help="with --tts: user turns, too")
    parser.add_argument("--question_format", default="flac", choices=("flac", "mp3"), help="of spoken questions")
    parser.add_argument("--language", help="of items that name none")
    parser.add_argument("--layout", default="auto", choices=("auto", *LAYOUTS))
    parser.add_argument("--engine", default="processes", choices=("processes", "ray"), help="ray: pip install -r requirements-cluster.txt")
    parser.add_argument("--address", help="of the Ray cluster, 'auto' for the one this machine is in; none: start one here")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--gpu_workers", type=int, default=0, help="with --engine ray: so many further ones, with a GPU each, that encode")
    parser.add_argument("--shard", default="0/1", help="I/N: build only this share of the parts (job arrays)")
    parser.add_argument("--rows_per_shard", type=int, default=512, help="items a shard, and the unit of work")
    parser.add_argument("--limit", type=int, help="only so many items, to try things out")
    parser.add_argument("--prompts", type=int, default=Settings.prompts, help="utterances of a speaker that serve as voice prompts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    gates = parser.add_argument_group("gates")
    for name, value in vars(Gates()).items():
        gates.add_argument(f"--{name}", type=float, default=value)
    return parser


def parse_shard(text: str) -> tuple[int, int]:
    """"2/8" -> (2, 8); ValueError for anything that is not 0 <= I < N."""
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise ValueError(f"--shard {text!r} is not I/N with 0 <= I < N, such as 0/8")
    return int(first), int(count)


def main(argv=None) -> int:
    """0, or 2 with one line on stderr."""
    args = arguments().parse_args(argv)
    gates = Gates(**{name: getattr(args, name) for name in vars(Gates())})
    try:
        if min(args.workers, args.rows_per_shard, args.prompts, 1 if args.limit is None else args.limit) < 1:
            raise ValueError("--workers, --rows_per_shard, --prompts and --limit must be 1 or more")
        same = {f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)}
        optional = {name: None if same[name] == "none" else same[name] for name in ("speaker_encoder", "tokenizer")}
        settings = Settings(**{**same, **optional, "voices": tuple(args.voices), "gates": gates})
        engine = Engine(args.engine, args.workers, args.gpu_workers, args.address)
        manifest = build(args.inputs, args.out, settings, engine, parse_shard(args.shard), args.rows_per_shard, args.layout, args.limit)
    except INPUT_ERRORS as error:
        remedy = ": free some space and run the same command again, it goes on" if getattr(error, "errno", 0) == errno.ENOSPC else ""
        return refuse(error, remedy)
    if manifest is None:
        print(f"share {args.shard} of the parts is done; the same command without --shard makes the shards")
    else:
        print(f"{args.out}: {manifest['rows']} rows, {manifest['hours']:.2f} h of speech in {len(manifest['shards'])} shards, "
              f"{manifest['rejected']} rejected")
    return 0


if __name__ == "__main__":
    sys.exit(main())
