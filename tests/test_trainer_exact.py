"""The optimised trainer against the plain one, many processes against one, and what is evaluated without being trained on."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_folders import make_tiny_sensevoice, make_tiny_siglip
from tiny_training import command, make_mixed, make_t2a, make_tokenizer

from dataset.parquet_rows import ParquetRows
from model.checkpoint import load_weights
from trainer import batch_plan, train_sft_omni
from trainer.batch_plan import BatchPlan, RowLengths
from trainer.options import OPTIMISATIONS
from trainer.train_sft_omni import LOSSES, Trainer, main, parse_args
from trainer.trainer_utils import Processes, read_log

ROOT = Path(__file__).resolve().parents[1]
CPU = Processes(0, 1, torch.device("cpu"))
PLAIN = sorted(set(OPTIMISATIONS) - {"length_groups"})  # that one chooses other rows for a batch


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tokenizer and 24 rows of T2A."""
    folder = tmp_path_factory.mktemp("exact")
    make_tokenizer(folder / "tokenizer")
    make_t2a(folder / "t2a.parquet", 24)
    return folder


def curve(save_dir: Path, name: str = "sft_omni_64", columns=("total", "text", "audio", "aux", "grad_norm")) -> np.ndarray:
    return np.array([[float(row[column]) for column in columns] for row in read_log(save_dir / name / "log.csv")])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("moe, changes, steps", [
    (0, dict(), 8), (1, dict(gradient_checkpointing=1), 8), pytest.param(0, dict(gradient_checkpointing=1), 50, marks=pytest.mark.slow),
    pytest.param(0, dict(), 50, marks=pytest.mark.slow)])
def test_optimisations_change_no_loss(world, tmp_path, moe, changes, steps):
    """With and without them all: losses within 1e-4."""
    fast, plain = both_ways(world, tmp_path, moe, steps, **changes)
    np.testing.assert_allclose(fast, plain, atol=1e-4, rtol=0)
    assert len(fast) == steps and (fast[:, 3] > 0).all() == bool(moe)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_optimisations_change_no_loss_of_experts(world, tmp_path):
    """Over 50 steps, with three seeds. A token whose two best experts are within a rounding of each other may change its expert, and the
    losses from then on: that is chance, and happens to one seed here or there; all the others have to agree."""
    worst = []
    for seed in (1, 2, 3):
        fast, plain = both_ways(world, tmp_path / str(seed), 1, 50, seed)
        assert len(fast) == 50 and (fast[:, 3] > 0).all()
        np.testing.assert_allclose(fast[:10], plain[:10], atol=1e-4, rtol=0)
        worst.append(np.abs(fast - plain).max())
    assert sorted(worst)[1] < 1e-4, worst


def both_ways(world: Path, folder: Path, moe: int, steps: int, seed: int = 42, **changes) -> tuple[np.ndarray, np.ndarray]:
    """Losses (steps, 4) of a run with `changes` and every optimisation, and of one without any."""
    flags = dict(use_moe=moe, max_steps=steps, batch_size=2, max_seq_len=120, seed=seed)
    assert main(command(world, save_dir=folder / "fast", **flags, **changes)) == 0
    assert main([*command(world, save_dir=folder / "plain", **flags), "--without", *PLAIN]) == 0
    name = "sft_omni_64_moe" if moe else "sft_omni_64"
    return tuple(curve(folder / run, name)[:, :4] for run in ("fast", "plain"))


def test_checkpointed_blocks_are_the_same_in_bfloat16(world, tmp_path):
    """Recomputed on the way back, with the kernel they had before."""
    for checkpointing in (0, 1):
        flags = dict(save_dir=tmp_path / str(checkpointing), max_steps=3, dtype="bfloat16", gradient_checkpointing=checkpointing)
        assert main(command(world, **flags)) == 0
    np.testing.assert_allclose(curve(tmp_path / "1"), curve(tmp_path / "0"), rtol=1e-3)


@pytest.mark.parametrize("checkpointing", [0, 1])
def test_compiled_parts_train_alike(world, tmp_path, monkeypatch, checkpointing):
    """Traced, not compiled, which takes minutes: the graphs are the model, and an evaluation needs none of its own."""
    from torch._dynamo.testing import CompileCounter
    torch._dynamo.reset()
    counter, compile_function = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_function(function, backend=counter, **options))
    flags = dict(max_steps=3, guided_attention=0.5, eval_rows=4, eval_interval=1, gradient_checkpointing=checkpointing)
    for compiling in (0, 1):
        assert main(command(world, save_dir=tmp_path / str(compiling), use_compile=compiling, **flags)) == 0
    eager, compiled = (curve(tmp_path / folder, columns=(*LOSSES, "grad_norm")) for folder in "01")
    np.testing.assert_allclose(compiled, eager, rtol=1e-4, atol=1e-6)
    assert 5 <= counter.frame_count <= 9, "few: all blocks share theirs"


def test_switched_off_means_off(world):
    """The slow path is really taken: padding to the end, logits everywhere, experts in a loop."""
    trainer = Trainer(parse_args([*command(world, use_moe=1), "--without", *OPTIMISATIONS]), CPU)
    batch = next(iter(trainer.data.loader(0, 1)))
    assert batch["input_ids"].shape[-1] == trainer.args.max_seq_len == batch["positions"].shape[-1]
    assert trainer.data.plan.lengths is None and not trainer.loss_model.fused and not trainer.model.model.layers[0].mlp.grouped
    assert not trainer.optimizer.defaults["fused"]
    batch = next(iter(Trainer(parse_args(command(world)), CPU).data.loader(0, 1)))
    assert batch["positions"].shape[-1] < batch["input_ids"].shape[-1] < trainer.args.max_seq_len


@pytest.mark.parametrize("before, after, budget", [
    ((8, 1), (4, 3), None), ((3, 2), (7, 1), None), ((4, 1), (2, 4), 300), ((9, 1), (1, 5), None)])
def test_another_batch_or_number_of_processes_takes_up_the_epoch(before, after, budget):
    """Rows of the epoch come once each, whichever plan they come from, and the batches' numbers stay in step with the epochs."""
    lengths = np.random.default_rng(0).integers(5, 60, 61)

    def plan(batch, world_size):
        return BatchPlan(61, batch, world_size, seed=1, lengths=lengths, max_tokens=budget)

    def rows(plan, first, last):
        return [row for n in range(first, last) for rank in range(plan.world) for _, row in plan.rank_batch(n, rank)]
    old, new, again = plan(*before), plan(*after), plan(*before)
    for stop in range(old.first_of(1), old.first_of(2)):  # anywhere in the second epoch
        new.begun = None
        first = new.go_on_from(*old.gone_through(stop))
        seen = rows(old, old.first_of(1), stop)
        assert sorted(seen + rows(new, first, new.first_of(2))) == list(range(61))
        assert abs(new.position(first) - old.position(stop)) < 0.3
        assert sorted(rows(new, new.first_of(2), new.first_of(3))) == list(range(61)), "the next epoch is whole"
        half = (first + new.first_of(2)) // 2  # and once more in the same epoch
        seen += rows(new, first, half)
        assert sorted(seen + rows(again, again.go_on_from(*new.gone_through(half)), again.first_of(2))) == list(range(61))


def test_token_budget_fills_batches_by_positions():
    lengths = np.random.default_rng(0).integers(5, 200, 1000)
    for world_size in (1, 3):
        plan = BatchPlan(1000, 8, world_size, seed=1, lengths=lengths, max_tokens=1000)
        for epoch in (0, 1):
            numbers = range(plan.first_of(epoch), plan.first_of(epoch + 1))
            shares = [[plan.rank_batch(n, rank) for rank in range(world_size)] for n in numbers]
            assert sorted(key for batch in shares for share in batch for key in share) == [(epoch, row) for row in range(1000)]
            cost = [max(lengths[row] for batch in shares[i] for _, row in batch) * max(map(len, shares[i])) for i in range(len(shares))]
            assert all(map(all, shares)) and np.mean(np.array(cost) <= 1000) > 0.97 and np.mean(cost) > 700
        for number in (0, plan.first_of(1) - 1, plan.first_of(1), plan.first_of(2) - 3):
            assert plan.number_at(plan.position(number)) == number, "a position in epochs finds its batch again"
    with pytest.raises(ValueError, match="--max_tokens needs the rows' lengths"):
        BatchPlan(1000, 8, max_tokens=1000)


def test_resume_is_exact_with_workers_and_augmentation(world, tmp_path):
    """Spoken questions are augmented by the workers: what a row hears does not depend on which worker, or which run, it falls to."""
    pytest.importorskip("funasr")
    make_tiny_sensevoice(tmp_path / "ears", output_size=512)
    make_tiny_siglip(tmp_path / "eyes", hidden_size=256)
    make_mixed(tmp_path / "mixed.parquet", 21)
    flags = dict(data_path=tmp_path / "mixed.parquet", audio_encoder_dir=tmp_path / "ears", vision_dir=tmp_path / "eyes", max_seq_len=256,
                 epochs=2, history_dropout=0.3)
    assert main(command(world, save_dir=tmp_path / "whole", num_workers=2, **flags)) == 0
    assert main(command(world, save_dir=tmp_path / "alone", num_workers=0, **flags)) == 0
    argv = command(world, save_dir=tmp_path / "parts", num_workers=2, from_resume=1, **flags)
    trainer = Trainer(parse_args(argv), CPU)
    assert trainer.data.rows.data.variants.augment is not None
    step = trainer.train_step

    def interrupted(batches):
        step(batches)
        trainer.stop.asked = trainer.step == 4
    trainer.train_step = interrupted
    assert trainer.fit() is False and trainer.step == 4
    assert main(argv) == 0
    whole, *others = (load_weights(tmp_path / run / "sft_omni_64_resume.pth") for run in ("whole", "alone", "parts"))
    for other in others:
        assert other["step"] == whole["step"] > 8
        assert all(torch.equal(value, other["model"][key]) for key, value in whole["model"].items())


def test_token_budget_trains_and_resumes(world, tmp_path):
    flags = dict(max_tokens=800, epochs=2)
    assert main(command(world, save_dir=tmp_path / "whole", **flags)) == 0
    argv = command(world, save_dir=tmp_path / "parts", from_resume=1, **flags)
    trainer = Trainer(parse_args(argv), CPU)
    sizes = [batch["input_ids"].shape[0] * batch["input_ids"].shape[2] for batch in trainer.data.loader(0, 4)]
    assert max(sizes) <= 900 and np.mean(sizes) > 400, "about the budget: lengths are estimates"
    step = trainer.train_step

    def interrupted(batches):
        step(batches)
        trainer.stop.asked = trainer.step == 3
    trainer.train_step = interrupted
    assert not trainer.fit() and main(argv) == 0
    assert np.array_equal(curve(tmp_path / "parts"), curve(tmp_path / "whole"))


def test_lengths_are_read_as_they_are_needed(world, monkeypatch):
    """One window's row groups at a time; of very much speech the text alone."""
    rows = ParquetRows(world / "t2a.parquet", 512, 192)  # 24 rows, 16 in the first group
    lengths, read, read_group = RowLengths(rows, len, 64), [], rows.read_group
    monkeypatch.setattr(rows, "read_group", lambda group, columns: read.append(int(group)) or read_group(group, columns))
    assert lengths(np.array([3, 15, 3])).min() > 1 and read == [0]
    assert lengths(np.array([20, 3])).min() > 1 and read == [0, 1]
    monkeypatch.setitem(batch_plan.MAX_BYTES, "answer_audios", 10)
    texts = pq.read_table(world / "t2a.parquet")["conversations"].to_pylist()
    assert RowLengths(rows, len, 64)(np.arange(24)).tolist() == [len(text) // 4 for text in texts]


def test_held_out_rows_are_evaluated_and_never_trained_on(world, tmp_path):
    spoken = []

    def speak(model, path):
        spoken.append(path.name)
        assert not model.training
        torch.rand(3)  # what it draws must not change the training
    flags = dict(eval_rows=5, epochs=1, batch_size=4, max_steps=5)
    assert main([*command(world, save_dir=tmp_path / "a", eval_interval=2, **flags), "--use_tensorboard"], speak) == 0
    assert main(command(world, save_dir=tmp_path / "b", eval_interval=100, **flags)) == 0
    assert spoken == [f"sample_{step:06d}.wav" for step in (2, 4, 5)]
    assert np.array_equal(curve(tmp_path / "a"), curve(tmp_path / "b"))
    held = read_log(tmp_path / "a" / "sft_omni_64" / "eval.csv")
    assert [row["step"] for row in held] == ["2", "4", "5"] and set(LOSSES) < set(held[0])
    assert float(held[2]["total"]) < float(held[0]["total"]) and list((tmp_path / "a" / "sft_omni_64").glob("events.out.tfevents*"))
    data = Trainer(parse_args(command(world, eval_interval=1, eval_rows=5)), CPU).data
    seen = {row for n in range(data.plan.first_of(1)) for _, row in data.plan.rank_batch(n, 0)}
    assert len(seen) == 19 and not seen & set(data.held_out.tolist())
    assert main(command(world, save_dir=tmp_path, eval_interval=1, eval_rows=13)) == 2


def test_rows_come_once_when_the_batch_changes_in_mid_epoch(world, tmp_path):
    """Batches of 4, then of 3, stopped and taken up again: no row of the epoch is lost or repeated, and the last part is exact."""
    trained = []

    def run(folder, stop_after, **changes):
        trainer = Trainer(parse_args(command(world, save_dir=tmp_path / folder, from_resume=1, epochs=2, num_workers=0, **changes)), CPU)
        step, plan = trainer.train_step, trainer.data.plan

        def watched(batches):
            trained.extend(plan.rank_batch(trainer.batches, 0))
            step(batches)
            trainer.stop.asked = trainer.batches >= stop_after
        trainer.train_step = watched
        return trainer.fit()
    assert not run("a", 8, batch_size=4)  # the second of the second epoch's batches
    (tmp_path / "b").mkdir()
    for file in (tmp_path / "a").glob("*.pth"):
        shutil.copy(file, tmp_path / "b")
    before = list(trained)
    assert run("b", 99, batch_size=3)
    assert sorted(trained) == [(epoch, row) for epoch in (0, 1) for row in range(24)]
    trained[:] = before
    assert not run("a", 13, batch_size=3) and run("a", 99, batch_size=3)
    assert sorted(trained) == [(epoch, row) for epoch in (0, 1) for row in range(24)]
    one, two = (load_weights(tmp_path / run / "sft_omni_64_resume.pth") for run in "ab")
    assert one["step"] == two["step"] == 16 and all(torch.equal(value, two["model"][key]) for key, value in one["model"].items())


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), (3, 2)])
def test_rows_come_once_when_the_accumulation_changes(world, tmp_path, caplog, before, after):
    """The batches stay what they are; so many steps are left as they make."""
    trained = []

    def run(stop_after, steps):
        trainer = Trainer(parse_args(command(world, save_dir=tmp_path, from_resume=1, batch_size=3, accumulation_steps=steps)), CPU)
        step = trainer.train_step

        def watched(batches):
            trained.extend(range(trainer.batches, trainer.batches + len(batches)))
            step(batches)
            trainer.stop.asked = trainer.batches >= stop_after
        trainer.train_step = watched
        return trainer.fit(), trainer
    assert not run(3, before)[0]
    finished, trainer = run(99, after)
    assert finished and trained == list(range(8)) and trainer.step == trainer.total_steps == 8 // after
    assert "--accumulation_steps changed" in caplog.text


def test_a_rank_may_be_left_without_a_row(world):
    """The last rows of an epoch that more processes took up may be too few for all."""
    trainer = Trainer(parse_args(command(world)), CPU)
    batch = trainer.data.collate([])
    trainer.train_step([batch])
    assert batch["num_rows"] == batch["num_skipped"] == 0 and trainer.window[:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("moe", [0, 1])
def test_two_processes_follow_the_curve_of_one(world, tmp_path, moe):
    """One process starts, two go on from its checkpoint, each with half of the batch: the losses of a single one."""
    flags, name = dict(batch_size=6, max_steps=24, use_moe=moe), "sft_omni_64_moe" if moe else "sft_omni_64"
    assert main(command(world, save_dir=tmp_path / "one", **flags)) == 0
    trainer = Trainer(parse_args(command(world, save_dir=tmp_path / "two", **flags)), CPU)
    step = trainer.train_step

    def interrupted(batches):
        step(batches)
        trainer.stop.asked = trainer.step == 3
    trainer.train_step = interrupted
    assert not trainer.fit()
    argv = command(world, save_dir=tmp_path / "two", from_resume=1, **{**flags, "batch_size": 3})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*torchrun, "trainer/train_sft_omni.py", *argv], cwd=ROOT, capture_output=True, text=True, timeout=110,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and "not bit for bit" not in done.stderr, done.stderr[-3000:]
    np.testing.assert_allclose(curve(tmp_path / "two", name), curve(tmp_path / "one", name), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moe, dtype, checkpointing, most", [
    (0, "float32", 1, 8), (1, "bfloat16", 0, 8), (1, "bfloat16", 1, 60), (1, "float32", 0, 60)])  # grouped products compile in bfloat16
def test_compiled_code_serves_all_lengths_and_inputs(world, tmp_path, monkeypatch, moe, dtype, checkpointing, most):
    """Rows that are heard, seen and read, of many lengths: a few graphs, not one a batch."""
    from torch._dynamo.testing import CompileCounter
    counter, compile_module = CompileCounter(), torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(train_sft_omni.torch, "compile", lambda net, dynamic: compile_module(net, dynamic=dynamic, backend=counter))
    make_mixed(tmp_path / "mixed.parquet", 24)
    trainer = Trainer(parse_args(command(world, data_path=tmp_path / "mixed.parquet", use_compile=1, batch_size=2, max_seq_len=256,
                                         use_moe=moe, dtype=dtype, gradient_checkpointing=checkpointing)), CPU)

    class Encoder:
        def features(self, wavs):
            return torch.randn(len(wavs), 9 + len(wavs[0]) % 5, 512), torch.full((len(wavs),), 9)

        def __call__(self, images):
            return torch.randn(len(images), 64, trainer.config.image_hidden_size)
    trainer.frontends.audio_encoder = trainer.frontends.image_encoder = Encoder()
    shapes, graphs = set(), []
    for batch in trainer.data.loader(0, 24):
        trainer.train_step([batch])
        shapes.add(batch["input_ids"].shape)
        graphs.append(counter.frame_count)
    assert trainer.window[-2] == 24 and len(shapes) > 8
    assert graphs[-1] <= most and graphs[-1] == graphs[12], graphs


@pytest.mark.parametrize("script, settings, launch", [
    ("train.sh", {"NPROC": "2"}, ["--standalone", "--nproc_per_node", "2"]),
    ("train_full.sh", {"USE_MOE": "1"}, ["--standalone", "--max_restarts", "3", "--nproc_per_node", "1"]),
    ("train_full.sh", {"NNODES": "2:4", "RDZV": "host0:1"}, ["--nnodes", "2:4", "--rdzv_backend", "c10d", "--rdzv_endpoint", "host0:1"])])
def test_recipes_give_flags_the_trainer_knows(tmp_path, script, settings, launch):
    """A torchrun that only writes down what it is given: five stages, each starting from the one before."""
    (tmp_path / "torchrun").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    done = subprocess.run(["bash", str(ROOT / "trainer" / script)], capture_output=True, text=True, check=True,
                          env={**os.environ, **settings, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    stages = [line.split() for line in done.stdout.splitlines()]
    args = [parse_args(stage[stage.index("train_sft_omni.py") + 1:]) for stage in stages]
    assert len(stages) == 5 and all(stage[:len(launch)] == launch for stage in stages) and all(a.from_resume == 1 for a in args)
    assert [a.mode for a in args] == ["all", "audio_proj", "all", "vision_proj", "all"]
    assert [a.from_weight for a in args[1:]] == [a.save_weight for a in args[:-1]]
    assert args[0].from_weight == "llm" and all(a.use_moe == ("USE_MOE" in settings) for a in args)
