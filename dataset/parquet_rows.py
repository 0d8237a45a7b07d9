"""Rows of the training parquet files, read by row group.

- One row is one conversation; the schema is in `COLUMNS`, all but `conversations` may be absent, null or empty.
- Only a few decoded row groups are kept in memory (least recently used first out); the files are memory-mapped.
- Codes are range-checked and narrowed once per row group with numpy, never code by code in Python.
- `shuffled` gives an order that visits row groups in bundles that fit the cache: random enough, and each is decoded once.
- A row that breaks the schema raises ValueError when asked for; its neighbours stay readable.
"""
import glob
import json
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.config import NUM_CODEBOOKS

COLUMNS = ("conversations", "question_audios", "answer_audios", "answer_letters", "ref_audios", "spk_emb", "image_bytes")
ROLES = ("system", "user", "assistant", "tool")
BAD_CODE = -1  # marks a null or a number outside the codebook in a narrowed code array


@dataclass
class Row:
    """One checked conversation. Codes are int16 (8, T); audio and image bytes are still encoded."""
    messages: list[dict]  # {"role", "content"}, at least one of them the assistant's
    question_audios: list[bytes | None]  # per user turn; None or missing: not spoken
    answer_codes: list[np.ndarray]  # per assistant turn; T = 0: not spoken
    answer_letters: list[np.ndarray]  # per assistant turn: which letter each frame says, float32 (T,); may be missing or T = 0: not known
    ref_codes: np.ndarray  # (8, R), R = 0 when there is no voice prompt
    spk_emb: np.ndarray | None  # float32 (spk_emb_size,)
    images: list[bytes]


def find_files(paths) -> list[Path]:
    """Parquet files named by one path or several: a file, a folder (its *.parquet), a glob, or a comma-separated list.

    Raises FileNotFoundError for an entry that names nothing.
    """
    entries = [paths] if isinstance(paths, (str, Path)) else list(paths)
    files = []
    for entry in entries:
        parts = [str(entry)] if Path(entry).exists() else [part.strip() for part in str(entry).split(",") if part.strip()]
        for part in parts:
            found = [part] if Path(part).is_file() else sorted(glob.glob(f"{part}/*.parquet" if Path(part).is_dir() else part))
            if not found:
                raise FileNotFoundError(f"no parquet file at {part!r}: give a file, a folder with *.parquet, or a glob")
            files += [Path(name) for name in found]
    if not files:
        raise FileNotFoundError(f"no parquet file named by {paths!r}")
    return files


class ParquetRows:
    """Random access to the rows of several parquet files; `rows[i]` is a Row or raises ValueError with the reason.

    num_codes: codes of one codebook, spk_size: length of a speaker vector. cache_bytes: decoded row groups kept per process.
    """

    def __init__(self, paths, num_codes: int, spk_size: int, cache_bytes: int = 256 << 20):
        self.files = find_files(paths)
        self.num_codes, self.spk_size, self.cache_bytes = num_codes, spk_size, cache_bytes
        self._meta = [_metadata(path) for path in self.files]
        self._groups = [(f, g) for f, meta in enumerate(self._meta) for g in range(meta.num_row_groups)]
        sizes = [self._meta[f].row_group(g).num_rows for f, g in self._groups]
        self._starts = [0, *np.cumsum(sizes).tolist()]  # global index of each group's first row, then the total
        self._cache: OrderedDict[int, _RowGroup] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def where(self, index: int) -> tuple[Path, int]:
        """(file, row within that file) of a global row index."""
        group = bisect_right(self._starts, index) - 1
        file = self._groups[group][0]
        first = next(i for i, (f, _) in enumerate(self._groups) if f == file)
        return self.files[file], index - self._starts[first]

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        return self._group(number).row(index - self._starts[number])

    def group_of(self, rows: np.ndarray) -> np.ndarray:
        """The row group, counted over all files, of each of `rows`."""
        return np.searchsorted(self._starts, rows, side="right") - 1

    def group_rows(self, group: int) -> slice:
        """The rows of a row group."""
        return slice(self._starts[group], self._starts[group + 1])

    def column_bytes(self) -> dict[str, int]:
        """Bytes of each column before compression, over the files that have it."""
        names = set.union(*(set(meta.schema.to_arrow_schema().names) for meta in self._meta))
        sizes = dict.fromkeys(names, 0)
        for file, group in self._groups:
            meta = self._meta[file].row_group(group)
            for column in map(meta.column, range(meta.num_columns)):
                name = column.path_in_schema.split(".")[0]
                if name in sizes:
                    sizes[name] += column.total_uncompressed_size
        return sizes

    def read_group(self, number: int, columns) -> pa.Table:
        """Those of `columns` that a row group has; ValueError when it is damaged."""
        file, group = self._groups[number]
        # opened anew each time: no handle has to survive a fork or a pickle, and the parsed metadata is passed along
        with pq.ParquetFile(self.files[file], metadata=self._meta[file], memory_map=True) as parquet:
            names = [name for name in columns if name in parquet.schema_arrow.names]
            try:
                return parquet.read_row_group(group, columns=names, use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise ValueError(f"row group {group} cannot be read: {error}") from error

    def shuffled(self, seed: int, epoch: int) -> np.ndarray:
        """All row indices (N,) int64 in the order of this epoch: groups shuffled, then rows within bundles of groups."""
        rng = np.random.default_rng((seed, epoch))
        bundles, bundle, size = [], [], 0
        for number in rng.permutation(len(self._groups)):
            file, group = self._groups[number]
            bundle.append(np.arange(self._starts[number], self._starts[number + 1]))
            size += self._meta[file].row_group(group).total_byte_size
            if size >= self.cache_bytes // 2:  # the other half is for the bundle that prefetching has already begun
                bundles.append(rng.permutation(np.concatenate(bundle)))
                bundle, size = [], 0
        if bundle:
            bundles.append(rng.permutation(np.concatenate(bundle)))
        return np.concatenate(bundles) if bundles else np.empty(0, np.int64)

    def _group(self, number: int) -> "_RowGroup":
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        table = self.read_group(number, COLUMNS)  # if it is damaged, each of its rows is reported as broken
        decoded = _RowGroup(table, self.num_codes, self.spk_size)
        self._cache[number] = decoded
        while len(self._cache) > 1 and sum(g.nbytes for g in self._cache.values()) > self.cache_bytes:
            self._cache.popitem(last=False)
        return decoded


def _metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path, memory_map=True)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error


class _RowGroup:
    """One decoded row group. A column of the wrong type is reported row by row, as any other broken row."""

    def __init__(self, table: pa.Table, num_codes: int, spk_size: int):
        self.spk_size = spk_size
        self.problem = None if "conversations" in table.column_names else "column 'conversations' is missing"
        columns = {}
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            if not pa.types.is_null(column.type):  # an all-null column is written without a type
                columns[name] = column
        self.conversations = columns.get("conversations")
        if self.conversations is not None and not _is_text(self.conversations.type):
            self.problem = f"column 'conversations' holds {self.conversations.type}, not JSON text"
        try:
            self.question_audios = _BinaryLists(columns.get("question_audios"))
            self.image_bytes = _BinaryLists(columns.get("image_bytes"))
            answers, inner = _offsets(columns.get("answer_audios"))
            answer_codes, values = _offsets(inner)
            self.answers = (answers, answer_codes, _narrow_codes(values, num_codes))
            letters, inner = _offsets(columns.get("answer_letters"))
            frames, values = _offsets(inner)
            self.letters = (letters, frames, _floats(values))
            offsets, values = _offsets(columns.get("ref_audios"))
            self.ref = (offsets, _narrow_codes(values, num_codes))
            offsets, values = _offsets(columns.get("spk_emb"))
            self.spk = (offsets, _floats(values))
        except TypeError as error:
            self.problem = str(error)
        self.nbytes = 0 if self.conversations is None else self.conversations.nbytes
        if self.problem is None:
            arrays = [*self.answers, *self.letters, *self.ref, *self.spk]
            self.nbytes += sum(a.nbytes for a in arrays if a is not None) + self.question_audios.nbytes + self.image_bytes.nbytes

    def row(self, i: int) -> Row:
        if self.problem is not None:
            raise ValueError(self.problem)
        messages = None if self.conversations is None else self.conversations[i].as_py()
        answer_codes = [_frames(codes, "answer_audios") for codes in _turns(*self.answers, i)]
        return Row(parse_messages(messages), self.question_audios[i], answer_codes, _turns(*self.letters, i),
                   _frames(_slice(*self.ref, i), "ref_audios"), self._speaker(i), [b for b in self.image_bytes[i] if b])

    def _speaker(self, i: int) -> np.ndarray | None:
        vector = _slice(*self.spk, i)
        if len(vector) == 0:
            return None
        if len(vector) != self.spk_size:
            raise ValueError(f"spk_emb has {len(vector)} numbers, not {self.spk_size}")
        if not np.isfinite(vector).all():
            raise ValueError("spk_emb holds NaN or infinite numbers")
        return vector


def parse_messages(text) -> list[dict]:
    """JSON text -> [{"role", "content"}]; ValueError when it is not a conversation with at least one assistant turn."""
    if not text:
        raise ValueError("conversations is empty")
    try:
        messages = json.loads(text)
    except RecursionError as error:
        raise ValueError("conversations is JSON nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"conversations is not valid JSON: {error}") from error
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError("conversations is not a JSON list of {role, content}")
    for message in messages:
        if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise ValueError(f"a message needs a role of {ROLES} and text as content, got {ascii(message)[:80]}")
        try:
            message["content"].encode()
        except UnicodeEncodeError as error:  # half a surrogate pair is valid JSON, but no tokenizer takes it
            raise ValueError(f"a message is not valid Unicode: {error}") from error
    if not any(m["role"] == "assistant" for m in messages):
        raise ValueError("the conversation has no assistant turn")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _offsets(array: pa.Array | None) -> tuple[np.ndarray | None, pa.Array | None]:
    """(offsets (N + 1,), flat values) of a list column; (None, None) for an absent one. TypeError for another type."""
    if array is None or pa.types.is_null(array.type):
        return None, None
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise TypeError(f"a list column was expected, got {array.type}")
    return array.offsets.to_numpy(), array.values


def _narrow_codes(values: pa.Array | None, num_codes: int) -> np.ndarray:
    """Flat codes as int16, BAD_CODE where a value is null or outside [0, num_codes)."""
    if values is None or pa.types.is_null(values.type):
        return np.full(0 if values is None else len(values), BAD_CODE, np.int16)
    if not pa.types.is_integer(values.type):
        raise TypeError(f"codes must be integers, got {values.type}")
    codes = values.to_numpy(zero_copy_only=False)  # floats with NaN where there are nulls
    return np.where((codes >= 0) & (codes < num_codes), codes, BAD_CODE).astype(np.int16)


def _floats(values: pa.Array | None) -> np.ndarray:
    if values is None or pa.types.is_null(values.type):
        return np.full(0 if values is None else len(values), np.nan, np.float32)
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise TypeError(f"spk_emb and answer_letters must be numbers, got {values.type}")
    return values.to_numpy(zero_copy_only=False).astype(np.float32)


def _turns(turns: np.ndarray | None, bounds: np.ndarray | None, values: np.ndarray, i: int) -> list[np.ndarray]:
    """Row i of a list of lists."""
    if turns is None or bounds is None:
        return []
    ends = bounds[turns[i]:turns[i + 1] + 1].tolist()
    return [values[a:b] for a, b in zip(ends[:-1], ends[1:])]


def _slice(offsets: np.ndarray | None, values: np.ndarray, i: int) -> np.ndarray:
    return values[:0] if offsets is None else values[offsets[i]:offsets[i + 1]]


def _frames(codes: np.ndarray, name: str) -> np.ndarray:
    """Frame-major codes (8 * T,) -> (8, T)."""
    if len(codes) % NUM_CODEBOOKS:
        raise ValueError(f"{name} has {len(codes)} codes, not a multiple of {NUM_CODEBOOKS}")
    if len(codes) and codes.min() == BAD_CODE:
        raise ValueError(f"{name} holds a code that is null or outside the codebook")
    return codes.reshape(-1, NUM_CODEBOOKS).T


class _BinaryLists:
    """A column of list<binary>, or of plain binary (a list of one); `column[i]` is a list of bytes or None."""

    def __init__(self, column: pa.Array | None):
        self.offsets, self.values = None, column
        self.nbytes = 0 if column is None else column.nbytes
        if column is not None and not _is_binary(column.type):
            self.offsets, self.values = _offsets(column)
            if not (_is_binary(self.values.type) or pa.types.is_null(self.values.type)):
                raise TypeError(f"a column of encoded files was expected, got {column.type}")

    def __getitem__(self, i: int) -> list[bytes | None]:
        if self.values is None:
            return []
        first, last = (i, i + 1) if self.offsets is None else (self.offsets[i], self.offsets[i + 1])
        return [self.values[int(j)].as_py() for j in range(first, last)]
