"""model/ctc.py: the language model's probabilities, and the search against all alignments counted one by one."""
import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from model.ctc import BLANK, END, NGram, greedy, search
from nano import corpus, train_language

TEXTS = [[3, 4, 5], [3, 4, 6], [3, 4, 5], [5], []]
VOCABULARY = 7


def log_probs(frames: int, seed: int) -> np.ndarray:
    logits = 2 * torch.randn(frames, 5, generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(-1).numpy()


def test_probabilities_are_witten_bells():
    model = NGram.fit(TEXTS, 3, VOCABULARY)
    once = (5 + 5 / VOCABULARY) / (15 + 5)  # END anywhere: 5 of 15 tokens, which are of five kinds
    twice = (0 + 2 * once) / (3 + 2)  # ... behind 4: 3 times, two kinds, never the end
    assert model.log_prob((3, 4), END) == pytest.approx(math.log((0 + 2 * twice) / (3 + 2)))
    assert model.log_prob((6, 4), END) == pytest.approx(math.log(twice)), "an unknown history says what its end says"
    for before in ((), (3,), (3, 4), (5, 5), (3, 4, 5), (0, 6)):
        assert sum(math.exp(model.log_prob(before, token)) for token in range(VOCABULARY)) == pytest.approx(1)
    assert model.log_prob((3, 4), 5) > model.log_prob((3, 4), 6) > model.log_prob((3, 4), 3)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_it_is_kept_in_a_file(tmp_path, order):
    model = NGram.fit(TEXTS, order, VOCABULARY)
    model.save(tmp_path / "ngram.npz")
    again = NGram.load(tmp_path / "ngram.npz")
    assert again.order == order and again.seen == model.seen and again.followed == model.followed
    for content in (b"", b"PK\x03\x04nothing", b"no archive"):
        (tmp_path / "broken.npz").write_bytes(content)
        with pytest.raises(ValueError, match="broken.npz"):
            NGram.load(tmp_path / "broken.npz")


@pytest.mark.parametrize("seed", range(8))
def test_greedy_merges_repetitions_and_drops_blanks(seed):
    found = torch.unique_consecutive(torch.from_numpy(log_probs(9, seed)).argmax(-1))
    assert greedy(log_probs(9, seed)) == found[found != BLANK].tolist()


@pytest.mark.parametrize("seed", range(8))
def test_the_search_finds_the_best_text_of_all(seed):
    """Tokens 1 to 4 over five frames: the texts' scores by summing all 3125 alignments."""
    frames, model = log_probs(5, seed), NGram.fit([[3, 4, 3], [4, 4], [3]], 2, 5)
    sound = defaultdict(float)
    for path in itertools.product(range(5), repeat=len(frames)):
        text = tuple(token for token, _ in itertools.groupby(path) if token != BLANK)
        sound[text] += math.exp(sum(frames[i, token] for i, token in enumerate(path)))

    def score(text, weight, bonus):
        said = sum(model.log_prob(text[:i], token) for i, token in enumerate(text)) + model.log_prob(text, END)
        return math.log(sound[text]) + weight * said + bonus * len(text)
    everything = dict(width=10_000, least=-math.inf, behind=math.inf)
    for weight, bonus in ((0.0, 0.0), (0.7, 1.0)):
        best = max(sound, key=lambda text: score(text, weight, bonus))
        assert tuple(search(frames, model, weight, bonus, **everything)) == best
        narrow = tuple(search(frames, model, weight, bonus))
        assert score(narrow, weight, bonus) > score(best, weight, bonus) - 1


def test_noise_costs_no_more_than_speech(monkeypatch):
    tried = []
    monkeypatch.setattr(NGram, "log_prob", lambda self, before, token: tried.append(token) or -1.0)
    search(np.full((20, 500), -np.log(500)), NGram.fit([[3]], 2, 500))
    assert len(tried) <= 20 * 16 * 16, "16 texts, 16 tokens each"


def test_what_the_sound_leaves_open_is_settled_by_what_people_say():
    model = NGram.fit([[3, 4, 5]] * 20 + [[6]], 3, VOCABULARY)
    frames = np.full((5, VOCABULARY), -6.0)
    for frame, tokens in enumerate(((3,), (BLANK,), (4, 6), (BLANK,), (5,))):
        frames[frame, list(tokens)] = np.log(0.9 / len(tokens))
    frames[2, 6] += 0.3  # the sound alone prefers the wrong one
    assert greedy(frames) == [3, 6, 5] and search(frames, model) == [3, 4, 5]


def test_the_nano_ear_is_told_what_is_said_to_it_but_nothing_held_out(tmp_path, monkeypatch, capsys):
    from sentencepiece import SentencePieceProcessor

    from model.encoders import NGRAM
    from nano.train_sensevoice import train_tokenizer

    train, heldout = corpus.build()
    for name, items in (("train", train), ("heldout", heldout), ("questions", corpus.more_questions(train, heldout)[:500]),
                        ("sentences", corpus.more_sentences(train, heldout, 500))):
        corpus.write_jsonl(items, tmp_path / f"{name}.jsonl")
    monkeypatch.setattr(train_language, "SCENES", 50)
    monkeypatch.setattr(train_language, "TURNS", 500)
    assert train_language.main(["--corpus", str(tmp_path), "--ear", str(tmp_path / "ear")]) == 2
    assert "bpe.model" in capsys.readouterr().err
    (tmp_path / "ear").mkdir()
    (tmp_path / "ear" / "bpe.model").write_bytes(train_tokenizer([item["question"] for item in train], 300))
    texts = []
    fit = NGram.fit
    monkeypatch.setattr(NGram, "fit", lambda given, *more: texts.extend(given) or fit(given, *more))
    assert train_language.main(["--corpus", str(tmp_path), "--ear", str(tmp_path / "ear")]) == 0
    pieces, model = SentencePieceProcessor(model_file=str(tmp_path / "ear" / "bpe.model")), NGram.load(tmp_path / "ear" / NGRAM)
    known = {pieces.decode(text) for text in texts}
    assert len(known) > 10_000 and not known & {corpus.normalise(item["question"]) for item in heldout}

    def nats(text):
        ids = [*pieces.encode(text), END]
        return -sum(model.log_prob(tuple(ids[:i]), token) for i, token in enumerate(ids)) / len(ids)
    asked = [corpus.normalise(item["question"]) for item in heldout[:50]]
    backwards = [" ".join(reversed(text.split())) for text in asked]
    assert sum(map(nats, asked)) < 0.6 * sum(map(nats, backwards))
