"""The trainer: schedule, freezing, data order, exact resume, bad steps, and the real command line on two processes."""
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from dataset.parquet_rows import ParquetRows
from model.checkpoint import load_model, load_weights, save_atomic
from model.config import IGNORE
from model.encoders import sensevoice_frames
from model.model_omni import MiniMindOmni, OmniConfig, omni_loss
from tiny_folders import make_tiny_sensevoice, make_tiny_siglip
from tiny_training import command, make_mixed, make_t2a, make_tokenizer
from trainer import average_weights
from trainer.batch_plan import BatchPlan, PlannedBatches, RowLengths
from trainer.train_sft_omni import LOSSES, TARGETS, Trainer, main, parse_args, set_trainable
from trainer.trainer_data import collate_padded, only_targets
from trainer.trainer_utils import Frontends, Processes, RunLog, lr_at, read_log, rng_state, seed_everything, set_rng_state

ROOT = Path(__file__).resolve().parents[1]
CPU = Processes(0, 1, torch.device("cpu"))
FIGURES = ("step", "total", "text", "audio", "aux", *LOSSES[4:], "grad_norm", "lr", "epoch")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with a tokenizer and 22 rows of T2A."""
    folder = tmp_path_factory.mktemp("world")
    make_tokenizer(folder / "tokenizer")
    make_t2a(folder / "t2a.parquet", 22)
    return folder


def figures(save_dir: Path, name: str = "sft_omni_64") -> list[tuple]:
    return [tuple(row[k] for k in FIGURES) for row in read_log(save_dir / name / "log.csv")]


def test_schedule():
    assert lr_at(0, 100, 5e-4) == pytest.approx(5e-4)
    assert lr_at(50, 100, 5e-4) == pytest.approx(5e-4 * 0.55)
    assert lr_at(100, 100, 5e-4) == pytest.approx(5e-5)
    assert lr_at(37, 200, 1.0) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 37 / 200)))
    assert lr_at(0, 100, 1.0, warmup=4) == pytest.approx(0.25)
    assert lr_at(4, 100, 1.0, warmup=4) == lr_at(4, 100, 1.0)


@pytest.mark.parametrize("mode,freeze,prefixes", [
    ("all", "none", ("model.", "talker.", "audio_proj.", "vision_proj.")),
    ("all", "all", ("talker.", "audio_proj.", "vision_proj.")),
    ("all", "last1", ("model.layers.2.", "talker.", "audio_proj.", "vision_proj.")),
    ("audio_proj", "none", ("audio_proj.",)),
    ("spelling", "none", ("audio_proj.",)),
    ("talker", "none", ("talker.",)),
    ("thinker", "none", ("audio_proj.", "vision_proj.", "model.layers.1.", "model.layers.2.", "model.norm.")),
    ("vision_proj", "last1", ("vision_proj.",)),
])
def test_freeze_sets(mode, freeze, prefixes):
    model = MiniMindOmni(OmniConfig(vocab_size=64, hidden_size=32, num_hidden_layers=3, talker_hidden_size=32, num_talker_hidden_layers=1))
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # whatever was frozen before must not matter
    set_trainable(model, mode, freeze)
    names = {name for name, _ in model.named_parameters()}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {name for name in names if name.startswith(prefixes)}
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names, "tied: one parameter"


@pytest.mark.parametrize("rows,batch,world_size", [(23, 4, 1), (23, 4, 2), (64, 8, 3), (5, 4, 2), (9, 4, 2), (3, 1, 3), (1000, 2, 2)])
def test_every_row_once_and_ranks_disjoint(rows, batch, world_size):
    plan = BatchPlan(rows, batch, world_size, seed=7, lengths=np.arange(rows) % 11)
    for epoch in (0, 1):
        numbers = range(epoch * plan.batches_per_epoch, (epoch + 1) * plan.batches_per_epoch)
        batches = [[plan.rank_batch(n, rank) for rank in range(world_size)] for n in numbers]
        assert all(part for parts in batches for part in parts), "a rank without a row would stall the others"
        seen = [key for parts in batches for part in parts for key in part]
        assert sorted(seen) == [(epoch, row) for row in range(rows)]
    if rows > 20:
        assert [plan.rank_batch(n, 0) for n in range(3)] != [[(0, r) for _, r in plan.rank_batch(plan.batches_per_epoch + n, 0)]
                                                            for n in range(3)], "epochs are shuffled apart"


def test_order_depends_on_seed_and_global_batch_only():
    def rows(batch, world_size, seed=1, number=2):
        plan = BatchPlan(100, batch, world_size, seed)
        return sorted(row for rank in range(world_size) for row in plan.rank_batch(number, rank))
    assert rows(8, 1) == rows(4, 2) == rows(2, 4)
    assert rows(8, 1) != rows(8, 1, seed=2)
    plan = BatchPlan(100, 8, seed=1)
    assert list(PlannedBatches(plan, 0, 9, 40)) == list(PlannedBatches(plan, 0, 0, 40))[9:], "any batch is reachable by its number"
    with pytest.raises(ValueError, match="3 rows of data cannot feed 4 processes"):
        BatchPlan(3, 1, 4)


def test_similar_lengths_share_a_batch():
    lengths = np.random.default_rng(0).integers(20, 500, 4096)

    def waste(plan):
        batches = [plan.batch(n) for n in range(plan.batches_per_epoch)]
        return 1 - lengths.sum() / sum(lengths[b].max() * len(b) for b in batches)
    assert waste(BatchPlan(4096, 16, lengths=lengths)) < 0.03 < 0.3 < waste(BatchPlan(4096, 16))


def test_row_lengths_follow_text_and_speech(world):
    rows = pq.read_table(world / "t2a.parquet").to_pylist()
    lengths = RowLengths(ParquetRows([world / "t2a.parquet"] * 2, 512, 192), len, 64)
    assert lengths(np.arange(44)).tolist() == 2 * [
        len(row["conversations"]) // 4 + sum(map(len, row["answer_audios"])) // 8 for row in rows]


def test_row_lengths_count_what_is_heard_and_seen(tmp_path):
    """The spoken question's feature vectors, by its bytes, and the pictures': else such rows stand among short ones and pad those."""
    def sound(seconds):
        buffer = io.BytesIO()
        soundfile.write(buffer, np.zeros(int(seconds * 16_000), np.float32), 16_000, format="WAV")
        return buffer.getvalue()

    sounds = [[], [sound(1)], [None, sound(3), sound(2)], []]
    talks = [json.dumps([{"role": "user", "content": text}]) for text in ("a", "b", "c", "<image> what? <image>")]
    table = pa.table({"conversations": talks, "question_audios": pa.array(sounds, pa.list_(pa.binary()))})
    pq.write_table(table, tmp_path / "rows.parquet")
    lengths = RowLengths(ParquetRows([tmp_path / "rows.parquet"], 512, 192), sensevoice_frames, 64)(np.arange(4))
    text = np.array([len(talk) // 4 for talk in talks])
    assert (lengths - text)[[0, 3]].tolist() == [0, 128]
    assert (lengths - text)[1:3] == pytest.approx([sensevoice_frames(16_000), sensevoice_frames(48_000)], abs=2)


def test_row_lengths_do_not_depend_on_what_was_read_before(world, tmp_path):
    """A resumed run begins in the middle, with other row groups: its batches must be the same. The first file has no questions at all."""
    noise, sounds = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), []
    for loudness in (1, 0.01):  # equally long, but not in bytes
        sounds.append(io.BytesIO())
        soundfile.write(sounds[-1], noise * loudness, 16_000, format="FLAC")
    talk = json.dumps([{"role": "user", "content": "a"}])
    table = pa.table({"conversations": [talk] * 2, "question_audios": [[sound.getvalue()] for sound in sounds]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=1)
    rows = ParquetRows([world / "t2a.parquet", tmp_path / "rows.parquet"], 512, 192)
    lengths = [RowLengths(rows, sensevoice_frames, 64) for _ in range(2)]
    here, there = (read(np.array([row]))[0] for read, row in zip(lengths, (len(rows) - 2, len(rows) - 1)))
    assert here == there == lengths[0](np.array([len(rows) - 1]))[0] == len(talk) // 4 + sensevoice_frames(16_000)


def test_padding_and_batches_without_a_good_row(world):
    trainer = Trainer(parse_args(command(world)), CPU)
    rows, config = trainer.data.rows, trainer.config
    samples = [rows[(0, i)] for i in range(3)]
    plain, padded = collate_padded(samples, config), collate_padded(samples, config, multiple=32)
    length = plain["input_ids"].shape[-1]
    assert padded["input_ids"].shape[-1] % 32 == 0 and padded["num_tokens"] == plain["num_tokens"] == sum(
        s.input_ids.shape[1] for s in samples)
    assert torch.equal(padded["input_ids"][..., :length], plain["input_ids"])
    assert (padded["input_ids"][:, :8, length:] == config.audio_pad_token).all() and (padded["input_ids"][:, 8, length:] == 0).all()
    assert (padded["text_labels"][:, length:] == -100).all() and (padded["audio_labels"][..., length:] == -100).all()

    class Broken:  # what collate must drop
        pass
    bad = Broken()
    bad.config = config
    batch = collate_padded([bad, bad], config)
    before = [p.clone() for p in trainer.trained]
    trainer.train_step([batch])
    assert batch["num_rows"] == 0 and trainer.skipped_rows == 2
    assert trainer.window[:3].tolist() == [0, 0, 0], "no label, no loss"
    assert all(p.isfinite().all() for p in trainer.trained) and len(before) == len(trainer.trained)


def test_random_states_survive_a_checkpoint(tmp_path):
    import random
    seed_everything(3)
    np.random.standard_normal(1)  # leaves numpy with a cached second gaussian
    save_atomic(rng_state(CPU.device), tmp_path / "rng.pth")
    def draw():
        return random.random(), np.random.standard_normal(3).tolist(), torch.rand(2).tolist()
    first = draw()
    set_rng_state(load_weights(tmp_path / "rng.pth"), CPU.device)
    assert draw() == first


@pytest.mark.parametrize("moe,stop_after,optimizer", [(0, 3, "adamw"), (1, 2, "adamw"), (0, 3, "muon")])
def test_resume_is_exact(world, tmp_path, moe, stop_after, optimizer):
    """Stopped by SIGTERM in mid-epoch and in mid-window, then continued: the same losses and weights, bit for bit."""
    flags = dict(use_moe=moe, epochs=2, accumulation_steps=2, log_interval=2, optimizer=optimizer)
    name = "sft_omni_64_moe" if moe else "sft_omni_64"
    assert main(command(world, save_dir=tmp_path / "whole", **flags)) == 0
    argv = command(world, save_dir=tmp_path / "parts", from_resume=1, **flags)
    trainer = Trainer(parse_args(argv), CPU)
    step = trainer.train_step

    def interrupted(batches):
        step(batches)
        if trainer.step == stop_after:
            os.kill(os.getpid(), 15)
    trainer.train_step = interrupted
    assert trainer.fit() is False and trainer.step == stop_after
    assert main(argv) == 0
    assert figures(tmp_path / "parts", name) == figures(tmp_path / "whole", name) and len(figures(tmp_path / "whole", name)) == 3
    whole, parts = (load_weights(tmp_path / run / f"{name}_resume.pth") for run in ("whole", "parts"))
    assert all(torch.equal(value, parts["model"][key]) for key, value in whole["model"].items())
    for key, slot in whole["optimizer"]["state"].items():
        assert all(torch.equal(value, parts["optimizer"]["state"][key][what]) for what, value in slot.items())
    assert load_model(tmp_path / "parts" / f"{name}.pth").config.use_moe == bool(moe)


def test_resume_refuses_another_run(world, tmp_path):
    assert main(command(world, save_dir=tmp_path, max_steps=1)) == 0
    with pytest.raises(ValueError, match="use_moe|num_hidden_layers: 2 there, 3 here"):
        Trainer(parse_args(command(world, save_dir=tmp_path, from_resume=1, num_hidden_layers=3)), CPU)
    with pytest.raises(ValueError, match="mode: 'all' there, 'audio_proj' here"):
        Trainer(parse_args(command(world, save_dir=tmp_path, from_resume=1, mode="audio_proj")), CPU)
    other = Trainer(parse_args(command(world, save_dir=tmp_path, from_resume=1, batch_size=2, max_steps=9)), CPU)
    assert other.batches == 2, "with half the batch, two batches are as far into the epoch"
    assert (other.step, other.total_steps, other.total_batches) == (1, 9, 2 + 8), "but the steps asked for are counted as before"


def test_training_from_a_language_model(world, tmp_path):
    """A weight of the Thinker alone starts the Talker from it; one that lacks anything else is refused."""
    source = Trainer(parse_args(command(world)), CPU).model
    thinker = {k: v.half() for k, v in source.state_dict().items() if k.startswith("model.") or k == "lm_head.weight"}
    save_atomic(thinker, tmp_path / "llm_64.pth")
    args = command(world, save_dir=tmp_path, from_weight="llm", num_hidden_layers=4)
    with pytest.raises(ValueError, match="missing: model.layers.2"):
        Trainer(parse_args(args), CPU)
    model = Trainer(parse_args(command(world, save_dir=tmp_path, from_weight="llm")), CPU).model
    assert torch.equal(model.model.norm.weight, source.model.norm.weight.half().float())
    save_atomic({k: v for k, v in thinker.items() if k != "model.norm.weight"}, tmp_path / "llm_64.pth")
    assert main(command(world, save_dir=tmp_path, from_weight="llm")) == 2, "a user error is reported, not a traceback"


def test_only_a_learning_thinker_reads_wrong_words(world):
    """Random text tokens in the input are for the Thinker to recover from; codes are replaced either way."""
    learning, frozen = (Trainer(parse_args(command(world, freeze_backbone=freeze)), CPU).data.rows.data.variants
                        for freeze in ("none", "all"))
    assert learning.text_sampling > 0 and frozen.text_sampling == 0 and frozen.scheduled_sampling == learning.scheduled_sampling > 0


def test_the_mix_of_questions_can_be_chosen(world, capsys):
    usual, chosen = (Trainer(parse_args([*command(world), *more]), CPU).data.rows.data.variants
                     for more in ([], ["--question_mix", "1", "0", "0", "0", "--augment_share", "0.5"]))
    assert usual.question_mix == (0.4, 0.2, 0.2, 0.2) and chosen.question_mix == (1, 0, 0, 0)
    assert usual.augment_share == 1 and chosen.augment_share == 0.5
    with pytest.raises(SystemExit):
        parse_args([*command(world), "--question_mix", "1", "1", "0", "0"])
    assert "sum to 1" in capsys.readouterr().err


def test_a_thinker_of_experts_learns_alone(world, tmp_path):
    """Its experts are balanced; the Talker's, which do not run, are left out."""
    assert main(command(world, save_dir=tmp_path, mode="thinker", use_moe=1, max_steps=2)) == 0
    assert all(float(row["aux"]) > 0 == float(row["audio"]) for row in read_log(tmp_path / "sft_omni_64_moe" / "log.csv"))


def test_a_frozen_thinker_stops_at_the_bridge(world):
    """Same gradients as with the text loss, which no trained parameter has a part in; with projected inputs it has one."""
    args = command(world, freeze_backbone="all", system_share=0.0)
    trainer = Trainer(parse_args(args), CPU)
    batch = next(iter(trainer.data.loader(0, 1)))
    inputs, labels = trainer._inputs(batch), [batch[name] for name in TARGETS]
    assert inputs["speech_only"]
    gradients = []
    for speech_only in (True, False):
        trainer.net({**inputs, "speech_only": speech_only}, *labels)[0].backward()
        gradients.append([p.grad.clone() for p in trainer.trained if p.grad is not None])
        trainer.optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)) and len(gradients[0]) > 50
    assert not Trainer(parse_args(command(world)), CPU)._inputs(batch)["speech_only"], "a learning Thinker needs its text loss"
    talker = Trainer(parse_args(command(world, mode="talker")), CPU)
    for one in (trainer, talker):
        one.frontends.audio = lambda wavs: (torch.zeros(len(wavs), 1, 512), torch.ones(len(wavs), dtype=torch.int64))
    assert talker._inputs(batch)["speech_only"] and not trainer._inputs(batch)["speech_only"], "a projector that learns needs it, too"


@pytest.mark.parametrize("checkpointing", [0, 1])
def test_guided_attention_adds_its_loss(world, tmp_path, checkpointing):
    args = command(world, guided_attention=0.5, max_steps=3, save_dir=tmp_path, gradient_checkpointing=checkpointing)
    assert main(args) == 0
    rows = read_log(tmp_path / "sft_omni_64" / "log.csv")
    guide, parts = [float(row["guide"]) for row in rows], ("text", "audio", "aux")
    assert all(float(r["total"]) == pytest.approx(sum(float(r[p]) for p in parts) + 0.5 * g, rel=1e-4) for r, g in zip(rows, guide))
    assert 0 < min(guide) and max(guide) < 100


def test_steps_that_are_not_finite_are_skipped(world):
    trainer = Trainer(parse_args(command(world)), CPU)
    batch = next(iter(trainer.data.loader(0, 1)))
    trainer.train_step([batch])
    before = [p.clone() for p in trainer.trained]
    net = trainer.net
    trainer.net = lambda *inputs: tuple(x * float("nan") for x in net(*inputs))
    trainer.train_step([batch])
    assert all(torch.equal(p, q) for p, q in zip(trainer.trained, before)), "weights are untouched"
    trainer.net = net
    trainer.train_step([batch])
    assert any(not torch.equal(p, q) for p, q in zip(trainer.trained, before)), "and training goes on"
    *sums, good, bad = trainer.window.tolist()
    assert (good, bad) == (2, 1) and all(map(math.isfinite, sums))


@pytest.mark.parametrize("broken", ["layers.0.self_attn.q_proj.weight", "norm.weight"])  # one of Muon's, one of AdamW's
def test_two_optimizers_skip_a_step_together(world, broken):
    trainer = Trainer(parse_args(command(world, optimizer="muon")), CPU)
    batch = next(iter(trainer.data.loader(0, 1)))
    trainer.train_step([batch])
    before = [p.clone() for p in trainer.trained]
    hook = trainer.model.model.get_parameter(broken).register_hook(lambda gradient: gradient * float("inf"))
    trainer.train_step([batch])
    assert all(torch.equal(p, q) for p, q in zip(trainer.trained, before))
    hook.remove()
    trainer.train_step([batch])
    assert any(not torch.equal(p, q) for p, q in zip(trainer.trained, before))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_overfits_a_few_rows(world, tmp_path, dtype):
    make_t2a(tmp_path / "few.parquet", 4)
    steps = 16 if dtype == "bfloat16" else 24
    assert main(command(world, save_dir=tmp_path, data_path=tmp_path / "few.parquet", max_steps=steps, learning_rate=4e-3, dtype=dtype,
                        warmup_steps=3)) == 0
    losses = [float(row["total"]) for row in read_log(tmp_path / "sft_omni_64" / "log.csv")]
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4]), losses
    assert (tmp_path / "sft_omni_64" / "loss.png").stat().st_size > 5000


@pytest.mark.parametrize("mode", ["audio_proj", "vision_proj"])
def test_projector_modes_survive_a_batch_without_their_input(world, mode):
    trainer = Trainer(parse_args(command(world, mode=mode)), CPU)
    frozen = trainer.model.talker.norm.weight.clone()
    trainer.train_step([next(iter(trainer.data.loader(0, 1)))])
    assert trainer.window[-2] == 1 and torch.equal(frozen, trainer.model.talker.norm.weight)
    assert len(trainer.optimizer.state) == len(trainer.trained), "each has a gradient: DDP need not look for those without"


def test_front_ends_place_features_by_row(monkeypatch):
    class Encoder:
        def features(self, wavs):
            lens = torch.tensor([len(w) for w in wavs])
            features = torch.zeros(len(wavs), int(lens.max()), 512)
            for row, wav in zip(features, wavs):
                row[:len(wav)] = wav[0]
            return features, lens

        def __call__(self, images):
            return torch.stack([torch.full((64, 768), float(i)) for i in images])
    front = Frontends(Path("a"), Path("b"), CPU.device)
    front.audio_encoder = front.image_encoder = Encoder()
    features, lens = front.audio([None, torch.full((2,), 5.0), None, torch.full((3,), 7.0)])
    assert lens.tolist() == [0, 2, 0, 3] and features.shape == (4, 3, 512)
    assert features[:, :, 0].tolist() == [[0, 0, 0], [5, 5, 0], [0, 0, 0], [7, 7, 7]]
    assert front.audio([None, None]) == (None, None) and front.images([[], []]) is None
    images = front.images([[1], [], [2, 3]])
    assert images.shape == (3, 2, 64, 768) and images[:, :, 0, 0].tolist() == [[1, 0], [0, 0], [2, 3]]


def test_speech_and_pictures_go_through_the_frozen_encoders(world, tmp_path):
    """Spoken questions, pictures and plain rows in one batch; the stages of A2A and I2T train what they should."""
    pytest.importorskip("funasr")
    config = OmniConfig.preset("nano")
    make_tiny_sensevoice(tmp_path / "ears", output_size=config.audio_hidden_size)
    make_tiny_siglip(tmp_path / "eyes", hidden_size=config.image_hidden_size)
    make_mixed(tmp_path / "mixed.parquet", 9)
    flags = dict(save_dir=tmp_path, data_path=tmp_path / "mixed.parquet", audio_encoder_dir=tmp_path / "ears", max_seq_len=256,
                 vision_dir=tmp_path / "eyes", batch_size=9, max_steps=1)
    argv = command(world, **flags)
    assert main(argv) == 0
    trained = {"": load_model(tmp_path / "sft_omni_64.pth").state_dict()}
    for mode in ("audio_proj", "vision_proj"):
        assert main(command(world, **flags, mode=mode, save_weight=mode) + ["--from_weight", "sft_omni"]) == 0
        trained[mode] = load_model(tmp_path / f"{mode}_64.pth").state_dict()
        changed = {key.split(".")[0] for key, value in trained[mode].items() if not torch.equal(value, trained[""][key])}
        assert changed == {mode}
    trainer = Trainer(parse_args(argv), CPU)
    batch = next(iter(trainer.data.loader(0, 1)))
    trainer.train_step([batch])
    assert trainer.window[-2] == 1 and trainer.window[1] > 0 and trainer.window[2] > 0
    trainer.config.image_hidden_size += 1
    with pytest.raises(ValueError, match="eyes gives features of width"):
        trainer.train_step([batch])


def test_missing_encoder_is_named(tmp_path):
    pytest.importorskip("funasr")
    front = Frontends(tmp_path / "SenseVoiceSmall", tmp_path / "siglip2-base-p32-256-ve", CPU.device)
    with pytest.raises(FileNotFoundError, match="SenseVoiceSmall.*modelscope download"):
        front.audio([torch.zeros(16000)])


def test_data_that_does_not_fit_stops_the_run(world, tmp_path):
    """Every row broken (here: codes of a larger codec) is a mistake to report, not a training to finish."""
    table = pq.read_table(world / "t2a.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, "answer_audios": [[2000] * 8]} for row in table]), tmp_path / "bad.parquet")
    trainer = Trainer(parse_args(command(world, save_dir=tmp_path, data_path=tmp_path / "bad.parquet", max_steps=2)), CPU)
    with pytest.raises(ValueError, match=r"every row since the last log was broken \(4 so far\)"):
        trainer.fit()


def test_log_is_cut_back_to_the_checkpoint(tmp_path):
    report = RunLog(tmp_path / "run", 10)
    for step in range(1, 6):
        report.write(step, {"total": step, "text": 1, "audio": 1})
    with open(report.csv_path, "a") as file:
        file.write("6,0.")  # a kill in mid-line
    RunLog(tmp_path / "run", 10, step=3).write(4, {"total": 40, "text": 1, "audio": 1})
    assert [(row["step"], row["total"]) for row in read_log(report.csv_path)] == [("1", "1"), ("2", "2"), ("3", "3"), ("4", "40")]


def test_wandb_only_when_asked(world, tmp_path, monkeypatch):
    """Nothing imports wandb by itself; with --use_wandb the run and its figures go there."""
    calls = []

    class FakeWandb:
        @staticmethod
        def init(**settings):
            calls.append(settings)
            return FakeWandb

        @staticmethod
        def log(values, step):
            calls.append(step)

        @staticmethod
        def finish():
            calls.append("end")
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb)
    assert main(command(world, save_dir=tmp_path, max_steps=2, wandb_project="p") + ["--use_wandb"]) == 0
    assert calls[0]["project"] == "p" and calls[1:] == [1, 2, "end"]
    calls.clear()
    assert main(command(world, save_dir=tmp_path, max_steps=1)) == 0 and not calls


def test_torchrun_with_two_processes(world, tmp_path):
    """The documented command from trainer/, on gloo: both ranks finish, one checkpoint, every row counted once."""
    argv = command(world, save_dir=tmp_path, epochs=1, batch_size=4, log_interval=10)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*torchrun, "train_sft_omni.py", *argv], cwd=ROOT / "trainer", capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    row, = read_log(tmp_path / "sft_omni_64" / "log.csv")
    assert row["step"] == "3" and float(row["epoch"]) == 1 and math.isfinite(float(row["total"]))
    assert len(load_weights(tmp_path / "sft_omni_64_resume.pth")["ranks"]) == 2
    assert load_model(tmp_path / "sft_omni_64.pth").config.hidden_size == 64


def test_targets_window_keeps_every_loss():
    torch.manual_seed(0)
    config = OmniConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_talker_hidden_layers=1, talker_hidden_size=32)
    model = MiniMindOmni(config)
    batch = dict(input_ids=torch.randint(0, 60, (3, 9, 24)), text_labels=torch.full((3, 24), IGNORE),
                 audio_labels=torch.full((3, 8, 24), IGNORE), letters=torch.arange(72.0).view(3, 24))
    batch["text_labels"][0, 5:9], batch["audio_labels"][0, :, 6:20] = 7, 9
    batch["audio_labels"][1, 3, 20:] = config.audio_stop_token  # at the very end, and row 2 has no targets at all
    whole = omni_loss(model(batch["input_ids"]), batch["text_labels"], batch["audio_labels"], config)
    for multiple, width in ((1, 15), (8, 16), (32, 24)):
        cut = only_targets(batch, multiple)
        assert cut["positions"].shape == (3, width) and cut["audio_labels"].shape == (3, 8, width)
        assert torch.equal(cut["letters"], batch["letters"].gather(1, cut["positions"]))
        losses = omni_loss(model(cut["input_ids"], positions=cut["positions"]), cut["text_labels"], cut["audio_labels"], config)
        torch.testing.assert_close(losses.total, whole.total)
        torch.testing.assert_close(losses.per_codebook, whole.per_codebook)


def test_the_mean_of_checkpoints(world, tmp_path, capsys):
    """Of resume checkpoints and of exported weights alike; other sizes are refused."""
    assert main(command(world, save_dir=tmp_path, max_steps=3, save_interval=1, keep_last=3)) == 0
    resumes = sorted(tmp_path.glob("*_resume_step*.pth"))
    assert len(resumes) == 3 and average_weights.main([*map(str, resumes), "--out", str(tmp_path / "mean_64.pth")]) == 0
    states = [load_weights(path)["model"] for path in resumes]
    mean = load_model(tmp_path / "mean_64.pth").state_dict()
    for name, value in mean.items():
        torch.testing.assert_close(value, torch.stack([state[name] for state in states]).mean(0), atol=1e-3, rtol=1e-3)
    weights = str(tmp_path / "sft_omni_64.pth")
    assert average_weights.main([weights, weights, "--out", str(tmp_path / "same_64.pth")]) == 0
    assert all(torch.equal(a, b) for a, b in zip(load_weights(weights).values(), load_weights(tmp_path / "same_64.pth").values()))
    assert main(command(world, save_dir=tmp_path, max_steps=1, num_hidden_layers=3, save_weight="other")) == 0
    assert average_weights.main([weights, str(tmp_path / "other_64.pth"), "--out", str(tmp_path / "x.pth")]) == 2
    assert "not of the same model" in capsys.readouterr().err and not (tmp_path / "x.pth").exists()
