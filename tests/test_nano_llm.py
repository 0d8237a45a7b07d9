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

    counted, take_step = [], train_llm.take_step
    monkeypatch.setattr(train_llm, "take_step", lambda *inputs: counted.append(1) or take_step(*inputs))

    def call(steps, *more, work="work"):
        """Trains: (how many steps that took, the log, the weights as the checkpoint keeps them)."""
        counted.clear()
        train_llm.main([f"--corpus={tmp_path / 'corpus'}", f"--out={tmp_path / 'out'}", f"--work={tmp_path / work}", f"--steps={steps}",
                        "--batch_size=6", "--save_interval=5", "--device=cpu", "--dtype=float32", "--learning_rate=2e-2", *more])
        log = [json.loads(line) for line in (tmp_path / work / "log.jsonl").read_text().splitlines()]
        return len(counted), log, load_weights(tmp_path / work / "checkpoint.pt")["weights"]
    return call


def test_loss_falls_and_a_run_goes_on_where_it_was(run, monkeypatch):
    steps, log, whole = run(40)
    assert steps == 40 and [row["step"] for row in log] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert log[-1]["heldout"]["pairs"] < 0.7 * log[0]["heldout"]["pairs"]
    save_atomic = train_llm.save_atomic

    def save_then_die(*saved):
        save_atomic(*saved)
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(train_llm, "save_atomic", save_then_die)
        run(40, work="cut")
    steps, again, resumed = run(40, work="cut")
    assert steps == 35 and again == log
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_run_does_not_go_on_from_another_ones_checkpoint(run, tmp_path):
    run(5)
    for other in ("--seed=1", "--learning_rate=1e-2", "--batch_size=4", "--steps=6"):
        with pytest.raises(ValueError, match="checkpoint.pt was made with .* another --work"):
            run(5, other)
    torch.save({"model": {}, "step": 5}, tmp_path / "work" / "checkpoint.pt")
    with pytest.raises(ValueError, match="made with unknown arguments"):
        run(5)


def test_what_is_written_is_a_whole_model_whose_talker_begins_as_the_thinkers_last_layers(run, tmp_path):
    _, _, learnt = run(5)
    weights = load_weights(tmp_path / "out" / "llm_32.pth")
    MiniMindOmni(OmniConfig.preset("nano")).load_state_dict(weights)
    assert all(torch.equal(value.half(), weights[name]) for name, value in learnt.items() if not name.startswith("talker.layers."))
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
