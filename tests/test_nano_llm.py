"""The text stage of the nano recipe: the loss falls, a stopped run goes on, and the trainer can start from its weights."""
import json

import pytest
import torch

from model.checkpoint import load_weights
from model.config import IGNORE
from model.model_omni import MiniMindOmni, OmniConfig
from nano import train_llm

ITEMS = [{"question": f"What is {word}?", "answer": f"It is {word}."} for word in ("red", "blue", "green", "warm", "cold", "old")]


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    for part in ("train", "heldout"):
        (tmp_path / "corpus" / f"{part}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    monkeypatch.setattr(OmniConfig, "preset", lambda name: OmniConfig(vocab_size=1024, hidden_size=32, num_hidden_layers=2,
                                                                      num_talker_hidden_layers=1, talker_hidden_size=32))

    def call(steps):
        folders = [f"--{name}={tmp_path / name}" for name in ("corpus", "out", "work")]
        monkeypatch.setattr("sys.argv", ["train_llm", *folders, f"--steps={steps}", "--batch_size=6", "--save_interval=5",
                                         "--device=cpu", "--dtype=float32", "--learning_rate=2e-2"])
        train_llm.main()
        log = [json.loads(line) for line in (tmp_path / "work" / "log.jsonl").read_text().splitlines()]
        return log, load_weights(tmp_path / "out" / "llm_32.pth")
    return call


def test_loss_falls_and_a_run_goes_on(run):
    log, _ = run(10)
    assert [row["step"] for row in log] == [5, 10]
    log, weights = run(40)
    assert [row["step"] for row in log] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert log[-1]["heldout"] < 0.7 * log[0]["heldout"]
    assert all(name.startswith(("model.", "lm_head.")) for name in weights)


def test_only_the_reply_is_a_target(tokenizer_nano):
    config = OmniConfig.preset("nano")
    (ids, labels), = train_llm.text_rows(ITEMS[:1], tokenizer_nano, config, strip_think=True)
    assert tokenizer_nano.decode(labels[labels != IGNORE]) == "It is red.<|im_end|>\n"
    model = MiniMindOmni(config)
    loss = train_llm.text_loss(model, [(ids, labels)], half=False)
    kept = labels != IGNORE
    expected = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, kept], labels[kept])
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def tokenizer_nano():
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(str(train_llm.ROOT / "model" / "nano"))
