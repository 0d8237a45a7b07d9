"""The commands that the documentation prints: every flag exists, and those of the original run on full-size random folders (slow)."""
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from scripts import rehearse
from scripts.download_models import PARTS
from scripts.rehearsal_folders import build

ROOT = Path(__file__).resolve().parents[1]
ORIGINAL = ROOT / "docs" / "original.md"
PAGES = [ROOT / "README.md", ROOT / "README_zh.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "nano" / "README.md"]
SHARED_FLAGS = {  # command -> files whose parsers it takes flags from
    "eval_omni.py": ("eval_omni.py",), "web_demo_omni.py": ("scripts/web_demo_omni.py", "eval_omni.py"),
    "train_sft_omni.py": ("trainer/options.py",), "train_spoken.py": ("scripts/train_spoken.py", "trainer/options.py")}
SMALL = "--max_steps 1 --batch_size 1 --num_workers 0 --device cpu"  # added to every training command
PORT = 17861


def commands(page: Path) -> list[str]:
    """The command lines of a page's bash blocks: comments cut off, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


def program_of(words: list[str]) -> Path | None:
    """The file of this project that a command runs, None when it runs something else."""
    for i, word in enumerate(words):
        if word == "-m" and words[i + 1].split(".")[0] in ("scripts", "evals", "nano", "trainer", "dataset"):
            return ROOT / (words[i + 1].replace(".", "/") + ".py")
        if word.endswith(".py") and not word.startswith("-"):
            return next((path for path in (ROOT / folder / word for folder in (".", "trainer", "scripts")) if path.is_file()), ROOT / word)
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_programs_and_flags_exist(page):
    for command in commands(page):
        words = shlex.split(command)
        program = program_of(words)
        if program is None:
            continue
        assert program.is_file(), f"{page.name}: {command}"
        if "bench_train" in program.name or program.parent.name in ("nano",):
            sources = [program, *ROOT.glob("trainer/options.py")]
        else:
            sources = [ROOT / name for name in SHARED_FLAGS.get(program.name, ())] or [program, ROOT / "evals" / "command.py"]
        known = "\n".join(path.read_text(encoding="utf-8") for path in sources)
        start = next(i for i, word in enumerate(words) if word.endswith(".py") or word == "-m")
        for word in words[start + 1:]:
            if word.startswith("--"):
                assert f'"{word.split("=")[0]}"' in known, f"{page.name}: {command}: {word} is not a flag of {program.name}"


def test_what_the_original_downloads_is_what_ours_downloads():
    ours = {(part.repository, part.files[:1], Path(part.target)) for part in PARTS} | {
        (part.repository, (), Path(part.target)) for part in PARTS}
    fetches = [shlex.split(line) for line in commands(ORIGINAL) if line.startswith("modelscope")]
    assert len(fetches) == 5
    for words in fetches:
        owner, repository = words[words.index("--model") + 1].split("/")
        files = tuple(words[words.index("--model") + 2:words.index("--local_dir")])
        assert owner == "gongjy" and (repository, files, Path(words[-1])) in ours


def test_the_original_commands_of_training_are_read_as_they_were_meant():
    from trainer.options import parse
    for command in commands(ORIGINAL):
        if "train_sft_omni.py" in command:
            parse("", shlex.split(command.partition("train_sft_omni.py")[2]))


def test_make_asks_the_question_as_it_was_typed(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text('#!/bin/sh\nprintf %s "$3"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    (tmp_path / ".ready").touch()
    question = """She said "it's $5"; `x` $(y) #?"""
    run = subprocess.run(["make", "-s", f"VENV={tmp_path}", "demo", f"QUESTION={question}"], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == question and run.returncode == 0


# ---- what cannot be done is refused in one line

@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A folder with a question and a broken certificate, and the port of a server that lets nobody in."""
    class Locked(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    folder, server = tmp_path_factory.mktemp("locked"), HTTPServer(("127.0.0.1", 0), Locked)
    soundfile.write(folder / "question.wav", 0.5 * np.sin(np.arange(24_000) / 20), 24_000)
    (folder / "cert.pem").write_text("no certificate")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, server.server_port
    server.shutdown()


@pytest.mark.parametrize("program, arguments, words", [
    ("web_demo_omni", "--port PORT", "cannot listen on --host 127.0.0.1 --port PORT"),
    ("web_demo_omni", "--port 0 --ssl-certfile FOLDER/cert.pem --ssl-keyfile FOLDER/cert.pem", "FOLDER/cert.pem are not a certificate"),
    ("bench_call", "127.0.0.1:PORT FOLDER/question.wav", "http://127.0.0.1"),
    ("bench_call", "http://127.0.0.1:PORT FOLDER/question.wav", "401: give an address such as http://127.0.0.1:7860, and --api-key"),
    ("soak", "127.0.0.1:PORT", "http://127.0.0.1"), ("soak", "http://127.0.0.1:PORT --api-key wrong", "--api-key"),
    ("screenshots", "http://127.0.0.1:PORT FOLDER/pictures", "no open server"), ("screenshots", "127.0.0.1:9 FOLDER/x", "no open server"),
    ("bench_omni", "--device cuda", "use --device cpu"), ("bench_train", "--device cuda", "use --device cpu"),
    ("bench_build", "stages --device cuda", "use --device cpu"), ("bench_train", "--rows foo", "'foo' is none of preset base's")])
def test_wrong_input_is_one_line(locked, capsys, monkeypatch, program, arguments, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments, words = (text.replace("FOLDER", str(locked[0])).replace("PORT", str(locked[1])) for text in (arguments, words))
    assert import_module(f"scripts.{program}").main(arguments.split()) == 2
    out, error = capsys.readouterr()
    assert words in error and error.count("\n") == 1 and "MiniMind-O on http" not in out
    assert not (locked[0] / "pictures").exists()


# ---- on full-size random folders

@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory, shared) -> Path:
    assets = shared / "assets"
    work = tmp_path_factory.mktemp("rehearsal")
    rehearse.copy_code(work)
    build(work, assets / "tokenizer", assets / "voices" / "voices.pt", assets / "eval_omni", per_kind=1)
    return work


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict:
    """Programs called python and torchrun are this interpreter's; nothing is sent anywhere."""
    shims = tmp_path_factory.mktemp("bin")
    for name, words in (("python", ""), ("torchrun", "-m torch.distributed.run")):
        (shims / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (shims / name).chmod(0o755)
    return {**os.environ, "PATH": f"{shims}:{os.environ['PATH']}", "WANDB_MODE": "offline", "BATCH": "1", "USE_COMPILE": "0",
            "EXTRA": SMALL}


def shrunk(command: str) -> str:
    """The command as printed, with little to do."""
    if "eval_omni.py" in command:
        return f"{command} --max_new_tokens 8 --device cpu"
    return f"{command} {SMALL}" if "train_sft_omni.py" in command else command


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("command", [line for line in commands(ORIGINAL) if not line.startswith("modelscope")])
def test_original_commands_run(rehearsal, environment, command):
    if "web_demo" in command:
        check_server(rehearsal, environment, f"exec {command.rpartition('&& ')[2]} --port {PORT} --device cpu")
        return
    run = subprocess.run(["bash", "-c", shrunk(command)], cwd=rehearsal, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, (command, run.stdout[-1500:], run.stderr[-3000:])
    if "--load_from" in command:
        assert "results in" in run.stdout


def check_server(work: Path, environment: dict, command: str) -> None:
    with open(work / "server.log", "w") as log:
        server = subprocess.Popen(["bash", "-c", command], cwd=work / "scripts", env=environment, stdout=log, stderr=log)
        try:
            for _ in range(6000):
                assert server.poll() is None, (work / "server.log").read_text()[-3000:]
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=5) as reply:
                        assert reply.status == 200
                        return
                except OSError:  # not yet
                    time.sleep(0.2)
            raise AssertionError((work / "server.log").read_text()[-3000:])
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)
