"""Hugging Face `datasets` folders read without that library: their files are parquet, or arrow streams (`save_to_disk`).

- A transcribed recording a row (an audio column and a text column), or question and answer columns as VoiceAssistant-400K and
  UltraChat-SLAM have them; rows of one `index` that follow one another are the rounds of one conversation.
- Texts are read batch by batch. Sounds are read when their item is built, one row group at a time (`read_cell`).
"""
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dataset.sources import Cell, Item, Reject, Turn, recording, stem_of

TEXTS = ("text", "normalized_text", "text_normalized", "transcript", "transcription", "sentence")
SPEAKERS = ("speaker", "speaker_id", "client_id")
LANGUAGES = ("language", "locale", "lang")
IDS = ("id", "utt_id", "segment_id")


def read_tables(path: Path) -> Iterator[Item | Reject]:
    """Items of a parquet or arrow file, or of all that lie in a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".parquet", ".arrow"))
    if not files:
        raise FileNotFoundError(f"no .parquet or .arrow file in {path}")
    for file in files:
        schema, stem = _open_table(str(file)).schema, stem_of(file, path)
        sounds = [f.name for f in schema if _holds_bytes(f.type) and "audio" in f.name]
        if {"question", "answer"} <= set(schema.names):
            yield from _dialogues(file, stem, next((name for name in sounds if "answer" not in name), None))
        elif sounds and (text := _first(TEXTS, schema.names)):
            yield from _recordings(file, stem, sounds[0], text)
        else:
            raise ValueError(f"{file} has columns {schema.names}: neither question and answer, nor audio and one of {TEXTS}")


def read_cell(cell: Cell) -> bytes:
    """The encoded sound or picture at `cell`; FileNotFoundError or ValueError when there is none."""
    if not cell.column:
        return Path(cell.path).read_bytes()
    value = _column(cell.path, cell.group, cell.column)[cell.row].as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
    if not value:
        raise ValueError(f"no sound in column {cell.column!r}, row {cell.row} of group {cell.group} of {cell.path}")
    return value


class _Table:
    """A parquet file or an arrow stream as numbered groups of rows."""

    def __init__(self, path: str):
        self.parquet = pq.ParquetFile(path, memory_map=True) if path.endswith(".parquet") else None
        if self.parquet:
            self.schema, self.num_groups = self.parquet.schema_arrow, self.parquet.num_row_groups
        else:
            self.batches = list(pa.ipc.open_stream(pa.memory_map(path)))  # views of the mapped file, no copies
            self.schema, self.num_groups = self.batches[0].schema, len(self.batches)

    def group(self, number: int, columns: list[str]) -> pa.Table:
        if self.parquet:
            return self.parquet.read_row_group(number, columns=columns)
        return pa.Table.from_batches([self.batches[number]]).select(columns)


@lru_cache(maxsize=2)
def _open_table(path: str) -> _Table:
    try:
        return _Table(path)
    except (pa.ArrowException, IndexError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


@lru_cache(maxsize=2)  # rows are built in order: each group is decoded once
def _column(path: str, group: int, column: str) -> pa.ChunkedArray:
    return _open_table(path).group(group, [column]).column(column)


def _rows(file: Path, stem: str, columns: list[str]) -> Iterator[tuple[int, int, dict | Reject]]:
    """(group, row within it, {column: value}), a Reject in place of a row whose text is not UTF-8."""
    table, number = _open_table(str(file)), 0
    for group in range(table.num_groups):
        data = table.group(group, columns)
        for row in range(data.num_rows):
            try:
                yield group, row, {name: data.column(name)[row].as_py() for name in columns}
            except UnicodeDecodeError as error:
                yield group, row, Reject(f"{stem}-{number}", f"{file.name}:{number}", f"not UTF-8: {error.reason}")
            number += 1


def _recordings(file: Path, stem: str, audio: str, text: str) -> Iterator[Item | Reject]:
    names = _open_table(str(file)).schema.names
    known = {"speaker": _first(SPEAKERS, names), "language": _first(LANGUAGES, names), "id": _first(IDS, names)}
    for number, (group, row, values) in enumerate(_rows(file, stem, [text, *filter(None, known.values())])):
        source = f"{file.name}:{number}"
        if isinstance(values, Reject):
            yield values
            continue
        speaker, language, name = (None if known[key] is None else values[known[key]] for key in ("speaker", "language", "id"))
        if not values[text]:
            yield Reject(str(name or f"{stem}-{number}"), source, f"no transcript: column {text!r} is empty")
            continue
        yield recording(str(name if name is not None else f"{stem}-{number}"), values[text], Cell(str(file), audio, group, row),
                        source, None if speaker is None else str(speaker), language)


def _dialogues(file: Path, stem: str, audio: str | None) -> Iterator[Item | Reject]:
    """Question and answer rows; the question may be recorded, the answer is text only (other codecs' tokens are of no use here)."""
    names = _open_table(str(file)).schema.names
    current = None
    for number, (group, row, values) in enumerate(_rows(file, stem, [c for c in ("question", "answer", "index") if c in names])):
        source = f"{file.name}:{number}"
        if isinstance(values, Reject) or not values["question"] or not values["answer"]:
            yield values if isinstance(values, Reject) else Reject(f"{stem}-{number}", source, "question or answer is empty")
            continue
        asked = Cell(str(file), audio, group, row) if audio else None
        turns = [Turn("user", values["question"], asked), Turn("assistant", values["answer"])]
        name = str(values["index"]) if values.get("index") is not None else f"{stem}-{number}"
        if current and current.id == name:
            current.turns += turns
            continue
        if current:
            yield current
        current = Item(name, turns, source)
    if current:
        yield current


def _first(wanted: tuple[str, ...], names: list[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _holds_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
