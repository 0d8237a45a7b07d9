"""What one worker of the builder does: a block of items -> a part file of rows, and the rejects of the block.

- `Settings` says how; everything that could change a row's content is in it, and `Settings.key` names it.
- `Preparer` does the work on sounds, texts and pictures, `Encoder` owns the frozen modules; both take `BATCH` items at once, so memory
  does not grow with the data. `Worker` is both in one process.
- A row depends on its block and the settings only, never on which worker made it or when: one thread, batches cut by position.
- The part is renamed into place last: a block without one is not done.
"""
import errno
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dataset.clean import (Clip, Gates, check_clip, check_heard, check_speech, encode_question, make_clip, normalise_text, read_clip,
                           resize_picture)
from dataset.extensions import find_class, split_name
from dataset.omni_dataset import IMAGE_TAG
from dataset.parquet_rows import ROLES
from dataset.sources import UNSPOKEN, Cell, Item, Reject, from_dict, to_dict
from dataset.tables import read_cell
from dataset.tts import load_tts
from model.audio import resample
from model.checkpoint import replace_atomic
from model.config import FRAME_SAMPLES, INPUT_RATE, NUM_CODEBOOKS, SAMPLE_RATE
from model.encoders import CAMPPlus, SenseVoice
from model.mimi import Mimi

BATCH = 32  # items whose sound is in memory at once
CHUNK_BYTES = 1 << 20
REASON_LENGTH = 300  # a picture written where its path should be would come back whole
# An OSError of these is the machine's trouble and ends the build; any other is a bad path in one item.
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ESTALE)
# The columns of ARCHITECTURE.md and `answer_letters` (which letter each frame of an answer says, where the codec tells), then what a reader
# of the files may want to know; the loader passes over the latter.
SCHEMA = pa.schema([("conversations", pa.string()), ("question_audios", pa.list_(pa.binary())),
                    ("answer_audios", pa.list_(pa.list_(pa.int16()))), ("answer_letters", pa.list_(pa.list_(pa.float32()))),
                    ("ref_audios", pa.list_(pa.int16())), ("spk_emb", pa.list_(pa.float32())), ("image_bytes", pa.list_(pa.binary())),
                    ("id", pa.string()), ("speaker", pa.string()), ("language", pa.string()), ("kind", pa.string()),
                    ("seconds", pa.float32()), ("tokens", pa.int32())])
# codes of the row's voice as a prompt, where not the answer's, and whether it may be one
PART_SCHEMA = SCHEMA.append(pa.field("prompt", pa.list_(pa.int16()))).append(pa.field("may_prompt", pa.bool_()))


@dataclass(frozen=True)
class Settings:
    codec: str  # MimiModel folder, or "module:Class=PATH" of a class like model.mimi.Mimi (see Encoder)
    speaker_encoder: str | None = None  # CAM++ folder, or a class like model.encoders.CAMPPlus
    recogniser: str | None = None  # SenseVoice folder with a CTC head: what is heard must be the transcript
    tts: str | None = None  # see tts.load_tts; None: turns without a recording stay text
    voices: tuple[str, ...] = ()
    speak_questions: bool = False  # give user turns without a recording a synthesised one
    question_format: str = "flac"  # see clean.encode_question
    language: str | None = None  # of items that name none
    tokenizer: str | None = None  # folder with tokenizer.json: count the text's tokens
    gates: Gates = field(default_factory=Gates)
    prompt_frames: tuple[int, int] = (12, 50)  # a voice prompt is 1-4 s; what is longer is cut
    prompts: int = 16  # utterances of a speaker that serve as voice prompts
    codec_dtype: str = "float32"
    seed: int = 0
    device: str = "cpu"

    def modules(self) -> dict[str, dict]:
        """{"mimi": {"name", "digest"}, ...}: the frozen modules in use. FileNotFoundError for a missing one."""
        names = {"mimi": self.codec, "campplus": self.speaker_encoder, "sensevoice": self.recogniser, "tokenizer": self.tokenizer}
        found = {}
        for part, name in names.items():
            if name:
                own, path = split_name(name)
                content = Path(path) / "tokenizer.json" if part == "tokenizer" else path  # beside it may lie a whole pack
                found[part] = {"name": f"{own}={Path(path).name}" if own else Path(path).name,
                               "digest": content_digest(content) if path or not own else None}
        return found

    def key(self) -> str:
        """A short name for all of it, the content of the modules included, not where they lie."""
        plain = replace(self, codec="", speaker_encoder=None, recogniser=None, tokenizer=None, device="")
        return hashlib.sha256(json.dumps([asdict(plain), self.modules()], sort_keys=True).encode()).hexdigest()[:16]


def content_digest(path) -> str:
    """A short name for the content of a module: the bytes of a file, or names and bytes of all files in a folder."""
    if Path(path).is_file():
        return file_digest(path)[:12]
    if not Path(path).is_dir():
        raise FileNotFoundError(f"nothing at {path}: python -m scripts.download_models fetches the released modules")
    digest = hashlib.sha256()
    for file in sorted(p for p in Path(path).rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path)} {file_digest(file)}\n".encode())
    return digest.hexdigest()[:12]


def file_digest(path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(partial(file.read, CHUNK_BYTES), b""):
            digest.update(piece)
    return digest.hexdigest()


def encode_clips(codec, wavs: list[np.ndarray], batch: int = BATCH) -> list[np.ndarray]:
    """Clips (S_i,) float32 at 24 kHz -> codes (8, ceil(S_i / 1920)) int16 each; `codec` encodes (B, S) to (B, 8, T).

    Similar lengths go together, longest first, each filled up with silence: the codec is causal, so what stands behind a clip does not
    change its codes. Mimi's are streams that leave the batch as they end, so that nothing is spent on the silence.
    """
    frames = np.array([-(-len(wav) // FRAME_SAMPLES) for wav in wavs], np.int64)
    codes: list[np.ndarray] = [np.zeros(0)] * len(wavs)
    by_length = np.argsort(-frames, kind="stable")
    for start in range(0, len(wavs), batch):
        rows = by_length[start:start + batch]
        padded = np.zeros((len(rows), int(frames[rows[0]]) * FRAME_SAMPLES), np.float32)
        for row, i in enumerate(rows):
            padded[row, :len(wavs[i])] = wavs[i]
        padded = torch.from_numpy(padded)
        encoded = codec.encode_ending(padded, frames[rows].tolist()) if hasattr(codec, "encode_ending") else codec.encode(padded)
        encoded = encoded.cpu().numpy().astype(np.int16)
        for row, i in enumerate(rows):
            codes[i] = encoded[row, :, :frames[i]]
    return codes


def frame_major(codes: np.ndarray) -> np.ndarray:
    """(8, T) -> flat: 8 codes of frame 0, 8 of frame 1, ..."""
    assert codes.shape[0] == NUM_CODEBOOKS, codes.shape
    return codes.T.reshape(-1)


def choose(options, *what):
    """One of `options` by the hash of `what`: the same on every machine, whatever was drawn before."""
    digest = hashlib.sha256(" ".join(map(str, what)).encode("utf-8", "surrogatepass")).digest()
    return options[int.from_bytes(digest[:8], "big") % len(options)]


@contextmanager
def one_thread():
    """Sums must not be split in another way on another machine; processes share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def load_module(name: str, default: type, **options):
    """`default.load(PATH, ...)`, or that of "module:Class=PATH"."""
    own, path = split_name(name)
    return (find_class(own) if own else default).load(path, **options)


class Preparer:
    """The stages of one item alone: texts normalised, sounds read or spoken, trimmed, levelled and gated, pictures resized."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.tts = load_tts(settings.tts, settings.voices) if settings.tts else None

    def __call__(self, entries: list[Item | Reject]) -> list[dict | Reject]:
        """A row of SCHEMA for each item, its `answer_audios` still Clips, or why there is none. `heard` has what a recogniser may check."""
        prepared = []
        for entry in entries:
            try:
                prepared.append(entry if isinstance(entry, Reject) else self._prepare(entry))
            except ValueError as error:
                prepared.append(rejected(entry.id, entry.source, error))
        return prepared

    def _prepare(self, item: Item) -> dict:
        messages, questions, answers, pictures, heard = [], [], [], [], []
        asker = self._voice(None, item.id, "asks") if self.settings.speak_questions else None
        speaker = self._voice(item.speaker, item.id, "answers")
        for number, turn in enumerate(item.turns, 1):
            if turn.role not in ROLES:
                raise ValueError(f"turn {number}: the role must be one of {', '.join(ROLES)}, not {turn.role!r}")
            try:
                text, clip = normalise_text(turn.text), None
                spoken = text.replace(IMAGE_TAG, "").strip()  # nobody says the tags
                if turn.role in ("user", "assistant"):
                    clip = self._clip(turn.audio, spoken, turn.voice or (speaker if turn.role == "assistant" else asker))
                if clip is not None and spoken:
                    heard.append((number, spoken, clip))
                if turn.role == "assistant":
                    answers.append(clip)
                elif turn.role == "user":
                    questions.append(None if clip is None else encode_question(clip, self.settings.question_format))
                    pictures += [resize_picture(read_cell(image)) for image in turn.images]
                    text = _tagged(text, len(turn.images))
            except (ValueError, OSError) as error:
                if getattr(error, "errno", None) in MACHINE_ERRORS:
                    raise
                raise ValueError(f"turn {number}: {error}") from error
            messages.append({"role": turn.role, "content": text})
        if not answers:
            raise ValueError("the conversation has no assistant turn")
        reply = next((turn for turn in item.turns if turn.role == "assistant" and turn.voice != UNSPOKEN), None)
        said = item.speaker
        if self.tts and reply and reply.audio is None:  # a voice chosen here is who speaks, whatever name the item gives
            said = item.speaker or reply.voice if reply.voice else speaker
        return {"conversations": json.dumps(messages, ensure_ascii=False), "question_audios": questions if any(questions) else [],
                "answer_audios": answers, "ref_audios": [], "image_bytes": pictures, "id": item.id, "speaker": said,
                "language": item.language or self.settings.language, "kind": item.kind, "source": item.source,
                "may_prompt": item.may_prompt, "heard": heard if self.settings.recogniser else []}

    def _voice(self, speaker: str | None, name: str, purpose: str) -> str | None:
        """The synthetic voice of an item: its speaker where that is one of them, else one by the speaker's name, so that it keeps that
        voice, or by the item's; None without a backend."""
        if self.tts is None or speaker in self.tts.voices:
            return speaker if self.tts else None
        return choose(self.tts.voices, self.settings.seed, speaker or name, purpose)

    def _clip(self, audio: Cell | None, text: str, voice: str | None) -> Clip | None:
        """The recording, or `text` spoken by `voice`, through the gates; None when there is neither."""
        gates = self.settings.gates
        if audio is not None:
            clip = read_clip(read_cell(audio) if audio.column else audio.path, Path(audio.path).name, gates.max_seconds)
        elif text and voice not in (None, UNSPOKEN) and self.tts is not None:
            clip = make_clip(*self.tts.speak(text, voice))
        else:
            return None
        check_clip(clip, gates)
        if text:
            check_speech(text, clip, gates)
        return clip


class Encoder:
    """The stages with frozen modules: what is heard, codes, speaker vectors, number of tokens.

    A codec is `encode(wavs (B, S) at 24 kHz) -> codes (B, 8, T)`. One with `encode_spoken(wav (S,), text, phones) -> (codes (8, T), letters
    (T,), or none where they are not known)` does that with clips whose phones are known; their voice prompts are `encode`'s all the same,
    as a user's will be.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.codec = load_module(settings.codec, Mimi, device=settings.device, **codec_options(settings))
        self.speaker = load_module(settings.speaker_encoder, CAMPPlus, device=settings.device) if settings.speaker_encoder else None
        self.recogniser = load_module(settings.recogniser, SenseVoice, device=settings.device) if settings.recogniser else None
        self.tokenizer = load_tokenizer(settings.tokenizer) if settings.tokenizer else None
        if self.recogniser is not None and not self.recogniser.can_transcribe:
            raise ValueError(f"{settings.recogniser} cannot transcribe: it has no CTC head or no tokenizer")

    def __call__(self, prepared: list[dict | Reject]) -> tuple[list[dict], list[Reject]]:
        """Rows of PART_SCHEMA, still without voice prompts, and what was refused. All answers of the batch are encoded together."""
        rows, rejects = [], []
        with one_thread():
            for row in prepared:
                if isinstance(row, Reject):
                    rejects.append(row)
                    continue
                try:
                    rows.append(self._one(row))
                except ValueError as error:
                    rejects.append(rejected(row["id"], row["source"], error))
            clips = [reply for row in rows for reply in row["answer_audios"] if isinstance(reply, Clip)]
            codes = iter(encode_clips(self.codec, [clip.wav for clip in clips]))
            for row in rows:
                row["answer_audios"] = [frame_major(next(codes)) if isinstance(reply, Clip) else reply for reply in row["answer_audios"]]
        return rows, rejects

    def _one(self, row: dict) -> dict:
        """All but the codes that are encoded in a batch: where those belong, `answer_audios` still holds the Clip."""
        for number, text, clip in row["heard"]:
            try:
                check_heard(text, clip, self.settings.gates, self.recogniser)
            except ValueError as error:
                raise ValueError(f"turn {number}: {error}") from error
        clips = [clip for clip in row["answer_audios"] if clip is not None]
        texts = [message["content"] for message in json.loads(row["conversations"]) if message["role"] == "assistant"]
        on_grid, prompt = hasattr(self.codec, "encode_spoken"), []
        if on_grid and row["may_prompt"] and clips and clips[0].phones:
            prompt = frame_major(encode_clips(self.codec, [clips[0].wav[:self.settings.prompt_frames[1] * FRAME_SAMPLES]])[0])
        replies, letters = [], []
        for text, clip in zip(texts, row["answer_audios"]):
            codes, said = [] if clip is None else clip, []
            if on_grid and clip is not None and clip.phones:
                codes, said = self.codec.encode_spoken(clip.wav, text, clip.phones)
                codes = frame_major(codes)
            replies.append(codes)
            letters.append(said)
        return row | {"answer_audios": replies, "answer_letters": letters if any(map(len, letters)) else [], "prompt": prompt,
                      "seconds": sum(clip.seconds for clip in clips), "spk_emb": self._speaker_vector(clips if row["may_prompt"] else []),
                      "tokens": self.tokenizer and len(self.tokenizer.encode(" ".join(texts), add_special_tokens=False).ids)}

    def _speaker_vector(self, clips: list[Clip]) -> np.ndarray:
        """(192,) float32 of the first clip; empty without a speaker encoder or a clip."""
        if self.speaker is None or not clips:
            return np.zeros(0, np.float32)
        return np.asarray(self.speaker(resample(clips[0].wav, SAMPLE_RATE, INPUT_RATE)), np.float32)


class Worker:
    """All stages in one process; `worker(path)` turns a block file into its part and rejects."""

    def __init__(self, settings: Settings):
        self.prepare, self.encode = Preparer(settings), Encoder(settings)

    def __call__(self, block: Path) -> Path:
        """Build the items of `block` (JSON lines, see sources.to_dict); returns the part's path."""
        return write_part(block, map(self.build, read_batches(block)))

    def build(self, entries: list[Item | Reject]) -> tuple[list[dict], list[Reject]]:
        return self.encode(self.prepare(entries))


def codec_options(settings: Settings) -> dict:
    """What is asked of Mimi beyond its folder; other codecs decide themselves."""
    return {} if split_name(settings.codec)[0] else {"dtype": getattr(torch, settings.codec_dtype)}


def load_tokenizer(folder):
    from tokenizers import Tokenizer

    if not (Path(folder) / "tokenizer.json").is_file():
        raise FileNotFoundError(f"no tokenizer.json in {folder}: name another --tokenizer, or none")
    return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def rejected(name: str, source: str, error: Exception) -> Reject:
    return Reject(name, source, " ".join(str(error).split())[:REASON_LENGTH])


def read_batches(block: Path) -> Iterator[list[Item | Reject]]:
    """The entries of a block file, `BATCH` at a time."""
    lines = Path(block).read_text(encoding="utf-8").splitlines()
    for start in range(0, len(lines), BATCH):
        yield [from_dict(json.loads(line)) for line in lines[start:start + BATCH]]


def write_part(block: Path, batches) -> Path:
    """The part and the rejects of a block, from (rows, rejects) of its batches in order; returns the part's path."""
    columns: dict[str, list] = {name: [] for name in PART_SCHEMA.names}
    rejects = []
    for rows, refused in batches:
        rejects += refused
        for row in rows:
            for name in columns:
                columns[name].append(row[name])
    part, table = part_path(block), pa.table(columns, schema=PART_SCHEMA)
    lines = "".join(json.dumps(to_dict(reject), ensure_ascii=True) + "\n" for reject in rejects)
    replace_atomic(rejects_path(block), lambda file: file.write(lines.encode()))
    replace_atomic(part, lambda file: pq.write_table(table, file, compression="zstd", row_group_size=BATCH * 4))
    return part


def part_path(block: Path) -> Path:
    return Path(block).with_suffix(".parquet")


def rejects_path(block: Path) -> Path:
    return Path(block).with_suffix(".rejects.jsonl")


def _tagged(text: str, num_images: int) -> str:
    """The text of a turn with one image tag a picture: those written in it, else all in front."""
    tags = text.count(IMAGE_TAG)
    if tags not in (0, num_images):
        raise ValueError(f"{num_images} images but {tags} {IMAGE_TAG} tags")
    return text if tags == num_images else IMAGE_TAG * num_images + "\n" + text
