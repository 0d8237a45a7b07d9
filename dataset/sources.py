"""Readers: whatever lies on disk -> a stream of `Item`s, and of `Reject`s for what cannot be one.

- A reader looks at texts and names only; recordings and pictures stay where they are, and the item says where (`Cell`).
- What is wrong with one line or one file becomes a Reject with its reason; the rest goes on.
- Layouts (found out by `layout_of`, or named): `jsonl` conversations; `ljspeech` (metadata.csv + wavs/); `libritts` (and LibriSpeech:
  SPEAKER/CHAPTER/*); `tables` (parquet or arrow files of Hugging Face `datasets`, VoiceAssistant-400K and UltraChat-SLAM among them, see
  tables.py); `pairs` (sound files, each with a .txt of the same name; a subfolder is a speaker).
- An id is the data's own, or made of the input folder's name, the path in it and a number: files of one name do not collide.
- Order is by name, so equal folders give equal streams.
"""
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

READ_ALOUD = "Read this aloud: {}"  # the question of a recording that has only a transcript
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".opus", ".ogg")
LAYOUTS = ("jsonl", "ljspeech", "libritts", "tables", "pairs")


UNSPOKEN = "none"  # as a turn's voice: nobody says it


@dataclass(frozen=True)
class Cell:
    """Where an encoded recording or picture lies: a file, or one cell of a parquet or arrow file."""
    path: str
    column: str = ""  # empty: the file itself
    group: int = 0  # row group or record batch
    row: int = 0  # within the group


@dataclass
class Turn:
    role: str
    text: str
    audio: Cell | None = None
    images: list[Cell] = field(default_factory=list)
    voice: str | None = None  # of the synthesiser, for a turn without a recording; None: the builder chooses; UNSPOKEN: text alone


@dataclass
class Item:
    """One conversation to be built. `source` says where it was found, for the rejects file."""
    id: str
    turns: list[Turn]
    source: str
    speaker: str | None = None  # who answers
    language: str | None = None
    kind: str | None = None  # whatever one wants to tell apart in reports
    may_prompt: bool = True  # may be another's voice prompt (build_parquet.py decides): one that may not needs no speaker vector


@dataclass
class Reject:
    id: str
    source: str
    reason: str


def layout_of(path: Path) -> str:
    """One of LAYOUTS by what lies at `path`; FileNotFoundError or ValueError when it is none of them."""
    if path.is_file() and path.suffix in (".jsonl", ".json"):
        return "jsonl"
    if path.is_file() and path.suffix in (".parquet", ".arrow"):
        return "tables"
    if not path.is_dir():
        raise FileNotFoundError(f"no input at {path}: give a .jsonl, a .parquet or a folder")
    if (path / "metadata.csv").is_file():
        return "ljspeech"
    names = [p.name for p in path.rglob("*") if p.is_file()]
    if any(name.endswith((".trans.txt", ".normalized.txt", ".original.txt")) for name in names):
        return "libritts"
    if any(name.endswith((".parquet", ".arrow")) for name in names):
        return "tables"
    if any(name.lower().endswith(SOUND_SUFFIXES) for name in names):
        return "pairs"
    raise ValueError(f"nothing to read in {path}: no {', '.join(SOUND_SUFFIXES)}, no .parquet or .arrow and no metadata.csv")


def read_source(path, layout: str = "auto") -> Iterator[Item | Reject]:
    """Everything at `path` in a fixed order."""
    from dataset.tables import read_tables

    path = Path(path)
    readers = {"jsonl": read_jsonl, "ljspeech": read_ljspeech, "libritts": read_libritts, "tables": read_tables, "pairs": read_pairs}
    if layout != "auto" and layout not in readers:
        raise ValueError(f"unknown layout {layout!r}: choose from auto, {', '.join(LAYOUTS)}")
    if layout != "auto" and not path.exists():
        raise FileNotFoundError(f"no input at {path}")
    return readers[layout_of(path) if layout == "auto" else layout](path)


def read_jsonl(path: Path) -> Iterator[Item | Reject]:
    """A conversation a line: {"conversations": [{"role", "content", "audio"?, "image"?, "voice"?}], "id"?, "speaker"?, "language"?,
    "kind"?}.

    {"question", "answer"} is short for a conversation of one turn. Paths are relative to the file's folder; "image" may be a list.
    """
    stem = stem_of(path, path)
    with open(path, "rb") as lines:  # bytes: one line that is not UTF-8 must not hide the others
        for number, line in enumerate(lines, 1):
            source = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                yield parse_conversation(json.loads(line.decode("utf-8")), f"{stem}-{number}", source, path.parent)
            except UnicodeDecodeError as error:
                yield Reject(f"{stem}-{number}", source, f"not UTF-8: {error.reason} at byte {error.start}")
            except (ValueError, RecursionError) as error:
                yield Reject(f"{stem}-{number}", source, f"not a conversation: {error}")


def parse_conversation(entry, name: str, source: str, folder: Path) -> Item:
    """One line of a JSONL file; ValueError says what is wrong with it."""
    if not isinstance(entry, dict):
        raise ValueError("a line must be a JSON object")
    messages = entry.get("conversations")
    if messages is None and isinstance(entry.get("question"), str) and isinstance(entry.get("answer"), str):
        messages = [{"role": "user", "content": entry["question"]}, {"role": "assistant", "content": entry["answer"]}]
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError("no 'conversations' list of {role, content}, and no 'question' and 'answer'")
    turns = []
    for message in messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise ValueError("a turn needs 'role' and 'content' as text")
        images = message.get("image") or []
        images = [images] if isinstance(images, str) else images
        audio = message.get("audio") or None
        if not isinstance(audio, str | None) or not isinstance(images, list) or not all(isinstance(i, str) for i in images):
            raise ValueError("'audio' must be the path of a file, 'image' one or a list of them")
        turns.append(Turn(message["role"], message["content"], audio and Cell(str(folder / audio)),
                          [Cell(str(folder / image)) for image in images], _text(message.get("voice"))))
    return Item(str(entry.get("id", name)), turns, source, *(_text(entry.get(key)) for key in ("speaker", "language", "kind")))


def read_ljspeech(folder: Path) -> Iterator[Item | Reject]:
    """metadata.csv of `name|text` or `name|text|normalised text`, sounds in wavs/; one speaker, named after the folder."""
    sounds = {p.stem: p for p in sorted((folder / "wavs").glob("*")) if p.suffix.lower() in SOUND_SUFFIXES}
    speaker = folder.absolute().name
    with open(folder / "metadata.csv", "rb") as lines:
        for number, line in enumerate(lines, 1):
            source = f"metadata.csv:{number}"
            try:
                sound, *texts = line.decode("utf-8").rstrip("\r\n").split("|")
            except UnicodeDecodeError as error:
                yield Reject(f"{speaker}-{number}", source, f"not UTF-8: {error.reason} at byte {error.start}")
                continue
            name = f"{speaker}/{sound}"
            if not texts:
                yield Reject(name, source, "no transcript: the line has no '|'")
            elif sound not in sounds:
                yield Reject(name, source, f"no recording wavs/{sound}.*")
            else:
                yield recording(name, texts[-1], Cell(str(sounds[sound])), source, speaker)


def read_libritts(folder: Path) -> Iterator[Item | Reject]:
    """SPEAKER/CHAPTER/NAME.wav with NAME.normalized.txt (LibriTTS), or NAME.flac with lines of *.trans.txt (LibriSpeech)."""
    for sound in _sounds(folder):
        name, source = stem_of(sound, folder), str(sound.relative_to(folder))
        text_file = next((f for f in (sound.with_suffix(".normalized.txt"), sound.with_suffix(".original.txt")) if f.is_file()), None)
        try:
            if text_file:
                text = text_file.read_text(encoding="utf-8")
            else:
                text = "".join(f.read_text(encoding="utf-8") for f in sorted(sound.parent.glob("*.trans.txt")))
                lines = (line.partition(" ") for line in text.splitlines())
                text = next((words for first, _, words in lines if first == sound.stem), None)
        except UnicodeDecodeError as error:
            yield Reject(name, source, f"transcript is not UTF-8: {error.reason} at byte {error.start}")
            continue
        if text is None:
            yield Reject(name, source, "no transcript: no .normalized.txt and no line in *.trans.txt")
        else:
            yield recording(name, text, Cell(str(sound)), source, sound.relative_to(folder).parts[0])


def read_pairs(folder: Path) -> Iterator[Item | Reject]:
    """Sound files, each with a .txt of the same name; the first subfolder is the speaker, none in the folder itself."""
    for sound in _sounds(folder):
        parts = sound.relative_to(folder).parts
        name, source = stem_of(sound, folder), "/".join(parts)
        try:
            text = sound.with_suffix(".txt").read_text(encoding="utf-8")
        except FileNotFoundError:
            yield Reject(name, source, f"no transcript {sound.stem}.txt beside it")
        except UnicodeDecodeError as error:
            yield Reject(name, source, f"transcript is not UTF-8: {error.reason} at byte {error.start}")
        else:
            yield recording(name, text, Cell(str(sound)), source, parts[0] if len(parts) > 1 else None)


def recording(name: str, text: str, audio: Cell, source: str, speaker: str | None, language: str | None = None) -> Item:
    """A transcribed recording as a conversation: asked to read the text aloud, the assistant does."""
    turns = [Turn("user", READ_ALOUD.format(text.strip())), Turn("assistant", text, audio)]
    return Item(name, turns, source, speaker, language)


def to_dict(entry: Item | Reject) -> dict:
    """For the plan's JSON lines; `from_dict` is the inverse."""
    from dataclasses import asdict

    return asdict(entry)


def from_dict(entry: dict) -> Item | Reject:
    if "reason" in entry:
        return Reject(**entry)
    turns = [Turn(turn["role"], turn["text"], turn["audio"] and Cell(**turn["audio"]), [Cell(**image) for image in turn["images"]],
                  turn["voice"])
             for turn in entry["turns"]]
    return Item(**{**entry, "turns": turns})


def stem_of(file: Path, root: Path) -> str:
    """What the ids of a file's items begin with: its path within the input `root`, that folder's name in front, without the suffix."""
    folder = root if root.is_dir() else root.parent
    return (folder.absolute().name / file.relative_to(folder).with_suffix("")).as_posix()


def _sounds(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SOUND_SUFFIXES)


def _text(value) -> str | None:
    return None if value is None else str(value)
