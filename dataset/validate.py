"""Check built files row by row, as training will read them: a table of faults, and an exit status for scripts.

- Per row: schema, JSON, code ranges, whole frames, speaker vectors (parquet_rows.py); no more code lists than replies, nor sounds than
  questions; a letter for every frame, where there are any; every sound and picture decodes; one image tag a picture.
- Per file with a manifest.json beside it: its checksum, and that no shard of the manifest is missing.

    python -m dataset.validate out/ljspeech            # 0: all is well, 1: faults, 2: nothing to check
"""
import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from dataset.build_stages import file_digest
from dataset.manifest import MANIFEST, read_manifest
from dataset.omni_dataset import check_tags, decode_image
from dataset.parquet_rows import ParquetRows, Row, find_files
from model.audio import read_audio
from model.config import INPUT_RATE, OmniConfig
from model.refusal import refuse

Fault = tuple[str, int | None, str]  # file, row within it or None, what is wrong


def faults(paths, num_codes: int, spk_size: int) -> Iterator[Fault]:
    """Everything that is wrong with the files; FileNotFoundError when `paths` name none."""
    files = find_files(paths)
    for folder in dict.fromkeys(file.parent for file in files):
        yield from manifest_faults(folder, [file for file in files if file.parent == folder])
    for file in files:
        try:
            rows = ParquetRows(file, num_codes, spk_size)
        except ValueError as error:
            yield file.name, None, str(error)
            continue
        for i in tqdm(range(len(rows)), desc=file.name, unit="row"):
            try:
                check_row(rows[i])
            except ValueError as error:
                yield file.name, i, " ".join(str(error).split())


def manifest_faults(folder: Path, files: list[Path]) -> Iterator[Fault]:
    """What does not agree with the folder's manifest; nothing where there is none. A shard that was not asked for must exist, too."""
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        yield MANIFEST, None, str(error)
        return
    for shard in manifest["shards"] if manifest else ():
        path = folder / shard["file"]
        if not path.is_file():
            yield shard["file"], None, "listed in the manifest, but missing"
        elif path in files and file_digest(path) != shard["sha256"]:
            yield shard["file"], None, "its checksum is not the manifest's"


def check_row(row: Row) -> None:
    """ValueError for what parquet_rows.py does not look at."""
    replies, questions = (sum(m["role"] == role for m in row.messages) for role in ("assistant", "user"))
    if len(row.answer_codes) > replies:
        raise ValueError(f"answer_audios has {len(row.answer_codes)} entries for {replies} replies")
    if len(row.question_audios) > questions:
        raise ValueError(f"question_audios has {len(row.question_audios)} entries for {questions} user turns")
    for letters, codes in zip(row.answer_letters, row.answer_codes):
        if 0 < len(letters) < codes.shape[1]:
            raise ValueError(f"answer_letters has {len(letters)} numbers for {codes.shape[1]} frames of speech")
    for sound in filter(None, row.question_audios):
        read_audio(sound, INPUT_RATE, "question_audios")
    for picture in row.images:
        decode_image(picture)
    if row.images:
        check_tags(row)


def main(argv=None) -> int:
    """0, 1 with the table of faults on stdout, or 2 with one line on stderr."""
    default = OmniConfig()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("files", nargs="+", help="parquet files, folders or globs")
    parser.add_argument("--num_codes", type=int, default=default.num_codes, help="entries of a codebook")
    parser.add_argument("--max_faults", type=int, default=100, help="stop after so many")
    args = parser.parse_args(argv)
    count = 0
    try:
        for file, row, reason in faults(args.files, args.num_codes, default.spk_emb_size):
            if not count:
                print("| file | row | fault |\n|---|---|---|")
            print(f"| {file} | {'' if row is None else row} | {reason} |")
            count += 1
            if count >= args.max_faults:
                print(f"stopped after {count} faults")
                break
    except OSError as error:
        return refuse(error)
    if not count:
        print("no faults")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
