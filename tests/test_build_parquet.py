"""The data builder: equal bytes whatever happens, resuming, sharing the work, looking at and checking what was built."""
import errno
import json
import os
import random
import shutil
import sys
import time
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from tiny_folders import make_tiny_campplus, make_tiny_mimi, make_tiny_sensevoice

from dataset import build_parquet, engines, inspect, validate
from dataset.build_parquet import build, collect_references
from dataset.build_stages import Encoder, Settings, Worker, encode_clips, part_path, rejects_path
from dataset.engines import Engine, run_processes
from dataset.manifest import read_manifest
from dataset.parquet_rows import ParquetRows
from model.mimi import Mimi

SENTENCE = "the small dog runs in the garden"  # 26 letters: 10-20 a second for the lengths below


def speech(seconds: float, seed: int, rate: int = 16_000) -> np.ndarray:
    """(S,) float32: something with syllables and pauses."""
    rng, time_axis = np.random.default_rng(seed), np.arange(int(seconds * rate)) / rate
    syllables = np.clip(np.sin(2 * np.pi * 4 * time_axis), 0, None)
    tone = sum(np.sin(2 * np.pi * rng.uniform(100, 900) * time_axis) for _ in range(4))
    return (0.1 * syllables * tone + 1e-4 * rng.standard_normal(len(time_axis))).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny frozen modules and an LJSpeech-like folder of 11 recordings."""
    root = tmp_path_factory.mktemp("build")
    make_tiny_mimi(root / "mimi")
    make_tiny_campplus(root / "campplus")
    (root / "speech" / "wavs").mkdir(parents=True)
    for i in range(11):
        soundfile.write(root / "speech" / "wavs" / f"s{i:02d}.wav", speech(1.4 + 0.1 * i, i), 16_000)
    (root / "speech" / "metadata.csv").write_text("".join(f"s{i:02d}|{SENTENCE} {i}\n" for i in range(11)))
    return root


@pytest.fixture(scope="module")
def settings(folders):
    return Settings(str(folders / "mimi"), str(folders / "campplus"))


def checksums(manifest: dict) -> list[str]:
    return [shard["sha256"] for shard in manifest["shards"]]


@pytest.fixture(scope="module")
def built(folders, settings):
    """(folder, manifest) of the recordings in three shards, by one worker."""
    return folders / "one", build([folders / "speech"], folders / "one", settings, rows_per_shard=4)


def command(folders, out, *more: str) -> list[str]:
    return [str(folders / "speech"), "--out", str(out), "--codec", str(folders / "mimi"), "--speaker_encoder", str(folders / "campplus"),
            "--rows_per_shard", "4", "--device", "cpu", "--tokenizer", "none", *more]


def test_rows_are_what_training_reads(built, folders):
    out, manifest = built
    shards = [f"shard-0000{i}.parquet" for i in range(3)]
    assert [p.name for p in sorted(out.iterdir())] == ["card.html", "manifest.json", "rejects.jsonl", *shards]
    rows = ParquetRows(out, 64, 192)
    assert len(rows) == manifest["rows"] == 11 and not manifest["rejected"] and manifest["speakers"] == {"speech": 11}
    assert manifest["hours"] * 3600 == pytest.approx(sum(1.4 + 0.1 * i for i in range(11)), rel=0.15)  # ends are trimmed
    codec, answers = Mimi.load(folders / "mimi"), [rows[i].answer_codes[0] for i in range(11)]
    for i in range(11):
        row = rows[i]
        assert row.messages[1] == {"role": "assistant", "content": f"{SENTENCE} {i}"} and SENTENCE in row.messages[0]["content"]
        sources = [j for j, codes in enumerate(answers) if np.array_equal(codes[:, :50], row.ref_codes)]
        assert sources and i not in sources, "the voice prompt is another utterance"
        assert np.abs(row.spk_emb).max() > 0
    from dataset.clean import read_clip
    wav = read_clip((folders / "speech" / "wavs" / "s03.wav").read_bytes(), "s03", 30).wav
    padded = np.pad(wav, (0, -len(wav) % 1920))
    assert np.array_equal(codec.encode(torch.from_numpy(padded))[0].numpy(), answers[3])


def test_workers_shares_and_restarts_give_the_same_bytes(built, folders, settings, tmp_path):
    two = build([folders / "speech"], tmp_path / "two", settings, Engine(workers=2), rows_per_shard=4)
    assert checksums(two) == checksums(built[1]) and two["key"] == built[1]["key"]
    for share in range(2):
        assert build([folders / "speech"], tmp_path / "shared", settings, shard=(share, 2), rows_per_shard=4) is None
    assert len(list((tmp_path / "shared" / "work").glob("*-*.parquet"))) == 3
    assert checksums(build([folders / "speech"], tmp_path / "shared", settings, rows_per_shard=4)) == checksums(built[1])


def test_actors_of_ray_give_the_same_parts(built, folders, settings, tmp_path):
    """The two stages as Ray Data runs them, with the batches of all blocks arriving in another order."""
    blocks, _ = build_parquet.plan([folders / "speech"], "auto", None, {"rows_per_shard": 4}, tmp_path, (0, 1))
    for block in blocks:
        engines.Worker(settings)(block)
    expected = {path.name: path.read_bytes() for block in blocks for path in (part_path(block), rejects_path(block))}
    for name in expected:
        (tmp_path / name).unlink()
    prepare, encode = engines.PrepareActor(settings), engines.EncodeActor(settings)
    rows = [encode(row) for block in blocks for row in prepare({"block": np.array([str(block)])})]
    rows = [{name: column[0] for name, column in row.items()} for row in rows[::-1]]
    assert set(engines.collect_parts(rows)) == {part_path(block) for block in blocks}
    assert {name: (tmp_path / name).read_bytes() for name in expected} == expected


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_gives_the_same_bytes(built, folders, settings, tmp_path):
    pytest.importorskip("ray.data", reason="pip install -r requirements-cluster.txt")
    assert checksums(build([folders / "speech"], tmp_path / "ray", settings, Engine("ray", 2), rows_per_shard=4)) == checksums(built[1])
    with pytest.raises(OSError, match="cannot transcribe|Ray engine failed"):  # what goes wrong in an actor reaches the builder
        make_tiny_sensevoice(tmp_path / "ears")
        (tmp_path / "ears" / "bpe.model").unlink()
        build([folders / "speech"], tmp_path / "none", replace(settings, recogniser=str(tmp_path / "ears")), Engine("ray", 1))


def test_ray_that_is_not_installed_is_named(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert build_parquet.main(command(folders, tmp_path / "out", "--engine", "ray")) == 2
    assert "requirements-cluster.txt" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the child only builds, then ends without Python's clean-up
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(folders, settings, tmp_path):
    """kill -9 at 10 random moments, each followed by the same call. Forked, not started anew: the moments then fall into the build."""
    threads, rng = torch.get_num_threads(), random.Random(0)

    def start(out):
        process = get_context("fork").Process(target=build, args=([folders / "speech"], out, settings), kwargs={"rows_per_shard": 2})
        process.start()
        return process

    torch.set_num_threads(1)
    try:
        begun = time.monotonic()
        start(tmp_path / "whole").join()
        seconds, unfinished = time.monotonic() - begun, 0
        expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
        for moment in range(10):
            out = tmp_path / str(moment)
            process = start(out)
            time.sleep(rng.uniform(0, seconds))
            process.kill()
            process.join()
            unfinished += not (out / "manifest.json").exists()
            build([folders / "speech"], out, settings, rows_per_shard=2)
            assert {path.name: path.read_bytes() for path in out.iterdir()} == expected, f"after kill {moment}"
    finally:
        torch.set_num_threads(threads)
    assert unfinished >= 5, "the kills came too late to mean anything"


def test_full_disk_is_told_and_what_was_done_is_kept(built, folders, tmp_path, monkeypatch, capsys):
    out, calls, fsync = tmp_path / "out", [0], os.fsync

    def full(number):
        calls[0] += 1
        if calls[0] == 6:  # three blocks, rejects and part of the first, rejects of the second
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    assert build_parquet.main(command(folders, out, "--workers", "1")) == 2
    assert "free some space and run the same command again" in capsys.readouterr().err.splitlines()[-1]
    assert not list(out.rglob("*.tmp")) and not (out / "manifest.json").exists()
    done, = out.glob("work/00000-*.parquet")
    before = done.stat().st_mtime_ns
    monkeypatch.setattr(build_parquet, "finish", lambda *_: pytest.fail("not yet"))
    monkeypatch.setattr(Worker, "__call__", lambda self, block: pytest.fail("redone") if "00000-" in block.name else block)
    with pytest.raises(pytest.fail.Exception, match="not yet"):  # the first block is not built again
        build_parquet.main(command(folders, out, "--workers", "1"))
    monkeypatch.undo()
    assert done.stat().st_mtime_ns == before and build_parquet.main(command(folders, out, "--workers", "1")) == 0
    assert checksums(read_manifest(out)) == checksums(built[1]) and not (out / "work").exists()


def test_a_finished_folder_is_left_alone(built, folders, settings):
    out, manifest = built
    times = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    assert build([folders / "speech"], out, settings, rows_per_shard=4) == read_manifest(out)
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == times
    with pytest.raises(ValueError, match="another --out"):
        build([folders / "speech"], out, settings, rows_per_shard=5)


@pytest.mark.parametrize("more, message", [(["--shard", "2/2"], "0 <= I < N"), (["--workers", "0"], "1 or more"),
                                           (["--codec", "nowhere"], "download_models"),
                                           (["--tts", "no-such-program {text} {wav}", "--voices", "a"], "no-such-program program")])
def test_wrong_arguments_end_with_one_line(folders, tmp_path, capsys, more, message):
    assert build_parquet.main(command(folders, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error:") and message in error


def test_voice_prompts_do_not_depend_on_the_order_of_blocks(folders, settings, tmp_path):
    blocks, _ = build_parquet.plan([folders / "speech"], "auto", None, {"rows_per_shard": 4}, tmp_path, (0, 1))
    list(run_processes(blocks, settings, 1))
    forward, backward = (collect_references(order, settings)["speech"] for order in (blocks, blocks[::-1]))
    assert [entry[:2] for entry in forward] == [entry[:2] for entry in backward] and len(forward) == 11


def test_only_what_may_be_a_voice_prompt_costs_a_speaker_vector(folders, settings, tmp_path, monkeypatch):
    """And a row that may not has another's vector, even where all are too short to be prompts."""
    monkeypatch.setattr(build_parquet, "PROMPTS_PER_BLOCK", 3)
    encoded, speaker_vector = [], Encoder._speaker_vector
    monkeypatch.setattr(Encoder, "_speaker_vector", lambda self, clips: encoded.append(len(clips)) or speaker_vector(self, clips))
    for name, frames in (("long", (12, 50)), ("short", (100, 200))):
        build([folders / "speech"], tmp_path / name, replace(settings, prompt_frames=frames))
        rows = pq.read_table(*(tmp_path / name).glob("shard-*.parquet")).to_pylist()
        assert len(rows) == 11 and all(len(row["spk_emb"]) == 192 for row in rows)
        assert all(bool(row["ref_audios"]) == (name == "long") for row in rows)
    assert sum(encoded) == 2 * 3


def test_padding_never_changes_the_codes_of_a_clip(folders):
    """In float64, so that the order of a sum cannot tip a nearest neighbour."""
    codec = Mimi.load(folders / "mimi", dtype=torch.float64)
    wavs = [speech(seconds, i, 24_000) for i, seconds in enumerate((0.05, 0.8, 3.0, 0.81, 1.999, 0.4, 5.2))]  # past the window of 10 frames
    together, alone = encode_clips(codec, wavs, batch=4), [encode_clips(codec, [wav])[0] for wav in wavs]
    for wav, a, b in zip(wavs, together, alone):
        assert a.dtype == np.int16 and a.shape == (8, -(-len(wav) // 1920)) and np.array_equal(a, b)
    assert len({codes.tobytes() for codes in together}) == len(wavs) and encode_clips(codec, []) == []


def test_validate_names_every_fault(built, tmp_path, capsys):
    out = shutil.copytree(built[0], tmp_path / "data")
    assert validate.main([str(out)]) == 0 and capsys.readouterr().out == "no faults\n"
    table = pq.read_table(out / "shard-00001.parquet").to_pylist()
    table[0]["answer_audios"] = [[5000] * 8]
    table[1]["question_audios"] = [b"no sound"]
    table[2]["conversations"] = "{"
    table[3]["image_bytes"] = [b"no picture"]
    others = pq.read_table(out / "shard-00000.parquet").to_pylist()
    others[1]["answer_letters"] = [[0.5] * (len(others[1]["answer_audios"][0]) // 8 - 1)]
    pq.write_table(pa.Table.from_pylist(others, schema=build_parquet.SCHEMA), out / "shard-00000.parquet")
    pq.write_table(pa.Table.from_pylist(table, schema=build_parquet.SCHEMA), out / "shard-00001.parquet")
    (out / "shard-00002.parquet").unlink()
    assert validate.main([str(out)]) == 1
    faults = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| shard")]
    assert len(faults) == 8
    for start, reason in (("| shard-00000.parquet | 1 |", "answer_letters has"),
                          ("| shard-00001.parquet |  |", "checksum"), ("| shard-00002.parquet |  |", "missing"),
                          ("| shard-00001.parquet | 0 |", "outside the codebook"), ("| shard-00001.parquet | 1 |", "cannot decode audio"),
                          ("| shard-00001.parquet | 2 |", "not valid JSON"), ("| shard-00001.parquet | 3 |", "cannot decode image")):
        assert any(fault.startswith(start) and reason in fault for fault in faults), (start, faults)
    assert validate.main([str(tmp_path / "nowhere")]) == 2
    (out / "shard-00000.parquet").write_bytes(b"PAR1 but not really PAR1")
    assert validate.main([str(out / "shard-00000.parquet")]) == 1 and "not a readable parquet" in capsys.readouterr().out


def test_inspect_shows_text_streams_and_sound(built, folders, tokenizer_dir, tmp_path, capsys):
    arguments = [str(built[0]), "--row", "5", "--out", str(tmp_path / "row"), "--codec", str(folders / "mimi")]
    assert inspect.main([*arguments, "--tokenizer", str(tokenizer_dir)]) == 0
    out = capsys.readouterr().out
    assert "answer_audios: list" in out and "rows: 11 in 3 row groups" in out and f"assistant: {SENTENCE} 5" in out
    assert {p.name for p in (tmp_path / "row").iterdir()} == {"row.png", "answer_0.wav", "reference.wav"}
    frames = ParquetRows(built[0], 64, 192)[5].answer_codes[0].shape[1]
    assert soundfile.info(tmp_path / "row" / "answer_0.wav").frames == 1920 * frames
    assert inspect.main([*arguments, "--tokenizer", "none", "--row", "11"]) == 2 and "row 11 of 11" in capsys.readouterr().err


def test_inspect_takes_a_file_without_speech(tmp_path, capsys):
    talk = json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}])
    for answers in ([None, None], [[], []], [[[]], []]):
        pq.write_table(pa.table({"conversations": [talk] * 2, "answer_audios": answers}), tmp_path / "text.parquet")
        assert inspect.main([str(tmp_path / "text.parquet"), "--codec", "none", "--tokenizer", "none"]) == 0
        assert "speech in answers: 0.00 h" in capsys.readouterr().out


def test_card_is_one_page_with_the_figures(built):
    page = (built[0] / "card.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page.replace("http-equiv", "")
    for text in (built[1]["shards"][0]["sha256"], built[1]["modules"]["mimi"]["digest"], "<th>conversations</th><td>11</td>"):
        assert text in page
