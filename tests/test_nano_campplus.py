"""nano/train_campplus.py: the score it reports, the loss it minimises, exact resume, and the folder it leaves behind."""
import argparse

import numpy as np
import pytest
import torch

from model.encoders import CAMPPlus
from nano import train_campplus as campplus


def test_equal_error_rate():
    rng = np.random.default_rng(0)
    assert campplus.equal_error_rate(np.array([0.8, 0.9]), np.array([0.1, 0.2, 0.3])) == 0
    assert campplus.equal_error_rate(np.array([0.1, 0.2]), np.array([0.8, 0.9])) == 1
    same, different = rng.normal(1, 1, 20_000), rng.normal(-1, 1, 50_000)
    assert campplus.equal_error_rate(same, different) == pytest.approx(0.1587, abs=0.005)  # two unit normals two apart


def test_judge_on_known_vectors():
    vectors = torch.nn.functional.normalize(torch.tensor([[1, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1.0]]))
    figures = campplus.judge(vectors, torch.tensor([0, 0, 1, 1]))
    assert figures["eer"] == 0 and figures["nearest_right"] == 1
    assert campplus.judge(vectors, torch.tensor([0, 1, 0, 1]))["nearest_right"] == 0


def test_the_margin_makes_the_same_vectors_harder():
    generator = torch.Generator().manual_seed(0)
    centres, speaker = torch.randn(5, 192, generator=generator), torch.arange(5)
    vectors = centres + 0.1 * torch.randn(5, 192, generator=generator)
    plain, right = campplus.margin_loss(vectors, centres, speaker, 0.0)
    assert right == 1 and plain < 1e-3
    assert campplus.margin_loss(3 * vectors, centres, speaker, 0.0)[0] == pytest.approx(float(plain), abs=1e-6)
    assert campplus.margin_loss(vectors, centres, speaker, 0.9)[0] > 2 * plain


def test_unseen_speakers_are_unseen():
    seen, unseen = set(campplus.train_speakers()), set(campplus.unseen_speakers())
    assert not seen & unseen and "kal16" not in {s.voice for s in seen} and len({s.name for s in seen | unseen}) == len(seen | unseen)


@pytest.fixture(scope="module")
def speech():
    """Four 'speakers', each a spectral shape that comes and goes; no synthesiser needed."""
    generator = torch.Generator().manual_seed(0)
    rows, speakers, lengths = [], [], [150, 90, 210]
    for speaker in range(4):
        shape = torch.randn(80, generator=generator)
        for length in lengths:
            rows.append((3 * torch.rand(length, 1, generator=generator) * shape - 8).half())
            speakers.append(speaker)
    start = np.cumsum([0, *map(len, rows)]).tolist()
    return campplus.Speech(torch.cat(rows), start, torch.tensor(speakers), [f"speaker {i}" for i in range(4)])


def test_batches_repeat_and_have_no_mean(speech):
    batches = [campplus.batch_of(speech, list(range(12)), 6, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(batches[0][0], batches[1][0]) and torch.equal(batches[0][1], batches[1][1])
    frames = batches[0][0]
    assert campplus.CROP_FRAMES[0] <= frames.shape[1] < campplus.CROP_FRAMES[1] and torch.isfinite(frames).all()
    assert frames.mean(dim=1).abs().max() < 1e-4 and frames.std() > 0.3


def test_training_resumes_exactly_and_the_folder_loads(speech, tmp_path, monkeypatch):
    monkeypatch.setattr(campplus, "MODEL_CONF", {**campplus.MODEL_CONF, "growth_rate": 2, "init_channels": 8})
    monkeypatch.setattr(campplus, "CROP_FRAMES", (40, 60))
    monkeypatch.setattr(campplus, "CHECKPOINT_EVERY", 2)
    args = argparse.Namespace(device="cpu", seed=1, learning_rate=1e-3, steps=4, batch_size=4)
    whole = campplus.train(speech, list(range(12)), args, tmp_path / "whole")
    real, stop = campplus.save_atomic, RuntimeError("killed after the checkpoint of step 2")

    def save_then_die(*saved):
        real(*saved)
        raise stop

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(campplus, "save_atomic", save_then_die)
        campplus.train(speech, list(range(12)), args, tmp_path / "cut")
    resumed = campplus.train(speech, list(range(12)), args, tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    with pytest.raises(ValueError, match="checkpoint.pt was made with .*delete it"):
        campplus.train(speech, list(range(12)), argparse.Namespace(**{**vars(args), "learning_rate": 2e-3}), tmp_path / "cut")
    campplus.save_folder(resumed, tmp_path / "folder")
    loaded = CAMPPlus.load(tmp_path / "folder")
    frames = torch.randn(1, 100, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(loaded.model(frames), resumed.half().float()(frames), atol=1e-5)  # the folder is fp16
    vectors = campplus.embed(loaded.model, speech, [0, 1, 5])
    assert vectors.shape == (3, 192) and torch.allclose(vectors.norm(dim=1), torch.ones(3))


def test_too_few_utterances_of_a_speaker_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_campplus", "--each", str(campplus.HELD_BACK)])
    with pytest.raises(SystemExit):
        campplus.main()
    assert "--each 4 leaves nothing to learn from" in capsys.readouterr().err
