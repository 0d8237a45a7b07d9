"""trainer/train_nano.sh's bookkeeping: what its steps took, two lanes counted once, and the table at its end."""
import json

import pytest

from nano import summary

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
