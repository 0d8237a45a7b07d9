"""What the data builder takes and refuses: layouts, bad input with its reason, gates, speech synthesis."""
import errno
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image
from test_build_parquet import SENTENCE, speech
from tiny_folders import make_tiny_mimi

from dataset import build_stages
from dataset.build_parquet import build, unique
from dataset.build_stages import Settings, Worker, content_digest
from dataset.clean import (Gates, check_clip, check_heard, encode_question, make_clip, normalise_text, read_clip, resize_picture,
                           snr_db)
from dataset.parquet_rows import ParquetRows
from dataset.sources import Cell, Item, Reject, Turn, from_dict, layout_of, read_source, to_dict
from dataset.tables import read_cell
from dataset.tts import Command, Flite, Speech, load_tts
from model.config import SAMPLE_RATE

FORMATS = {"stereo44k.wav": (2, 44_100, "PCM_16"), "mono8k.wav": (1, 8_000, "PCM_16"), "studio192k.wav": (1, 192_000, "PCM_24"),
           "float32.wav": (1, 48_000, "FLOAT"), "double.wav": (1, 16_000, "DOUBLE"), "byte.wav": (1, 16_000, "PCM_U8"),
           "mono.flac": (1, 24_000, "PCM_24"), "small.mp3": (1, 32_000, None), "voice.opus": (1, 48_000, "OPUS")}


def encoded(wav, rate: int, **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wav, rate, **{"format": "WAV", **options})
    return buffer.getvalue()


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    make_tiny_mimi(tmp_path_factory.mktemp("codec") / "mimi")
    return str(next(tmp_path_factory.getbasetemp().glob("codec*/mimi")))


BAD = {  # name: (the recording or how it is made, the start of its transcript, the reason expected)
    "unreadable": (b"RIFF but nothing else", SENTENCE, "cannot decode audio"),
    "no-such-file": (None, SENTENCE, "no audio file"),
    "zero-seconds": (lambda: encoded(np.zeros(0, np.float32), 16_000), SENTENCE, "is empty"),
    "two-hours": (lambda: encoded(np.zeros(7200 * 1000, np.int16), 1000, format="FLAC"), SENTENCE, "7200.0 s is too long"),
    "a-minute": (lambda: encoded(speech(45, 1), 16_000), SENTENCE * 20, "is too long"),
    "a-click": (lambda: encoded(speech(0.1, 1), 16_000), "no", "too short"),
    "silence": (lambda: encoded(np.zeros(16_000, np.float32), 16_000), SENTENCE, "silent"),
    "not-a-number": (lambda: encoded(np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT"), SENTENCE, "NaN"),
    "clipped": (lambda: encoded((20 * speech(2, 1)).clip(-1, 1), 16_000), SENTENCE, "clipped"),
    "noisy": (lambda: encoded(0.1 * np.random.default_rng(0).standard_normal(32_000).clip(-3, 3), 16_000), SENTENCE, "noisy"),
    "too-much-said": (lambda: encoded(speech(1, 1), 16_000), SENTENCE * 9, "transcript and speech do not match"),
    "too-little-said": (lambda: encoded(speech(9, 1), 16_000), "no", "transcript and speech do not match"),
    "nothing-said": (lambda: encoded(speech(2, 1), 16_000), " \t ", "the text is empty"),
}


@pytest.fixture(scope="module")
def zoo(codec, tmp_path_factory):
    """A JSONL with everything in FORMATS and BAD, built once: (rows by id, reasons by id, manifest)."""
    root = tmp_path_factory.mktemp("zoo")
    lines = []

    def add(name: str, file: str, text: str, **more) -> None:
        turns = [{"role": "user", "content": "Read."}, {"role": "assistant", "content": text, "audio": file}]
        lines.append(json.dumps({"id": name, "conversations": turns, "speaker": "anna", **more}).encode())

    for file, (channels, rate, subtype) in FORMATS.items():
        wav = speech(2, 3, rate)
        options = dict(format="OGG") if file.endswith("opus") else {}
        soundfile.write(root / file, np.stack([wav] * channels, 1), rate, subtype=subtype, **options)
        add(file, file, SENTENCE)
    for name, (content, text, _) in BAD.items():
        if content is not None:
            (root / f"{name}.wav").write_bytes(content() if callable(content) else content)
        add(name, f"{name}.wav", text)
    add("mono.flac", "mono.flac", SENTENCE)  # a duplicated id
    add("nobody", "mono8k.wav", SENTENCE, speaker=None, language="en")
    lines += [b'{"id": "latin1", "conversations": [{"role": "user", "content": "caf\xe9"}]}', b"{", b"[1]", b'{"id": "empty"}',
              json.dumps({"id": "no-reply", "conversations": [{"role": "user", "content": "Hi"}]}).encode(),
              json.dumps({"id": "surrogate", "question": "Hi \ud800", "answer": "x"}).encode(),
              json.dumps({"id": "typed", "question": "Hi", "answer": "Hello.\r\n\r\n\r\n\r\nYou\x00there"}).encode()]
    (root / "all.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    manifest = build([root / "all.jsonl"], root / "out", Settings(codec), rows_per_shard=100)
    table = pq.read_table(root / "out" / "shard-00000.parquet").to_pylist()
    rejects = [json.loads(line) for line in (root / "out" / "rejects.jsonl").read_text().splitlines()]
    assert len(ParquetRows(root / "out", 64, 192)) == len(table) == manifest["rows"]
    return {row["id"]: row for row in table}, {reject["id"].removeprefix(f"{root.name}/"): reject for reject in rejects}, manifest


@pytest.mark.parametrize("name", BAD)
def test_bad_recording_is_refused_with_its_reason(zoo, name):
    rows, rejects, _ = zoo
    assert name not in rows and BAD[name][2] in rejects[name]["reason"] and rejects[name]["source"].startswith("all.jsonl:")
    assert "turn 2: " in rejects[name]["reason"]


@pytest.mark.parametrize("name", FORMATS)
def test_any_format_gives_speech(zoo, name):
    row = zoo[0][name]
    frames = -(-round(row["seconds"] * SAMPLE_RATE) // 1920)
    assert row["seconds"] == pytest.approx(2, abs=0.35) and len(row["answer_audios"][0]) == 8 * frames


@pytest.mark.parametrize("name, reason", [("latin1", None), ("all-25", "not UTF-8"), ("all-26", "not a conversation"),
                                          ("all-27", "JSON object"), ("empty", None), ("all-28", "no 'conversations' list"),
                                          ("no-reply", "no assistant turn"), ("surrogate", "not valid Unicode"),
                                          ("mono.flac", "duplicate id")])
def test_bad_text_is_refused_with_its_reason(zoo, name, reason):
    rejects = zoo[1]
    assert (name not in rejects) if reason is None else reason in rejects[name]["reason"]


def test_missing_speaker_is_kept_without_voice_prompt(zoo):
    rows, _, manifest = zoo
    assert rows["nobody"]["speaker"] is None and rows["nobody"]["ref_audios"] == [] and rows["nobody"]["answer_audios"][0]
    assert rows["mono8k.wav"]["ref_audios"] and manifest["without_reference"] == 1 and manifest["speakers"]["unknown"] == 2
    assert manifest["languages"]["en"] == 1 and manifest["without_answer"] == 1
    assert json.loads(rows["typed"]["conversations"])[1]["content"] == "Hello.\n\nYou there" and rows["typed"]["answer_audios"] == [[]]
    assert manifest["rejected"] == len(BAD) + 7 == sum(manifest["rejects"].values()) and "other" not in manifest["rejects"]


def test_nothing_usable_is_an_error(codec, tmp_path):
    (tmp_path / "bad.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match="every item was rejected .*not a conversation"):
        build([tmp_path / "bad.jsonl"], tmp_path / "out", Settings(codec))
    (tmp_path / "bad.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="nothing to build"):
        build([tmp_path / "bad.jsonl"], tmp_path / "out2", Settings(codec))


# ---- layouts

def items(path, layout="auto"):
    return list(read_source(path, layout))


def test_speech_folders(tmp_path):
    wav = encoded(speech(1, 0), 16_000)
    files = {"lj/metadata.csv": b"a|Dr. X|Doctor X\nb|only raw\nc|no sound\nd\ne|caf\xe9\n", "lj/wavs/a.wav": wav, "lj/wavs/b.wav": wav,
             "tts/19/198/19_198_0.wav": wav, "tts/19/198/19_198_0.normalized.txt": b"Hello.", "tts/19/198/19_198_1.wav": wav,
             "libri/7/8/7-8-0.flac": wav, "libri/7/8/7-8.trans.txt": b"7-8-0 GOOD MORNING\n",
             "own/bob/x.mp3": wav, "own/bob/x.txt": "Grüße".encode(), "own/y.wav": wav, "own/y.txt": b"\xff", "own/z.wav": wav}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = {e.id: e for folder in ("lj", "tts", "libri", "own") for e in items(tmp_path / folder)}
    told = {k: (e.speaker, e.turns[1].text, e.turns[1].audio.path) for k, e in found.items() if isinstance(e, Item)}
    assert told == {"lj/a": ("lj", "Doctor X", str(tmp_path / "lj/wavs/a.wav")),
                    "lj/b": ("lj", "only raw", str(tmp_path / "lj/wavs/b.wav")),
                    "tts/19/198/19_198_0": ("19", "Hello.", str(tmp_path / "tts/19/198/19_198_0.wav")),
                    "libri/7/8/7-8-0": ("7", "GOOD MORNING", str(tmp_path / "libri/7/8/7-8-0.flac")),
                    "own/bob/x": ("bob", "Grüße", str(tmp_path / "own/bob/x.mp3"))}
    reasons = {k: e.reason for k, e in found.items() if isinstance(e, Reject)}
    assert {k: r.split(":")[0] for k, r in reasons.items()} == {
        "lj/c": "no recording wavs/c.*", "lj/d": "no transcript", "lj-5": "not UTF-8", "tts/19/198/19_198_1": "no transcript",
        "own/y": "transcript is not UTF-8", "own/z": "no transcript z.txt beside it"}
    for entry in found.values():
        assert from_dict(json.loads(json.dumps(to_dict(entry)))) == entry


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_hugging_face_tables(tmp_path, suffix):
    wavs = [encoded(speech(1, i), 16_000) for i in range(3)]
    asked = pa.table({"index": [4, 4, 5], "round": [1, 2, 1], "question": ["q1", "q2", "q3"], "answer": ["a1", "a2", ""],
                      "answer_audio": [{"bytes": b"not the question", "path": None}] * 3,
                      "question_audio": [{"bytes": w, "path": None} for w in wavs], "answer_snac": ["1 2"] * 3})
    read = pa.table({"id": ["u0", "u1", "u2"], "text": ["one", "two", None], "speaker_id": [7, 8, 9],
                     "audio": [{"bytes": w, "path": "p"} for w in wavs]})
    for name, table in (("asked", asked), ("read", read)):
        path = tmp_path / name / f"data-0.{suffix}"
        path.parent.mkdir()
        if suffix == "parquet":
            pq.write_table(table, path, row_group_size=2)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
        assert layout_of(path.parent) == layout_of(path) == "tables"
    empty, talk = items(tmp_path / "asked")
    assert talk.id == "4" and [t.text for t in talk.turns] == ["q1", "a1", "q2", "a2"] and "empty" in empty.reason
    assert [read_cell(talk.turns[i].audio) for i in (0, 2)] == wavs[:2] and talk.turns[1].audio is None
    first, second, nothing = items(tmp_path / "read")
    assert (second.id, second.speaker, second.turns[1].text, read_cell(second.turns[1].audio)) == ("u1", "8", "two", wavs[1])
    assert isinstance(nothing, Reject) and nothing.id == "u2" and "no transcript" in nothing.reason


def test_files_of_one_name_do_not_share_ids(tmp_path):
    """Only ids that the data itself gives can be there twice."""
    line = '{"question": "Who?", "answer": "I."}\n'
    for folder in ("a", "b", "hub/test", "hub/train"):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({"question": ["Who?"], "answer": ["I."]}), tmp_path / folder / "data-0.parquet")
        (tmp_path / folder / "talks.jsonl").write_text(line + '{"id": 7, ' + line[1:])
    found = [e for path in ("a/talks.jsonl", "b/talks.jsonl", "a/data-0.parquet", "hub") for e in unique(items(tmp_path / path))]
    assert [e.id for e in found] == ["a/talks-1", "7", "b/talks-1", "7", "a/data-0-0", "hub/test/data-0-0", "hub/train/data-0-0"]
    again = list(unique(e for path in ("a/talks.jsonl", "b/talks.jsonl") for e in items(tmp_path / path)))
    assert [isinstance(e, Reject) for e in again] == [False, False, False, True] and again[3].reason == "duplicate id"


def test_unknown_inputs_are_named(tmp_path):
    for path, layout, error, message in ((tmp_path / "x", "auto", FileNotFoundError, "no input at"),
                                         (tmp_path, "auto", ValueError, "nothing to read"),
                                         (tmp_path, "zip", ValueError, "unknown layout")):
        with pytest.raises(error, match=message):
            items(path, layout)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="neither question and answer"):
        items(tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read"):
        items(tmp_path / "b.parquet")


# ---- stages

def test_text_is_made_uniform():
    assert normalise_text(" Cafe\u0301\u00a0 \t\x07au  lait \r\n\n\n\n 你好 ") == "Café au lait\n\n你好"
    for bad in ("", "\n \x00", "\ud800"):
        with pytest.raises(ValueError):
            normalise_text(bad)


def test_level_and_trim():
    quiet = np.concatenate([np.zeros(16_000), 0.05 * speech(2, 0), np.zeros(32_000)]).astype(np.float32)
    clip, loud = make_clip(quiet, 16_000), make_clip(np.concatenate([np.zeros(16_000), 3 * speech(2, 0)]).astype(np.float32), 16_000)
    assert clip.seconds == pytest.approx(2.1, abs=0.2) and clip.clipping == 0
    for each in (clip, loud):
        assert 20 * np.log10(np.sqrt(np.mean(each.wav ** 2))) == pytest.approx(-22, abs=0.1) and np.abs(each.wav).max() <= 0.98
    noise = np.random.default_rng(0).standard_normal(32_000)
    assert snr_db(speech(2, 0) + 0.01 * noise, 16_000) < snr_db(speech(2, 0) + 0.001 * noise, 16_000) < snr_db(speech(2, 0), 16_000)


def test_recogniser_must_hear_the_transcript():
    class Hears:
        def __init__(self, text):
            self.text = text

        def transcribe(self, wav):
            assert len(wav) == pytest.approx(2 * 16_000, abs=8000)
            return self.text

    clip = make_clip(speech(2, 0), 16_000)
    check_heard("The cat sleeps.", clip, Gates(), Hears("the cat sleep"))
    with pytest.raises(ValueError, match="CER 1.00"):
        check_heard("The cat sleeps.", clip, Gates(), Hears(""))
    check_clip(clip, Gates())
    with pytest.raises(ValueError, match="too long"):
        read_clip(encoded(speech(2, 0), 16_000), "x", 0.5)


def test_pictures_and_spoken_questions(codec, tmp_path):
    Image.new("RGB", (900, 300), "red").save(tmp_path / "red.png")
    (tmp_path / "q.wav").write_bytes(encoded(speech(2, 0, 48_000), 48_000))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")

    def ask(name, content, **more):
        return {"id": name, "conversations": [{"role": "user", "content": content, **more}, {"role": "assistant", "content": "Red."}]}

    lines = [ask("picture", "What color is it?", image="red.png"), ask("tagged", "<image>\nWhat?", image=["red.png"]),
             ask("tags", "<image><image>", image="red.png"), ask("broken", "What?", image="broken.png"),
             ask("asked", SENTENCE, audio="q.wav"), ask("a folder", "What?", image="."), ask("data", "What?", image="iVBOR" * 99),
             *(ask(f"odd {more}", "What?", **more) for more in ({"audio": {"path": "q.wav"}}, {"image": [3]}, {"image": True}))]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows, rejects = Worker(Settings(codec)).build(items(tmp_path / "in.jsonl"))
    reasons = {r.id: r.reason for r in rejects}
    assert reasons["tags"] == "turn 1: 1 images but 2 <image> tags" and reasons["broken"].startswith("turn 1: cannot decode image")
    assert "Is a directory" in reasons["a folder"] and "File name too long" in reasons["data"] and len(reasons["data"]) == 300
    assert [r.split(":")[0] for r in list(reasons.values())[-3:]] == ["not a conversation"] * 3 and len(rejects) == 7
    contents = [json.loads(row["conversations"])[0]["content"] for row in rows]
    assert contents == ["<image>\nWhat color is it?", "<image>\nWhat?", SENTENCE]
    with Image.open(io.BytesIO(rows[0]["image_bytes"][0])) as image:
        assert image.size == (256, 256) and image.getpixel((9, 9))[0] > 240
    wav, rate = soundfile.read(io.BytesIO(rows[2]["question_audios"][0]))
    assert rate == 16_000 and len(wav) == pytest.approx(32_000, abs=6000)
    with pytest.raises(ValueError, match="cannot decode image"):
        resize_picture(b"x")


# ---- speech synthesis

SAY = ("import sys, numpy as np, soundfile; text, voice, path = sys.argv[1:]; assert text != 'stop', 'cannot say that';"
       "n = 22050 * len(text) // 12; t = np.arange(n) / 22050;"
       "soundfile.write(path, 0.3 * np.sin(6.28 * 200 * len(voice) * t) * (np.sin(25 * t) > 0), 22050)")


def test_any_command_can_speak(codec, tmp_path):
    tts = Command(f"{sys.executable} -c '{SAY.replace(chr(39), chr(34))}' {{text}} {{voice}} {{wav}}", ["a", "bb"])
    text = "it's {voice}; $(true) \"quoted\""
    wav, rate, phones = tts.speak(text, "bb")
    assert phones is None and rate == 22_050 and wav.dtype == np.float32 and len(wav) == 22_050 * len(text) // 12
    with pytest.raises(ValueError, match="cannot say that"):
        tts.speak("stop", "a")
    worker = Worker(Settings(codec))
    worker.prepare.tts, worker.prepare.settings = tts, Settings(codec, speak_questions=True, language="en")
    said = [("I am the first.", "bb"), ("I am another one.", None), ("stop", None)]
    rows, rejects = worker.build([Item(str(i), [Turn("user", f"Who is number {i}?"), Turn("assistant", text)], "x", speaker)
                                  for i, (text, speaker) in enumerate(said)])
    assert [r.reason.startswith("turn 2: ") for r in rejects] == [True] and [row["language"] for row in rows] == ["en", "en"]
    assert rows[0]["speaker"] == "bb" and rows[1]["speaker"] in ("a", "bb")
    assert all(row["question_audios"][0].startswith(b"fLaC") and len(row["answer_audios"][0]) > 80 for row in rows)


def test_a_full_disk_is_not_the_items_fault(codec, monkeypatch):
    """It ends the build; every further item would be refused, too."""
    def full(cell):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(build_stages, "read_cell", full)
    with pytest.raises(OSError, match="No space left"):
        Worker(Settings(codec)).build([Item("x", [Turn("user", "What?", images=[Cell("x.png")]), Turn("assistant", "Red.")], "x")])


def test_a_speaker_keeps_one_voice_and_is_named_by_it(codec, tmp_path):
    """Who has no such voice is given one, else voice prompts would be another's; tags of pictures are not said."""
    Image.new("RGB", (30, 30), "red").save(tmp_path / "red.png")
    (tmp_path / "own.wav").write_bytes(encoded(speech(2, 0), 16_000))
    said, picture = [], [Cell(str(tmp_path / "red.png"))]
    worker = Worker(Settings(codec, tts="test_build_inputs:Beeps", voices=("a", "bb", "ccc", "dddd"), speak_questions=True))
    speak = worker.prepare.tts.speak
    worker.prepare.tts.speak = lambda text, voice: said.append((text, voice)) or speak(text, voice)
    turns = [Turn("user", f"<image>\n{SENTENCE}", images=picture), Turn("assistant", SENTENCE)]
    rows, rejects = worker.build([Item(str(i), turns, "x", "anna") for i in range(6)])
    answers = {voice for _, voice in said[1::2]}
    assert not rejects and len(answers) == 1 == len({row["speaker"] for row in rows}) and answers == {rows[0]["speaker"]}
    assert {text for text, _ in said} == {SENTENCE}
    own = Item("own", [Turn("user", "<image>", images=picture), Turn("assistant", SENTENCE, Cell(str(tmp_path / "own.wav")))], "x", "anna")
    (row,), _ = worker.build([own])
    assert row["speaker"] == "anna" and row["question_audios"] == [] and len(said) == 12


class Beeps:
    """A synthesiser of one's own, named "test_build_inputs:Beeps"; it knows when its words end."""

    def __init__(self, voices):
        self.voices = voices or ("low", "high")

    def speak(self, text: str, voice: str) -> Speech:
        wav = speech(len(text) / 12, len(voice))
        return Speech(wav, 16_000, [(word, len(wav) / 16_000 * (i + 1) / len(text.split())) for i, word in enumerate(text.split())])


class WordCodec:
    """A codec of one's own: a frame a word where the words are known, which are then all 1; else all 0."""

    @classmethod
    def load(cls, path, device):
        assert path.endswith("books.txt")
        return cls()

    def encode(self, wav):
        return torch.zeros(len(wav), 8, -(-wav.shape[1] // 1920), dtype=torch.long)

    def encode_spoken(self, wav, text, phones):
        if "stop" in text:
            raise ValueError("the words are not where they should be")
        assert len(phones) == len(text.split()) and abs(phones[-1][1] - len(wav) / SAMPLE_RATE) < 0.3
        return np.ones((8, len(phones)), np.int16), np.arange(len(phones)) + 0.5


def test_own_classes_for_synthesis_and_codec(tmp_path):
    (tmp_path / "books.txt").write_text("x")
    lines = [{"id": str(i), "question": "Hi", "answer": f"{SENTENCE} {i}"} for i in range(3)]
    lines += [{"id": "stop", "question": "Hi", "answer": f"stop, {SENTENCE}"},
              {"id": "ask", "kind": "asked", "conversations": [{"role": "user", "content": SENTENCE, "voice": "high"},
                                                               {"role": "assistant", "content": SENTENCE, "voice": "low"}]}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = Settings(f"test_build_inputs:WordCodec={tmp_path / 'books.txt'}", tts="test_build_inputs:Beeps", question_format="mp3")
    manifest = build([tmp_path / "in.jsonl"], tmp_path / "out", settings)
    digest = content_digest(tmp_path / "books.txt")
    assert manifest["modules"]["mimi"] == {"name": "test_build_inputs:WordCodec=books.txt", "digest": digest}
    assert manifest["rows"] == 4 and "not where they should be" in (tmp_path / "out" / "rejects.jsonl").read_text()
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "out" / "shard-00000.parquet").to_pylist()}
    assert rows["0"]["answer_letters"] == [[0.5 + i for i in range(8)]]
    assert rows["0"]["answer_audios"] == [[1] * 8 * 8] and rows["ask"]["speaker"] == "low" and rows["ask"]["kind"] == "asked"
    prompts = [row["ref_audios"] for row in rows.values() if row["ref_audios"]]
    assert len(prompts) >= 2 and all(set(prompt) == {0} and len(prompt) > 8 * 12 for prompt in prompts)  # the codes of plain speech
    sound = rows["ask"]["question_audios"][0]
    assert soundfile.info(io.BytesIO(sound)).format == "MP3"
    assert sound == encode_question(make_clip(*Beeps(()).speak(SENTENCE, "high")), "mp3")
    (tmp_path / "books.txt").write_text("y")
    assert settings.key() != manifest["key"] and content_digest(tmp_path / "books.txt") != digest
    for name in ("test_build_inputs:Nothing", "nowhere:Beeps"):
        with pytest.raises(ValueError, match=f"no class {name}"):
            load_tts(name)


def test_tokens_are_counted(codec, tmp_path):
    folder = Path(__file__).parents[1] / "model" / "nano"
    lines = [{"question": "Hi", "answer": "Hello."}, {"question": "Hi", "answer": "The dog lives in the house."}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    manifest = build([tmp_path / "in.jsonl"], tmp_path / "out", Settings(codec, tokenizer=str(folder)))
    counts = pq.read_table(tmp_path / "out" / "shard-00000.parquet").column("tokens").to_pylist()
    assert 0 < counts[0] < counts[1] < 20 and sum(manifest["histograms"]["tokens"].values()) == 2
    shutil.copytree(folder, tmp_path / "pack", ignore=lambda *_: {p.name for p in folder.iterdir()} - {"tokenizer.json"})
    keys = [Settings(codec, tokenizer=str(tmp_path / "pack")).key()]
    (tmp_path / "pack" / "config.pyc").write_bytes(b"x")
    keys.append(Settings(codec, tokenizer=str(tmp_path / "pack")).key())
    (tmp_path / "pack" / "tokenizer.json").write_bytes(b"{}")
    assert keys[0] == keys[1] != Settings(codec, tokenizer=str(tmp_path / "pack")).key()
    with pytest.raises(FileNotFoundError, match="no tokenizer.json"):
        Worker(Settings(codec, tokenizer=codec))


def test_wrong_speech_commands_are_named():
    for arguments, message in ((("echo {text}", ["a"]), "no {wav}"), (("echo {text} {wav}", []), "--voices")):
        with pytest.raises(ValueError, match=message):
            load_tts(*arguments)
    if shutil.which("flite"):
        with pytest.raises(ValueError, match="no voice 'bob'"):
            Flite(["bob"])


@pytest.mark.parametrize("name, voice", [("flite", "slt"), ("espeak-ng", "en-us")])
def test_installed_programs_speak(name, voice):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    wav, rate, _ = load_tts(name).speak("-5 degrees, said the cat.", voice)
    assert 0.8 < len(wav) / rate < 4 and np.abs(wav).max() > 0.1
