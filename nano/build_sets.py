"""The nano world's data sets by dataset.build_parquet: corpus -> JSONL of conversations -> checked shards.

- `t2a`: typed questions, spoken answers; `a2a`: spoken questions; `multi`: conversations of several turns; `i2t`: questions about pictures,
  typed ("i2t"), spoken ("mix") and (held out only) "told". Each NAME has `NAME_train` and held-out parts, one folder of shards per part.
  More conversations, as text alone, are in `typed_train`.
- `more`: spoken further questions and sentences to repeat (`more_train`), and the facts once more as text alone (`facts_train`), as many
  questions of each kind. Nothing of them is held out.
- Answers are said by the main voice and a share of them by the others, too (nano/speech.py); one voice answers a conversation.
- Held-out questions are asked as flite speaks: by training voices (`_heldout`), by them under 10 dB of pink noise (`_noisy`), and by kal16
  (`_unseen`).
- A JSONL in --out/sets says who says what: every spoken turn names its voice.
- Codes are on the grid of words (nano/word_grid.py) with --codec targets.pt, as the builder's own class GridCodec; a MimiModel folder's
  encoder hears speech as it is.
- Resumable and shared among --workers as every build is; a finished folder is left alone.

    python -m nano.build_sets t2a --speaker_encoder model/nano/campplus --strangers 0.1
    python -m nano.build_sets a2a multi i2t --codec model/nano/mimi --workers 16
"""
import argparse
import hashlib
import json
import os
import random
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import soundfile as sf

from dataset.augment import add_noise, pink_noise
from dataset.build_parquet import build
from dataset.build_stages import Settings
from dataset.clean import Gates
from dataset.engines import Engine
from dataset.sources import UNSPOKEN
from model.checkpoint import replace_atomic
from model.refusal import INPUT_ERRORS, refuse
from nano import multi_turn, scenes
from nano.corpus import SEED, facts, read_jsonl
from nano.foreign import asked_by, say_all
from nano.multi_turn import as_talks, replies, user_turns
from nano.speech import MAIN_VOICE, RATE, TRAIN_VOICES, UNSEEN_VOICE, Utterance, estranged, synthesise, voiced

SETS = ("t2a", "a2a", "multi", "i2t", "more")
PROMPT_FRAMES = (25, 50)  # a voice prompt is 2-4 s of another sentence
PROMPTS = 256  # utterances of a speaker that serve as voice prompts
NOISE_DB = 10.0
RATES = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2)  # of those who ask
PITCHES = (0.9, 0.95, 1.05, 1.12)
PITCH_SHARE = 0.3
SPOKEN_TURNS = 2  # of a conversation's questions, the last ones
GATES = Gates(min_snr_db=0.0)  # flite is clean; the noisy held-out questions are meant to be noisy


def voice_name(utterance, rate=True):
    """An Utterance's voice as dataset.tts.Flite knows it; without the rate it names the speaker."""
    rate = utterance.rate if rate else 1.0
    return utterance.voice if (rate, utterance.pitch) == (1.0, 1.0) else f"{utterance.voice}:{rate:g}:{utterance.pitch:g}"


def conversation(name, messages, kind, speaker):
    return {"id": name, "conversations": messages, "speaker": speaker, "kind": kind}


def ask(talks, voices, seed, plain=False):
    """Who asks: for every conversation the Utterances of its user turns, by one voice at one rate; `plain` means as flite speaks."""
    asked = []
    for i, talk in enumerate(talks):
        rng = random.Random(f"{seed} {i} asks")
        voice, rate, pitch = rng.choice(voices), rng.choice(RATES), rng.choice(PITCHES) if rng.random() < PITCH_SHARE else 1.0
        asked.append([Utterance(text, voice) if plain else Utterance(text, voice, rate, pitch) for text in user_turns(talk)])
    return asked


def read_aloud(name, items, utterances, seed):
    """T2A: one conversation per item and Utterance of its answer, in random order."""
    by_text = {}
    for utterance in dict.fromkeys(utterances):
        by_text.setdefault(utterance.text, []).append(utterance)
    found = []
    for i, item in enumerate(items):
        for said in by_text[item["answer"]]:
            messages = [{"role": "user", "content": item["question"]},
                        {"role": "assistant", "content": item["answer"], "voice": voice_name(said)}]
            found.append(conversation(f"{name}-{i}-{voice_name(said)}", messages, item["kind"], voice_name(said, rate=False)))
    random.Random(f"{seed} {name}").shuffle(found)
    return found


def talked(name, talks, asked, share, seed):
    """A2A and multi-turn: the user's last turns asked by their Utterance (or, given a path, recorded there), all replies by one voice.

    Training hears one question of a conversation, and its earliest are seldom that: nobody says what comes before the last SPOKEN_TURNS.
    It is drawn among the voices that say every one of the replies when each of them but the main one says a `share` of all texts: the more
    replies, the more often the main one.
    """
    rng, found = random.Random(f"{seed} {name}"), []
    for i, (talk, turns) in enumerate(zip(talks, asked, strict=True)):
        said = [{u.voice for u in voiced([text], share, seed)} for text in replies(talk)]
        voice, turns, messages = rng.choice(sorted(set.intersection(*said))), iter(turns), []
        for number, message in enumerate(talk["messages"]):
            spoken = {"voice": voice}
            if message["role"] == "user":
                turn = next(turns)
                spoken = {"audio": str(turn)} if isinstance(turn, Path) else {"voice": voice_name(turn)}
                if number < len(talk["messages"]) - 2 * SPOKEN_TURNS:
                    spoken = {"voice": UNSPOKEN}
            messages.append({**message, **spoken})
        found.append(conversation(f"{name}-{i}", messages, talk["kind"], voice))
    rng.shuffle(found)
    return found


def typed(name, talks):
    """Conversations that nobody speaks: what a Thinker learns of them costs no synthesis."""
    found = [conversation(f"{name}-{i}", [dict(message) for message in talk["messages"]], talk["kind"], MAIN_VOICE)
             for i, talk in enumerate(talks)]
    silence_replies(found)
    return found


def pictured(variant, name, items, asked, pictures, share, seed):
    """I2T: questions about `pictures` {number: path}; "mix" asks the first len(asked) aloud, "told" describes the scene instead."""
    rng, found = random.Random(f"{seed} {name}"), []
    for i, item in enumerate(items[:len(asked)] if variant == "mix" else items):
        said = rng.choice(voiced([item["answer"]], share, seed))
        user = {"role": "user", "content": item["question"], "image": str(pictures[item["picture"]])}
        if variant == "told":
            user = {"role": "user", "content": f"{item['told']} {item['question']}"}
        if variant == "mix":
            user["voice"] = voice_name(asked[i])
        messages = [user, {"role": "assistant", "content": item["answer"], "voice": said.voice}]
        found.append(conversation(f"{name}-{i}", messages, item["kind"], said.voice))
    rng.shuffle(found)
    return found


# ---- recordings and pictures that are made beforehand

def recorded(asked, folder, say, workers=1):
    """Paths in place of the Utterances of `asked`: recordings, made where they are missing. `say` gives (S,) int16 for each of a list."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {utterance: (folder / f"{digest(utterance)}.flac").resolve() for turns in asked for utterance in turns}
    missing = [(utterance, path) for utterance, path in paths.items() if not path.exists()]
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(partial(record, say), [missing[i:i + 64] for i in range(0, len(missing), 64)]))
    return [[paths[utterance] for utterance in turns] for turns in asked]


def digest(thing):
    return hashlib.blake2b(repr(thing).encode(), digest_size=8).hexdigest()  # another text is another file


def record(say, wanted):
    for wav, (_, path) in zip(say([utterance for utterance, _ in wanted]), wanted, strict=True):
        replace_atomic(path, partial(sf.write, data=wav, samplerate=RATE, format="FLAC", subtype="PCM_16"))


def say_noisily(utterances):
    """(S,) float32 each, by flite under pink noise."""
    for utterance in utterances:
        wav = synthesise(utterance.text, utterance.voice, utterance.rate, utterance.pitch).astype(np.float32) / 32768
        yield add_noise(wav, pink_noise(len(wav), np.random.default_rng(int(digest(utterance), 16))), NOISE_DB).clip(-1, 1)


def painted(items, folder, heldout, seed, workers=1):
    """{number: path} of the pictures that `items` of scenes.plan ask about, painted where they are missing."""
    source = digest(Path(scenes.__file__).read_text(encoding="utf-8"))  # edited, it may draw another picture
    told = {item["picture"]: item["told"] for item in items}
    paths = {number: (folder / f"{digest((seed, heldout, number, scene, source))}.png").resolve() for number, scene in told.items()}
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(partial(paint, seed, heldout), paths, paths.values(), chunksize=32))
    return paths


def paint(seed, heldout, number, path):
    if not path.exists():
        data = scenes.paint(seed, heldout, number)
        replace_atomic(path, lambda file: file.write(data))


# ---- the sets

def t2a(args, corpus):
    """{name: conversations}."""
    found = {}
    sizes = {"sentences": args.sentences, "words": args.words}
    for part in ("train", "sentences", "mixed", "words", "heldout"):
        items = corpus[part][:sizes.get(part)]
        answers = [item["answer"] for item in items]
        said = voiced(answers, 1.0 if part == "heldout" else args.others, args.seed)
        said += estranged(answers, args.strangers, args.seed) if part == "train" else []
        found[f"t2a_{part}"] = read_aloud(f"t2a_{part}", items, said, args.seed)
    return found


def spoken(name, talks, other_talks, args):
    """{name: conversations} of `talks` for training and of `other_talks` held out: by known voices, under noise, by an unknown voice."""
    seed = f"{args.seed} {name}"
    found = {f"{name}_train": talked(f"{name}_train", talks, ask(talks, TRAIN_VOICES, seed), args.others, args.seed)}
    for condition, voices in (("heldout", TRAIN_VOICES), ("noisy", TRAIN_VOICES), ("unseen", (UNSEEN_VOICE,))):
        asked = ask(other_talks, voices, seed, plain=True)
        if condition == "noisy":
            asked = recorded(asked, Path(args.out) / "sets" / f"{name}_noisy", say_noisily, args.workers)
        part = f"{name}_{condition}"
        found[part] = talked(part, other_talks, asked, args.others, args.seed)
    return found


def i2t(args):
    found = {}
    for part, heldout, count, per_picture, aloud in (("train", False, args.questions, args.per_picture, args.spoken),
                                                     ("heldout", True, args.heldout, 1, args.heldout)):
        items = scenes.plan(count, per_picture, heldout, args.seed)
        pictures = painted(items, Path(args.out) / "sets" / f"pictures_{part}", heldout, args.seed, args.workers)
        asked = [turns[0] for turns in ask(as_talks(items[:aloud]), TRAIN_VOICES, f"{args.seed} {part}")]
        for variant in ("i2t", "mix", *(["told"] if heldout else [])):  # nano.train_llm learns from told pictures, as text
            found[f"{variant}_{part}"] = pictured(variant, f"{variant}_{part}", items, asked, pictures, args.others, args.seed)
    return found


def more(args, corpus):
    """{name: conversations} for training only. Voices that answer nothing ask a share of them (nano/foreign.py)."""
    seed = f"{args.seed} more"
    talks = as_talks(corpus["questions"] + corpus["sentences"][:args.sentences])
    asked, rng = ask(talks, TRAIN_VOICES, seed), random.Random(f"{seed} foreign")
    foreign = [i for i in range(len(talks)) if rng.random() < args.foreign]
    recordings = recorded([[asked_by(text, rng) for text in user_turns(talks[i])] for i in foreign], Path(args.out) / "sets" / "foreign",
                          say_all, args.workers)
    for i, turns in zip(foreign, recordings):
        asked[i] = turns
    known = as_talks(facts(corpus["train"] + corpus["questions"], random.Random(seed)))
    return {"more_train": talked("more_train", talks, asked, args.others, args.seed),
            "facts_train": typed("facts_train", known[:args.limit])}


def plan_sets(args):
    """{name: conversations} of all --sets; deterministic for a seed."""
    parts = {"train", "heldout"}
    for name, more_parts in (("t2a", {"sentences", "mixed", "words"}), ("multi", {"sentences"}), ("more", {"sentences", "questions"})):
        parts |= more_parts if name in args.sets else set()
    corpus = {part: read_jsonl(Path(args.corpus) / f"{part}.jsonl") for part in sorted(parts)}
    found = {}
    if "multi" in args.sets:
        rng = random.Random(SEED)  # not --seed: what it holds out, nano.train_llm must not have learnt
        talks, other_talks = multi_turn.build(corpus["train"], corpus["heldout"], rng, args.conversations + args.typed, corpus["sentences"])
        talks, only_typed = talks[:args.conversations], talks[args.conversations:]
        found |= spoken("multi", talks[:args.limit], other_talks[:args.limit], args)
        found["typed_train"] = typed("typed_train", only_typed[:args.limit])
    corpus = {part: items[:args.limit] for part, items in corpus.items()}
    if "t2a" in args.sets:
        found |= t2a(args, corpus)
    if "a2a" in args.sets:
        found |= spoken("a2a", as_talks(corpus["train"]) * args.askings, as_talks(corpus["heldout"]), args)
    if "i2t" in args.sets:
        found |= i2t(args)
    if "more" in args.sets:
        found |= more(args, corpus)
    return {name: conversations for name, conversations in found.items() if conversations}


def silence_replies(conversations):
    """The replies become text alone: all that a Thinker learning by itself needs, in half of the time."""
    for entry in conversations:
        for message in entry["conversations"]:
            if message["role"] == "assistant":
                message["voice"] = UNSPOKEN


def settings_for(args):
    codec = args.codec if Path(args.codec).is_dir() else f"nano.word_grid:GridCodec={args.codec}"
    return Settings(codec, None if args.speaker_encoder == "none" else args.speaker_encoder, tts="flite", voices=TRAIN_VOICES,
                    question_format="flac", language="en", gates=GATES, seed=args.seed,  # MP3 would be half of the time of a build
                    tokenizer=None if args.tokenizer == "none" else args.tokenizer, prompt_frames=PROMPT_FRAMES,
                    prompts=PROMPTS, device=args.device)


def write_corpus(conversations: Iterable[dict], path: Path) -> Path:
    """The JSONL that the builder reads."""
    text = "".join(json.dumps(entry) + "\n" for entry in conversations)
    replace_atomic(path, lambda file: file.write(text.encode()))
    return path


def build_set(name, conversations, args):
    """Builds --out/NAME; returns its manifest."""
    path = write_corpus(conversations, Path(args.out) / "sets" / f"{name}.jsonl")
    engine = Engine(args.engine, args.workers)
    return build([path], Path(args.out) / name, settings_for(args), engine, rows_per_shard=args.rows_per_shard)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", choices=SETS)
    parser.add_argument("--corpus", default="out/nano/corpus")
    parser.add_argument("--codec", default="out/nano/codec/targets.pt", help="targets.pt of nano.train_mimi, or a MimiModel folder")
    parser.add_argument("--speaker_encoder", default="model/nano/campplus", help="CAM++ folder, or 'none'")
    parser.add_argument("--tokenizer", default="model/nano", help="folder of the tokenizer whose tokens are counted, or 'none'")
    parser.add_argument("--out", default="out/nano/data")
    parser.add_argument("--others", type=float, default=0.25, help=f"share of the answers that voices but {MAIN_VOICE} speak, too")
    parser.add_argument("--strangers", type=float, default=0.0, help="t2a: share of the answers that a made-up speaker says, too")
    parser.add_argument("--askings", type=int, default=2, help="a2a: rows for each pair of the corpus")
    parser.add_argument("--conversations", type=int, default=6000, help="multi: at most so many for training")
    parser.add_argument("--typed", type=int, default=0, help="multi: at most so many more, which are text alone")
    parser.add_argument("--sentences", type=int, default=9000, help="t2a, more: at most so many sentences to repeat")
    parser.add_argument("--words", type=int, default=6000, help="t2a: at most so many lists of words")
    parser.add_argument("--foreign", type=float, default=0.0, help="more: share (0-1) that other voices ask; needs festival and espeak-ng")
    parser.add_argument("--questions", type=int, default=20_000, help="i2t: for training")
    parser.add_argument("--spoken", type=int, default=6000, help="i2t: how many of them are also asked aloud")
    parser.add_argument("--per_picture", type=int, default=2, help="i2t: training questions about one picture")
    parser.add_argument("--heldout", type=int, default=300, help="i2t: held-out questions, each with its own picture")
    parser.add_argument("--unspoken", action="store_true", help="the replies are text alone: for --mode thinker, in half of the time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", default="processes", choices=("processes", "ray"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rows_per_shard", type=int, default=512)
    parser.add_argument("--limit", type=int, help="only so many pairs and conversations of each part, to try things out")
    parser.add_argument("--seed", type=int, default=SEED)
    return parser.parse_args(argv)


def main(argv=None):
    """0, or 2 with one line on stderr."""
    args = parse_args(argv)
    try:
        if not Path(args.codec).exists():  # before the long steps
            raise FileNotFoundError(f"no codec at {args.codec}: train one with `python -m nano.train_mimi`, or name it with --codec")
        for name, conversations in plan_sets(args).items():
            if args.unspoken:
                silence_replies(conversations)
            manifest = build_set(name, conversations, args)
            print(f"{args.out}/{name}: {manifest['rows']} rows, {manifest['hours']:.2f} h of speech, {manifest['rejected']} rejected")
    except INPUT_ERRORS as error:
        return refuse(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
