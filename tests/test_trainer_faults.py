"""What may go wrong in a long training, each as a test: kills, full disks, damaged files, ranks that raise, rows that poison a step."""
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_training import command, make_t2a, make_tokenizer

from model.checkpoint import load_model, load_weights
from trainer.train_sft_omni import Trainer, main, parse_args
from trainer.trainer_utils import Processes, read_log

ROOT = Path(__file__).resolve().parents[1]
CPU = Processes(0, 1, torch.device("cpu"))
POISON = [3e38] * 192  # finite in the file, not behind the projection of `fragile`


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tokenizer and 12 rows of T2A."""
    folder = tmp_path_factory.mktemp("faults")
    make_tokenizer(folder / "tokenizer")
    make_t2a(folder / "t2a.parquet", 12)
    return folder


def poison(source: Path, target: Path, rows: set[int]) -> None:
    table = pq.read_table(source).to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, "spk_emb": POISON} if i in rows else row for i, row in enumerate(table)]), target)


def fragile(argv: list[str]) -> Trainer:
    """A trainer whose speaker projection overflows on POISON, but on nothing else."""
    trainer = Trainer(parse_args(argv), CPU)
    with torch.no_grad():
        trainer.model.talker.spk_proj.weight.fill_(1)
    return trainer


def start(argv: list[str], processes: int = 0, *flags: str, script: str = "trainer/train_sft_omni.py") -> subprocess.Popen:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), *flags] if processes else []
    return subprocess.Popen([sys.executable, *torchrun, script, *argv], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


def wait_for(path: Path, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def test_rows_that_poison_a_step_are_named(world, tmp_path, caplog):
    poison(world / "t2a.parquet", tmp_path / "one.parquet", {5})
    assert fragile(command(world, save_dir=tmp_path, data_path=tmp_path / "one.parquet", log_interval=3)).fit()
    row, = read_log(tmp_path / "sft_omni_64" / "log.csv")
    assert row["skipped_steps"] == "1" and f"no finite loss from row 5 of {tmp_path / 'one.parquet'}" in caplog.text
    assert caplog.text.count("no finite loss") == 1 and caplog.text.count("row 5 of") == 1, "its neighbours are not to blame"
    assert all(p.isfinite().all() for p in load_model(tmp_path / "sft_omni_64.pth").parameters())


def test_too_many_bad_steps_stop_the_run(world, tmp_path):
    poison(world / "t2a.parquet", tmp_path / "all.parquet", set(range(12)))
    trainer = fragile(command(world, save_dir=tmp_path, data_path=tmp_path / "all.parquet", epochs=3, max_bad_steps=4))
    with pytest.raises(ValueError, match=r"4 steps in a row had no finite loss or gradient \(--max_bad_steps\): row \d+ of .*all.parquet"):
        trainer.fit()
    assert len(read_log(tmp_path / "sft_omni_64" / "log.csv")) == 4
    trainer = Trainer(parse_args(command(world, save_dir=tmp_path, max_bad_steps=2)), CPU)
    net, trainer.net = trainer.net, lambda *inputs: tuple(x * float("nan") for x in net(*inputs))
    with pytest.raises(ValueError, match="no single row is to blame: lower --learning_rate"):
        trainer.fit()


def test_an_evaluation_that_fails_costs_nothing_that_was_learnt(world, tmp_path, caplog):
    def speak(model, path):
        raise ValueError("no voice")

    for steps, save_interval in ((2, 9), (3, 2)):  # at the end, and in the middle
        folder = tmp_path / str(steps)
        argv = command(world, save_dir=folder, max_steps=steps, eval_interval=2, save_interval=save_interval, eval_rows=2)
        assert main(argv, speak) == 2 and "no voice" in caplog.text
        assert load_weights(folder / "sft_omni_64_resume.pth")["step"] == 2


def test_a_device_that_is_not_there_is_one_line(world, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "toaster"):
        assert main(command(world, save_dir=tmp_path, device=device)) == 2
        assert device in caplog.messages[-1] and "use " in caplog.messages[-1]


def test_a_full_disk_leaves_the_last_checkpoint(world, tmp_path, caplog):
    """The limit on file sizes stands in for the disk: writing fails half-way through the file."""
    argv = command(world, save_dir=tmp_path, save_interval=1, max_steps=1)
    assert main(argv) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        assert main([*argv, "--max_steps", "3", "--from_resume", "1"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")} == before and "File too large" in caplog.text
    assert not list(tmp_path.glob(".*.tmp"))
    assert main([*argv, "--max_steps", "3", "--from_resume", "1"]) == 0, "with room again it goes on"


@pytest.mark.parametrize("more, message", [
    (["--mode", "thinker", "--guided_attention", "0.5"], "does not run with --mode thinker"),
    (["--mode", "spelling", "--spelling", "1", "--guided_attention", "0.5"], "does not run with --mode spelling"),
    (["--use_wandb"], "pip install wandb"), (["--use_tensorboard"], "pip install tensorboardX")])
def test_flags_that_cannot_be_met_are_named_at_once(world, tmp_path, monkeypatch, capsys, more, message):
    for package in ("wandb", "tensorboardX"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(SystemExit):
        main([*command(world, save_dir=tmp_path), *more])
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_truncated_file_is_named(world, tmp_path, caplog):
    whole = (world / "t2a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:len(whole) // 2])
    assert main(command(world, save_dir=tmp_path, data_path=tmp_path / "cut.parquet")) == 2
    assert f"{tmp_path / 'cut.parquet'} is not a readable parquet file" in caplog.text


def test_older_checkpoints_are_kept_and_stand_in_for_a_damaged_one(world, tmp_path, caplog):
    argv = command(world, save_dir=tmp_path, save_interval=1, max_steps=5, keep_last=3)
    assert main(argv) == 0
    steps = sorted(path.name for path in tmp_path.glob("*_resume_step*.pth"))
    assert steps == [f"sft_omni_64_resume_step{n:08d}.pth" for n in (3, 4, 5)]
    latest = tmp_path / "sft_omni_64_resume.pth"
    assert latest.samefile(tmp_path / steps[-1]), "a second name, not a second copy"
    damaged = latest.read_bytes()[:-1000]
    latest.unlink()
    for path in (latest, tmp_path / steps[-1]):
        path.unlink(missing_ok=True)
        path.write_bytes(damaged)
    trainer = Trainer(parse_args([*argv, "--from_resume", "1"]), CPU)
    assert trainer.step == 4 and "trying the one before it" in caplog.text
    assert main([*argv, "--from_resume", "1", "--keep_last", "1"]) == 0
    assert not list(tmp_path.glob("*_resume_step*.pth")) and load_weights(latest)["step"] == 5


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_sigterm_saves_and_exits_with_0(world, tmp_path):
    child = start(command(world, save_dir=tmp_path, max_steps=100000, num_workers=1))
    wait_for(tmp_path / "sft_omni_64" / "log.csv")
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=200)
    assert child.returncode == 0 and "stopped and saved" in errors
    assert 0 < load_weights(tmp_path / "sft_omni_64_resume.pth")["step"] < 100000


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_rank_that_raises_ends_all(world, tmp_path):
    """Nobody waits for it: the run ends with an error and a readable checkpoint."""
    (tmp_path / "raising.py").write_text(
        "import sys\nfrom trainer import train_sft_omni as t\nstep = t.Trainer.train_step\n"
        "def raising(self, batches):\n    if self.procs.rank == 1 and self.step == 3:\n        raise RuntimeError('rank 1 is broken')\n"
        "    step(self, batches)\nt.Trainer.train_step = raising\nsys.exit(t.main())\n")
    child = start(command(world, save_dir=tmp_path, max_steps=50, batch_size=2, save_interval=2), 2, script=str(tmp_path / "raising.py"))
    _, errors = child.communicate(timeout=300)
    assert child.returncode != 0 and "rank 1 is broken" in errors
    assert load_weights(tmp_path / "sft_omni_64_resume.pth")["step"] == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_elastic_run_outlives_a_killed_process(world, tmp_path):
    """torchrun starts both again, and they go on from the last checkpoint: the same curve as without the kill."""
    argv = command(world, save_dir=tmp_path / "killed", max_steps=12, batch_size=2, save_interval=2, from_resume=1)
    whole = command(world, save_dir=tmp_path / "whole", max_steps=12, batch_size=4)
    assert main(whole) == 0
    script = tmp_path / "pids.py"  # each process says which rank it is, and they are slow enough to be killed in time
    script.write_text("import os, sys, time, pathlib\nfrom trainer import train_sft_omni as t\nstep = t.Trainer.train_step\n"
                      "def slow(self, batches):\n    step(self, batches)\n    time.sleep(0.5)\nt.Trainer.train_step = slow\n"
                      f"pathlib.Path({str(tmp_path)!r}, f\"pid_{{os.environ['RANK']}}_{{os.environ['TORCHELASTIC_RESTART_COUNT']}}\")"
                      ".write_text(str(os.getpid()))\nsys.exit(t.main())\n")
    child = start(argv, 2, "--max_restarts", "2", script=str(script))
    wait_for(tmp_path / "killed" / "sft_omni_64_resume.pth")
    os.kill(int((tmp_path / "pid_1_0").read_text()), signal.SIGKILL)
    _, errors = child.communicate(timeout=400)
    assert child.returncode == 0, errors[-3000:]
    assert (tmp_path / "pid_1_1").exists(), "it was started again"
    curves = [[float(row["total"]) for row in read_log(tmp_path / run / "sft_omni_64" / "log.csv")] for run in ("killed", "whole")]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5) and len(curves[0]) == 12
