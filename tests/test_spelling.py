"""Spelling: the loss is CTC over the Thinker's embeddings, and a projector trained by it alone learns to write."""
import itertools

import pytest
import torch

from model.checkpoint import load_model
from model.config import IGNORE, OmniConfig
from model.spelling import LENGTH, SHARPNESS, spelling_loss
from tiny_folders import make_tiny_sensevoice
from tiny_training import command, make_mixed, make_tokenizer
from trainer.train_sft_omni import Trainer, main, parse_args
from trainer.trainer_utils import Processes, read_log

BLANK, VOCAB, WIDTH = 0, 5, 16


@pytest.fixture
def table():
    return torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(0))


def vectors_of(table, ids):
    return table[torch.tensor(ids)][None].clone().requires_grad_(True)


def test_ctc_sums_over_every_way_to_say_the_words(table):
    vectors, words = torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(1)), [3, 1]
    cosines = torch.nn.functional.cosine_similarity(vectors[0][:, None], table[None], dim=-1)
    scores = (SHARPNESS * cosines).log_softmax(-1)
    ways = [path for path in itertools.product(range(VOCAB), repeat=4)
            if [token for token, _ in itertools.groupby(path) if token != BLANK] == words]
    said = torch.stack([sum(scores[t, token] for t, token in enumerate(path)) for path in ways]).logsumexp(0)
    length = (vectors[0].norm(dim=-1) / table[words].norm(dim=1).mean() - 1).square().mean()
    loss = spelling_loss(vectors, torch.tensor([4]), torch.tensor([words]), table, BLANK)
    assert loss.item() == pytest.approx((-said / 2 + LENGTH * length).item(), rel=1e-5)


def test_the_words_own_embeddings_are_best(table):
    lens, words = torch.tensor([5]), torch.tensor([[3, 1, IGNORE]])
    right = spelling_loss(vectors_of(table, [3, 3, 0, 1, 0]), lens, words, table, BLANK)
    other_order = spelling_loss(vectors_of(table, [1, 1, 0, 3, 0]), lens, words, table, BLANK)
    faint = spelling_loss(0.1 * vectors_of(table, [3, 3, 0, 1, 0]), lens, words, table, BLANK)
    assert right < 0.05 and other_order > 2 and faint > right + 0.05


def test_tokens_that_look_like_the_pad_cannot_be_said_unless_they_are(table):
    """Embeddings of what was in no text have all gone the same way, and the pad is one of them."""
    twins = torch.cat([table, table[BLANK] * 1.01 + torch.zeros(3, 1)])
    lens, words = torch.tensor([4]), torch.tensor([[3, 1]])
    alone, among = (spelling_loss(vectors_of(table, [0, 3, 0, 1]), lens, words, every, BLANK) for every in (table, twins))
    assert torch.allclose(alone, among, atol=1e-4)
    assert spelling_loss(vectors_of(table, [0, 3, 0, 0]), lens, torch.tensor([[3, VOCAB]]), twins, BLANK) < 5


def test_only_spoken_rows_with_known_words_count_and_padding_does_not(table):
    one = spelling_loss(vectors_of(table, [3, 2, 1]), torch.tensor([3]), torch.tensor([[3, 1]]), table, BLANK)
    rows = torch.full((3, 5, WIDTH), 7.0)
    rows[0, :3] = table[torch.tensor([3, 2, 1])]
    lens, words = torch.tensor([3, 0, 4]), torch.tensor([[3, 1, IGNORE], [2, 2, 2], [IGNORE] * 3])
    assert torch.allclose(spelling_loss(rows, lens, words, table, BLANK), one)
    nothing = spelling_loss(rows.requires_grad_(True), lens[1:].new_zeros(3), words, table, BLANK)
    nothing.backward()
    assert nothing == 0 and rows.grad.abs().max() == 0


def test_embeddings_are_left_alone_and_too_short_a_clip_is_no_infinity(table):
    table.requires_grad_(True)
    vectors = vectors_of(table.detach(), [3, 2])
    spelling_loss(vectors, torch.tensor([2]), torch.tensor([[3, 1, 4]]), table, BLANK).backward()
    assert table.grad is None and vectors.grad.isfinite().all()


def test_a_projector_learns_to_write_what_is_said(tmp_path, capsys):
    make_tokenizer(tmp_path / "tokenizer")
    make_tiny_sensevoice(tmp_path / "ears", output_size=OmniConfig.preset("nano").audio_hidden_size)
    make_mixed(tmp_path / "mixed.parquet", 9, seconds=2.0)
    flags = dict(save_dir=tmp_path, data_path=tmp_path / "mixed.parquet", audio_encoder_dir=tmp_path / "ears", batch_size=9)
    trainer = Trainer(parse_args(command(tmp_path, **flags)), Processes(0, 1, torch.device("cpu")))
    batch = next(iter(trainer.data.loader(0, 1)))
    words = trainer.data.rows.data.tokenizer("what is it?")["input_ids"]
    for wav, spoken in zip(batch["wavs"], batch["spoken"].tolist()):
        assert [token for token in spoken if token != IGNORE] == ([] if wav is None else words)
    trainer.save()

    argv = [*command(tmp_path, **flags, mode="spelling", save_weight="spelt", max_steps=40, learning_rate=1e-2),
            "--from_weight", "sft_omni", "--question_mix", "1", "0", "0", "0"]
    assert main([*argv, "--spelling", "1"]) == 0
    nats = [float(row["spelling"]) for row in read_log(tmp_path / "spelt_64" / "log.csv")]
    assert nats[0] > 3 and nats[-1] < 0.5 * nats[0]
    before, after = (load_model(tmp_path / f"{name}_64.pth").state_dict() for name in ("sft_omni", "spelt"))
    assert {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])} == {"audio_proj"}
    with pytest.raises(SystemExit):
        parse_args(argv)
    assert "--spelling a weight" in capsys.readouterr().err
