"""trainer/train_nano.sh's bookkeeping: what its steps took, two lanes counted once, and the table at its end; all of it, tiny (slow)."""
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nano import summary

SCRIPT = Path(__file__).resolve().parents[1] / "trainer/train_nano.sh"
TINY = {
    "COMPILE": "0", "CODEC_CLIPS": "50", "CODEC_SIZE": "--batch_size 2 --frames 8 --fit_frames 4000 --threads 1",
    "CODEC_LENGTH": "--steps 12 --joint_at 0.36 --encoder_at 0.75", "CODEC_TUNE": "--steps 6 --joint_at 0", "LLM_STEPS": "6",
    "EYES": "--steps 3 --batch_size 8 --questions 2 --pictures 16", "EARS": "--steps 6 --batch_size 8 --clips 4",
    "TURNS": "--steps 3 --turns 40", "THINK_STEPS": "4", "TALK_STEPS": "4", "EXTRA": "--save_interval 2",
    "THINK_ROWS": "16", "TALK_ROWS": "8", "HEARD": "10",
    "SPEAKERS": "--steps 5 --each 8", "SPOKEN": "--limit 60 --sentences 30 --words 20",
    "FURTHER": "--limit 20 --sentences 20 --foreign 0.5",
    "TALKS": "--limit 60 --askings 1 --conversations 20 --typed 10 --questions 20 --spoken 6 --heldout 4", "LENT": "--talks 5", "N": "2"}

TIMES = "speech\t0\t600\tdone\ncodec\t600\t3000\tstopped\nllm\t600\t1800\tdone\ncodec\t9000\t9600\tdone\n"


def test_steps_that_ran_beside_each_other_count_once(tmp_path):
    (tmp_path / "times.tsv").write_text(TIMES)
    times = summary.read_times(tmp_path / "times.tsv")
    assert summary.minutes_by_step(times) == {"speech": 10, "codec": 50, "llm": 20}
    assert summary.whole_minutes(times) == 10 + 40 + 10


def test_a_line_that_is_no_stretch_is_named(tmp_path):
    (tmp_path / "times.tsv").write_text(TIMES + "eyes\tnever\n")
    with pytest.raises(ValueError, match="line 5"):
        summary.read_times(tmp_path / "times.tsv")


def test_the_table_has_times_figures_and_size(tmp_path, capsys):
    for folder in ("pack", "eval"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pack" / "weights.pth").write_bytes(bytes(1_500_000))
    (tmp_path / "times.tsv").write_text(TIMES)
    (tmp_path / "eval" / "eval_nano.json").write_text(json.dumps({"summary": [{"group": "all", "wer": 0.2871, "exact": 0.8}]}))
    (tmp_path / "eval" / "senses.json").write_text(json.dumps({"figures": {"training voices": {"right": 0.9167, "wer": 0.0163}}}))
    assert summary.main([f"--work={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| codec | 50.0 |" in lines and "| word error rate of the speech | 0.287 | ≤ 0.30 |" in lines
    assert "| spoken question answered as when typed, voices of the training | 92% | ≥ 85 % |" in lines
    assert lines[-1] == "| size of the pack in MB | 1.5 | ≤ 48 |"
    assert (tmp_path / "summary.md").read_text().splitlines() == lines


def test_without_times_one_line_says_so(tmp_path, capsys):
    assert summary.main([f"--work={tmp_path}"]) == 2
    assert "times.tsv" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not all(map(shutil.which, ("flite", "festival", "espeak-ng"))), reason="needs flite, festival and espeak-ng")
def test_a_killed_script_goes_on_without_doing_anything_twice(tmp_path):
    work = tmp_path / "nano"
    settings = {**os.environ, **TINY, "WORK": str(work), "PYTHON": sys.executable, "DEVICE": "cpu"}
    with open(tmp_path / "log", "w") as log:
        first = subprocess.Popen(["bash", SCRIPT], env=settings, stdout=log, stderr=log)
        while not (work / "data" / "a2a_train").exists():
            assert first.poll() is None, (tmp_path / "log").read_text()[-2000:]
            time.sleep(1)
        first.terminate()
        assert first.wait(60) != 0
        with open(work / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nothing that it had started is at work any more
            refused = subprocess.run(["bash", SCRIPT], env=settings, capture_output=True, text=True)
        assert refused.returncode == 1 and "is at work" in refused.stdout
        lines = [line.split("\t") for line in (work / "times.tsv").read_text().splitlines()]
        assert ("asked", "stopped") in [(name, how) for name, _, _, how in lines]
        finished = ("corpus/mixed.jsonl", "codec/targets.pt", "model/llm_256.pth")
        made = {path: path.stat().st_mtime_ns for path in map(work.joinpath, finished)}
        subprocess.run(["bash", SCRIPT], env=settings, stdout=log, stderr=log, check=True)
    assert made == {path: path.stat().st_mtime_ns for path in made}
    steps = [name for name, _, _ in summary.read_times(work / "times.tsv")]
    assert all(steps.count(name) == 1 for name in ("corpus", "books", "speakers", "llm", "talk"))
    assert {"codec", "eyes", "ears", "think", "examine"} <= set(steps)
    table = (work / "summary.md").read_text()
    assert all(title in table for title in summary.FIGURES)
    assert (work / "pack/sft_omni_256.pth").exists() and (work / "pack/mimi/model.safetensors").exists()
