"""The nano world's data sets by the data builder: who says what, codes on the grid of words, every part valid."""
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dataset.parquet_rows import ParquetRows
from nano import build_sets, corpus
from nano.build_data import voiced
from nano.speech import Utterance, synthesise_timed
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
    said = voiced(items, 0.25, (1.0,), 1)
    lines = build_sets.read_aloud("t", items, said, 1)
    assert len(lines) == len(said) > 40 and len({line["id"] for line in lines}) == len(lines)
    assert {(line["conversations"][1]["content"], line["speaker"]) for line in lines} == {(u.text, u.voice) for u in said}
    assert lines == build_sets.read_aloud("t", items, said, 1) != sorted(lines, key=lambda line: line["id"])


@needs_flite
def test_sets_are_planned_built_and_valid(tmp_path):
    train, heldout = corpus.build()
    for name, items in (("train", train), ("heldout", heldout), ("words", corpus.word_lists(train, 4))):
        corpus.write_jsonl(items, tmp_path / "corpus" / f"{name}.jsonl")
    args = build_sets.parse_args([*build_sets.SETS, "--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "data"), "--codec",
                                  str(TARGETS), "--speaker_encoder", "none", "--tokenizer", "none", "--workers", "1", "--limit", "2",
                                  "--others", "1", "--strangers", "1", "--askings", "1", "--conversations", "400", "--questions", "4",
                                  "--spoken", "2", "--heldout", "1"])
    found = build_sets.plan_sets(args)
    assert {name: len(lines) for name, lines in found.items()} == {
        "t2a_train": 8, "t2a_words": 6, "t2a_heldout": 6, "i2t_train": 4, "mix_train": 2, "told_train": 4, "i2t_heldout": 1,
        "mix_heldout": 1, "told_heldout": 1, **{f"{name}_{part}": 2 for name in ("a2a", "multi")
                                                for part in ("train", "heldout", "noisy", "unseen")}}
    assert {voice_of(line) for line in found["a2a_unseen"]} == {"kal16"} and "kal16" not in {voice_of(line) for line in found["a2a_train"]}
    for name in ("t2a_train", "multi_noisy", "mix_heldout"):
        rows = build_sets.build_set(name, found[name], args)["rows"]
        assert rows == len(found[name]) == len(ParquetRows(tmp_path / "data" / name, 512, 192))
        for row in pq.read_table(tmp_path / "data" / name / "shard-00000.parquet").to_pylist():
            asked = [message["content"] for message in json.loads(row["conversations"]) if message["role"] == "user"]
            assert len(row["answer_audios"]) == len(asked) and all(row["answer_audios"]) and row["kind"]
            assert len(row["question_audios"]) == (0 if name == "t2a_train" else len(asked))
            assert (len(row["image_bytes"]) == 1) == (name == "mix_heldout") == asked[0].startswith("<image>\n")
    rows = pq.read_table(tmp_path / "data" / "t2a_train" / "shard-00000.parquet").to_pylist()
    row = next(row for row in rows if row["speaker"] == "rms")
    text = json.loads(row["conversations"])[1]["content"]
    assert len(row["answer_audios"][0]) / 8 == pytest.approx(grid_frames(text), abs=1)  # but for the last pause


def voice_of(line: dict) -> str | None:
    """Who asks first."""
    return line["conversations"][0].get("voice", "").split(":")[0]


def grid_frames(text: str) -> int:
    from nano.build_data import encode_on_grid

    return encode_on_grid(GridCodec.load(TARGETS).analyser, Utterance(text, "rms"), *synthesise_timed(text, "rms"))[0].shape[1]
