"""Native weights <-> Transformers folders: nothing is lost either way, and Transformers computes what the native model computes."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pack import make_tiny_pack
from transformers import PreTrainedTokenizerFast

import eval_omni
from engine.chat import Chat
from model.checkpoint import load_model, load_weights, save_atomic, save_model
from model.config import OmniConfig
from model.model_omni import MiniMindOmni
from model.sequence import encode_text
from model.weight_files import BIN, load_folder
from scripts import convert_omni

PROBE = Path(__file__).with_name("transformers_probe.py")
OTHER = "TRANSFORMERS_4_57_PYTHON"  # an interpreter with torch and transformers 4.57, to try the folders in as well
SIZES = dict(hidden_size=96, num_hidden_layers=4, talker_hidden_size=64, num_talker_hidden_layers=2, max_position_embeddings=512)


def make_weights(folder: Path, moe: bool = False, **changes) -> Path:
    torch.manual_seed(0)
    model = MiniMindOmni(OmniConfig(**{**SIZES, "use_moe": moe, **changes}))
    for parameter in model.parameters():  # the usual 0.02 makes logits too alike to tell right from wrong
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_model(model, folder / f"tiny_96{'_moe' if moe else ''}.pth")
    return folder / f"tiny_96{'_moe' if moe else ''}.pth"


def convert(source, target, *options) -> int:
    return convert_omni.main([str(source), str(target), *map(str, options)])


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_there_and_back_loses_nothing(tmp_path, tokenizer_dir, moe, dtype):
    path = make_weights(tmp_path, moe, bridge_layer=2)
    state = {key: value.to(dtype) for key, value in load_weights(path).items()}
    save_atomic(state, path)
    assert convert(path, tmp_path / "folder", "--tokenizer", tokenizer_dir, "--bin") == 0
    assert convert(tmp_path / "folder", tmp_path / "back_96.pth") == 0
    for again in (load_weights(tmp_path / "back_96.pth"), load_weights(tmp_path / "folder" / BIN)):
        assert list(again) == list(state)
        assert all(torch.equal(value, again[key]) and value.dtype == again[key].dtype for key, value in state.items())
    assert load_model(tmp_path / "back_96.pth").config == load_model(path).config == load_model(tmp_path / "folder").config
    assert "lm_head.weight" not in load_folder(tmp_path / "folder"), "safetensors hold tied weights once"


def test_folder_holds_all_that_its_users_need(tmp_path, tokenizer_dir):
    folder = tmp_path / "folder"
    assert convert(make_weights(tmp_path), folder, "--tokenizer", tokenizer_dir, "--frozen_dir", "/srv/frozen") == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                     "modeling_minimind_o.py", "config.py", "kv_cache.py", "model_minimind.py", "model_omni.py"}
    assert all("from model." not in path.read_text() for path in folder.glob("*.py"))
    config = json.loads((folder / "config.json").read_text())
    assert config["code2wav_config"]["mimi_path"] == "/srv/frozen/mimi"


def test_sizes_need_no_sidecar(tmp_path, tokenizer_dir):
    path = make_weights(tmp_path, True)
    path.with_suffix(".json").unlink()
    assert convert(path, tmp_path / "folder", "--tokenizer", tokenizer_dir) == 0
    config = load_model(tmp_path / "folder").config
    assert (config.talker_hidden_size, config.num_hidden_layers, config.use_moe) == (64, 4, True)


def test_wrong_requests_are_refused_in_one_line(tmp_path, tokenizer_dir, capsys):
    path = make_weights(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    half = tmp_path / "half_96.pth"
    save_atomic({key: value for key, value in load_weights(path).items() if "talker.norm" not in key}, half)
    tokenizer = ("--tokenizer", tokenizer_dir)
    for words, source, target, options in [
            ("is not empty", path, tmp_path / "full", tokenizer), ("no tokenizer.json in", path, tmp_path / "new", ("--tokenizer", tmp_path)),
            ("no checkpoint", tmp_path / "absent.pth", tmp_path / "new", tokenizer), ("without config.json", tmp_path / "empty", path, ()),
            ("missing: talker.norm.weight", half, tmp_path / "new", tokenizer)]:
        assert convert(source, target, *options) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "new" / "config.json").exists()
    assert convert(path, tmp_path / "folder", *tokenizer) == 0
    assert convert(tmp_path / "folder", tmp_path / "again") == 2 and "must be a .pth file" in capsys.readouterr().err
    sidecar = path.with_suffix(".json")
    assert convert(tmp_path / "folder", path) == 2 and f"{path} is there already" in capsys.readouterr().err
    path.unlink()
    assert convert(tmp_path / "folder", path) == 2 and f"{sidecar} is there already" in capsys.readouterr().err


def test_the_tokenizer_is_the_models_own(tmp_path, tokenizer_dir, capsys):
    """That of another model is refused; without a choice it is taken from beside the weights."""
    pack = make_tiny_pack(tmp_path / "pack")
    assert convert(pack / "sft_omni_64.pth", tmp_path / "folder") == 0
    assert (tmp_path / "folder" / "tokenizer.json").read_bytes() == (pack / "tokenizer.json").read_bytes()
    assert convert(pack / "sft_omni_64.pth", tmp_path / "new", "--tokenizer", tokenizer_dir) == 2
    error = capsys.readouterr().err
    assert f"{tokenizer_dir} has 6400 ids" in error and "320" in error and not (tmp_path / "new").exists()
    for name in convert_omni.TOKENIZER_FILES:
        (tmp_path / "folder" / name).write_bytes((tokenizer_dir / name).read_bytes())
    with pytest.raises(ValueError, match=f"the tokenizer in {tmp_path / 'folder'} has 6400 ids"):
        Chat.load(pack, tmp_path / "folder")


@pytest.mark.parametrize("kind", ["safetensors", "bin", "with its own codec"])
def test_the_command_line_talks_to_a_folder(tmp_path, monkeypatch, kind):
    pack, folder = make_tiny_pack(tmp_path / "pack"), tmp_path / "minimind-3o"
    assert convert(pack / "sft_omni_64.pth", folder, "--tokenizer", pack, "--bin") == 0
    if kind == "bin":
        (folder / "model.safetensors").unlink()
    if kind == "with its own codec":
        for name in ("mimi", "voices.pt"):
            (pack / name).rename(folder / name)
    else:
        monkeypatch.setattr(eval_omni, "RELEASED", pack)

    def ask(load_from, *options):
        assert eval_omni.main(["--load_from", str(load_from), "--device", "cpu", "--output_dir", str(tmp_path / "o"), "--prompt", "Hi",
                               "--temperature", "1", "--max_new_tokens", "12", *options]) == 0
        return json.loads((tmp_path / "o" / "results.json").read_text())["results"][0]

    got = ask(folder)
    assert got["voice"] == "ann" and got["audio_s"] > 0
    if kind != "with its own codec":
        assert got["reply"] == ask(pack, "--save_dir", str(pack))["reply"]
    (folder / "config.json").write_text("{}")
    assert eval_omni.main(["--load_from", str(folder), "--decode_audio", "0", "--prompt", "Hi"]) == 2


# ---- what Transformers computes from a folder

def reference_numbers(path: Path, out: Path) -> MiniMindOmni:
    """Inputs of every kind and the native model's outputs, as the probe wants them."""
    model, generator = load_model(path), torch.Generator().manual_seed(1)
    ids = torch.randint(30, 2000, (2, 9, 24), generator=generator)
    ids[:, 8, 3:9], ids[:, 8, 13:20], ids[:, :8, 12] = model.config.audio_ids[0], model.config.image_ids[0], model.config.audio_spk_token
    features = dict(spk_emb=torch.randn(2, model.config.spk_emb_size, generator=generator), audio_lens=torch.tensor([6, 4]),
                    audio_features=torch.randn(2, 6, model.config.audio_hidden_size, generator=generator),
                    image_features=torch.randn(2, 64, model.config.image_hidden_size, generator=generator))
    with torch.no_grad():
        expected = model(ids, **features)
    np.savez(out, input_ids=ids, logits=expected.logits, audio_logits=expected.audio_logits, model_cos=model.model.rope.cos,
             talker_cos=model.talker.rope.cos, **features)
    return model


def probe(python: str, folder: Path, numbers: Path) -> dict:
    environment = {**os.environ, "HF_HOME": str(folder.parent / "hf_home"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([python, str(PROBE), str(folder), str(numbers)], capture_output=True, text=True, env=environment,
                         cwd=folder.parent, timeout=600)  # full-size on busy cores; tests have limits of their own
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def greedy(model: MiniMindOmni, tokenizer_dir: Path, prompt: str, steps: int) -> list[int]:
    ids = encode_text(PreTrainedTokenizerFast.from_pretrained(str(tokenizer_dir)), prompt)
    start = len(ids)
    with torch.no_grad():
        for _ in range(steps):
            logits = model(torch.tensor([ids])).logits[0, -1]
            logits[model.config.eos_token_id] = -torch.inf  # the probe asks for exactly `steps` tokens
            ids.append(int(logits.argmax()))
    return ids[start:]


def check_in_transformers(python: str, path: Path, tokenizer_dir: Path, version: str) -> None:
    folder, numbers = path.parent / "folder", path.parent / "numbers.npz"
    if not folder.exists():
        assert convert(path, folder, "--tokenizer", tokenizer_dir) == 0
    model = reference_numbers(path, numbers)
    got = probe(python, folder, numbers)
    assert got["version"].startswith(version) and got["model_type"] == "minimind-o" and not got["training"]
    assert got["problems"] == [] and got["tied"] and got["buffers"] == []
    assert got["parameters"] == sum(p.numel() for p in model.parameters())
    assert max(got["text_difference"], got["audio_difference"], got["text_only_difference"]) <= 1e-6
    assert got["rope_difference"] == 0 and got["cached_difference"] <= 1e-4
    assert got["generated"] == got["generated_batch"] and got["generated"][0] == got["generated_uncached"]
    assert got["generated"][0] == greedy(model, tokenizer_dir, got["prompt"], 8)


@pytest.fixture
def old_transformers() -> str:
    python = os.environ.get(OTHER)
    if not python:
        pytest.skip(f"set {OTHER} to the python of an environment with transformers 4.57 (pip install torch transformers==4.57.6)")
    return python


VARIANTS = [{}, dict(moe=True, inference_rope_scaling=True, max_position_embeddings=4096)]


@pytest.mark.parametrize("variant", VARIANTS, ids=["dense", "moe-yarn"])
def test_transformers_computes_the_same(tmp_path, tokenizer_dir, variant):
    check_in_transformers(sys.executable, make_weights(tmp_path, **variant), tokenizer_dir, "5.")


@pytest.mark.parametrize("variant", VARIANTS, ids=["dense", "moe-yarn"])
def test_transformers_4_57_computes_the_same(tmp_path, tokenizer_dir, variant, old_transformers):
    check_in_transformers(old_transformers, make_weights(tmp_path, **variant), tokenizer_dir, "4.57")


def full_size_weights(shared: Path, folder: Path, name: str) -> Path:
    """Random fp16 weights with exactly the released keys and shapes, tied, no sidecar: a stand-in for the released file."""
    generator, state = torch.Generator().manual_seed(3), {}
    for key, shape in json.loads((shared / "reference" / f"state_dict_{name}.json").read_text()).items():
        scale = 0.04 if len(shape) > 1 else 0.1
        state[key] = (float(len(shape) < 2 and not key.endswith("bias")) + scale * torch.randn(shape, generator=generator)).half()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    path = folder / f"sft_omni_768{'_moe' if name == 'moe' else ''}.pth"
    save_atomic(state, path)
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["dense", "moe"])
def test_full_size_weights_load_convert_and_compute_the_same(tmp_path, shared, tokenizer_dir, name):
    path = full_size_weights(shared, tmp_path, name)
    state = load_weights(path)
    model = load_model(path, OmniConfig(use_moe=name == "moe"))
    assert all(torch.equal(value, state[key].float()) for key, value in model.state_dict().items())
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 6) == {"dense": 113.131266, "moe": 314.887938}[name]
    del model, state
    assert convert(path, tmp_path / "folder", "--tokenizer", tokenizer_dir) == 0
    convert(tmp_path / "folder", tmp_path / "back_768.pth")
    back = load_weights(tmp_path / "back_768.pth")
    assert all(torch.equal(value, back[key]) for key, value in load_weights(path).items())
    path = tmp_path / "back_768.pth"  # has a sidecar that says which variant it is
    check_in_transformers(sys.executable, path, tokenizer_dir, "5.")
    if os.environ.get(OTHER):
        check_in_transformers(os.environ[OTHER], path, tokenizer_dir, "4.57")
