"""model/encoders.py on tiny random folders in the released formats: loading, refusals, batched == single, the original recipes."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_folders import make_tiny_campplus, make_tiny_mimi, make_tiny_sensevoice, make_tiny_siglip

from model import audio
from model.encoders import CAMPPlus, SenseVoice, SigLIP2, _funasr_classes, sensevoice_frames, speaker_fbank
from model.mimi import Mimi

ROOT = Path(__file__).resolve().parents[1]


def clip(samples: int, seed: int = 0) -> np.ndarray:
    """Noise under a slow envelope: something to hear at every moment, nothing stationary."""
    rng = np.random.default_rng(seed)
    envelope = 0.2 + np.abs(np.sin(np.arange(samples) / 1600 + seed))
    return (0.1 * envelope * rng.standard_normal(samples)).astype(np.float32)


@pytest.fixture(scope="module")
def sensevoice(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sensevoice")
    make_tiny_sensevoice(folder)
    return folder, SenseVoice.load(folder)


@pytest.fixture(scope="module")
def campplus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campplus")
    make_tiny_campplus(folder)
    return folder, CAMPPlus.load(folder)


# ---- SenseVoice

def test_features_batched_equal_single_and_are_zero_beyond(sensevoice):
    model = sensevoice[1]
    wavs = [clip(24000, 1), clip(100, 2), clip(16000, 3), clip(8123, 4)]
    features, lens = model.features(wavs)
    assert features.dtype == torch.float32 and features.shape == (4, sensevoice_frames(24000), 64)
    assert lens.tolist() == [sensevoice_frames(len(w)) for w in wavs]
    for row, wav in enumerate(wavs):
        single = model.features([wav])[0][0]
        assert torch.allclose(features[row, :lens[row]], single, atol=1e-5)
        assert not features[row, lens[row]:].any()
    assert not torch.allclose(features[0, 0], features[0, 5], atol=0.1)
    assert torch.equal(features, model.features([torch.from_numpy(w) for w in wavs])[0]), "no dither, no state"


def test_fbank_is_the_one_in_audio(sensevoice):
    """The released front end and our own count and compute the same vectors, short and ragged ends included."""
    model = sensevoice[1]
    for samples in [400, 560, 1000, 1361, 4000, *range(7000, 9000, 170), 32000]:
        ours = audio.stack_frames(audio.fbank(clip(samples), "hamming", scale=32768.0))
        assert torch.allclose(model.fbank([clip(samples)])[0][0], torch.from_numpy((ours - 8.3) * 0.25), atol=1e-3)


def test_encode_leaves_its_input_alone(sensevoice):
    fbank, lens = sensevoice[1].fbank([clip(8000)])
    before = fbank.clone()
    first = sensevoice[1].encode(fbank, lens)
    assert torch.equal(before, fbank) and torch.equal(first, sensevoice[1].encode(fbank, lens))
    assert not any(p.requires_grad for p in sensevoice[1].encoder.parameters()) and not sensevoice[1].encoder.training


def test_transcribe_is_greedy_ctc(sensevoice):
    model = sensevoice[1]
    text = model.transcribe(clip(16000))
    weight, bias = model.head
    ids = (model.features([clip(16000)])[0][0] @ weight.T + bias).argmax(-1).tolist()
    kept = [b for a, b in zip([None, *ids], ids) if a != b and b != 0]
    assert text == model.tokenizer.decode(kept).strip() and text


def test_released_names_and_rich_tokens(tmp_path):
    make_tiny_sensevoice(tmp_path, released_names=True, rich=True, output_size=512, num_blocks=1, tp_blocks=0, linear_units=64)
    model = SenseVoice.load(tmp_path)
    features, lens = model.features([clip(16000)])
    assert features.shape == (1, 17, 512), "query vectors are for transcribing only"
    assert "<|" not in model.transcribe(clip(16000))
    queries = model.queries.clone()
    with_queries = model.transcribe(clip(16000))
    model.queries = 9 * queries.flip(0)
    assert model.transcribe(clip(16000)) != with_queries, "the queries must reach the encoder"
    model.head = None
    with pytest.raises(ValueError, match="no CTC head"):
        model.transcribe(clip(16000))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sensevoice_equals_funasr_itself(sensevoice):
    """FunASR's AutoModel in its own process (its import is heavy and reseeds everything) gives the same encoder output."""
    script = f"""
import logging, numpy as np, torch
from funasr import AutoModel
m = AutoModel(model={str(sensevoice[0])!r}, disable_update=True, device="cpu", ncpu=1, log_level="ERROR")
m.kwargs["frontend"].dither = 0.0
wav = torch.from_numpy(np.load({str(sensevoice[0] / 'wav.npy')!r}))[None]
feat, lens = m.kwargs["frontend"](wav, torch.tensor([wav.shape[1]]))
with torch.no_grad():
    out, _ = m.model.encoder(feat.clone(), lens)
np.save({str(sensevoice[0] / 'out.npy')!r}, out.numpy())
"""
    np.save(sensevoice[0] / "wav.npy", clip(16000))
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=120)
    expected = torch.from_numpy(np.load(sensevoice[0] / "out.npy"))
    assert torch.allclose(sensevoice[1].features([clip(16000)])[0], expected, atol=1e-5)


# ---- SigLIP2

@pytest.mark.parametrize("whole", [False, True], ids=["vision tower", "both towers"])
@torch.no_grad()
def test_siglip_equals_transformers(tmp_path, whole):
    from PIL import Image
    from transformers import SiglipImageProcessorPil

    reference = make_tiny_siglip(tmp_path, whole)
    tower = getattr(reference, "vision_model", reference)
    model = SigLIP2.load(tmp_path)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (300, 200, 3), dtype=np.uint8)), rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
              Image.fromarray(rng.integers(0, 256, (256, 256), dtype=np.uint8))]
    features = model(images)
    assert features.shape == (3, 64, 64) and features.dtype == torch.float32 and not features.requires_grad
    processor = SiglipImageProcessorPil.from_pretrained(tmp_path)
    rgb = [(i if isinstance(i, Image.Image) else Image.fromarray(i)).convert("RGB") for i in images]
    pixels = processor(rgb, return_tensors="pt").pixel_values
    assert torch.allclose(model.preprocess(images), pixels, atol=1e-6)
    assert torch.allclose(features, tower(pixel_values=pixels).last_hidden_state, atol=1e-4)
    for row, image in enumerate(images):
        assert torch.allclose(model([image])[0], features[row], atol=1e-4)


# ---- CAM++

def test_campplus_follows_funasrs_recipe(campplus):
    model = campplus[1]
    extract, = _funasr_classes(("funasr.models.campplus.utils", "extract_feature"))
    wav = clip(20000)
    frames, _, _ = extract([torch.from_numpy(wav)])
    assert torch.allclose(frames[0], speaker_fbank(wav), atol=1e-4)
    vector = model(wav)
    assert vector.shape == (192,) and vector.dtype == torch.float32 and torch.isfinite(vector).all() and vector.norm() > 0.1
    with torch.no_grad():
        assert torch.allclose(model.model(frames)[0], vector, atol=1e-3)
    assert torch.equal(vector, model(torch.from_numpy(wav)))
    assert not torch.allclose(vector, model(np.convolve(wav, np.ones(8, np.float32) / 8)), atol=1e-2), "a duller voice"
    assert torch.isfinite(model(clip(3200))).all()
    with pytest.raises(ValueError, match="0.2 s"):
        model(clip(3199))


def test_campplus_released_names(tmp_path, campplus):
    make_tiny_campplus(tmp_path, released_names=True)
    assert torch.equal(CAMPPlus.load(tmp_path)(clip(9000)), campplus[1](clip(9000)))


# ---- loading

@pytest.mark.parametrize("loader, name", [(SenseVoice, "SenseVoiceSmall"), (SigLIP2, "siglip2-base-p32-256-ve"), (CAMPPlus, "campplus")])
def test_a_missing_folder_says_how_to_get_it(loader, name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"nowhere.*modelscope download --model gongjy/{name} --local_dir .*nowhere"):
        loader.load(tmp_path / "nowhere")


def test_missing_weights_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    make_tiny_sensevoice(tmp_path / "s")
    state = torch.load(tmp_path / "s" / "model.pt", weights_only=True)
    del state["encoder.tp_norm.weight"]
    torch.save(state, tmp_path / "s" / "model.pt")
    with pytest.raises(ValueError, match="tp_norm.weight"):
        SenseVoice.load(tmp_path / "s")
    (tmp_path / "s" / "model.pt").unlink()
    with pytest.raises(FileNotFoundError, match="model.pt is missing"):
        SenseVoice.load(tmp_path / "s")
    make_tiny_siglip(tmp_path / "v")
    weights = load_file(tmp_path / "v" / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "post_layernorm" not in k and "head." not in k}
    save_file(kept, tmp_path / "v" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="post_layernorm"):
        SigLIP2.load(tmp_path / "v")
    save_file({k: v for k, v in weights.items() if "head." not in k}, tmp_path / "v" / "model.safetensors", metadata={"format": "pt"})
    SigLIP2.load(tmp_path / "v")  # the pooling head is not used
    make_tiny_campplus(tmp_path / "c")
    torch.save({"head.conv1.weight": torch.zeros(1)}, tmp_path / "c" / "model.pt")
    with pytest.raises(ValueError, match="does not fit"):
        CAMPPlus.load(tmp_path / "c")


@pytest.mark.parametrize("load, make, file", [
    (SenseVoice.load, make_tiny_sensevoice, "model.pt"), (SenseVoice.load, make_tiny_sensevoice, "config.yaml"),
    (CAMPPlus.load, make_tiny_campplus, "model.pt"), (SigLIP2.load, make_tiny_siglip, "model.safetensors"),
    (SigLIP2.load, make_tiny_siglip, "preprocessor_config.json"), (Mimi.load, make_tiny_mimi, "model.safetensors")])
def test_a_half_fetched_file_is_an_error_that_names_the_folder(load, make, file, tmp_path):
    make(tmp_path)
    load(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:40])
    with pytest.raises(ValueError, match=f"{tmp_path}.*(cannot be loaded|not a readable).*fetch or write it again"):
        load(tmp_path)


def test_loading_changes_nothing_global(sensevoice, campplus, tmp_path):
    """In a fresh process: threads, random states, log handlers, the funasr package and transformers' verbosity stay."""
    make_tiny_siglip(tmp_path / "v")
    script = f"""
import logging, random, sys
import numpy as np, torch, transformers
from transformers.utils import logging as tlog
sys.path.insert(0, {str(ROOT)!r})
from model.encoders import CAMPPlus, SenseVoice, SigLIP2
def world():
    return (torch.get_num_threads(), torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()), logging.root.level,
            list(logging.root.handlers), tlog.get_verbosity(), tlog.is_progress_bar_enabled(), "funasr" in sys.modules)
torch.manual_seed(5); random.seed(5); np.random.seed(5); torch.set_num_threads(2)
before = world()
SenseVoice.load({str(sensevoice[0])!r}); CAMPPlus.load({str(campplus[0])!r}); SigLIP2.load({str(tmp_path / 'v')!r})
assert world() == before, [(a, b) for a, b in zip(before, world()) if a != b]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "oading weights" not in done.stderr + done.stdout, "no progress bars"
