"""The nano codec's training in miniature: it learns, its folder is a Mimi codec, nothing looks ahead, and a kill costs nothing."""
import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, MimiModel

from evals import codec_wer
from nano import train_mimi
from nano.mimi_crops import read_speech, resample_at, resampling_kernels
from nano.mimi_targets import Analyser, FRAME_SAMPLES, LatentSpace, log_mel_patches, mel_filterbank, quantise, residual_kmeans
from nano.train_mimi import Options, decode_latents, encode_latents, train

TINY = Options(codes=16, dims=12, hidden=16, filters=2, layers=1, batch_size=4, frames=4, lr=1e-2, joint_at=0.6, fit_frames=400,
               kmeans_rounds=3)
STEPS = 50


def tones(seconds=20, rate=16_000):
    """A melody of decaying harmonic tones: (S,) int16."""
    rng = np.random.default_rng(0)
    t = np.arange(rate // 4) / rate
    notes = [np.sin(2 * np.pi * f * t) + 0.5 * np.sin(4 * np.pi * f * t) for f in rng.uniform(120, 1500, seconds * 4)]
    return np.concatenate([note * np.exp(-6 * t) * 6000 for note in notes]).astype(np.int16)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def shard(folder, name, voice, *clips):
    np.save(folder / f"{name}.npy", np.concatenate(clips))
    items = [{"text": "?", "voice": voice, "samples": len(clip)} for clip in clips]
    (folder / f"{name}.json").write_text(json.dumps(items))


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    samples = tones()
    shard(folder, "a", "high", samples[:60_000], samples[60_000:100_000])
    shard(folder, "b", "high", samples[100_000:])
    np.save(folder / "c.npy", samples)  # a shard without index: not finished, not read
    return read_speech(folder)


@pytest.fixture(scope="module")
def out(speech, tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    train(TINY, speech, folder, steps=STEPS, log_interval=2, save_interval=20)
    return folder


@pytest.fixture(scope="module")
def mimi(out):
    return MimiModel.from_pretrained(out / "mimi").eval()


def curve(folder):
    with open(folder / "curve.csv", newline="") as file:
        return list(csv.DictReader(file))


def wav_of(speech, frames, start=0):
    samples, starts = torch.from_numpy(speech), torch.tensor([start + 100])
    return resample_at(samples, starts, torch.ones(1), frames * FRAME_SAMPLES, resampling_kernels("cpu"))[0]


def test_speech_is_read_whole(speech, tmp_path):
    np.testing.assert_array_equal(speech, tones())
    with pytest.raises(FileNotFoundError, match="nano.speech"):
        read_speech(tmp_path)


def test_the_codec_hears_every_voice_equally_long(tmp_path):
    shard(tmp_path, "a", "talkative", np.full(50, 1, np.int16), np.full(50, 2, np.int16))
    shard(tmp_path, "b", "quiet", np.full(70, 3, np.int16))
    assert read_speech(tmp_path).tolist() == 50 * [1] + 20 * [2] + 70 * [3]


def test_resampling_keeps_a_tone_and_shifts_it_with_the_rate():
    tone = (8000 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)).astype(np.int16)
    rates = torch.tensor([1.0, 1.2])
    crops = resample_at(torch.from_numpy(tone), torch.tensor([40, 40]), rates, 12_000, resampling_kernels("cpu"))
    time = (np.arange(12_000) / 24_000)[None] * rates.numpy()[:, None] + 40 / 16_000
    np.testing.assert_allclose(crops, 8000 / 32768 * np.sin(2 * np.pi * 1000 * time), atol=1e-3)


def test_what_cannot_be_judged_is_one_line(mimi, out, tmp_path, capsys):
    (tmp_path / "list.jsonl").write_text('{"wav": "a.wav"}\n')
    wrong_list = [str(out / "mimi"), "--wavs", str(tmp_path / "list.jsonl")]
    for argv, message in (([str(tmp_path / "no")], "no codec folder"), (wrong_list, "lines of")):
        assert codec_wer.main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_losses_fall(out):
    rows = [row for row in curve(out) if row["phase"] == "learn"]
    for name in ("reconstruction", "latent", "probe"):
        values = [float(row[name]) for row in rows]
        assert np.mean(values[-4:]) < 0.75 * values[0], (name, values)
    assert {row["phase"] for row in curve(out)} == {"learn", "joint"}
    assert (out / "curve.png").stat().st_size > 1000


def test_folder_is_a_mimi_codec(out, mimi, speech):
    assert {p.name for p in (out / "mimi").iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert AutoFeatureExtractor.from_pretrained(out / "mimi").sampling_rate == 24_000
    assert all(p.dtype == torch.float32 for p in mimi.parameters())
    assert mimi.config.frame_size == FRAME_SAMPLES
    wav = wav_of(speech, 6)[None]
    with torch.no_grad():
        codes = mimi.encode(wav[None], num_quantizers=8).audio_codes
        decoded = mimi.decode(codes).audio_values
        assert codes.shape == (1, 8, 6) and decoded.shape == (1, 1, 6 * FRAME_SAMPLES)
        for k in range(8):  # every codebook is heard
            changed = codes.clone()
            changed[:, k] = (changed[:, k] + 1) % 16
            assert not torch.allclose(mimi.decode(changed).audio_values, decoded)


def test_training_runs_the_model_transformers_runs(mimi, speech):
    """The training's own forward (no device synchronisation) and residual chain equal transformers' encode and decode."""
    books = torch.stack([layer.codebook.embed for layer in mimi.quantizer.semantic_residual_vector_quantizer.layers])
    wav = wav_of(speech, 24)[None]  # longer than the attention window of 16 frames
    with torch.no_grad():
        quantised, codes = quantise(encode_latents(mimi, wav)[0], books)
        assert torch.equal(codes, mimi.encode(wav[None], num_quantizers=8).audio_codes)
        torch.testing.assert_close(decode_latents(mimi, quantised), mimi.decode(codes).audio_values[:, 0], atol=1e-5, rtol=1e-4)


def test_codes_and_targets_never_look_ahead(mimi, speech):
    wav = torch.stack([wav_of(speech, 8)] * 2)
    wav[1, 5 * FRAME_SAMPLES:] = wav_of(speech, 3, start=70_000)
    with torch.no_grad():
        codes = mimi.encode(wav[:, None], num_quantizers=8).audio_codes
        latents, _ = encode_latents(mimi, wav)  # so little trained that the codes themselves need not change with the audio
    assert torch.equal(codes[0, :, :5], codes[1, :, :5])
    torch.testing.assert_close(latents[0, :, :5], latents[1, :, :5])
    assert not torch.allclose(latents[0, :, 5], latents[1, :, 5], rtol=1e-2)
    patches = log_mel_patches(wav, mel_filterbank(40, 1024, 8000.0))
    assert torch.equal(patches[0, :5], patches[1, :5]) and not torch.allclose(patches[0, 5], patches[1, 5])


def test_residual_chain_leaves_less_at_every_stage():
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(500, 6, generator=random) @ torch.randn(6, 6, generator=random)
    books, left = residual_kmeans(latents, stages=4, size=16, rounds=5, generator=random)
    assert left == sorted(left, reverse=True) and left[-1] < 0.2, left
    quantised, codes = quantise(latents.T[None], books)
    assert float((quantised[0].T - latents).square().sum(1).mean() / latents.var(0).sum()) == pytest.approx(left[-1], rel=1e-4)
    assert codes.shape == (1, 4, 500)
    with pytest.raises(ValueError, match="too few"):
        residual_kmeans(latents[:10], 1, 16, 1, random)


def test_latent_space_keeps_the_largest_directions():
    random = torch.Generator().manual_seed(0)
    patches = torch.randn(400, 3, generator=random) @ torch.randn(3, 320, generator=random) + 2.0
    space, kept = LatentSpace.fit(patches, 3)
    assert kept == pytest.approx(1.0, abs=1e-5)
    assert float(((patches - space.mean) @ space.basis).var(0).mean()) == pytest.approx(1.0, rel=0.02)


def test_resume_equals_an_uninterrupted_run(out, speech, tmp_path):
    train(TINY, speech, tmp_path, steps=1, stop_after=0)  # the books alone, as --books_only
    assert (tmp_path / "targets.pt").exists() and not (tmp_path / "mimi").exists()
    train(TINY, speech, tmp_path, steps=STEPS, log_interval=2, save_interval=20, stop_after=37)  # dies at 37, was saved at 20, mid-phase
    train(TINY, speech, tmp_path, steps=STEPS, log_interval=2, save_interval=20)
    one, other = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (out, tmp_path))
    assert one["step"] == other["step"] == STEPS
    for name, value in one["average"].items():
        torch.testing.assert_close(other["average"][name], value, rtol=0, atol=0)
    assert [row["step"] for row in curve(tmp_path)] == [row["step"] for row in curve(out)]
    with pytest.raises(ValueError, match="lr"):
        train(Options(**{**one["options"], "lr": 0.5}), speech, tmp_path, steps=STEPS)


def test_phases_follow_the_share_of_the_run():
    options = replace(TINY, encoder_at=0.95)
    assert [train_mimi.phase_at(p, options) for p in (0, 0.59, 0.6, 0.94, 0.95)] == ["learn", "learn", "joint", "joint", "encoder"]


def test_in_the_encoder_phase_the_decoder_is_left_alone(speech):
    options = replace(TINY, encoder_at=0.97)
    assert train_mimi.phase_at(0.98, options) == "encoder"
    run = train_mimi.Run(options, speech, "cpu")
    run.fit()
    run.phase = "encoder"
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    assert set(run.train_step(0.5)) == {"latent"}
    changed = {name.split(".")[0] for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"encoder", "quantizer"}  # of the quantizer, the projection into it


def test_another_run_can_learn_the_same_codes(out, speech, tmp_path):
    (tmp_path / "targets.pt").write_bytes((out / "targets.pt").read_bytes())
    run = train(replace(TINY, seed=7), speech, tmp_path, steps=1, stop_after=1)
    assert torch.equal(run.books, Analyser.load(out / "targets.pt").books)
    with pytest.raises(ValueError, match="books"):
        train_mimi.Run(replace(TINY, codes=8), speech, "cpu").use_targets(out / "targets.pt")


def test_a_run_goes_on_from_a_folder(out, speech):
    """The folder's networks, the exact books of the targets; a folder with other books is refused."""
    run = train_mimi.Run(replace(TINY, seed=7), speech, "cpu")
    run.use_targets(out / "targets.pt")
    run.start_from(out / "mimi")
    whole = train_mimi.MimiModel.from_pretrained(out / "mimi").state_dict()
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in whole.items() if "codebook" not in name)
    assert torch.equal(run.books, Analyser.load(out / "targets.pt").books)
    run.books = run.books + 1
    with pytest.raises(ValueError, match="targets.pt"):
        run.start_from(out / "mimi")


def test_analysis_gives_the_codes_of_the_targets(out, speech, tmp_path):
    analyser = Analyser.load(out / "targets.pt")
    wav = wav_of(speech, 7)[None]
    codes = analyser.encode(wav[:, :-100])  # a short last frame is filled up with silence
    assert codes.shape == (len(wav), 8, 7)
    _, expected = quantise(analyser.space.encode(wav), analyser.books)
    assert torch.equal(codes[..., :6], expected[..., :6])
    with pytest.raises(FileNotFoundError, match="nano.train_mimi"):
        Analyser.load(tmp_path / "targets.pt")
