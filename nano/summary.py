"""What trainer/train_nano.sh made and how long it took, as one table: the end of that script; again at any time.

- `times.tsv` has a line for every stretch of a step: its name, when it began and ended (seconds since 1970), "done" or "stopped". Two steps
  at a time count once in the whole time; what a kill (-9) cut off is not in it.
- The figures are those of evals.eval_nano and evals.eval_senses on the pack, beside what the nano world is asked to reach.

    python -m nano.summary --work out/nano
"""
import argparse
import json
import sys
from pathlib import Path

from model.checkpoint import replace_atomic
from model.refusal import INPUT_ERRORS, refuse

# figure: (file, group, key, what is asked for)
FIGURES = {
    "spoken question answered as when typed, voices of the training": ("senses.json", "training voices", "right", "≥ 85 %"),
    "under 10 dB of pink noise": ("senses.json", "training voices, 10 dB noise", "right", "≥ 75 %"),
    "by a voice never heard": ("senses.json", "unseen voice", "right", "≥ 60 %"),
    "transcriber's word error rate, voices of the training": ("senses.json", "training voices", "wer", "≤ 0.10"),
    "pictures' questions, typed": ("senses.json", "pictures", "right", "≥ 85 %"),
    "pictures' questions, spoken": ("senses.json", "pictures, spoken question", "right", ""),
    "questions that need an earlier turn": ("senses.json", "conversations", "right", "≥ 80 %"),
    "the same question in the seventh turn of a talk, typed": ("senses.json", "calls, typed", "right", ""),
    "the same, spoken": ("senses.json", "calls, spoken", "right", ""),
    "typed held-out questions, answered to the word": ("eval_nano.json", "all", "exact", ""),
    "word error rate of the speech": ("eval_nano.json", "all", "wer", "≤ 0.30"),
}


def read_times(path: Path) -> list[tuple[str, int, int]]:
    """(step, began, ended) of every stretch; ValueError for a line that is none."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            name, began, ended, _ = line.split("\t")
            found.append((name, int(began), int(ended)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not STEP, BEGAN, ENDED, HOW: {line!r}") from error
    return found


def minutes_by_step(times: list[tuple[str, int, int]]) -> dict[str, float]:
    """Minutes of each step, in the order in which they began."""
    found = {}
    for name, began, ended in sorted(times, key=lambda entry: entry[1]):
        found[name] = found.get(name, 0.0) + (ended - began) / 60
    return found


def whole_minutes(times: list[tuple[str, int, int]]) -> float:
    """Minutes in which at least one step ran."""
    seconds, until = 0, 0
    for _, began, ended in sorted(times, key=lambda entry: entry[1]):
        seconds += max(0, ended - max(began, until))
        until = max(until, ended)
    return seconds / 60


def read_figures(folder: Path) -> dict[str, str]:
    """The FIGURES that the evaluations in `folder` have."""
    groups = {"eval_nano.json": {}, "senses.json": {}}
    for name in groups:
        if (folder / name).exists():
            saved = json.loads((folder / name).read_text(encoding="utf-8"))
            groups[name] = saved["figures"] if "figures" in saved else {row["group"]: row for row in saved["summary"]}
    found = {}
    for title, (file, group, key, _) in FIGURES.items():
        if group in groups[file]:
            value = groups[file][group][key]
            found[title] = f"{value:.3f}" if key == "wer" else f"{value:.0%}"
    return found


def table(times: list[tuple[str, int, int]], figures: dict[str, str], megabytes: float) -> str:
    lines = ["| step | minutes |", "|---|---|"]
    lines += [f"| {name} | {minutes:.1f} |" for name, minutes in minutes_by_step(times).items()]
    lines += [f"| **all, two of them at a time in part** | **{whole_minutes(times):.0f}** |", "", "| held out | | aim |", "|---|---|---|"]
    lines += [f"| {title} | {value} | {FIGURES[title][-1]} |" for title, value in figures.items()]
    return "\n".join([*lines, f"| size of the pack in MB | {megabytes:.1f} | ≤ 48 |"])


def main(argv=None) -> int:
    """0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--work", type=Path, default=Path("out/nano"), help="WORK of trainer/train_nano.sh; summary.md is written there")
    parser.add_argument("--pack", type=Path, help="default: WORK/pack")
    args = parser.parse_args(argv)
    try:
        size = sum(file.stat().st_size for file in (args.pack or args.work / "pack").rglob("*") if file.is_file()) / 1e6
        text = table(read_times(args.work / "times.tsv"), read_figures(args.work / "eval"), size)
        print(text)
        replace_atomic(args.work / "summary.md", lambda file: file.write(f"{text}\n".encode()))
    except INPUT_ERRORS as error:
        return refuse(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
