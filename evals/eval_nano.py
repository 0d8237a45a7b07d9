"""How well the nano model talks: held-out questions, the reply's text compared with the answer, its speech with its text.

- Text: share of replies that are the expected answer to the letter. Speech: word errors of what a recogniser that never saw our
  data hears, against the reply's own text. Also: share that ended by itself, time to first audio, real-time factor.
- Every question has its own seed, so a figure does not depend on the order, on --n or on an interruption.
- Finished questions are kept in --output_dir, keyed by weights, codec and settings: the same command goes on where it stopped.

    python -m evals.eval_nano --pack model/nano --n 100
    python -m evals.eval_nano --n 99 --voice slt rms awb --ceiling out/nano/data/t2a_heldout
"""
import argparse
import csv
import hashlib
import json
import math
import random
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402  (the root has to be importable first)

from engine.chat import MIMI, VOICES, Chat, find_weights, listen, pick_device  # noqa: E402
from engine.generate import GenerationParams  # noqa: E402
from engine.precision import DTYPES  # noqa: E402
from engine.voices import Voice, pick_voice  # noqa: E402
from evals.command import exit_code, pack_parser, read_parquet  # noqa: E402
from evals.asr import load_recogniser, recogniser_files  # noqa: E402
from evals.metrics import edit_distance, percentiles, wer, words  # noqa: E402
from model.audio import write_wav  # noqa: E402
from model.checkpoint import save_json  # noqa: E402
from model.config import NUM_CODEBOOKS, SAMPLE_RATE  # noqa: E402

HELDOUT = "heldout.jsonl"
COLUMNS = ("group", "n", "exact", "wer", "ended", "ttfa_ms_p50", "ttfa_ms_p95", "rtf")


def read_questions(path: Path, n: int, seed: int) -> list[dict]:
    """The first n of the file's {"question", "answer", "kind"} lines after a seeded shuffle; ValueError names a broken line."""
    if not path.is_file():
        raise FileNotFoundError(f"no held-out questions {path}: give --heldout FILE.jsonl, or write it with `python -m nano.corpus`")
    items = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            item = json.loads(line)
            items.append({name: str(item[name]) for name in ("question", "answer", "kind")})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {i} is not a question with answer and kind: {error}") from error
    random.Random(seed).shuffle(items)
    return items[:n]


def ask(chat: Chat, recogniser, item: dict, voice: Voice, params: GenerationParams, seed: int, wav_path: Path | None = None) -> dict:
    """Ask one question and judge the reply; returns the item with its figures."""
    generator = torch.Generator().manual_seed(seed)
    messages = [{"role": "user", "content": item["question"]}]
    answer = listen(lambda: chat.reply(messages, params, voice, generator=generator), params)
    heard = recogniser.transcribe(answer.wav, SAMPLE_RATE)
    if wav_path is not None:
        write_wav(wav_path, answer.wav, SAMPLE_RATE)
    said = words(answer.text)
    return {**item, "voice": voice.name, "reply": answer.text, "exact": answer.text == item["answer"].strip(), "heard": heard,
            "errors": edit_distance(said, words(heard)), "words": len(said), "ended": answer.ended, "audio_s": answer.audio_s,
            "ttft_s": answer.ttft_s, "ttfa_s": answer.ttfa_s, "total_s": answer.total_s}


def summarise(records: list[dict]) -> list[dict]:
    """One row of COLUMNS for all records, then one per voice and one per kind."""
    groups = defaultdict(list)
    for record in records:
        for group in ("all", f"voice {record['voice']}", f"kind {record['kind']}"):
            groups[group].append(record)
    return [_row(name, groups[name]) for name in sorted(groups, key=lambda name: (name != "all", not name.startswith("voice"), name))]


def _row(name: str, records: list[dict]) -> dict:
    ttfa = percentiles(r["ttfa_s"] * 1000 for r in records if r["ttfa_s"] is not None)  # NaN when nobody spoke
    audio_s = sum(r["audio_s"] for r in records)
    return {"group": name, "n": len(records), "exact": sum(r["exact"] for r in records) / len(records),
            "wer": sum(r["errors"] for r in records) / max(sum(r["words"] for r in records), 1),
            "ended": sum(r["ended"] for r in records) / len(records), "ttfa_ms_p50": ttfa["p50"], "ttfa_ms_p95": ttfa["p95"],
            "rtf": sum(r["total_s"] for r in records) / audio_s if audio_s else math.nan}


def table(rows: list[dict]) -> str:
    """The summary as Markdown."""
    names = ("", "questions", "text exact", "WER of the speech", "ended by itself", "TTFA p50 / p95 ms", "RTF")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for r in rows:
        lines.append(f"| {r['group']} | {r['n']} | {r['exact']:.0%} | {r['wer']:.3f} | {r['ended']:.0%} "
                     f"| {r['ttfa_ms_p50']:.0f} / {r['ttfa_ms_p95']:.0f} | {r['rtf']:.2f} |")
    return "\n".join(lines)


def fingerprint(files: list[Path], settings: dict) -> str:
    """Short hash of file contents and settings: results are only reused for the very same model and codec."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def read_done(path: Path) -> dict[tuple, dict]:
    """Records of an earlier run by (question, answer, voice); a line cut off by a kill is ignored."""
    done = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        done[record["question"], record["answer"], record["voice"]] = record
    return done


def ceiling(path: Path, items: list[dict], chat: Chat, recogniser) -> dict:
    """What the codec alone costs: WER of the real codes of the same answers, from parquet data, or evals.codec_wer's JSON.

    {"wer", "clips"}; ValueError when the file has none of the questions asked.
    """
    if not path.exists():
        raise FileNotFoundError(f"--ceiling {path} is not there; give the held-out parquet data or evals.codec_wer's output (.json)")
    if path.suffix == ".json":
        figures = json.loads(path.read_text(encoding="utf-8").strip().splitlines()[-1])
        return {"wer": float(figures["wer"]), "clips": figures.get("clips")}
    rows = read_parquet(path, columns=["conversations", "answer_audios"]).to_pydict()
    wanted, pairs = {(item["question"], item["answer"]) for item in items}, []
    for conversation, audios in zip(rows["conversations"], rows["answer_audios"]):
        key = tuple(turn["content"] for turn in json.loads(conversation) if turn["role"] != "system")
        if key in wanted and audios:
            wanted.remove(key)  # one voice of each is enough
            wav = chat.mimi.decode(torch.tensor(audios[-1]).view(-1, NUM_CODEBOOKS).T)[0].cpu().numpy()
            pairs.append((key[1], recogniser.transcribe(wav, SAMPLE_RATE)))
    if not pairs:
        raise ValueError(f"--ceiling {path}: none of the questions asked is in it")
    return {"wer": wer(pairs), "clips": len(pairs)}


def evaluate(args, chat: Chat, recogniser, items: list[dict], weights: Path) -> list[dict]:
    """Ask all questions, the voices in turn; records in their order, also appended to --output_dir as they come."""
    voices = [pick_voice(chat.voices, name) for name in args.voice or [None]]
    params = chat.settings(max_new_tokens=args.max_new_tokens, temperature=args.temperature)
    settings = {"seed": args.seed, "params": asdict(params), "asr": args.asr, "dtype": chat.engine.precision.name,
                "device": chat.device.type}
    pack = Path(args.pack)
    parts = [weights, pack / VOICES, pack / "tokenizer.json", *sorted((pack / MIMI).glob("*.safetensors")),
             *recogniser_files(args.asr, pack)]
    folder = Path(args.output_dir)
    log = folder / f"items-{fingerprint([p for p in parts if p.is_file()], settings)}.jsonl"
    done = read_done(log)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    with open(log, "a", encoding="utf-8") as file:
        for i, item in enumerate(items):
            voice = voices[i % len(voices)]
            record = done.get((item["question"], item["answer"], voice.name))
            wav_path = folder / "wavs" / f"{i:03d}-{voice.name}.wav" if args.save_wavs else None
            if record is None or wav_path and not wav_path.is_file():
                record = ask(chat, recogniser, item, voice, params, args.seed * 1_000_003 + i, wav_path)
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
            records.append(record)
            if args.verbose:
                print(f"{record['errors']}/{record['words']} {'=' if record['exact'] else 'x'} {record['reply']}  |  {record['heard']}")
            elif sys.stderr.isatty():
                print(f"\r{i + 1}/{len(items)}", end="", file=sys.stderr, flush=True)
    return records


def build_parser() -> argparse.ArgumentParser:
    parser = pack_parser(__doc__.splitlines()[0])
    parser.add_argument("--heldout", help=f"questions as JSON lines (default: <pack>/{HELDOUT})")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--voice", nargs="+", help="voices, taken in turn (default: the pack's first)")
    parser.add_argument("--temperature", type=float, help="of the text; 0 is greedy for the codes, too (default: the pack's)")
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="number format of the weights")
    parser.add_argument("--asr", default="pocketsphinx")
    parser.add_argument("--ceiling", help="parquet data with the real codes of the same answers, or evals.codec_wer's output (.json)")
    parser.add_argument("--output_dir", default="out/eval_nano")
    parser.add_argument("--save_wavs", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="a line per question: errors/words, reply, what was heard")
    return parser


def run(args) -> None:
    weights = find_weights(Path(args.save_dir or args.pack), args.weight)
    chat = Chat.load(args.pack, weights, device=pick_device(args.device), dtype=args.dtype)
    chat.use_few_threads()
    recogniser = load_recogniser(args.asr, args.pack, args.device)
    items = read_questions(Path(args.heldout or Path(args.pack) / HELDOUT), args.n, args.seed)
    if not items:
        raise ValueError("nothing to evaluate: --n is 0 or the held-out file is empty")
    records = evaluate(args, chat, recogniser, items, weights)
    rows = summarise(records)
    print(table(rows))
    best = ceiling(Path(args.ceiling), items, chat, recogniser) if args.ceiling else None
    if best:
        print(f"\nreal speech through the codec, the ceiling: WER {best['wer']:.3f} ({best['clips']} clips)")
    folder = Path(args.output_dir)
    summary = [{name: None if value != value else value for name, value in row.items()} for row in rows]  # JSON has no NaN
    save_json({"settings": vars(args), "summary": summary, "ceiling": best, "records": records}, folder / "eval_nano.json")
    with open(folder / "eval_nano.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"\n{folder / 'eval_nano.json'}, {folder / 'eval_nano.csv'}")


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
