"""What one worker of the builder does: a block of items -> a part file of rows, and the rejects of the block.

- `Settings` says how; everything that could change a row's content is in it, and `Settings.key` names it.
- A `Worker` owns the frozen modules and works on one block at a time, `BATCH` items at once, so its memory does not grow with the data.
- A row depends on its block and the settings only, never on which worker made it or when: one thread, batches cut by position.
- The part is renamed into place last: a block without one is not done.
"""
import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dataset.clean import (Clip, Gates, check_clip, check_speech, encode_question, make_clip, normalise_text, read_clip,
                           resize_picture)
from dataset.omni_dataset import IMAGE_TAG
from dataset.parquet_rows import ROLES
from dataset.sources import Cell, Item, Reject, from_dict, to_dict
from dataset.tables import read_cell
from dataset.tts import load_tts
from model.audio import resample
from model.checkpoint import replace_atomic
from model.config import FRAME_SAMPLES, INPUT_RATE, NUM_CODEBOOKS, SAMPLE_RATE
from model.encoders import CAMPPlus, SenseVoice
from model.mimi import Mimi

BATCH = 32  # items whose sound is in memory at once
CHUNK_BYTES = 1 << 20
# The columns of ARCHITECTURE.md, then what a reader of the files may want to know; the loader passes over the latter.
SCHEMA = pa.schema([("conversations", pa.string()), ("question_audios", pa.list_(pa.binary())),
                    ("answer_audios", pa.list_(pa.list_(pa.int16()))), ("ref_audios", pa.list_(pa.int16())),
                    ("spk_emb", pa.list_(pa.float32())), ("image_bytes", pa.list_(pa.binary())),
                    ("id", pa.string()), ("speaker", pa.string()), ("language", pa.string()), ("seconds", pa.float32())])


@dataclass(frozen=True)
class Settings:
    codec: str  # MimiModel folder
    speaker_encoder: str | None = None  # CAM++ folder
    recogniser: str | None = None  # SenseVoice folder with a CTC head: what is heard must be the transcript
    tts: str | None = None  # see tts.load_tts; None: turns without a recording stay text
    voices: tuple[str, ...] = ()
    speak_questions: bool = False  # give user turns without a recording a synthesised one
    language: str | None = None  # of items that name none
    gates: Gates = field(default_factory=Gates)
    seed: int = 0
    device: str = "cpu"

    def modules(self) -> dict[str, dict]:
        """{"mimi": {"folder", "digest"}, ...}: the frozen modules in use. FileNotFoundError for a missing folder."""
        folders = {"mimi": self.codec, "campplus": self.speaker_encoder, "sensevoice": self.recogniser}
        return {name: {"folder": Path(folder).name, "digest": folder_digest(folder)} for name, folder in folders.items() if folder}

    def key(self) -> str:
        """A short name for all of it, the content of the modules included, not where they lie."""
        plain = replace(self, codec="", speaker_encoder=None, recogniser=None, device="")
        return hashlib.sha256(json.dumps([asdict(plain), self.modules()], sort_keys=True).encode()).hexdigest()[:16]


def folder_digest(folder) -> str:
    """A short name for the content of a module's folder: names and bytes of all files in it."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no folder {folder}: python -m scripts.download_models fetches the released modules")
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)} {file_digest(path)}\n".encode())
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

    Similar lengths go together, each filled up with silence: the codec is causal, so what stands behind a clip does not change its codes.
    """
    frames = np.array([-(-len(wav) // FRAME_SAMPLES) for wav in wavs], np.int64)
    codes: list[np.ndarray] = [np.zeros(0)] * len(wavs)
    by_length = np.argsort(frames, kind="stable")
    for start in range(0, len(wavs), batch):
        rows = by_length[start:start + batch]
        padded = np.zeros((len(rows), int(frames[rows].max()) * FRAME_SAMPLES), np.float32)
        for row, i in enumerate(rows):
            padded[row, :len(wavs[i])] = wavs[i]
        encoded = codec.encode(torch.from_numpy(padded)).cpu().numpy().astype(np.int16)
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


class Worker:
    """The frozen modules of one process; `worker(path)` turns a block file into its part and rejects."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.codec = Mimi.load(settings.codec, settings.device)
        self.speaker = CAMPPlus.load(settings.speaker_encoder, settings.device) if settings.speaker_encoder else None
        self.recogniser = SenseVoice.load(settings.recogniser, settings.device) if settings.recogniser else None
        self.tts = load_tts(settings.tts, settings.voices) if settings.tts else None
        if self.recogniser is not None and not self.recogniser.can_transcribe:
            raise ValueError(f"{settings.recogniser} cannot transcribe: it has no CTC head or no tokenizer")

    def __call__(self, block: Path) -> Path:
        """Build the items of `block` (JSON lines, see sources.to_dict); returns the part's path."""
        entries = [from_dict(json.loads(line)) for line in Path(block).read_text(encoding="utf-8").splitlines()]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums must not be split in another way on another machine; processes share the cores
        try:
            columns: dict[str, list] = {name: [] for name in SCHEMA.names}
            rejects = []
            for start in range(0, len(entries), BATCH):
                rows, refused = self.build(entries[start:start + BATCH])
                rejects += refused
                for row in rows:
                    for name in columns:
                        columns[name].append(row[name])
        finally:
            torch.set_num_threads(threads)
        part, table = part_path(block), pa.table(columns, schema=SCHEMA)
        lines = "".join(json.dumps(to_dict(reject), ensure_ascii=True) + "\n" for reject in rejects)
        replace_atomic(rejects_path(block), lambda file: file.write(lines.encode()))
        replace_atomic(part, lambda file: pq.write_table(table, file, compression="zstd", row_group_size=BATCH * 4))
        return part

    def build(self, entries: list[Item | Reject]) -> tuple[list[dict], list[Reject]]:
        """Rows of SCHEMA, still without voice prompts, and what was refused. All answers of the batch are encoded together."""
        prepared, rejects = [], []
        for entry in entries:
            if isinstance(entry, Reject):
                rejects.append(entry)
                continue
            try:
                prepared.append(self._prepare(entry))
            except (ValueError, FileNotFoundError, PermissionError) as error:
                rejects.append(Reject(entry.id, entry.source, " ".join(str(error).split())))
        wavs = [clip.wav for row in prepared for clip in row["answer_audios"] if clip is not None]
        codes = iter(encode_clips(self.codec, wavs))
        for row in prepared:
            spoken = [clip for clip in row["answer_audios"] if clip is not None]
            row["answer_audios"] = [[] if clip is None else frame_major(next(codes)) for clip in row["answer_audios"]]
            row["seconds"] = sum(clip.seconds for clip in spoken)
            row["spk_emb"] = self._speaker_vector(spoken)
        return prepared, rejects

    def _prepare(self, item: Item) -> dict:
        """All that is done for one item alone; `answer_audios` still holds Clips. ValueError with the reason to refuse it."""
        messages, questions, answers, pictures = [], [], [], []
        asker = self._voice(None, item.id, "asks")
        for number, turn in enumerate(item.turns, 1):
            if turn.role not in ROLES:
                raise ValueError(f"turn {number}: the role must be one of {', '.join(ROLES)}, not {turn.role!r}")
            try:
                text = normalise_text(turn.text)
                if turn.role == "assistant":
                    answers.append(self._clip(turn.audio, text, self._voice(item.speaker, item.id, "answers")))
                elif turn.role == "user":
                    clip = self._clip(turn.audio, text, asker if self.settings.speak_questions else None)
                    questions.append(None if clip is None else encode_question(clip))
                    pictures += [resize_picture(read_cell(image)) for image in turn.images]
                    text = _tagged(text, len(turn.images))
            except (ValueError, FileNotFoundError, PermissionError) as error:
                raise ValueError(f"turn {number}: {error}") from error
            messages.append({"role": turn.role, "content": text})
        if not answers:
            raise ValueError("the conversation has no assistant turn")
        speaker = item.speaker or self._voice(None, item.id, "answers")
        return {"conversations": json.dumps(messages, ensure_ascii=False), "question_audios": questions if any(questions) else [],
                "answer_audios": answers, "ref_audios": [], "image_bytes": pictures, "id": item.id, "speaker": speaker,
                "language": item.language or self.settings.language}

    def _voice(self, speaker: str | None, name: str, purpose: str) -> str | None:
        """The synthetic voice of an item: its speaker where that is one of them, else one by its name; None without a backend."""
        if self.tts is None or speaker in self.tts.voices:
            return speaker if self.tts else None
        return choose(self.tts.voices, self.settings.seed, name, purpose)

    def _clip(self, audio: Cell | None, text: str, voice: str | None) -> Clip | None:
        """The recording, or `text` spoken by `voice`, through all gates; None when there is neither."""
        gates = self.settings.gates
        if audio is not None:
            clip = read_clip(read_cell(audio) if audio.column else audio.path, Path(audio.path).name, gates.max_seconds)
        elif voice is not None:
            clip = make_clip(*self.tts.speak(text, voice))
        else:
            return None
        check_clip(clip, gates)
        check_speech(text, clip, gates, self.recogniser)
        return clip

    def _speaker_vector(self, clips: list[Clip]) -> np.ndarray:
        """(192,) float32 of the first answer; empty without a speaker encoder or an answer."""
        if self.speaker is None or not clips:
            return np.zeros(0, np.float32)
        return self.speaker(resample(clips[0].wav, SAMPLE_RATE, INPUT_RATE)).numpy()


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
