"""What a built data set says about itself: manifest.json, and the running totals it is made from.

- The totals take a row at a time and keep counts only: their size depends on the number of speakers, not of rows.
- The manifest is the last file of a build: a folder without one is not finished.
"""
import json
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from model.config import FRAME_SAMPLES, NUM_CODEBOOKS, SAMPLE_RATE

MANIFEST = "manifest.json"
FORMAT = 1
LIBRARIES = ("torch", "transformers", "pyarrow", "soundfile", "soxr", "numpy")


@dataclass
class Summary:
    """Totals of a data set. Histograms are {bin: count}: whole seconds, characters in tens, tokens in fives."""
    rows: int = 0
    seconds: float = 0.0  # of speech in answers
    frames: int = 0
    without_answer: int = 0  # rows in which no reply is spoken
    without_reference: int = 0  # spoken rows without a voice prompt
    spoken_questions: int = 0
    pictures: int = 0
    languages: Counter = field(default_factory=Counter)
    speakers: Counter = field(default_factory=Counter)
    durations: Counter = field(default_factory=Counter)
    characters: Counter = field(default_factory=Counter)
    tokens: Counter = field(default_factory=Counter)
    rejects: Counter = field(default_factory=Counter)
    first_reason: str = ""

    def add_row(self, row: dict) -> None:
        """Count a row of build_stages.SCHEMA."""
        spoken = any(row["answer_audios"])
        self.rows += 1
        self.seconds += row["seconds"]
        self.frames += sum(len(codes) for codes in row["answer_audios"]) // NUM_CODEBOOKS
        self.without_answer += not spoken
        self.without_reference += spoken and not len(row["ref_audios"])
        self.spoken_questions += sum(sound is not None for sound in row["question_audios"])
        self.pictures += len(row["image_bytes"])
        self.languages[row["language"] or "unknown"] += 1
        self.speakers[row["speaker"] or "unknown"] += 1
        self.durations[int(row["seconds"])] += 1
        text = sum(len(m["content"]) for m in json.loads(row["conversations"]) if m["role"] == "assistant")
        self.characters[text // 10 * 10] += 1
        if row["tokens"] is not None:
            self.tokens[row["tokens"] // 5 * 5] += 1

    def add_rejects(self, rejects: list[dict]) -> None:
        """Count reasons; numbers are left out of them, or nearly every reason would be its own kind."""
        for reject in rejects:
            self.first_reason = self.first_reason or reject["reason"]
            self.rejects[reason_kind(reject["reason"])] += 1


def reason_kind(reason: str) -> str:
    """The part of a reason that items share: "turn 2: 0.10 s is too short (at least 0.3 s)" -> "too short"."""
    kinds = ("too short", "too long", "clipped", "noisy", "do not match", "silen", "NaN", "cannot decode", "no transcript", "duplicate id",
             "not UTF-8", "not valid Unicode", "text is empty", "is empty", "no recording", "no audio file", "No such file",
             "not a conversation", "no assistant turn", "tags")
    return next((kind for kind in kinds if kind in reason), "other").replace("silen", "silent")


def new_manifest(key: str, summary: Summary, shards: list[dict], settings) -> dict:
    """`shards` are entries of write_shard; `settings` a build_stages.Settings."""
    counts = {name: dict(sorted(getattr(summary, name).items(), key=lambda pair: (-pair[1], pair[0])))
              for name in ("languages", "speakers", "rejects")}
    bins = {name: {str(k): v for k, v in sorted(getattr(summary, name).items())} for name in ("durations", "characters", "tokens")}
    return {"format": FORMAT, "key": key, "rows": summary.rows, "hours": round(summary.seconds / 3600, 6), "frames": summary.frames,
            "frame_seconds": FRAME_SAMPLES / SAMPLE_RATE, "without_answer": summary.without_answer,
            "without_reference": summary.without_reference, "spoken_questions": summary.spoken_questions,
            "pictures": summary.pictures, "rejected": sum(summary.rejects.values()), **counts, "histograms": bins,
            "modules": settings.modules(), "tts": settings.tts, "voices": list(settings.voices), "gates": vars(settings.gates),
            "seed": settings.seed, "libraries": {name: version(name) for name in LIBRARIES}, "shards": shards}


def read_manifest(folder) -> dict | None:
    """The manifest of a folder, None when there is none. ValueError for one that cannot be read."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return {**manifest, "key": manifest["key"], "shards": manifest["shards"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a manifest of dataset.build_parquet: {error!r}") from error
