"""The benchmark and the comparison of number formats run, and say what they promise to."""
import json

import pytest
import torch
from tiny_pack import make_tiny_pack

from evals import eval_precision
from model.config import OmniConfig
from model.sequence import undelay
from scripts import bench_omni


@pytest.fixture
def tiny_sizes(monkeypatch):
    """A preset of test size, a short bandwidth test, and torch's threads back afterwards."""
    from test_engine import small_model
    from tiny_folders import make_tiny_mimi

    threads = torch.get_num_threads()
    monkeypatch.setattr(bench_omni, "BIG", 2**16)
    monkeypatch.setattr(bench_omni, "random_model", lambda preset, device: small_model(vocab_size=120, use_moe=preset == "moe"))
    monkeypatch.setattr(bench_omni, "MimiModel", lambda config: make_tiny_mimi(None))
    yield
    torch.set_num_threads(threads)


def test_bench_prints_a_table_and_writes_json_and_picture(tiny_sizes, tmp_path, capsys):
    assert bench_omni.main(["--preset", "nano", "moe", "--dtype", "fp32", "int8", "--sessions", "2", "--prompt_tokens", "9",
                            "--steps", "12", "--repeats", "1", "--device", "cpu", "--threads", "1", "--output_dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result == json.loads((tmp_path / "bench_omni.json").read_text()) and (tmp_path / "bench_omni.png").stat().st_size > 1000
    assert sum(line.startswith("|") for line in lines) == 2 + len(result["rows"]) >= 2 + 4
    for row in result["rows"]:
        assert 0 < row["floor_ms"] < row["frame_ms_p50"] and row["frame_ms_p50"] <= row["frame_ms_p95"]
        while_speaking = row["speaking"] / row["rtf"] * 12.5  # of every second, some is spent on reading prompts
        assert 0.2 * while_speaking < row["frames_per_s"] < 1.001 * while_speaking and row["memory_mib"] > 0


def test_floors_count_what_a_step_reads(tiny_sizes):
    from engine.engine import Engine

    machine = {"bytes_per_s": 1000.0, "flops": {"torch.float32": 1e15, "torch.bfloat16": 1e15}}
    model = bench_omni.random_model("nano", None)
    fp32, int8 = (Engine(model, slots=2, max_length=20, dtype=name) for name in ("fp32", "int8"))
    one, two = (bench_omni.floor_ms(fp32, machine, n, 10) for n in (1, 2))
    cache = 10 * fp32.cache.num_bytes / 40
    assert two - one == pytest.approx(cache)  # bytes over 1000 bytes/s, in ms; the weights are read once
    weights = sum(p.numel() for p in (*model.model.layers.parameters(), *model.talker.layers.parameters()) if p.ndim == 2)
    assert one - cache > 4 * weights and bench_omni.floor_ms(int8, machine, 1, 10) - cache < 0.35 * (one - cache)


@pytest.mark.parametrize("most, verdict", [(1e9, "PASS"), (-1, "FAIL")])
def test_soak_tells_growth(tiny_sizes, tmp_path, capsys, monkeypatch, most, verdict):
    monkeypatch.setattr(bench_omni, "MAX_GROWTH", {"rss_growth": 0.2, "frame_growth": most})  # a busy machine's times say nothing
    assert bench_omni.main(["--preset", "nano", "--sessions", "2", "--prompt_tokens", "9", "--steps", "12", "--minutes", "0.02",
                            "--device", "cpu", "--output_dir", str(tmp_path)]) == (verdict == "FAIL")
    out = capsys.readouterr().out
    soak, = json.loads(out.splitlines()[-1])["soak"]
    assert len(soak["parts"]) == 5 and abs(soak["rss_growth"]) < 0.2 and soak["replies"] > 4
    assert soak["passed"] == (verdict == "PASS") and f"{verdict}: rss_growth" in out


def test_only_choices_that_were_used_are_compared():
    """Text that has ended, and the steps of the staircase that hold no code, are not."""
    config, frames = OmniConfig.preset("nano"), 3
    columns = torch.full((9, 1 + frames + 8), config.audio_pad_token)
    columns[8] = torch.tensor([7, 8, config.eos_token_id, 9, *[config.pad_token_id] * 8])
    for i in range(8):
        columns[i, i + 1:i + 1 + frames], columns[i, i + 1 + frames] = i, config.audio_stop_token
    text, codes = eval_precision.used(columns, config)
    assert text.tolist() == [True] * 3 + [False] * 9 and codes.sum(1).tolist() == [frames] * 8
    assert undelay(codes[:, 1:])[:, :frames].all() and undelay(codes[:, 1:]).all(0).sum() == frames


def test_formats_are_compared_with_float32(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(eval_precision, "MAX_STEPS", 28)
    pack = make_tiny_pack(tmp_path / "pack")
    (pack / "heldout.jsonl").write_text("".join(json.dumps({"question": f"Why {i}?", "answer": "x", "kind": "k"}) + "\n" for i in range(9)))
    assert eval_precision.main(["--pack", str(pack), "--dtype", "fp32", "int8", "--frames", "60", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["frames"] >= 60 and result["figures"]["fp32"] == {"text": 1, "codes": 1, "whole_frames": 1, "free_running": 1}
    assert all(0.5 < share <= 1 for share in result["figures"]["int8"].values())
    assert eval_precision.main(["--pack", str(tmp_path / "nowhere")]) == 2
