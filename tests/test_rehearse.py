"""The full-size rehearsal: its folders are what a download would be, its steps are measured, and (slow) they all go well."""
import sys

import pytest
import torch

from engine.voices import load_voices
from evals.cases import AUDIO_SUFFIXES, IMAGE_SUFFIXES, examples
from model.checkpoint import load_model
from model.config import OmniConfig
from model.weight_files import infer_config, load_weights, migrate
from scripts import check_models, rehearse
from scripts.rehearsal_folders import write_campplus, write_examples, write_voices, write_weights

SIZES = dict(hidden_size=96, num_hidden_layers=4, num_talker_hidden_layers=1, talker_hidden_size=64, max_position_embeddings=256)


@pytest.mark.parametrize("moe", [False, True])
def test_weights_load_strictly_and_their_talker_never_stops(tmp_path, moe):
    config = OmniConfig(use_moe=moe, **SIZES)
    torch.manual_seed(0)
    write_weights(tmp_path / "sft_omni_96.pth", tmp_path / "llm_96.pth", config)
    state = migrate(load_weights(tmp_path / "sft_omni_96.pth"))
    assert infer_config(state).talker_hidden_size == 64 and state["lm_head.weight"].dtype == torch.float16
    model = load_model(tmp_path / "sft_omni_96.pth", config)
    ids = torch.randint(3, 2000, (1, 9, 12))
    logits = model(ids).audio_logits
    assert logits.isfinite().all() and int(logits.argmax(-1).max()) < config.num_codes
    assert not any(key.startswith("talker.") for key in load_weights(tmp_path / "llm_96.pth"))


def test_campplus_voices_and_examples_are_found_whole(tmp_path):
    pytest.importorskip("funasr")
    write_campplus(tmp_path / "campplus")
    assert check_models.campplus(tmp_path / "campplus") == "6.85 M parameters"
    write_voices(tmp_path / "voices.pt", None)
    assert len(load_voices(tmp_path / "voices.pt", OmniConfig())) == 2
    write_examples(tmp_path / "examples", None, None)
    for kind, suffixes in (("audio", AUDIO_SUFFIXES), ("img", AUDIO_SUFFIXES), ("image", IMAGE_SUFFIXES)):
        assert len(examples(tmp_path / "examples", kind, suffixes)) == 1


def test_a_step_is_timed_weighed_and_its_failure_shown(tmp_path, capsys):
    good = rehearse.measured("good", [sys.executable, "-c", "import time; x = bytearray(200_000_000); time.sleep(1); print('done')"], tmp_path)
    assert good.result == "ok" and good.gigabytes >= 0.2 and good.seconds > 0 and good.tail == ""
    bad = rehearse.measured("bad", [sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path)
    assert bad.result == "exit code 1" and "no such thing" in bad.tail
    assert "done" in capsys.readouterr().out


def test_the_copy_has_the_code_and_no_weights(tmp_path):
    rehearse.copy_code(tmp_path / "work")
    assert (tmp_path / "work" / "trainer" / "train.sh").is_file() and (tmp_path / "work" / "model" / "mimi.py").is_file()
    assert not [p for p in (tmp_path / "work").rglob("*") if p.suffix in (".pth", ".pt", ".safetensors", ".parquet")]


def test_wrong_requests_are_one_line(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert rehearse.main(["--work", str(tmp_path / "full")]) == 2 and "is not empty" in capsys.readouterr().err
    assert rehearse.main(["--work", str(tmp_path / "new"), "--tokenizer", str(tmp_path)]) == 2
    assert "no tokenizer.json" in capsys.readouterr().err and not (tmp_path / "new").exists(), "said before anything is copied"


def test_a_server_that_ends_at_once_is_reported(tmp_path, monkeypatch):
    work = tmp_path
    (work / "scripts").mkdir()
    (work / "scripts" / "web_demo_omni.py").write_text("raise SystemExit('no weights')")
    result, = rehearse.serve(work, ["dense"], "cpu")
    assert result.result == "not healthy, exit code 1" and "no weights" in result.tail


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("variant", ["dense", "moe"])
def test_everything_goes_well_at_full_size(tmp_path, shared, variant):
    assert rehearse.main(["--assets", str(shared / "assets"), "--work", str(tmp_path / "work"), "--variants", variant, "--device", "cpu",
                          "--per_kind", "0"]) == 0
