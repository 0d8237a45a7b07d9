"""How intelligible the codec is: real speech, the same after encode -> 8 codes per frame -> decode, judged by a recogniser.

- The fixed set is 8 sentences by 3 flite voices (24 utterances, 198 words); raw it scores WER 0.157 with pocketsphinx.
- `--parquet` adds the codes of a data file (answer_audios) decoded: the ceiling of a model that learns to speak them.
- Needs the `flite` program for the fixed set.

    python -m evals.eval_codec --mimi model/nano/mimi --parquet out/nano/data/heldout.parquet
"""
import argparse
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402  (the root has to be importable first)
import torch  # noqa: E402

from evals.asr import load_recogniser  # noqa: E402
from evals.metrics import ErrorRate, words  # noqa: E402
from model.audio import read_audio, resample  # noqa: E402
from model.checkpoint import save_json  # noqa: E402
from model.config import INPUT_RATE, NUM_CODEBOOKS, SAMPLE_RATE  # noqa: E402
from model.mimi import Mimi  # noqa: E402

VOICES = ("slt", "rms", "awb")
SENTENCES = (
    "The sky is blue because air scatters short wavelengths of light.",
    "Cats like to chase mice.",
    "The capital of France is Paris.",
    "Two plus three equals five.",
    "A black hole is a place where gravity is very strong.",
    "I am a small model that can listen, see and speak.",
    "You can make coffee with hot water and ground beans.",
    "Apples are red and bananas are yellow.",
)


def speak(text: str, voice: str) -> np.ndarray:
    """flite's own 16 kHz speech (S,), untouched. FileNotFoundError without the program."""
    program = shutil.which("flite")
    if program is None:
        raise FileNotFoundError("the flite program is missing: apt-get install flite")
    done = subprocess.run([program, "-voice", voice, "-t", text, "-o", "/dev/stdout"], check=True, capture_output=True)
    return read_audio(done.stdout, INPUT_RATE, f"flite -voice {voice}")


def judge(recogniser, clips) -> dict:
    """clips: (group, text, wav (S,), rate) -> {"wer", "errors", "words", "clips", "by_group": {group: wer}}."""
    total, groups, count = ErrorRate(), {}, 0
    for group, text, wav, rate in clips:
        said, heard = words(text), words(recogniser.transcribe(wav, rate))
        total.add(said, heard)
        groups.setdefault(group, ErrorRate()).add(said, heard)
        count += 1
    return {"wer": total.rate, "errors": total.errors, "words": total.units, "clips": count,
            "by_group": {name: group.rate for name, group in groups.items()}}


def through(mimi: Mimi, wav: np.ndarray) -> np.ndarray:
    """(S,) at 16 kHz through the codec -> (S',) at 24 kHz."""
    codes = mimi.encode(torch.from_numpy(resample(wav, INPUT_RATE, SAMPLE_RATE)))
    return mimi.decode(codes)[0].cpu().numpy()


def read_codes(path: Path, n: int, seed: int) -> list[tuple[str, torch.Tensor]]:
    """(reply text, codes (8, T)) of n random rows whose last reply is spoken. ValueError when the file has no such rows."""
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"--parquet {path}: no such file; nano/README.md says how to build it")
    columns = pq.read_table(path, columns=["conversations", "answer_audios"]).to_pydict()
    rows = [(conversation, audios[-1]) for conversation, audios in zip(*columns.values()) if audios and audios[-1]]
    if not rows:
        raise ValueError(f"--parquet {path}: no row has answer_audios")
    chosen = random.Random(seed).sample(rows, min(n, len(rows)))
    return [(json.loads(conversation)[-1]["content"], torch.tensor(flat).view(-1, NUM_CODEBOOKS).T) for conversation, flat in chosen]


def evaluate(args) -> dict:
    mimi, recogniser = Mimi.load(args.mimi, args.device), load_recogniser(args.asr)
    fixed = [(voice, text, speak(text, voice)) for voice in VOICES for text in SENTENCES]
    results = {"raw": judge(recogniser, ((voice, text, wav, INPUT_RATE) for voice, text, wav in fixed)),
               "codec": judge(recogniser, ((voice, text, through(mimi, wav), SAMPLE_RATE) for voice, text, wav in fixed))}
    if args.parquet:
        rows = read_codes(Path(args.parquet), args.n, args.seed)
        results["codes"] = judge(recogniser, (("all", text, mimi.decode(codes)[0].cpu().numpy(), SAMPLE_RATE) for text, codes in rows))
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--mimi", default="model/nano/mimi", help="MimiModel folder")
    parser.add_argument("--parquet", help="also decode this data file's codes")
    parser.add_argument("--n", type=int, default=60, help="rows of --parquet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--asr", default="pocketsphinx")
    parser.add_argument("--output_dir", default="out/eval_codec")
    args = parser.parse_args(argv)
    try:
        results = evaluate(args)
    except (ValueError, OSError, ImportError) as error:  # by convention these name wrong input and its remedy
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for name, result in results.items():
        groups = ", ".join(f"{group} {rate:.3f}" for group, rate in result["by_group"].items())
        print(f"{name:6} WER {result['wer']:.3f}  ({result['errors']}/{result['words']} words, {result['clips']} clips; {groups})")
    save_json(results, Path(args.output_dir) / "codec.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
