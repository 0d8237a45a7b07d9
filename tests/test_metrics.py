"""Figures of merit against values worked out by hand, and the recogniser that judges speech."""
import json
import math

import numpy as np
import pytest

from evals import asr, eval_nano
from evals.cases import SUITES, cases_for, parse_suites
from evals.metrics import bootstrap, characters, edit_distance, percentiles, wer, words


@pytest.mark.parametrize("reference, hypothesis, distance", [
    ("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2), ("same", "same", 0)])
def test_edit_distance(reference, hypothesis, distance):
    assert edit_distance(reference, hypothesis) == distance
    assert edit_distance(list(hypothesis), list(reference)) == distance


@pytest.mark.parametrize("text, normal", [
    ("Don’t  STOP -- me, I'm here!", "don't stop me i'm here"), ("ＦＵＬＬ　width", "full width"),
    ("3 apples, 1,234 pears and 50% more", "three apples one thousand two hundred thirty four pears and fifty percent more"),
    ("born in 1999, 105 years", "born in nineteen ninety nine one hundred five years"), ("the 3rd of 2.5", "the third of two point five"),
    ("one hundred and five cats", "one hundred five cats"), ("1000001", "one million one"), ("9" * 400, " ".join(["nine"] * 400)),
    ("1" * 5000 + "th", " ".join(["one"] * 5000)), ("9" * 400 + ".5", " ".join(["nine"] * 400 + ["point", "five"])),
    ("in 2005", "in two thousand five"), ("salt and pepper", "salt and pepper"), ("你好", "")])
def test_words_are_normalised(text, normal):
    assert " ".join(words(text)) == normal


@pytest.mark.parametrize("text, normal", [
    ("天空是，蓝色的。 OK!", "天空是蓝色的ok"), ("我有12个苹果，共1,200克", "我有十二个苹果共一千二百克"), ("2024年，30%的人", "二零二四年百分之三十的人"),
    ("I have 12", "ihavetwelve"), ("É. été", "éété")])
def test_characters_are_normalised(text, normal):
    assert "".join(characters(text)) == normal


def test_spelling_of_numbers_is_no_error():
    assert wer([("It is 21 years old, in 1999.", "it is twenty one years old in nineteen ninety nine")]) == 0
    assert characters("他今年21岁。") == characters("他今年二十一岁")


def test_bootstrap_interval_holds_the_rate_and_narrows_with_items():
    errors = np.random.default_rng(1).binomial(10, 0.3, 400)
    few, many = bootstrap(errors[:20], [10] * 20), bootstrap(errors, [10] * 400)
    assert few[0] < 0.3 < few[1] and many[0] < 0.3 < many[1]
    assert many[1] - many[0] < 0.5 * (few[1] - few[0])
    assert bootstrap(errors, seed=3) == bootstrap(errors, seed=3) != bootstrap(errors, seed=4)
    assert bootstrap([2, 2]) == (2, 2) and math.isnan(bootstrap([])[0])


def test_wer_is_total_errors_over_total_words():
    assert wer([("one two three four", "one too three"), ("Yes.", "yes")]) == pytest.approx(2 / 5)
    assert wer([("", "uh oh")]) == 2  # nothing should have been said: every word heard counts
    assert wer([]) == 0


def test_percentiles():
    assert percentiles(range(101), (50, 95)) == {"p50": 50, "p95": 95}
    assert math.isnan(percentiles([])["p50"])


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
