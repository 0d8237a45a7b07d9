"""The nano world: its corpus, speech and tokenizer."""
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from nano import corpus, multi_turn, sayings, tokenizer as nano_tokenizer
from nano.mimi_targets import Analyser, LatentSpace
from nano.speech import RATE, Utterance, read_shard, render, synthesise, synthesise_timed
from nano.word_grid import hop_ends, letters_said, unit_ends

PACK = Path(__file__).resolve().parents[1] / "model" / "nano"
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")


@pytest.fixture(scope="module")
def built():
    return corpus.build()


def test_corpus_size_and_vocabulary(built):
    train, heldout = built
    assert len({(item["question"], item["answer"]) for item in train}) == len(train) >= 8000
    assert len(heldout) >= 200
    counts = Counter(word for item in train for word in set(corpus.words(item["answer"])))
    assert len(counts) >= 600
    assert min(counts.values()) >= corpus.MIN_COUNT
    assert {word for item in heldout for word in corpus.words(item["answer"])} <= set(counts)
    kinds = Counter(item["kind"] for item in heldout)
    assert all(kinds[kind] >= 5 for kind in {item["kind"] for item in train} - {"about me"}), kinds


def test_answers_are_short_plain_sentences(built):
    for item in built[0] + built[1]:
        assert 3 <= len(item["answer"].split()) <= 14, item
        assert set(item["answer"]) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,?"), item
        assert item["answer"][0].isupper() and item["answer"][-1] in ".?", item


def test_heldout_sentences_never_occur_in_training(built):
    train, heldout = built
    seen = {corpus.normalise(item[part]) for item in train for part in ("question", "answer")}
    for item in heldout:
        assert corpus.normalise(item["question"]) not in seen and corpus.normalise(item["answer"]) not in seen, item


def test_a_question_has_one_answer(built):
    answers = {}
    for item in built[0] + built[1]:
        assert answers.setdefault(corpus.normalise(item["question"]), item["answer"]) == item["answer"], item


def test_more_sentences_are_new_and_of_known_words(built):
    train, heldout = built
    more = corpus.more_sentences(train, heldout, 2000)
    said = {corpus.normalise(item["answer"]) for item in train + heldout}
    taught = {word for item in train for word in corpus.words(item["answer"])}
    answers = [corpus.normalise(item["answer"]) for item in more]
    assert len(set(answers)) == len(answers) > 1800 and not said & set(answers)
    assert all(taught.issuperset(answer.split()) and len(answer.split()) <= 14 for answer in answers)
    assert all(item["question"].endswith(item["answer"]) for item in more), "the question says what is to be said"


def test_mixed_sentences_are_new_and_go_on_as_taught_ones_do(built):
    train, heldout = built
    mixed = corpus.mixed_sentences(train, train + heldout, 500)
    said = {corpus.normalise(item[part]) for item in train + heldout for part in ("question", "answer")}
    taught = {three for item in train for three in triples(item["answer"])}
    answers = [corpus.normalise(item["answer"]) for item in mixed]
    assert len(set(answers)) == len(answers) == 500 and not said & set(answers)
    assert mixed == corpus.mixed_sentences(train, train + heldout, 500) != corpus.mixed_sentences(train, train + heldout, 500, seed=1)
    for item in mixed:
        assert taught.issuperset(triples(item["answer"])) and len(item["answer"].split()) in corpus.MIXED_LENGTHS, item
        assert item["question"].endswith(item["answer"]), "the question says what is to be said"


def triples(text):
    words = ["<", "<", *text.split(), ">"]
    return list(zip(words, words[1:], words[2:]))


def test_further_questions_are_new_answered_alike_and_of_known_words(built):
    train, heldout = built
    more = corpus.more_questions(train, heldout)
    taught = {word for item in train for word in corpus.words(item["answer"])}
    asked, said = ({corpus.normalise(item[part]) for item in heldout} for part in ("question", "answer"))
    answers = {corpus.normalise(item["question"]): item["answer"] for item in train}
    assert len(more) > 8000 and more == corpus.more_questions(train, heldout)
    for item in more:
        question, answer = corpus.normalise(item["question"]), corpus.normalise(item["answer"])
        assert question not in asked and answer not in said and taught.issuperset(answer.split()), item
        assert answers.setdefault(question, item["answer"]) == item["answer"], item
    learnt, other = multi_turn.build(train, heldout, random.Random(1), count=4000)
    for talk in learnt:  # nor does a conversation begin with another answer
        question, answer = (message["content"] for message in talk["messages"][:2])
        assert answers.setdefault(corpus.normalise(question), answer) == answer, talk
    assert not {talk["messages"][-1]["content"] for talk in other} & {item["answer"] for item in more}


def test_facts_are_asked_equally_often(built):
    items = corpus.facts(built[0], random.Random(0))
    counts = Counter(item["kind"] for item in items)
    assert set(counts) == {item["kind"] for item in built[0]} - set(corpus.NO_FACTS)
    assert all(corpus.FACTS_OF_A_KIND / 2 < count <= corpus.FACTS_OF_A_KIND for count in counts.values()), counts


def test_corpus_is_deterministic(built):
    assert corpus.build() == built
    assert corpus.build(seed=1)[1] != built[1]


def test_missing_corpus_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m nano.corpus"):
        corpus.read_jsonl(tmp_path / "train.jsonl")


# ---- tokenizer

@pytest.fixture(scope="module")
def ours(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [text for item in built[0][:3000] for text in (item["question"], item["answer"])]
    nano_tokenizer.save(nano_tokenizer.train(texts), folder)
    return AutoTokenizer.from_pretrained(folder)


def test_tokenizer_round_trips_any_text(ours):
    assert len(ours) == nano_tokenizer.VOCAB_SIZE
    for text in ("The dog lives in the house.", " two  spaces\n\n\ttab", "héllo 你好 😀 \x00", "</think>\n\nYes."):
        assert ours.decode(ours.encode(text)) == text


def test_shipped_tokenizer_is_the_one_of_the_corpus(built, tmp_path):
    if not (PACK / "tokenizer.json").exists():
        pytest.skip("model/nano has no tokenizer")
    nano_tokenizer.save(nano_tokenizer.train(text for item in built[0] for text in (item["question"], item["answer"])), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text("utf-8")) == json.loads((PACK / name).read_text("utf-8")), name


def user(text):
    return {"role": "user", "content": text}


def reply(text, **more):
    return {"role": "assistant", "content": text, **more}


TOOLS = [{"type": "function", "function": {"name": "f", "description": 'é "x"', "parameters": {}}}]
CONVERSATIONS = [
    [user("hi")],
    [{"role": "system", "content": "Be kind."}, user("hi")],
    [user("a"), reply("b"), user("c"), reply("d")],
    [{"role": "system", "content": "s"}, user("a"), reply("<think>\nhm\n</think>\n\nb"), user("c")],
    [user(" a \n"), reply("\n\nb", reasoning_content="\nwhy\n"), reply("x<think>y</think>z")],
    [user("a"), reply("", tool_calls=[{"function": {"name": "f", "arguments": {"x": 1}}}, {"name": "g", "arguments": "{}"}]),
     {"role": "tool", "content": "r1"}, {"role": "tool", "content": "r2"}, reply("done")],
    [user("a"), reply("so", tool_calls=[{"function": {"name": "f", "arguments": {}}}]), {"role": "tool", "content": "r"}, user("b"),
     {"role": "system", "content": "mid"}, reply(None)],
]


@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": True}, {"add_generation_prompt": True, "open_thinking": True},
                                     {"add_generation_prompt": True, "open_thinking": False, "tools": TOOLS}], ids=str)
def test_chat_template_renders_like_the_released_one(ours, tokenizer_dir, options):
    released = AutoTokenizer.from_pretrained(tokenizer_dir)
    for messages in CONVERSATIONS:
        texts = [each.apply_chat_template(messages, tokenize=False, **options) for each in (ours, released)]
        assert texts[0] == texts[1]


def test_special_ids_and_settings_are_the_released_ones(ours, tokenizer_dir):
    released = AutoTokenizer.from_pretrained(tokenizer_dir)
    content = json.loads((tokenizer_dir / "tokenizer.json").read_text("utf-8"))
    mine = json.loads(ours.backend_tokenizer.to_str())
    assert mine["added_tokens"] == content["added_tokens"]
    config = json.loads((tokenizer_dir / "tokenizer_config.json").read_text("utf-8"))
    assert {**nano_tokenizer.tokenizer_config(), "chat_template": None} == {**config, "chat_template": None}
    for text in ("</think>\n\n", "<|im_end|>\n", "<|audio_pad|><|image_pad|>", "<think>\n"):
        assert ours.encode(text) == released.encode(text)


# ---- speech

def test_speech_refuses_what_it_cannot_say(monkeypatch):
    for arguments, message in ((("hi", "bob"), "unknown voice"), ((" ", "slt"), "empty"), (("hi", "slt", 3.0), "0.5-2")):
        with pytest.raises(ValueError, match=message):
            synthesise(*arguments)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="apt-get install flite"):
        synthesise("hi", "slt")


@needs_flite
def test_rate_and_pitch():
    text = "The farmer grows vegetables near the river."
    plain, fast, high = synthesise(text, "rms"), synthesise(text, "rms", rate=1.25), synthesise(text, "rms", pitch=1.25)
    assert plain.dtype == np.int16 and plain.ndim == 1
    assert abs(len(fast) / len(plain) - 0.8) < 0.04 and abs(len(high) / len(plain) - 1) < 0.03

    def pitch_hz(wav):
        middle = wav[len(wav) // 4:len(wav) // 2].astype(float)
        autocorrelation = np.correlate(middle, middle, "full")[len(middle) - 1:]
        return RATE / (50 + np.argmax(autocorrelation[50:300]))

    assert 1.15 < pitch_hz(high) / pitch_hz(plain) < 1.35


@needs_flite
def test_render_is_resumable(tmp_path):
    utterances = [Utterance("The cat sleeps.", "slt"), Utterance("The cat sleeps.", "rms", 1.1), Utterance("Good morning.", "awb")]
    indexes = render(utterances, tmp_path, workers=1, shard_size=2)
    said = [pair for index in indexes for pair in read_shard(index)]
    assert [utterance for utterance, _ in said] == utterances
    assert np.array_equal(said[0][1], synthesise("The cat sleeps.", "slt"))
    times = [index.stat().st_mtime_ns for index in indexes]
    indexes[1].unlink()
    assert render(utterances, tmp_path, workers=1, shard_size=2) == indexes
    assert indexes[0].stat().st_mtime_ns == times[0] and indexes[1].stat().st_mtime_ns > times[1]
    assert not list(tmp_path.glob("*.tmp"))


# ---- words on the grid of frames

def test_every_word_begins_with_a_frame():
    units = [(0.13, True), (0.30, False), (0.33, False), (0.60, False), (0.79, True), (1.0, False), (1.2, True)]
    ends = hop_ends(units, 28_000)
    frames = [1, 2, 1, 3, 2, 3, 2]  # pauses are cut (the first to one frame), words get the nearest number, at least one
    assert len(ends) == 8 * sum(frames)
    for unit, last in zip(units, np.cumsum(frames) * 8 - 1):
        assert ends[last] == min(round(unit[0] * 24_000), 28_000)
    assert (np.diff(ends) >= 0).all() and ends[-1] == 28_000


def test_codes_on_the_plain_grid_are_the_plain_codes():
    generator = torch.Generator().manual_seed(0)
    wav = torch.randn(1, 3 * 1920, generator=generator) * 0.1
    space, _ = LatentSpace.fit(torch.randn(400, 320, generator=generator), 96)
    codec = Analyser(space, torch.randn(8, 16, 96, generator=generator))
    assert torch.equal(codec.encode_at(wav[0], torch.arange(240, 5761, 240)), codec.encode(wav)[0])


@needs_flite
def test_words_are_found_in_the_speech():
    text = "The dog usually lives in the house, and I read books."
    wav, phones = synthesise_timed(text, "rms")
    units = unit_ends(text, phones)
    assert [is_pause for _, is_pause in units] == [True, *[False] * 7, True, *[False] * 4, True]
    loud = np.abs(wav[:int(units[0][0] * RATE)]).max(), np.abs(wav[int(units[0][0] * RATE):int(units[1][0] * RATE)]).max()
    assert loud[0] < 0.1 * loud[1]  # the first pause is one
    letters = letters_said(text, units, len(wav) * 3 // 2)
    assert len(letters) == len(hop_ends(units, len(wav) * 3 // 2)) // 8 and (np.diff(letters) >= 0).all()
    spaced = "".join(text.split())
    assert letters[0] == 0 and letters[-1] == len(spaced) and {spaced[int(letter)] for letter in letters[:-2]} >= set("house")
    assert not len(letters_said(text + " More.", units, len(wav)))
    assert unit_ends(text + " More.", phones) == [unit for unit in units if unit[1]]  # what does not add up keeps its pauses


def test_a_pattern_that_is_used_up_makes_room_for_the_next():
    """Without end before: the count of sentences chose the pattern, and did not grow."""
    class Filler:
        rng = random.Random(0)  # chooses how it is asked

        def fill(self, pattern):
            return "one two three four" if pattern == sayings.PATTERNS[0] else f"one two three {sayings.PATTERNS.index(pattern)}"
    count = len(sayings.PATTERNS)
    assert len(sayings.say_after_me(Filler(), count)) == count
    with pytest.raises(ValueError, match=f"give {count} distinct sentences, not {count + 1}"):
        sayings.say_after_me(Filler(), count + 1)
