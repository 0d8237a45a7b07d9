"""nano.train_turns: what a talk's earlier turns do to the bridge is measured, and less of it is left after training."""
import random

import pytest
import torch

from model.config import OmniConfig
from model.model_omni import MiniMindOmni
from nano import train_turns


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = OmniConfig(vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
                        talker_hidden_size=32, num_talker_hidden_layers=1, max_position_embeddings=256)
    model = MiniMindOmni(config).requires_grad_(False)
    for matrix in (p for p in model.model.layers.parameters() if p.ndim == 2):
        matrix *= 8  # as much attention as a trained one pays
    return model


@pytest.fixture
def turns(model):
    return [3 * torch.randn(length, 32) for length in (5, 7, 4, 9, 6, 8)]


def test_a_first_turn_is_what_it_is_alone_and_later_ones_are_not(model, turns):
    distance, length, depth = train_turns.error(model.model, model.model, [turns[:3], turns[3:5]], half=False)
    assert depth.tolist() == [[0.0] * 5 + [1.0] * 7 + [2.0] * 4, [0.0] * 9 + [1.0] * 6 + [-1.0]]
    assert distance[depth == 0].max() < 1e-6 * length[depth == 0].min() and (distance[depth > 0] > 1e-3 * length[depth > 0]).all()


def test_talks_have_all_lengths(turns):
    talks = train_turns.draw(turns, 200, random.Random(0))
    assert {len(talk) for talk in talks} == set(range(1, train_turns.TURNS + 1))


@pytest.fixture
def run(model, turns, tmp_path, monkeypatch):
    """Trains the model from where it begins, in a folder of this name: (how many steps that took, the weights)."""
    before, steps, take_step = {name: value.clone() for name, value in model.state_dict().items()}, [], train_turns.take_step
    monkeypatch.setattr(train_turns, "take_step", lambda *inputs: steps.append(1) or take_step(*inputs))

    def call(work, *more, start=before):
        model.load_state_dict(start)
        steps.clear()
        train_turns.train(model, turns, train_turns.parse_args([
            "--from_weight=absent", "--out=absent", f"--work={tmp_path / work}", "--dtype=float32", "--steps=30", "--batch_size=4",
            "--learning_rate=3e-3", "--save_interval=10", *more]))
        return len(steps), {name: value.clone() for name, value in model.state_dict().items()}
    return call


def test_training_changes_the_layers_up_to_the_bridge_only(model, run, capsys):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    changed = {name for name, value in run("whole")[1].items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("model.layers.0.", "model.layers.1.")) for name in changed)
    first, last = (eval(line.partition(": ")[2]) for line in capsys.readouterr().out.splitlines())
    assert first[0] < 0.001 < first[3] and last[3] < 0.9 * first[3]


def test_a_run_goes_on_where_it_was_and_none_but_itself(run, monkeypatch):
    (steps, whole), save_atomic = run("whole"), train_turns.save_atomic

    def save_then_die(*saved):
        save_atomic(*saved)
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(train_turns, "save_atomic", save_then_die)
        run("cut")
    (left, resumed), (none, again) = run("cut"), run("cut")
    assert (steps, left, none) == (30, 20, 0)
    assert all(torch.equal(value, resumed[name]) and torch.equal(value, again[name]) for name, value in whole.items())
    for other in ("--seed=1", "--learning_rate=1e-3", "--steps=40"):
        with pytest.raises(ValueError, match="checkpoint.pt was made with .* another --work"):
            run("cut", other)
    with pytest.raises(ValueError, match="weights"):
        run("cut", start=whole)
