"""The nano world's data sets by the data builder: who says what, codes on the grid of words, every part valid."""
import io
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import soxr

from dataset.build_stages import SCHEMA
from dataset.parquet_rows import ParquetRows
from engine.voices import load_voices
from model.audio import read_audio
from model.config import SAMPLE_RATE, OmniConfig
from nano import build_sets, corpus, foreign, lend_speech, multi_turn, scenes, voices, write_down
from nano.speech import RATE, TRAIN_VOICES, Utterance, synthesise, synthesise_timed, voiced
from nano.word_grid import GridCodec

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="needs the flite program")
TARGETS = Path(__file__).parents[1] / "model" / "nano" / "mimi_targets.pt"


def test_a_voice_carries_rate_and_pitch_a_speaker_only_pitch():
    from dataset.tts import flite_voice

    for said, voice, speaker in ((Utterance("x", "rms"), "rms", "rms"), (Utterance("x", "slt", 1.1), "slt:1.1:1", "slt"),
                                 (Utterance("x", "awb", 0.9, 1.2), "awb:0.9:1.2", "awb:1:1.2")):
        assert build_sets.voice_name(said) == voice and build_sets.voice_name(said, rate=False) == speaker
        assert flite_voice(voice) == (said.voice, said.rate, said.pitch)
    with pytest.raises(ValueError, match="VOICE"):
        flite_voice("slt:1:1:1")


def test_every_answer_is_said_as_often_as_it_is_drawn():
    items = [{"question": f"Number {i}?", "answer": f"Answer {i}.", "kind": "x"} for i in range(40)]
    said = voiced([item["answer"] for item in items], 0.25, 1)
    lines = build_sets.read_aloud("t", items, said, 1)
    assert len(lines) == len(said) > 40 and len({line["id"] for line in lines}) == len(lines)
    assert {(line["conversations"][1]["content"], line["speaker"]) for line in lines} == {(u.text, u.voice) for u in said}
    assert lines == build_sets.read_aloud("t", items, said, 1) != sorted(lines, key=lambda line: line["id"])


def test_one_voice_at_one_rate_asks_a_whole_conversation():
    talks = [multi_turn.conversation("x", [(f"Question {i}?", "Yes."), ("And then?", "No.")]) for i in range(20)]
    asked = build_sets.ask(talks, TRAIN_VOICES, 1)
    assert asked == build_sets.ask(talks, TRAIN_VOICES, 1) != build_sets.ask(talks, TRAIN_VOICES, 2)
    assert all(len({(u.voice, u.rate, u.pitch) for u in turns}) == 1 for turns in asked) and {u.voice for u, _ in asked} == set(TRAIN_VOICES)
    assert [[u.text for u in turns] for turns in asked] == [multi_turn.user_turns(talk) for talk in talks]
    assert {(u.rate, u.pitch) for turns in build_sets.ask(talks, TRAIN_VOICES, 1, plain=True) for u in turns} == {(1.0, 1.0)}


@needs_flite
def test_sets_are_planned_built_and_valid(tmp_path):
    train, heldout = corpus.build()
    for name, items in (("train", train), ("heldout", heldout), ("words", corpus.word_lists(train, 4)),
                        ("sentences", corpus.more_sentences(train, heldout, 80)[:4]), ("mixed", corpus.mixed_sentences(train, train, 4)),
                        ("questions", corpus.more_questions(train, heldout)[:4])):
        corpus.write_jsonl(items, tmp_path / "corpus" / f"{name}.jsonl")
    args = build_sets.parse_args([*build_sets.SETS, "--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "data"), "--codec",
                                  str(TARGETS), "--speaker_encoder", "none", "--tokenizer", "none", "--workers", "1", "--limit", "2",
                                  "--others", "1", "--strangers", "1", "--askings", "1", "--conversations", "40", "--typed", "360",
                                  "--questions", "4", "--spoken", "2", "--heldout", "1", "--words", "1"])
    found = build_sets.plan_sets(args)
    assert {name: len(lines) for name, lines in found.items()} == {
        "t2a_train": 8, "t2a_sentences": 6, "t2a_mixed": 6, "t2a_words": 3, "t2a_heldout": 6, "i2t_train": 4, "mix_train": 2,
        "i2t_heldout": 1, "typed_train": 2, "more_train": 4, "facts_train": 2,
        "mix_heldout": 1, "told_heldout": 1, **{f"{name}_{part}": 2 for name in ("a2a", "multi")
                                                for part in ("train", "heldout", "noisy", "unseen")}}
    assert {voice_of(line) for line in found["a2a_unseen"]} == {"kal16"} and "kal16" not in {voice_of(line) for line in found["a2a_train"]}
    assert not any("voice" in m and m["role"] == "user" for line in found["typed_train"] for m in line["conversations"])
    for name in ("t2a_train", "multi_noisy", "mix_heldout"):
        rows = build_sets.build_set(name, found[name], args)["rows"]
        assert rows == len(found[name]) == len(ParquetRows(tmp_path / "data" / name, 512, 192))
        for row in pq.read_table(tmp_path / "data" / name / "shard-00000.parquet").to_pylist():
            asked = [message["content"] for message in json.loads(row["conversations"]) if message["role"] == "user"]
            assert len(row["answer_audios"]) == len(asked) and all(row["answer_audios"]) and row["kind"]
            assert len(row["question_audios"]) == (0 if name == "t2a_train" else len(asked))
            assert (len(row["image_bytes"]) == 1) == (name == "mix_heldout") == asked[0].startswith("<image>\n")
    build_sets.silence_replies(found["a2a_train"])
    build_sets.build_set("a2a_train", found["a2a_train"], args)
    for row in pq.read_table(tmp_path / "data" / "a2a_train" / "shard-00000.parquet").to_pylist():
        assert row["question_audios"][0] and row["answer_audios"] == [[]], "asked aloud, answered in text"
        assert row["speaker"] in TRAIN_VOICES
    rows = pq.read_table(tmp_path / "data" / "t2a_train" / "shard-00000.parquet").to_pylist()
    row = next(row for row in rows if row["speaker"] == "rms")
    text = json.loads(row["conversations"])[1]["content"]
    assert len(row["answer_audios"][0]) / 8 == pytest.approx(grid_frames(text), abs=1)  # but for the last pause
    letters = row["answer_letters"][0]
    assert len(letters) == len(row["answer_audios"][0]) / 8 and letters == sorted(letters) and letters[-1] <= len(text.replace(" ", ""))


def test_a_picture_that_is_there_is_the_one_that_is_asked_about(tmp_path, monkeypatch):
    """Painted once; another seed's and another scenes.py's are other files."""
    first, other = (build_sets.painted(scenes.plan(3, 1, False, seed), tmp_path, False, seed) for seed in (1, 2))
    assert {path.read_bytes() for path in first.values()} == {scenes.paint(1, False, number) for number in first}
    assert other.keys() == first.keys() == {0, 1, 2} and not {*other.values()} & {*first.values()}
    first[0].write_bytes(b"kept")
    again = build_sets.painted(scenes.plan(3, 1, False, 1), tmp_path, False, 1)
    assert again == first and first[0].read_bytes() == b"kept"
    edited = tmp_path / "scenes.py"
    edited.write_text(Path(scenes.__file__).read_text() + "# edited\n")
    monkeypatch.setattr(scenes, "__file__", str(edited))
    assert not {*build_sets.painted(scenes.plan(3, 1, False, 1), tmp_path, False, 1).values()} & {*first.values()}


def test_the_seed_does_not_decide_which_replies_of_talks_are_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(build_sets, "recorded", lambda asked, *how: asked)  # says nothing
    train, heldout = corpus.build()
    for name, items in (("train", train), ("heldout", heldout), ("sentences", [])):
        corpus.write_jsonl(items, tmp_path / f"{name}.jsonl")
    first, other = (build_sets.plan_sets(build_sets.parse_args(["multi", "--corpus", str(tmp_path), "--out", str(tmp_path / seed), "--seed",
                                                                seed, "--conversations", "40", "--limit", "8", "--workers", "1"]))
                    for seed in ("1", "2"))
    asked = [[[message["content"] for message in line["conversations"]] for line in found["multi_unseen"]] for found in (first, other)]
    assert sorted(asked[0]) == sorted(asked[1])
    asked_by = [sorted(line["conversations"][-2]["voice"] for line in found["multi_train"]) for found in (first, other)]
    assert asked_by[0] != asked_by[1]


@needs_flite
def test_noisy_questions_are_ten_decibels_above_their_noise(tmp_path):
    said = Utterance("What color is the sky?", "slt")
    record = partial(build_sets.recorded, folder=tmp_path, say=build_sets.say_noisily)
    (path,), again = record([[said]])[0], record([[said], [said]])
    assert again == [[path], [path]]
    wav, heard = synthesise(said.text, said.voice).astype(np.float32) / 32768, read_audio(path, RATE)
    assert 10 * np.log10(np.mean(wav ** 2) / np.mean((heard - wav) ** 2)) == pytest.approx(10, abs=0.5)


@pytest.mark.skipif(not (shutil.which("festival") and shutil.which("espeak-ng")), reason="needs festival and espeak-ng")
def test_foreign_voices_say_the_text_in_order_at_their_rate(tmp_path):
    texts = ["What color is the sky?", 'Please say: "the cow came quietly to the museum this morning".']
    said = [Utterance(text, voice) for text in texts for voice in (foreign.KED, "en-us+f2")]
    short, other, long, longer = [len(wav) / RATE for wav in foreign.say_all(said)]
    assert 1 < short < 2.5 < long < 6 and 1 < other < 2.5 < longer < 6
    slow, small = [len(foreign.say_all([Utterance(texts[0], foreign.KED, rate, pitch)])[0]) / RATE for rate, pitch in ((0.8, 1), (1, 1.15))]
    assert slow == pytest.approx(short / 0.8, rel=0.1) and small == pytest.approx(short, rel=0.1)
    (path,), = build_sets.recorded([[said[0]]], tmp_path, foreign.say_all)
    assert sf.info(path).duration == pytest.approx(short)
    with pytest.raises(ValueError, match="unknown voice 'kal16'"):
        foreign.say_all([Utterance("No.", "kal16")])


def voice_of(line: dict) -> str | None:
    """Who asks first."""
    return line["conversations"][0].get("voice", "").split(":")[0]


def grid_frames(text: str) -> int:
    pcm, phones = synthesise_timed(text, "rms")
    wav = soxr.resample(pcm.astype(np.float32) / 32768, RATE, SAMPLE_RATE)
    return GridCodec.load(TARGETS).encode_spoken(wav, text, phones)[0].shape[1]


@needs_flite
def test_voices_files_have_the_built_in_voices_and_those_kept_unheard(tmp_path):
    voices.main(["--codec", str(TARGETS), "--speaker_encoder", "none", "--out", str(tmp_path / "pack" / "voices.pt"), "--device", "cpu"])
    built_in, unseen = (load_voices(tmp_path / "pack" / name, OmniConfig.preset("nano")) for name in ("voices.pt", "voices_unseen.pt"))
    assert list(built_in) == ["rms", "slt", "awb"] and "kal16" in unseen and not set(built_in) & set(unseen)
    lengths = {voice.ref_codes.shape[1] for voice in (*built_in.values(), *unseen.values())}
    assert len(lengths) > 1 and all(25 <= length <= 100 for length in lengths)


def test_missing_codec_names_the_remedy(tmp_path, capsys):
    assert build_sets.main(["t2a", "--codec", str(tmp_path / "absent")]) == 2
    assert "nano.train_mimi" in capsys.readouterr().err


class FakeEar:
    def transcribe(self, wav):
        return "" if len(wav) < 800 else f"words {len(wav)}"


def spoken_row(i, samples, picture=False):
    buffer = io.BytesIO()
    sf.write(buffer, np.sin(np.arange(samples) / 9) * 0.3, 16000, format="FLAC")
    talk = [("user", "Before?"), ("assistant", "Yes."), ("user", "<image>\nWhat now?" if picture else "What now?"), ("assistant", "Now.")]
    return dict.fromkeys(SCHEMA.names) | {"conversations": json.dumps([{"role": r, "content": c} for r, c in talk]), "id": str(i),
                                          "question_audios": [buffer.getvalue()] * 2, "answer_audios": [[], []]}


def test_what_the_ear_writes_stands_beside_the_sound(tmp_path):
    """The same seed gives the same bytes; a question of which nothing is heard is left out; only the last one keeps its sound."""
    (tmp_path / "a2a").mkdir()
    rows = [spoken_row(0, 8000), spoken_row(1, 8001, picture=True), spoken_row(2, 100), {**spoken_row(3, 8000), "question_audios": []}]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "a2a" / "shard.parquet")
    for name in ("one", "two"):
        assert write_down.write_set(tmp_path / "a2a", tmp_path / name, 9, FakeEar(), 1) == 2
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    for row in pq.read_table(tmp_path / "one").to_pylist():
        messages, (first, sound) = json.loads(row["conversations"]), row["question_audios"]
        tag = "<image>\n" * (row["id"] == "1")
        assert first is None and messages[0]["content"] == "Before?"
        assert messages[2]["content"] == f"{tag}words {len(read_audio(sound, 16000))}"


def test_prompts_borrow_the_speech_of_the_same_reply(tmp_path, capsys):
    """Sound and picture stay, in their turn; what comes before is silent; a reply that nobody says is left out; the seed decides all."""
    speech = [{**t2a_row(i, f"Reply {i}."), "speaker": f"voice {i}"} for i in range(4)]
    prompts = [{**spoken_row(i, 8000, picture=i == 1), "image_bytes": [b"png"] * (i == 1)} for i in range(40)]
    prompts[2]["conversations"] = json.dumps([{"role": "user", "content": "Unknown?"}, {"role": "assistant", "content": "Never said."}])
    prompts = [{**row, "conversations": row["conversations"].replace("Now.", f"Reply {i % 3}.")} for i, row in enumerate(prompts)]
    for name, rows in (("speech", speech), ("prompts", prompts)):
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / name / "shard.parquet")
    command = [str(tmp_path / "prompts"), "--speech", str(tmp_path / "speech"), "--talks", "3"]
    for out in ("one", "two"):
        assert lend_speech.main([*command, "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / "one" / "lent.parquet").read_bytes() == (tmp_path / "two" / "lent.parquet").read_bytes()
    lent = ParquetRows(tmp_path / "one" / "lent.parquet", num_codes=2048, spk_size=192)
    assert len(lent) == 39 + 3
    rows, lengths = [lent[i] for i in range(len(lent))], set()
    for row in rows:
        last, replies = int(row.messages[-1]["content"][6]), len(row.messages) // 2
        lengths.add(replies)
        *earlier, codes = row.answer_codes
        assert len(earlier) == replies - 1 and all(silent.shape[1] == 0 for silent in earlier)
        assert codes.shape == (8, 2) and (codes == last).all() and (row.ref_codes == last).all() and row.spk_emb[0] == last
        assert not row.question_audios or [bool(sound) for sound in row.question_audios] == [False] * (replies - 2) + [True] * 2
        assert len(row.images) == row.messages[-2]["content"].count("<image>")
    assert len(lengths) > 4 and sum(len(row.images) for row in rows) == 1
    assert lend_speech.main([*command[:-1], "100", "--out", str(tmp_path / "all")]) == 0  # more talks than rows are all of them
    assert len(ParquetRows(tmp_path / "all" / "lent.parquet", num_codes=2048, spk_size=192)) == 39 + 4
    pq.write_table(pa.Table.from_pylist(prompts[2:3], schema=SCHEMA), tmp_path / "prompts" / "shard.parquet")
    assert lend_speech.main([*command, "--out", str(tmp_path / "none")]) == 2 and "no reply of" in capsys.readouterr().err


def t2a_row(i, reply):
    messages = [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": reply}]
    return dict.fromkeys(SCHEMA.names) | {
        "conversations": json.dumps(messages), "id": str(i), "seconds": 0.16, "answer_audios": [[i] * 16], "answer_letters": [[0.0, 1.0]],
        "ref_audios": [i] * 16, "spk_emb": [float(i)] * 192}
