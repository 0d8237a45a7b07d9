"""The builder's benchmark, in miniature."""
import json

import pytest
import torch
from tiny_folders import make_tiny_campplus, make_tiny_mimi

from scripts import bench_build


def test_every_stage_is_timed_and_added_up(tmp_path, capsys, monkeypatch):
    threads = torch.get_num_threads()
    make_tiny_mimi(tmp_path / "mimi")
    make_tiny_campplus(tmp_path / "campplus")
    monkeypatch.setenv("PATH", "")  # no flite: what is left must work
    assert bench_build.main(["--codec", str(tmp_path / "mimi"), "--speaker_encoder", str(tmp_path / "campplus"), "--utterances", "3",
                             "--hours", "240"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    speeds, (total,) = result["hours_per_core_hour"], result["all_stages"].values()
    assert set(speeds) == {"read, resample, trim, level", "gates", "Mimi, batched", "Mimi, one by one", "CAM++", "shard"}
    assert 0 < total < min(speed for stage, speed in speeds.items() if stage != "Mimi, one by one")
    assert result["cores_for_a_day"]["from recordings"] == pytest.approx(10 / total)
    assert 0.99 < result["same_codes"] <= 1 and sum(line.startswith("|") for line in lines) == 2 + len(speeds) + 1
    assert bench_build.main(["--codec", str(tmp_path / "nowhere")]) == 2 and "no Mimi codec" in capsys.readouterr().err
    torch.set_num_threads(threads)
