"""The corpus of the nano world: short questions and answers, split by sentence into training and held-out.

- Facts (nano/world.py) said in several forms (nano/forms.py) plus sentences to repeat and little stories (nano/sayings.py).
- A held-out pair's question and answer sentences occur nowhere in training; the fact and the form do, each with others.
- Closed vocabulary: every answer word occurs in at least MIN_COUNT training answers.
- Beside it, to be read aloud only: further sentences from the same words, since a Talker needs more of them than a Thinker needs facts;
  mixtures, sentences that go on as the facts' do but say something else; and lists of words in no order, since one that has heard nothing
  but sentences learns what is usually said rather than what is written.
- And, for a Thinker: further questions, more ways to ask for the same facts (nano/more_forms.py) and more little stories.
- One seed decides everything: the same files on every machine.

    python -m nano.corpus --out out/nano/corpus
"""
import argparse
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from model.checkpoint import replace_atomic
from nano import sayings
from nano.forms import pairs
from nano.more_forms import more_pairs
from nano.scenes import answer_sentences

SEED = 2026
MIN_COUNT = 20  # training answers in which a word occurs; spoken by three voices that is sixty times
NUM_SAYINGS = 3000
NUM_READING = 130  # of each little story
NUM_PICTURE_SENTENCES = 800
NUM_MORE_READING = 450  # of each little story, among the further questions
FACTS_OF_A_KIND = 1000  # of `facts`
NO_FACTS = ("say after me", "reading", "comparison")  # kinds that are learnt from many examples
NUM_SENTENCES = 20_000  # drawn, of those that are read aloud only; what the corpus says already is left out
NUM_MIXED = 12_500
MIXED_LENGTHS = range(3, 15)  # words
NUM_WORD_LISTS = 6000
WORD_LIST_LENGTHS = (1, 8)
HELD_OUT_SHARE = 0.035  # of every kind, at least HELD_OUT_LEAST
HELD_OUT_LEAST = 6


def normalise(text):
    """What counts as the same sentence: its words, without case and punctuation."""
    return " ".join(words(text))


def words(text):
    return re.findall(r"[a-z']+", text.lower())


def build(seed=SEED):
    """The corpus: (train, heldout), lists of {"question", "answer", "kind"}; held-out entries are unseen sentences."""
    rng = random.Random(seed)
    filler = sayings.Filler(rng)
    found = pairs(rng) + sayings.reading(filler, NUM_READING) + sayings.say_after_me(filler, NUM_SAYINGS)
    # What is said about pictures is read aloud here first: the Talker learns the words before the model learns to see.
    found += sayings.repeated(filler, answer_sentences(NUM_PICTURE_SENTENCES, np.random.default_rng(seed)))
    train, heldout = split(found, rng)
    train += top_up(train, heldout, filler)
    rng.shuffle(train)
    return [as_item(pair) for pair in train], [as_item(pair) for pair in heldout]


def as_item(pair):
    return {"question": pair.question, "answer": pair.answer, "kind": pair.kind}


def split(found, rng):
    """Hold out whole answer sentences, a share of every kind, keeping each fact, form and word taught: (train, heldout) Pairs."""
    by_answer, by_kind = defaultdict(list), defaultdict(list)
    for pair in found:
        by_answer[normalise(pair.answer)].append(pair)
    for key, group in by_answer.items():
        by_kind[group[0].kind].append(key)
    facts, forms = Counter(p.fact for p in found), Counter(p.form for p in found)
    word_counts = Counter(word for pair in found for word in set(words(pair.answer)))
    heldout, removed = [], set()
    for kind in sorted(by_kind):
        keys = sorted(by_kind[kind])
        rng.shuffle(keys)
        wanted = max(HELD_OUT_LEAST, round(HELD_OUT_SHARE * len(keys)))
        for key in keys:
            group = by_answer[key]
            taught = all((p.fact is None or facts[p.fact] - len(group) >= 2) and forms[p.form] - len(group) >= 5 for p in group)
            if not taught or min(word_counts[word] for word in words(key)) < 6:
                continue
            heldout.append(group[0])
            removed.add(key)
            for p in group:
                facts[p.fact] -= 1
                forms[p.form] -= 1
                word_counts.subtract(set(words(p.answer)))
            wanted -= 1
            if not wanted:
                break
    train = [pair for pair in found if normalise(pair.answer) not in removed]
    asked = {normalise(pair.question) for pair in train}
    return train, [pair for pair in heldout if normalise(pair.question) not in asked]


def top_up(train, heldout, filler):
    """More sentences to repeat, until every word of a training answer has its MIN_COUNT: a list of Pairs."""
    counts = Counter(word for pair in train for word in set(words(pair.answer)))
    using = defaultdict(list)
    for pair in train:
        for word in set(words(pair.answer)):
            using[word].append(pair.answer)
    seen = {normalise(pair.answer) for pair in train + heldout}
    added = []
    short = {word: any(sayings.quotable(answer) for answer in using[word]) for word in counts if counts[word] < MIN_COUNT}
    assert all(short.values()), [word for word in short if not short[word]]
    for word in sorted(short):
        while counts[word] < MIN_COUNT:
            pair = sayings.quoting(filler, using[word])
            assert pair is not None, f"no sentence with {word!r} is short enough to be quoted"
            if normalise(pair.answer) not in seen:
                seen.add(normalise(pair.answer))
                added.append(pair)
                counts.update(set(words(pair.answer)))
    return added


def more_sentences(train, heldout, count=NUM_SENTENCES, seed=SEED):
    """Up to `count` pairs to repeat, of words of `train` and none of its or the held-out sentences: half of them quote one of its facts."""
    filler, found = sayings.Filler(random.Random(f"{seed} sentences")), {}
    known = {normalise(item[key]) for item in train + heldout for key in ("question", "answer")}
    vocabulary = {word for item in train for word in words(item["answer"])}
    facts = [item["answer"] for item in train if item["kind"] != "say after me" and sayings.quotable(item["answer"])]
    texts = dict.fromkeys(filler.fill(sayings.PATTERNS[i % len(sayings.PATTERNS)]) for i in range(count // 2))
    pairs = sayings.repeated(filler, [text for text in texts if len(text.split()) <= 14])
    pairs += [pair for fact in filler.rng.choices(facts, k=count // 2) if (pair := sayings.quoting(filler, [fact], tries=5))]
    for pair in pairs:
        if normalise(pair.answer) not in known and vocabulary.issuperset(words(pair.answer)):
            found[normalise(pair.answer)] = as_item(pair)
    return list(found.values())


def mixed_sentences(train, known, count=NUM_MIXED, seed=SEED):
    """`count` pairs to repeat that say none of the sentences of the items `known`: walks over the answers of `train`, mostly such as state
    facts, each word after the two before it as in one of them (a Markov chain of second order: Shannon 1948, section 3). True or not, they
    begin and go on as facts do, of which there are too few to learn how any sentence is spoken.
    """
    rng, end = random.Random(f"{seed} mixed"), None
    answers = [item["answer"] for item in facts(train, rng)] + [item["answer"] for item in train if item["kind"] in NO_FACTS]
    following = defaultdict(list)
    for answer in answers:
        for first, second, third in zip(*(([end, end, *answer.split(), end])[i:] for i in range(3))):
            following[first, second].append(third)
    said, found = {normalise(item[key]) for item in known for key in ("question", "answer")}, {}
    while len(found) < count:
        walk = [end, end]
        while len(walk) < MIXED_LENGTHS.stop + 2 and (word := rng.choice(following[walk[-2], walk[-1]])) is not end:
            walk.append(word)
        text = " ".join(walk[2:])
        if len(walk) - 2 in MIXED_LENGTHS and text[-1] in ".?" and normalise(text) not in said:
            found[normalise(text)] = text
    return [as_item(pair) for pair in sayings.repeated(sayings.Filler(rng), found.values())]


def more_questions(train, heldout, seed=SEED):
    """Further pairs whose answers have the words of `train`: no question of its, and neither a question nor an answer of the held-out."""
    filler = sayings.Filler(random.Random(f"{seed} questions"))
    asked = {normalise(item["question"]) for item in train + heldout}
    reserved = {normalise(item["answer"]) for item in heldout}
    vocabulary = {word for item in train for word in words(item["answer"])}
    return [as_item(pair) for pair in more_pairs() + sayings.reading(filler, NUM_MORE_READING)
            if normalise(pair.question) not in asked and normalise(pair.answer) not in reserved
            and vocabulary.issuperset(words(pair.answer))]


def facts(items, rng):
    """The items that ask for a fact, as many of each kind, in random order: a Thinker forgets what it is seldom asked."""
    by_kind = defaultdict(list)
    for item in items:
        by_kind[item["kind"]].append(item)
    found = [item for kind, some in by_kind.items() if kind not in NO_FACTS
             for item in (rng.sample(some, FACTS_OF_A_KIND) if len(some) > FACTS_OF_A_KIND else some * (FACTS_OF_A_KIND // len(some)))]
    return rng.sample(found, len(found))


def word_lists(train, count=NUM_WORD_LISTS, seed=SEED):
    """`count` distinct pairs whose answer is 1-8 answer words of `train` drawn at random, as often the rare ones as the frequent."""
    vocabulary = sorted({word for item in train for word in re.findall(r"(?<=[a-z,] )[A-Za-z']+", item["answer"])})  # as inside a sentence
    rng, answers = random.Random(f"{seed} word lists"), {}
    while len(answers) < count:
        text = " ".join(rng.sample(vocabulary, rng.randint(*WORD_LIST_LENGTHS)))
        answers[text[0].upper() + text[1:] + "."] = None
    return [{"question": f"Say after me: {answer}", "answer": answer, "kind": "words"} for answer in answers]


def write_jsonl(items, path):
    """Atomically write dicts, one a line."""
    lines = "".join(json.dumps(item) + "\n" for item in items)
    replace_atomic(Path(path), lambda file: file.write(lines.encode()))


def read_jsonl(path):
    """The dicts of a JSON lines file; FileNotFoundError says which command makes it."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is missing: python -m nano.corpus --out {Path(path).parent}")
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def main():
    parser = argparse.ArgumentParser(description="Write the nano corpus: train.jsonl, heldout.jsonl, questions.jsonl with further pairs "
                                     "and, to be read aloud, sentences.jsonl, mixed.jsonl and words.jsonl.")
    parser.add_argument("--out", default="out/nano/corpus")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    train, heldout = build(args.seed)
    write_jsonl(train, Path(args.out) / "train.jsonl")
    write_jsonl(heldout, Path(args.out) / "heldout.jsonl")
    sentences = more_sentences(train, heldout, seed=args.seed)
    write_jsonl(sentences, Path(args.out) / "sentences.jsonl")
    write_jsonl(mixed_sentences(train, train + heldout + sentences, seed=args.seed), Path(args.out) / "mixed.jsonl")
    write_jsonl(word_lists(train, seed=args.seed), Path(args.out) / "words.jsonl")
    questions = more_questions(train, heldout, seed=args.seed)
    write_jsonl(questions, Path(args.out) / "questions.jsonl")
    vocabulary = {word for item in train for word in words(item["answer"])}
    held = Counter(item["kind"] for item in heldout)
    for kind, count in sorted(Counter(item["kind"] for item in train).items()):
        print(f"{kind:14} {count:6} train {held[kind]:5} held out")
    print(f"{len(train)} training pairs, {len(heldout)} held out, {len(vocabulary)} answer words, {len(questions)} further questions, "
          f"{len(sentences)} sentences -> {args.out}")


if __name__ == "__main__":
    main()
