"""The text stage of the nano recipe: the loss falls, a stopped run goes on, and the trainer can start from its weights."""
import json

import pytest
import torch

from model.checkpoint import load_weights
from model.config import IGNORE
from model.model_omni import MiniMindOmni, OmniConfig
from nano import corpus, train_llm

ITEMS = [{"question": f"What is {word}?", "answer": f"It is {word}."} for word in ("red", "blue", "green", "warm", "cold", "old")]


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    for part in ("train", "heldout"):
        (tmp_path / "corpus" / f"{part}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    monkeypatch.setattr(OmniConfig, "preset", lambda name: OmniConfig(vocab_size=1024, hidden_size=32, num_hidden_layers=3,
                                                                      num_talker_hidden_layers=1, talker_hidden_size=32))

    talks = [train_llm.exchange(item["question"], item["answer"]) for item in ITEMS]
    monkeypatch.setattr(train_llm, "conversations", lambda corpus: {kind: (talks, talks) for kind in train_llm.SHARES})

    def call(steps, *more):
        folders = [f"--{name}={tmp_path / name}" for name in ("corpus", "out", "work")]
        monkeypatch.setattr("sys.argv", ["train_llm", *folders, f"--steps={steps}", "--batch_size=6", "--save_interval=5",
                                         "--device=cpu", "--dtype=float32", "--learning_rate=2e-2", *more])
        train_llm.main()
        log = [json.loads(line) for line in (tmp_path / "work" / "log.jsonl").read_text().splitlines()]
        return log, load_weights(tmp_path / "out" / "llm_32.pth")
    return call


def test_loss_falls_and_a_run_goes_on(run):
    log, _ = run(10)
    assert [row["step"] for row in log] == [5, 10]
    log, weights = run(40)
    assert [row["step"] for row in log] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert log[-1]["heldout"]["pairs"] < 0.7 * log[0]["heldout"]["pairs"]
    assert all(name.startswith(("model.", "lm_head.")) for name in weights)


def test_above_the_bridge_only_what_the_talker_does_not_hear_changes(run, tmp_path):
    torch.manual_seed(0)
    model = MiniMindOmni(OmniConfig.preset("nano"))
    torch.save(model.state_dict(), tmp_path / "speaks.pth")
    _, weights = run(5, f"--from_weight={tmp_path / 'speaks.pth'}", "--above_bridge=1")
    before, first = model.state_dict(), model.config.bridge_layer + 1
    changed = {name for name in before if not torch.equal(before[name].half(), weights[name])}
    assert weights.keys() == before.keys()
    assert changed and all(name.startswith("model.norm") or int(name.split(".")[2]) >= first for name in changed)


def test_a_whole_model_has_a_talker_that_begins_as_the_thinkers_last_layers(run):
    _, weights = run(5, "--whole")
    model = MiniMindOmni(OmniConfig.preset("nano"))
    model.load_state_dict(weights)
    copied = {name: value for name, value in weights.items() if name.startswith("talker.layers.0.")}
    assert copied
    for name, value in copied.items():
        assert torch.equal(value, weights[name.replace("talker.layers.0.", "model.layers.2.")]), name


def test_rows_in_parts_of_one_length_give_the_loss_of_all():
    torch.manual_seed(0)
    model = MiniMindOmni(OmniConfig(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_talker_hidden_layers=1, talker_hidden_size=32))
    ids = [torch.randint(36, 64, (length,)) for length in torch.randint(4, 40, (train_llm.PART + 9,)).tolist()]
    rows = [(row, torch.where(torch.rand(len(row)) < 0.5, row, IGNORE)) for row in ids]
    parts = list(train_llm.text_losses(model, rows, half=False))
    alone = [torch.nn.functional.cross_entropy(model(row[None]).logits[0], labels, ignore_index=IGNORE, reduction="sum")
             for row, labels in rows]
    assert len(parts) == 2
    torch.testing.assert_close(sum(parts), sum(alone) / sum(int((labels != IGNORE).sum()) for _, labels in rows), atol=1e-5, rtol=1e-5)


def test_every_kind_of_text_has_held_out_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(train_llm, "PICTURE_QUESTIONS", 200)
    train, heldout = corpus.build()
    for part, items in (("train", train), ("heldout", heldout), ("questions", corpus.more_questions(train, heldout)),
                        ("sentences", corpus.more_sentences(train, heldout))):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for kind, (train, heldout) in train_llm.conversations(tmp_path).items():
        replies = [{talk[-1]["content"] for talk in part} for part in (train, heldout)]
        assert len(train) > 0 < len(heldout), kind
        assert kind == "pictures" or not replies[0] & replies[1]


def test_only_the_reply_is_a_target(tokenizer_nano):
    config = OmniConfig.preset("nano")
    ids, labels = train_llm.text_row(train_llm.exchange("What is red?", "It is red."), tokenizer_nano, config, strip_think=True)
    assert tokenizer_nano.decode(labels[labels != IGNORE]) == "It is red.<|im_end|>\n"
    model = MiniMindOmni(config)
    loss = sum(train_llm.text_losses(model, [(ids, labels)], half=False))
    kept = labels != IGNORE
    expected = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, kept], labels[kept])
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def tokenizer_nano():
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(str(train_llm.ROOT / "model" / "nano"))
