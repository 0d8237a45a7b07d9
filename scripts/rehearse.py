"""A full-size rehearsal without the released weights: random folders in every released format, and the README's commands run on them.

- Everything happens in a copy of this checkout (--work), so that the commands find the files where a user's would be.
- Steps: `check` the folders as downloads, `cli` every suite, `convert` there and back and talk to the folder, `train` one step of every
  stage of both recipes' modes, `serve` the server's start. Each is a process of its own: its time and its greatest memory are a table.
- The weights are random: it shows that the formats load, that nothing is missing and what fits into memory, not what is said.
- Exit codes: 0 all steps went well, 1 some did not (their last lines are shown), 2 wrong arguments.

    python -m scripts.rehearse --assets ../shared/assets
    python -m scripts.rehearse --tokenizer model --variants dense --steps check cli train
"""
import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from evals.cases import SUITES  # noqa: E402
from model.checkpoint import save_json  # noqa: E402
from scripts.bench_table import table_line  # noqa: E402
from scripts.rehearsal_folders import VARIANTS, build, require_tokenizer  # noqa: E402

COPIED = ("model", "engine", "dataset", "evals", "trainer", "scripts", "nano")  # code; weights are made, not copied
STEPS = ("check", "cli", "convert", "train", "serve")
STAGES = (  # of train.sh: name, data, learning rate, max_seq_len, mode
    ("T2A", "sft_t2a_mini", "5e-4", 512, "all"), ("A2A projector", "sft_a2a_mini", "5e-4", 768, "audio_proj"),
    ("A2A", "sft_a2a_mini", "2e-5", 768, "all"), ("I2T projector", "sft_i2t", "5e-4", 768, "vision_proj"),
    ("I2T", "sft_i2t", "5e-6", 768, "all"))
TRAIN_STEPS, TRAIN_ROWS = 2, 2  # the first step also pays for what is allocated once
NEW_TOKENS = 16  # of a reply: 1.3 s of speech
PORT = 17860
START_S = 600  # the server's start, on a busy machine
COLUMNS = (("step", "name"), ("s", "seconds"), ("s per training step", "step_s"), ("peak memory, GB", "gigabytes"), ("", "result"))


@dataclass
class Result:
    """One step: wall time, the greatest memory of any of its processes, seconds of the last training step ('' where there is none)."""
    name: str
    seconds: float
    gigabytes: float
    result: str
    step_s: float | str = ""
    tail: str = ""


def copy_code(work: Path) -> None:
    """This checkout's source files, without weights and data."""
    for folder in COPIED:
        shutil.copytree(ROOT / folder, work / folder, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("__pycache__", "*.pth", "*.pt", "*.parquet", "*.safetensors", "SenseVoiceSmall",
                                                      "siglip2-*", "mimi", "campplus", "tokenizer*.json"))
    shutil.copyfile(ROOT / "eval_omni.py", work / "eval_omni.py")


def measured(name: str, command: list[str], work: Path, cwd: str = ".") -> Result:
    """Run one command in the copy to its end. Its peak memory is never below this program's own: Linux carries that over the exec."""
    print(f"\n$ {'' if cwd == '.' else f'cd {cwd} && '}{' '.join(command)}", flush=True)
    log, began = work / "rehearsal.log", time.monotonic()
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=work / cwd, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)  # set, so that Popen does not wait for it again
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
    print(tail, flush=True)
    return Result(name, round(time.monotonic() - began, 1), round(usage.ru_maxrss / 1e6, 2), "ok" if code == 0 else f"exit code {code}",
                  tail="" if code == 0 else tail)


def check(work: Path, variants: list[str], device: str) -> list[Result]:
    parts = ["frozen", "tokenizer", "voices", *(["llm", "omni"] if "dense" in variants else []), *(["moe"] if "moe" in variants else [])]
    return [measured("check as downloads", [sys.executable, "-m", "scripts.download_models", *parts, "--check"], work)]


def cli(work: Path, variants: list[str], device: str) -> list[Result]:
    base = [sys.executable, "eval_omni.py", "--load_from", "model", "--weight", "sft_omni", "--max_new_tokens", str(NEW_TOKENS),
            "--device", device]
    return [measured(f"{variant}: suite {suite}", [*base, "--use_moe", str(int(variant == "moe")), "--suite", suite], work)
            for variant in variants for suite in SUITES]


def convert(work: Path, variants: list[str], device: str) -> list[Result]:
    results = []
    for variant in variants:
        weights, folder, back = f"out/sft_omni_768{VARIANTS[variant]}.pth", f"converted-{variant}", f"out/back_768{VARIANTS[variant]}.pth"
        shutil.rmtree(work / folder, ignore_errors=True)
        for path in (work / back, (work / back).with_suffix(".json")):  # of an earlier run with --keep
            path.unlink(missing_ok=True)
        program = [sys.executable, "-m", "scripts.convert_omni"]
        results += [measured(f"{variant}: .pth to folder", [*program, weights, folder, "--bin"], work),
                    measured(f"{variant}: folder to .pth", [*program, folder, back], work),
                    measured(f"{variant}: talk to the folder", [sys.executable, "eval_omni.py", "--load_from", folder, "--prompt", "Hello",
                                                                "--max_new_tokens", str(NEW_TOKENS), "--device", device], work)]
    return results


def train(work: Path, variants: list[str], device: str) -> list[Result]:
    results = []
    for variant in variants:
        for name, data, rate, length, mode in STAGES:
            source = "llm" if name == "T2A" else "sft_omni"
            command = [sys.executable, "train_sft_omni.py", "--from_weight", source, "--save_weight", "rehearsal",
                       "--data_path", f"../dataset/{data}.parquet", "--learning_rate", rate, "--max_seq_len", str(length), "--mode", mode,
                       "--use_moe", str(int(variant == "moe")), "--batch_size", str(TRAIN_ROWS), "--max_steps", str(TRAIN_STEPS),
                       "--log_interval", "1", "--num_workers", "0", "--save_dir", "../out/rehearsal", "--device", device]
            shutil.rmtree(work / "out" / "rehearsal", ignore_errors=True)
            result = measured(f"{variant}: {name}, --mode {mode}", command, work, "trainer")
            logs = list((work / "out" / "rehearsal").glob("*/log.csv"))
            if logs:
                *_, last = csv.DictReader(logs[0].read_text(encoding="utf-8").splitlines())
                result.step_s = round(TRAIN_ROWS / max(float(last["samples_per_s"]), 1e-9), 2)
            results.append(result)
    shutil.rmtree(work / "out" / "rehearsal", ignore_errors=True)
    return results


def serve(work: Path, variants: list[str], device: str) -> list[Result]:
    """From the command to the first healthy answer, one reply, and an orderly end."""
    results = []
    for variant in variants:
        command = [sys.executable, "web_demo_omni.py", "--load_from", "model", "--weight", "sft_omni",
                   "--use_moe", str(int(variant == "moe")), "--port", str(PORT), "--slots", "1",
                   "--max_new_tokens", str(NEW_TOKENS), "--device", device]
        print(f"\n$ cd scripts && {' '.join(command)}", flush=True)
        began, log = time.monotonic(), work / "rehearsal.log"
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(command, cwd=work / "scripts", stdout=file, stderr=subprocess.STDOUT)
        try:
            ready = wait_until_healthy(process)
            answer = ask_server() if ready else f"not healthy, exit code {process.poll()}"
        finally:
            process.terminate()
            gigabytes = 0.0  # not known of one that ended before it was asked
            if process.returncode is None:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                gigabytes = round(usage.ru_maxrss / 1e6, 2)
        tail = log.read_text(encoding="utf-8", errors="replace")[-1500:]
        results.append(Result(f"{variant}: server ready", round(ready or time.monotonic() - began, 1), gigabytes, answer,
                              tail="" if answer == "ok" else tail))
    return results


def wait_until_healthy(process: subprocess.Popen) -> float | None:
    """Seconds until /healthz answers; None when the process ended first or START_S passed."""
    began = time.monotonic()
    while time.monotonic() - began < START_S and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=5):
                return time.monotonic() - began
        except OSError:  # not listening yet, or not healthy yet
            time.sleep(0.2)
    return None


def ask_server() -> str:
    """"ok" when a chat completion with speech comes back."""
    body = {"model": "any", "messages": [{"role": "user", "content": "Hello"}], "modalities": ["text", "audio"],
            "audio": {"voice": "alloy", "format": "wav"}}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=START_S) as reply:
            return "ok" if json.load(reply)["choices"][0]["message"]["audio"]["data"] else "no speech in the reply"
    except OSError as error:
        return f"chat completion failed: {error}"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "rehearsal", help="folder of the copy, 3.6 GB (default: out/rehearsal)")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "model", help="folder of the released tokenizer (default: model)")
    parser.add_argument("--voices", type=Path, help="a voices.pt (default: random voices)")
    parser.add_argument("--examples", type=Path, help="folder of audio-*, image-* and img-* files (default: noise)")
    parser.add_argument("--assets", type=Path, help="folder with tokenizer/, voices/ and eval_omni/: sets the three flags above")
    parser.add_argument("--per_kind", type=int, default=2, help="example files of each kind; 0: all")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--keep", action="store_true", help="leave the copy there, and use one that is there already")
    return parser


def prepare(args) -> None:
    """Code and folders in --work."""
    if args.assets:
        args.tokenizer, args.examples = args.assets / "tokenizer", args.assets / "eval_omni"
        args.voices = args.assets / "voices" / "voices.pt"
    if args.work.exists() and any(args.work.iterdir()) and not (args.keep and (args.work / "built.json").is_file()):
        raise FileExistsError(f"{args.work} is not empty: delete it or give another folder with --work")
    built = (args.work / "built.json").is_file()
    if not built:
        require_tokenizer(args.tokenizer)  # before anything is copied
    args.work.mkdir(parents=True, exist_ok=True)
    copy_code(args.work)
    if not built:
        torch.manual_seed(0)
        build(args.work, args.tokenizer, args.voices, args.examples, args.variants, args.per_kind or None)
        save_json({"variants": args.variants}, args.work / "built.json")


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    args.work = args.work.resolve()
    try:
        began = time.monotonic()
        prepare(args)
        print(f"built in {time.monotonic() - began:.0f} s: {args.work}", flush=True)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    run = {"check": check, "cli": cli, "convert": convert, "train": train, "serve": serve}
    results = [result for step in args.steps for result in run[step](args.work, args.variants, args.device)]
    print("\n" + table_line(COLUMNS))
    for result in results:
        print(table_line(COLUMNS, asdict(result)))
    save_json({"device": args.device, "results": [asdict(result) for result in results]}, args.work.with_suffix(".json"))
    failed = [result for result in results if result.result != "ok"]
    for result in failed:
        print(f"\n{result.name}: {result.result}\n{result.tail}", file=sys.stderr)
    if not args.keep:
        shutil.rmtree(args.work)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
