"""Speech for prompts with sounds, pictures and long talks, lent by the T2A sets: a Talker that never stood behind such does not end there.

- A prompt whose last reply a T2A row says gets that row's codes, letters, voice prompt and speaker: nothing is spoken or encoded again.
- A share of the prompts, and --talks rows of the T2A sets themselves, come behind earlier turns, which are not heard; in half of these
  talks the earlier questions stand as an ear has written them down.
- The seed and the sets decide everything. The shard is written as a whole: what is there is not made again.

    python -m nano.lend_speech out/nano/data/a2a_train out/nano/data/mix_train out/nano/data/i2t_train \
        --speech out/nano/data/t2a_train out/nano/data/t2a_sentences --out out/nano/data/lent_train
"""
import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from dataset.build_parquet import write_shard
from dataset.parquet_rows import find_files
from model.refusal import INPUT_ERRORS, refuse
from nano.multi_turn import EARLIER_TURNS, heard

LENT = ("answer_audios", "answer_letters", "ref_audios", "spk_emb", "speaker", "seconds")
PRECEDED_SHARE = 0.5  # of the prompts
HEARD_SHARE = 0.5  # of the talks before them


def read_rows(paths: list[Path]) -> list[dict]:
    return [row for file in find_files(paths) for row in pq.read_table(file).to_pylist()]


def talk_of(row: dict) -> list[dict]:
    return json.loads(row["conversations"])


def spoken_as(row: dict, source: dict, earlier: list[dict]) -> dict:
    """`row` behind the messages `earlier`, its last reply spoken as in `source`."""
    messages = [*earlier, *talk_of(row)]
    silent = sum(message["role"] == "assistant" for message in messages) - 1
    lent = {name: source[name] for name in LENT}
    for name in ("answer_audios", "answer_letters"):
        lent[name] = lent[name] and [[]] * silent + lent[name][-1:]
    unheard = [None] * (len(earlier) // 2) if row["question_audios"] else []
    return {**row, **lent, "conversations": json.dumps(messages), "question_audios": unheard + (row["question_audios"] or [])}


def earlier_turns(speech: list[dict], rng: random.Random) -> list[dict]:
    """Messages of 1 to EARLIER_TURNS turns about other things."""
    messages = [message for row in rng.choices(speech, k=rng.randint(1, EARLIER_TURNS)) for message in talk_of(row)]
    return heard(messages) if rng.random() < HEARD_SHARE else messages


def lend(prompts: list[dict], speech: list[dict], talks: int, rng: random.Random) -> Iterator[dict]:
    """Rows of `prompts`, whose last replies `speech` says, and `talks` of `speech`."""
    says = defaultdict(list)
    for row in speech:
        says[talk_of(row)[-1]["content"]].append(row)
    for row in prompts:
        if sources := says.get(talk_of(row)[-1]["content"]):
            yield spoken_as(row, rng.choice(sources), earlier_turns(speech, rng) if rng.random() < PRECEDED_SHARE else [])
    for row in rng.sample(speech, min(talks, len(speech))):
        yield spoken_as(row, row, earlier_turns(speech, rng))


def main(argv=None) -> int:
    """0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("prompts", nargs="+", type=Path, help="folders of nano.build_sets, whose own speech is not used")
    parser.add_argument("--speech", nargs="+", type=Path, required=True, help="folders of nano.build_sets t2a")
    parser.add_argument("--talks", type=int, default=3500, help="rows of --speech that come behind earlier turns, too")
    parser.add_argument("--out", type=Path, default=Path("out/nano/data/lent_train"))
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    shard = args.out / "lent.parquet"
    try:
        if shard.exists():
            print(f"{shard}: there already")
            return 0
        rng = random.Random(args.seed)
        prompts, speech = read_rows(args.prompts), read_rows(args.speech)
        rows = [{**row, "id": str(i)} for i, row in enumerate(lend(prompts, speech, args.talks, rng))]
        if len(rows) <= min(args.talks, len(speech)):
            raise ValueError(f"no reply of {', '.join(map(str, args.prompts))} is said in {', '.join(map(str, args.speech))}")
        rng.shuffle(rows)
        args.out.mkdir(parents=True, exist_ok=True)
        print(f"{shard}: {write_shard(rows, shard)['rows']} rows, from {len(prompts)} prompts")
    except INPUT_ERRORS as error:
        return refuse(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
