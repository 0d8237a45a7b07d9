"""Figures of merit against values worked out by hand, and the recogniser that judges speech."""
import json
import math

import numpy as np
import pytest

from evals import asr, eval_nano
from evals.cases import SUITES, cases_for, parse_suites
from evals.metrics import cer, cosine, edit_distance, percentiles, wer, words


@pytest.mark.parametrize("reference, hypothesis, distance", [
    ("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2), ("same", "same", 0)])
def test_edit_distance(reference, hypothesis, distance):
    assert edit_distance(reference, hypothesis) == distance
    assert edit_distance(list(hypothesis), list(reference)) == distance


def test_words_drop_case_punctuation_and_digits():
    assert words("Don’t  STOP -- me, I'm 3 years old!") == ["don't", "stop", "me", "i'm", "years", "old"]
    assert words("你好, 42") == []


def test_wer_is_total_errors_over_total_words():
    assert wer([("one two three four", "one too three"), ("Yes.", "yes")]) == pytest.approx(2 / 5)
    assert wer([("", "uh oh")]) == 2  # nothing should have been said: every word heard counts
    assert wer([]) == 0


def test_cer_counts_letters_of_any_script():
    assert cer([("天空是蓝色的。", "天空 是绿色")]) == pytest.approx(2 / 6)


def test_percentiles_and_cosine():
    assert percentiles(range(101), (50, 95)) == {"p50": 50, "p95": 95}
    assert math.isnan(percentiles([])["p50"])
    assert cosine([1, 0], [1, 1]) == pytest.approx(2 ** -0.5)
    assert cosine([0, 0], [1, 1]) == 0


@pytest.mark.parametrize("names, suites", [
    (["text"], ["text"]), (["clone", "text", "clone"], ["clone", "text"]), (["text,multi"], ["text", "multi"]),
    (["-1"], list(SUITES)), (["all"], list(SUITES)), (["0"], ["text"]), (["0,2", "5"], ["text", "audio", "mix"])])
def test_suites_by_name_and_by_the_original_numbers(names, suites):
    assert parse_suites(names) == suites


@pytest.mark.parametrize("name", ["6", "-2", "speech", "", "0,,1"])
def test_unknown_suites_are_named(name):
    with pytest.raises(ValueError, match="unknown suite"):
        parse_suites([name])


def test_cases_of_every_suite(tmp_path):
    for name in ("audio-1.wav", "image-1.png", "image-2.png", "img-1.wav", "other.txt"):
        (tmp_path / name).touch()
    for world in ("nano", "general"):
        cases = {suite: cases_for(suite, world, tmp_path, ["ann", "bob"]) for suite in SUITES}
        assert [case.voice for case in cases["clone"]] == ["ann", "bob"]
        assert all(len(case.turns) > 1 for case in cases["multi"])
        assert [case.image.name for case in cases["mix"]] == ["image-1.png", "image-2.png"]
        assert all(case.audio for case in cases["mix"] + cases["audio"])
        assert all(case.turns[0] for case in cases["image"] + cases["text"])
        assert len({case.name for suite in cases.values() for case in suite}) == sum(map(len, cases.values()))
    with pytest.raises(FileNotFoundError, match="examples_dir"):
        cases_for("audio", "nano", tmp_path / "nowhere", [])


def test_summary_adds_words_up_and_groups():
    base = dict(kind="k", ended=True, audio_s=2.0, total_s=1.0, ttfa_s=0.1)
    records = [{**base, "voice": "a", "exact": True, "errors": 1, "words": 9},
               {**base, "voice": "b", "exact": False, "errors": 1, "words": 1}]
    rows = {row["group"]: row for row in eval_nano.summarise(records)}
    assert list(rows) == ["all", "voice a", "voice b", "kind k"]
    assert rows["all"] == {"group": "all", "n": 2, "exact": 0.5, "wer": pytest.approx(0.2), "ended": 1.0,
                           "ttfa_ms_p50": pytest.approx(100), "ttfa_ms_p95": pytest.approx(100), "rtf": 0.5}
    assert "| voice b | 1 | 0% | 1.000 |" in eval_nano.table(list(rows.values()))


def test_finished_questions_survive_a_line_cut_by_a_kill(tmp_path):
    log = tmp_path / "items.jsonl"
    record = {"question": "q", "answer": "a", "voice": "v", "errors": 1}
    log.write_text(json.dumps(record) + "\n" + '{"question": "hal')
    assert eval_nano.read_done(log) == {("q", "a", "v"): record}


def test_unknown_recogniser_is_named():
    with pytest.raises(ValueError, match="pocketsphinx"):
        asr.load_recogniser("ears")


@pytest.fixture(scope="module")
def recogniser():
    pytest.importorskip("pocketsphinx")
    return asr.load_recogniser()


def test_silence_and_noise(recogniser):
    assert recogniser.transcribe(np.zeros(16000, np.float32), 16000) == ""
    assert recogniser.transcribe(np.zeros(0, np.float32), 16000) == ""
    assert isinstance(recogniser.transcribe(np.sin(np.arange(12000) * 0.1), 24000), str)
    with pytest.raises(ValueError, match="NaN"):
        recogniser.transcribe(np.array([0.1, np.nan]), 16000)


def test_recogniser_hears_words_and_forgets_the_last_clip(recogniser, shared):
    from model.audio import read_audio
    wav = read_audio(shared / "assets/eval_omni/audio-en-12_how_do_i_make_a_good_cup_of_coffee.mp3", 24000)
    heard = recogniser.transcribe(wav, 24000)
    assert heard == "how do i make a good cup of coffee"
    other = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    recogniser.transcribe(other, 16000)
    assert recogniser.transcribe(np.stack([wav, wav], axis=1) * 0.1, 24000) == heard  # stereo, quieter, later: the same words
