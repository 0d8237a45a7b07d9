"""The builder's benchmark runs, and its figures are what they say."""
import json

import pytest
import torch
from test_build_inputs import Beeps
from tiny_folders import make_tiny_campplus, make_tiny_mimi

from scripts import bench_build


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    make_tiny_mimi(root / "mimi")
    make_tiny_campplus(root / "campplus")
    return root


def run(capsys, *arguments: str) -> tuple[dict, list[str]]:
    threads = torch.get_num_threads()
    assert bench_build.main(list(arguments)) == 0
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    return json.loads(lines[-1]), lines


def test_stages_add_up(folders, capsys, monkeypatch):
    monkeypatch.setattr(bench_build.shutil, "which", lambda name: None)  # noise instead of flite
    result, lines = run(capsys, "stages", "--codec", str(folders / "mimi"), "--speaker_encoder", str(folders / "campplus"), "--utterances",
                        "5", "--hours", "48")
    speeds, total = result["hours_per_core_hour"], result["all_stages"]["from recordings"]
    assert set(speeds) == {"read, resample, trim, level", "gates", "CAM++", "shard", "Mimi, batched", *bench_build.NOT_OF_A_BUILD} - {"flite"}
    built = [speed for stage, speed in speeds.items() if stage not in bench_build.NOT_OF_A_BUILD]
    assert 0 < total < min(built) and 1 / total == pytest.approx(sum(1 / speed for speed in built))
    assert result["cores_for_a_day"]["from recordings"] == pytest.approx(2 / total)
    assert min(result["same_codes"][way] for way in ("Mimi, one by one", "Mimi, one by one, transformers")) > 0.999
    assert all(0 < result["batching_gains"][way] < limit for way, limit in result["batching_limits"].items())
    assert sum(line.startswith("| ") for line in lines) == 1 + len(speeds) + len(result["all_stages"])


def test_whole_builds_are_measured(folders, capsys):
    result, _ = run(capsys, "whole", "--codec", str(folders / "mimi"), "--speaker_encoder", "none", "--tts", "test_build_inputs:Beeps",
                    "--utterances", "3", "6", "--workers", "1")
    small, large = result["rows"]
    seconds = sum(len(Beeps(()).speak(text, "low").wav) for text in bench_build.TEXTS[:3]) / 16_000
    assert (small["utterances"], large["utterances"]) == (3, 6) and small["hours"] * 3600 == pytest.approx(seconds, rel=0.1)
    assert all(row["memory_mib"] > 50 and 0 < row["cpu_percent"] < 130 for row in result["rows"])
    assert bench_build.main(["whole", "--utterances", "0"]) == 2
