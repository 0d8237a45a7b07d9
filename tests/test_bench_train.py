"""The trainer's benchmark and the loader's run in miniature, and say what they promise to."""
import json

import pytest

from model.config import OmniConfig
from scripts import bench_train
from scripts.synthetic_rows import speech_hours, write_rows

TINY = ["--preset", "nano", "--tiny", "--batch_size", "2", "--steps", "3", "--median", "60", "--max_seq_len", "256", "--device", "cpu"]


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(bench_train, "alone", lambda function, *arguments: function(*arguments))


@pytest.mark.parametrize("tasks, rows", [
    (["t2a"], None), pytest.param(["a2a", "i2t"], ["all on", "all off"], marks=pytest.mark.slow)])
def test_bench_prints_a_table_and_writes_json_and_picture(in_process, tmp_path, capsys, tasks, rows):
    if "a2a" in tasks:
        pytest.importorskip("funasr")
    assert bench_train.main([*TINY, "--tasks", *tasks, "--output_dir", str(tmp_path), *(["--rows", *rows] if rows else [])]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result == json.loads((tmp_path / "bench_train.json").read_text()) and (tmp_path / "bench_train.png").stat().st_size > 1000
    assert sum(line.startswith("|") for line in lines) == 2 + len(result["rows"])
    found = [row["configuration"] for row in result["rows"] if row["task"] == tasks[0]]
    assert found == (["all on", "all off"] if rows else [
        "all on", "without length_groups", "without tight_padding", "without logits_window", "without fused_loss", "without fused_adamw",
        "without kept_memory",
        "with max_tokens", "with gradient_checkpointing", "all off"])
    for row in result["rows"]:
        assert row["samples_per_s"] > 0 and 0 < row["mfu"] < 1 and 0 <= row["data_wait"] < 1 and row["memory_mib"] > 10
    padding = {row["configuration"]: row["padding"] for row in result["rows"] if row["task"] == tasks[0]}
    assert padding["all off"] > padding["all on"] + 0.1 > 0.1 and padding["all off"] == padding.get("without tight_padding", padding["all off"])
    assert set(result["recipes"]["nano"]["speech_hours_per_hour"]) == set(tasks)


def test_recipes_add_up():
    hours = bench_train.recipe_hours({"t2a": 235.0, "a2a": 150.0})
    assert hours["mini"] == pytest.approx(470 / 235 + 2 * 75 / 150) and set(hours) == {"mini", "full"}
    assert bench_train.recipe_hours({"t2a": 235.0}) == {}, "no estimate of what was not measured"


def test_made_up_rows_are_as_long_as_said(tmp_path):
    config = OmniConfig.preset("base")
    write_rows(tmp_path / "rows.parquet", "t2a", 300, config, median=180, longest=512)
    frames = speech_hours(tmp_path / "rows.parquet", "t2a") * 3600 * 12.5 / 300
    assert 120 < frames < 190


def test_loader_bench_in_miniature(monkeypatch, tmp_path, capsys):
    """A hundred times the data: started as soon, and hardly more memory."""
    from scripts import bench_loader
    monkeypatch.setattr(bench_loader, "alone", lambda function, *arguments: function(*arguments))
    assert bench_loader.main(["--gigabytes", "0.0004", "0.04", "--batches", "8", "--batch_size", "8", "--output_dir", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    small, large = result["rows"]
    assert large["rows"] == 100 * small["rows"] > 5000 and result == json.loads((tmp_path / "bench_loader.json").read_text())
    assert result["rss_growth_mib"] < 100 and min(small["samples_per_s"], large["samples_per_s"]) > 20
