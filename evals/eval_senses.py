"""How well the nano model hears, sees and remembers: held-out parquet rows, each reply's text compared with the expected answer.

- Spoken questions: share answered as the same question typed is, for the training voices, under 10 dB of pink noise, and for a voice
  that no training has heard; also the word error rate of the pack's own transcriber on them.
- Pictures: exactly right answers per kind of question, typed and spoken ("mix"). Conversations: the last answer, after the model's own
  earlier replies; "without" asks the last question alone, which shows that the earlier turn is needed.
- Calls: the same questions, typed and spoken, in the seventh turn of a talk about other things, by what the model answers to them alone.
- `--split train` asks what was taught instead: what is right there but not held out was learnt by heart.
- Every item has its own seed; text is sampled at the pack's default temperature. Last line is JSON.

    python -m evals.eval_senses --pack model/nano --data out/nano/data --n 100
"""
import argparse
import io
import json
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402  (the root has to be importable first)
from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402

from engine.chat import Chat, find_weights, listen, pick_device  # noqa: E402
from engine.precision import DTYPES  # noqa: E402
from engine.voices import pick_voice  # noqa: E402
from evals.command import exit_code, pack_parser, read_parquet  # noqa: E402
from evals.metrics import wer  # noqa: E402
from model.audio import read_audio  # noqa: E402
from model.checkpoint import save_json  # noqa: E402
from model.config import INPUT_RATE  # noqa: E402

SPOKEN = {"heldout": {"training voices": "a2a_heldout", "training voices, 10 dB noise": "a2a_noisy", "unseen voice": "a2a_unseen"},
          "train": {"training voices": "a2a_train"}}
PARTS = ("spoken", "pictures", "turns", "calls")
TURNS_BEFORE = 6  # of a question in a call


def read_rows(path: Path, n: int) -> list[dict]:
    """The first n rows of a folder of shards, or of a parquet file; FileNotFoundError names the command that makes it."""
    if not path.exists():
        raise FileNotFoundError(f"no data {path}: make it with `python -m nano.build_sets a2a multi i2t`")
    return read_parquet(path).slice(0, n).to_pylist()


class Examiner:
    """Asks one pack in text, with a fixed seed per item."""

    def __init__(self, chat: Chat, seed: int, temperature: float | None, transcript: int | None = None):
        self.chat, self.seed = chat, seed
        self.params = chat.settings(max_new_tokens=200, temperature=temperature, transcript=transcript)
        self.voice = pick_voice(chat.voices, None)

    def ask(self, messages: list[dict], item: int, audio=None, images=()) -> str:
        """Text of the reply to `messages`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + item)
        return listen(lambda: self.chat.reply(messages, self.params, self.voice, audio, images, generator), self.params).text

    def ask_in_turn(self, questions: list[str], item: int) -> str:
        """The reply to the last of several questions, each asked after the model's own reply to the one before."""
        messages = []
        for question in questions:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": self.ask(messages, item)})
        return messages[-1]["content"]


def turns_of(row: dict, role: str) -> list[str]:
    return [turn["content"] for turn in json.loads(row["conversations"]) if turn["role"] == role]


def spoken(examiner: Examiner, data: Path, n: int, split: str = "heldout") -> list[dict]:
    """A record per question and condition: {"group", "asked", "typed", "reply", "heard", "right"}; right = as when typed."""
    typed, records = {}, []
    for group, name in SPOKEN[split].items():
        for i, row in enumerate(tqdm(read_rows(data / name, n), desc=group, mininterval=5)):
            question = turns_of(row, "user")[-1]
            if question not in typed:
                typed[question] = examiner.ask([{"role": "user", "content": question}], i)
            wav = read_audio(row["question_audios"][-1], INPUT_RATE)
            reply = examiner.ask([{"role": "user", "content": ""}], i, audio=wav)
            records.append({"group": group, "asked": question, "typed": typed[question], "reply": reply,
                            "heard": examiner.chat.transcribe(wav), "right": reply == typed[question]})
    return records


def pictures(examiner: Examiner, data: Path, n: int, split: str = "heldout") -> list[dict]:
    """A record per picture question, typed and spoken: {"group", "kind", "asked", "answer", "reply", "right"}."""
    records = []
    for group, name in (("pictures", f"i2t_{split}"), ("pictures, spoken question", f"mix_{split}")):
        for i, row in enumerate(tqdm(read_rows(data / name, n), desc=group, mininterval=5)):
            question, answer = turns_of(row, "user")[-1].replace("<image>", "").strip(), turns_of(row, "assistant")[-1]
            images = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in row["image_bytes"]]
            wav = read_audio(row["question_audios"][-1], INPUT_RATE) if row["question_audios"] else None
            reply = examiner.ask([{"role": "user", "content": "" if wav is not None else question}], i, wav, images)
            records.append({"group": group, "kind": row["kind"], "asked": question, "answer": answer, "reply": reply,
                            "right": reply == answer})
    return records


def conversations(examiner: Examiner, data: Path, n: int, split: str = "heldout") -> list[dict]:
    """A record per conversation, with and without its earlier turns: {"group", "kind", "asked", "answer", "reply", "right"}."""
    records = []
    for i, row in enumerate(tqdm(read_rows(data / f"multi_{split}", n), desc="conversations", mininterval=5)):
        questions, answer = turns_of(row, "user"), turns_of(row, "assistant")[-1]
        for group, asked in (("conversations", questions), ("conversations without their earlier turns", questions[-1:])):
            reply = examiner.ask_in_turn(asked, i)
            records.append({"group": group, "kind": row["kind"], "asked": asked, "answer": answer, "reply": reply,
                            "right": reply == answer})
    return records


def calls(examiner: Examiner, data: Path, n: int, split: str = "heldout") -> list[dict]:
    """A record per question in a long talk, typed and spoken: {"group", "asked", "typed", "reply", "right"}; right = as when typed alone.

    The turns before are the questions before it, as the pack's transcriber writes them, and what the model answers to them alone.
    """
    rows, turns, records = read_rows(data / f"a2a_{split}", n), [], []
    for i, row in enumerate(tqdm(rows, desc="questions of the calls", mininterval=5)):
        question, wav = turns_of(row, "user")[-1], read_audio(row["question_audios"][-1], INPUT_RATE)
        alone = examiner.ask([{"role": "user", "content": question}], i)
        heard = examiner.chat.transcribe(wav)
        turns.append((question, wav, alone, [{"role": "user", "content": heard}, {"role": "assistant", "content": alone}]))
    for i, (question, wav, alone, _) in enumerate(tqdm(turns, desc="calls", mininterval=5)):
        first = i - min(TURNS_BEFORE, len(turns) - 1)  # before the first come the last, but never the question itself
        before = [message for j in range(first, i) for message in turns[j % len(turns)][-1]]
        for group, content, audio in (("calls, typed", question, None), ("calls, spoken", "", wav)):
            reply = examiner.ask([*before, {"role": "user", "content": content}], i, audio=audio)
            records.append({"group": group, "asked": question, "typed": alone, "reply": reply, "right": reply == alone})
    return records


def summarise(records: list[dict]) -> dict[str, dict]:
    """{group: {"n", "right", "wer" of the transcriber where something was heard}}, kinds of a group behind it."""
    groups = defaultdict(list)
    for record in records:
        groups[record["group"]].append(record)
        if "kind" in record and "without" not in record["group"]:
            groups[f"{record['group']}: {record['kind']}"].append(record)
    figures = {}
    for name in sorted(groups, key=lambda name: (name.split(":")[0], name)):
        chosen = groups[name]
        figures[name] = {"n": len(chosen), "right": round(sum(r["right"] for r in chosen) / len(chosen), 4)}
        if "heard" in chosen[0]:
            figures[name]["wer"] = round(wer([(r["asked"], r["heard"]) for r in chosen]), 4)
    return figures


def table(figures: dict[str, dict]) -> str:
    """The summary as Markdown."""
    lines = ["| | items | right | WER of the transcriber |", "|---|---|---|---|"]
    lines += [f"| {name} | {f['n']} | {f['right']:.0%} | {f.get('wer', '')} |" for name, f in figures.items()]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = pack_parser(__doc__.splitlines()[0])
    parser.add_argument("--data", default="out/nano/data", help="folder of the held-out sets, as nano.build_sets makes them")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--split", choices=SPOKEN, default="heldout", help="rows that were held out, or rows that were taught")
    parser.add_argument("--n", type=int, default=100, help="items of each file")
    parser.add_argument("--temperature", type=float, help="default: the pack's")
    parser.add_argument("--transcript", type=int, choices=(0, 1, 2), help="spoken questions are 0: heard, 1: heard and read, 2: read "
                        "(default: the pack's)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="number format of the weights")
    parser.add_argument("--output", default="out/eval_senses.json")
    return parser


def run(args) -> None:
    chat = Chat.load(args.pack, find_weights(Path(args.save_dir or args.pack), args.weight), device=pick_device(args.device),
                     decode_audio=False, dtype=args.dtype)
    chat.use_few_threads()
    examiner, data = Examiner(chat, args.seed, args.temperature, args.transcript), Path(args.data)
    examine = dict(zip(PARTS, (spoken, pictures, conversations, calls)))
    records = [record for part in args.parts for record in examine[part](examiner, data, args.n, args.split)]
    figures = summarise(records)
    print(table(figures))
    save_json({"settings": vars(args), "figures": figures, "records": records}, args.output)
    print(json.dumps(figures))


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
