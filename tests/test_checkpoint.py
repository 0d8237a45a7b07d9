"""Checkpoints: whole or not at all, named when they do not fit, and alive after kill -9."""
import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from model.checkpoint import (load_model, load_strict, load_weights, read_sidecar, remove_leftovers, resume_path, save_atomic, save_model,
                              weights_path)
from model.config import OmniConfig
from model.model_omni import MiniMindOmni, init_talker_from_thinker
from tiny_training import command, make_t2a, make_tokenizer, train_quietly
from trainer.trainer_utils import read_log

TINY = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_talker_hidden_layers=1, talker_hidden_size=32, num_attention_heads=4,
            max_position_embeddings=64)


def tiny_model(**changes) -> MiniMindOmni:
    torch.manual_seed(0)
    return MiniMindOmni(OmniConfig(**{**TINY, **changes}))


def test_names_are_the_released_ones():
    assert weights_path("out", "sft_omni", OmniConfig()).as_posix() == "out/sft_omni_768.pth"
    assert weights_path("out", "sft_omni", OmniConfig(use_moe=True)).as_posix() == "out/sft_omni_768_moe.pth"
    assert resume_path("out", "sft_omni", OmniConfig(use_moe=True)).as_posix() == "out/sft_omni_768_moe_resume.pth"


def test_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.pth"
    save_atomic({"a": torch.ones(3)}, path)
    with pytest.raises((AttributeError, TypeError, RuntimeError, Exception), match="pickle|local"):
        save_atomic({"a": torch.zeros(3), "b": lambda: None}, path)
    assert load_weights(path)["a"].tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    path = tmp_path / "x.pth"
    (tmp_path / ".x.pth.123.tmp").write_bytes(b"half")
    (tmp_path / ".xx.pth.123.tmp").write_bytes(b"another file's")
    save_atomic({}, path)
    remove_leftovers(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".xx.pth.123.tmp", "x.pth"]


def test_export_round_trip(tmp_path):
    model = tiny_model()
    path = tmp_path / "w_32.pth"
    save_model(model, path, {"step": 7})
    state = load_weights(path)
    assert set(state) == set(model.state_dict()) and {v.dtype for v in state.values()} == {torch.float16}
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr(), "tied weights are stored once"
    assert json.loads(path.with_suffix(".json").read_text())["step"] == 7
    again = load_model(path)
    assert again.config == model.config and not again.training
    assert again.lm_head.weight is again.model.embed_tokens.weight
    for key, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[key].half().float()), key


def test_without_sidecar_the_given_config_is_used(tmp_path):
    model = tiny_model()
    path = tmp_path / "released.pth"
    save_atomic(model.state_dict(), path)
    assert read_sidecar(path) is None
    assert load_model(path, OmniConfig(**TINY), dtype=torch.bfloat16).lm_head.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"mismatched.*released.pth|released.pth(.|\n)*mismatched"):
        load_model(path, OmniConfig(**{**TINY, "vocab_size": 65}))


def test_unreadable_files_are_named(tmp_path):
    save_atomic({"a": torch.ones(1000)}, tmp_path / "good.pth")
    with pytest.raises(FileNotFoundError, match=r"absent.pth.*good.pth"):
        load_weights(tmp_path / "absent.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:2000])
    with pytest.raises(ValueError, match="cut.pth is not a readable checkpoint"):
        load_weights(tmp_path / "cut.pth")
    torch.save({"f": os.path.join}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="code.pth is not a readable checkpoint"):
        load_weights(tmp_path / "code.pth")
    for broken in ("{bad", "[]", "{}", '{"config": 3}'):
        (tmp_path / "good.json").write_text(broken)
        with pytest.raises(ValueError, match="good.json"):
            read_sidecar(tmp_path / "good.pth")


def test_strict_load_names_every_wrong_key_and_changes_nothing():
    model = tiny_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: torch.zeros_like(v) for k, v in before.items()}
    del state["model.norm.weight"]
    state["model.extra"] = torch.zeros(1)
    state["talker.norm.weight"] = torch.zeros(5)
    with pytest.raises(ValueError) as info:
        load_strict(model, state)
    for text in ("1 missing: model.norm.weight", "1 unexpected: model.extra", "1 mismatched: talker.norm.weight (file (5,), model (32,))"):
        assert text in str(info.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_part_may_be_missing_only_as_a_whole():
    model, parts = tiny_model(), ("talker.", "audio_proj.", "vision_proj.")
    state = tiny_model().state_dict()
    language_model = {k: v for k, v in state.items() if not k.startswith(parts)}
    assert load_strict(model, language_model, parts) == set(parts)
    with pytest.raises(ValueError, match="missing: audio_proj"):
        load_strict(model, language_model, ("talker.", "vision_proj."))
    half = {k: v for k, v in state.items() if k != "talker.norm.weight"}
    with pytest.raises(ValueError, match="missing: talker.norm.weight"):
        load_strict(model, half, parts)


def test_talker_starts_as_the_thinkers_last_layers():
    # the Talker's blocks use MiniMind's default heads whatever the Thinker uses, so the Thinker must have them to be copied
    model = tiny_model(hidden_size=64, talker_hidden_size=64, num_attention_heads=8)
    init_talker_from_thinker(model)
    for name, value in model.talker.layers[0].state_dict().items():
        assert torch.equal(value, model.model.layers[-1].state_dict()[name]), name


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills, epochs", [(6, 5), pytest.param(12, 14, marks=pytest.mark.slow)])
def test_kill_9_leaves_readable_checkpoints_and_an_exact_run(tmp_path, kills, epochs):
    """Kills at random moments of a run that saves at every step; what survives continues to the very same losses."""
    make_tokenizer(tmp_path / "tokenizer")
    make_t2a(tmp_path / "t2a.parquet", 12)
    fork = multiprocessing.get_context("forkserver")  # imports once, forks children without threads
    fork.set_forkserver_preload(["tiny_training", "trainer.train_sft_omni", "transformers", "pyarrow.parquet"])

    def start(save_dir: str, **changes):
        argv = command(tmp_path, save_dir=tmp_path / save_dir, epochs=epochs, max_seq_len=96, **changes)
        child = fork.Process(target=train_quietly, args=(argv,))
        child.start()
        return child

    def finish(child):
        child.join(300)
        assert child.exitcode == 0

    finish(start("whole", save_interval=100))
    config = load_model(tmp_path / "whole" / "sft_omni_64.pth").config
    weights, resume = weights_path(tmp_path / "killed", "sft_omni", config), resume_path(tmp_path / "killed", "sft_omni", config)
    step_time = 4 / float(read_log(tmp_path / "whole" / "sft_omni_64" / "log.csv")[-1]["samples_per_s"])
    moments, steps = random.Random(time.time_ns()), []
    killed_alive = 0
    for _ in range(kills):
        reached = steps[-1] if steps else 0
        child = start("killed", save_interval=1, from_resume=1)
        while child.is_alive() and len(read_log(weights.with_suffix("") / "log.csv")) <= reached:
            time.sleep(0.01)  # until it has taken a step: the kill shall hit training and saving, not start-up
        time.sleep(moments.uniform(0, 2 * step_time))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        killed_alive += child.exitcode == -signal.SIGKILL
        if resume.is_file():
            state = load_weights(resume)
            assert state["step"] >= reached, "a newer checkpoint was replaced by an older one"
            steps.append(state["step"])
        if weights.is_file():
            load_model(weights)
    assert killed_alive >= kills - 1, "the run ended before it could be killed"
    finish(start("killed", save_interval=100, from_resume=1))
    whole, killed = (read_log(tmp_path / run / "sft_omni_64" / "log.csv") for run in ("whole", "killed"))
    assert [row["step"] for row in killed] == [str(i) for i in range(1, 3 * epochs + 1)]
    assert [(row["total"], row["grad_norm"]) for row in killed] == [(row["total"], row["grad_norm"]) for row in whole]
    assert not list((tmp_path / "killed").glob(".*.tmp")), "leftovers of killed writers are cleaned up"
