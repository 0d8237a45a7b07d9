"""Fetching the released weights, with fakes of both hubs in the same formats; and checking what lies on the disk."""
import importlib
import json
import shutil
from collections import namedtuple
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_convert import convert, full_size_weights
from tiny_folders import FULL_MIMI, make_tiny_campplus, make_tiny_mimi, make_tiny_sensevoice, make_tiny_siglip

from model.checkpoint import save_atomic
from model.config import OmniConfig
from model.model_omni import MiniMindOmni
from model.weight_files import load_weights
from scripts import check_models, download_models
from scripts.download_models import PARTS

FOLDERS = {part.name: part for part in PARTS}
TINY = dict(hidden_size=64, num_hidden_layers=2, talker_hidden_size=64, num_talker_hidden_layers=1)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory, shared, tokenizer_dir):
    """A hub on the disk: <mirror>/<repository>/files, everything tiny, and the tiny sizes as "published" figures."""
    pytest.importorskip("funasr")
    root = tmp_path_factory.mktemp("mirror")
    make_tiny_sensevoice(root / "SenseVoiceSmall", released_names=True)
    make_tiny_siglip(root / "siglip2-base-p32-256-ve")
    make_tiny_mimi(root / "mimi", codebook_size=2048)
    make_tiny_campplus(root / "campplus", released_names=True)
    weights = root / "minimind-3o-pytorch"
    weights.mkdir()
    for moe in (False, True):
        model = MiniMindOmni(OmniConfig(**TINY, use_moe=moe))
        path = weights / f"sft_omni_768{'_moe' if moe else ''}.pth"
        save_atomic({key: value.half() for key, value in model.state_dict().items()}, path)
        assert convert(path, root / f"minimind-3o{'-moe' if moe else ''}", "--tokenizer", tokenizer_dir) == 0
    state = load_weights(weights / "sft_omni_768.pth")
    save_atomic({key: value for key, value in state.items() if key.startswith(("model.", "lm_head."))}, weights / "llm_768.pth")
    for name in ("voices.pt", "voices_unseen.pt"):
        shutil.copy(shared / "assets" / "voices" / name, weights / name)
    (root / "minimind-o_dataset").mkdir()
    pd.DataFrame({"conversations": ["[]"]}).to_parquet(root / "minimind-o_dataset" / "sft_t2a_mini.parquet")
    return root


@pytest.fixture
def sizes(mirror, monkeypatch):
    """The tiny folders' own counts in place of the published ones; a count is read from the error about it."""
    found = {}
    for name, part in (("SenseVoiceSmall", "sensevoice"), ("siglip2-base-p32-256-ve", "siglip"), ("mimi", "mimi"),
                       ("campplus", "campplus"), ("thinker", "llm"), ("dense", "omni_folder"), ("moe", "moe_folder")):
        path = mirror / FOLDERS[part].repository / "".join(FOLDERS[part].files)
        with pytest.raises(ValueError, match="M parameters, the released") as error:
            FOLDERS[part].check(path)
        found[name] = float(str(error.value).split()[2])
    monkeypatch.setattr(check_models, "MILLIONS", found)


@pytest.fixture
def hubs(mirror, monkeypatch):
    """Both clients copy from the mirror; returns the list of calls (hub, repository, kind, patterns)."""
    calls = []

    def copy(hub, repository, kind, local_dir, patterns):
        calls.append((hub, repository, kind, patterns))
        source = mirror / repository.split("/")[1]
        assert source.is_dir(), repository
        Path(local_dir).mkdir(parents=True, exist_ok=True)
        for file in source.iterdir():
            if patterns is None or file.name in patterns:
                shutil.copy(file, Path(local_dir) / file.name)

    import huggingface_hub

    modelscope = importlib.import_module("modelscope.hub.snapshot_download")  # its package hides the module behind the function
    monkeypatch.setattr(modelscope, "snapshot_download",
                        lambda name, local_dir, allow_patterns: copy("modelscope", name, "model", local_dir, allow_patterns))
    monkeypatch.setattr(modelscope, "dataset_snapshot_download",
                        lambda name, local_dir, allow_patterns: copy("modelscope", name, "dataset", local_dir, allow_patterns))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, repo_type, local_dir, allow_patterns: copy(
        "huggingface", name, repo_type, local_dir, allow_patterns))
    return calls


@pytest.mark.parametrize("hub, owner", [("modelscope", "gongjy"), ("huggingface", "jingyaogong")])
def test_everything_lands_where_the_program_looks(hubs, sizes, tmp_path, capsys, hub, owner):
    assert download_models.main(["--root", str(tmp_path), "--source", hub]) == 0
    out = capsys.readouterr().out
    for path in ("model/SenseVoiceSmall/config.yaml", "model/siglip2-base-p32-256-ve/config.json", "model/mimi/model.safetensors",
                 "model/campplus/campplus_cn_common.bin", "out/llm_768.pth", "out/sft_omni_768.pth", "out/sft_omni_768_moe.pth",
                 "minimind-3o/config.json", "minimind-3o-moe/model.safetensors", "model/tokenizer.json", "model/voices.pt"):
        assert (tmp_path / path).is_file(), path
    assert {call[:2] for call in hubs} == {(hub, f"{owner}/{part.repository}") for part in PARTS if part.kind == "model"}
    assert out.count(": done in ") == 11 and "about 936 MB" in out
    hubs.clear()
    assert download_models.main(["--root", str(tmp_path), "--source", hub]) == 0
    assert hubs == [], "what is whole is not fetched again"
    assert download_models.main(["--root", str(tmp_path), "--check"]) == 0
    assert "NOT OK" not in capsys.readouterr().out


def test_groups_parts_and_other_repositories(hubs, sizes, tmp_path, capsys):
    arguments = ["--root", str(tmp_path), "voices", "campplus", "sft_t2a_mini", "--repo", "campplus=me/campplus"]
    assert download_models.main(arguments) == 0
    assert [call[1:] for call in hubs] == [("me/campplus", "model", None), ("gongjy/minimind-3o-pytorch", "model",
                                                                            ["voices.pt", "voices_unseen.pt"]),
                                           ("gongjy/minimind-o_dataset", "dataset", ["sft_t2a_mini.parquet"])]
    assert [part.name for part in download_models.chosen(["frozen", "omni"])] == ["sensevoice", "siglip", "mimi", "campplus", "omni",
                                                                                 "omni_folder"]
    assert not any(part.kind == "dataset" for part in download_models.chosen(["all"]))


def test_a_file_the_repository_lacks_is_said(hubs, tmp_path, capsys):
    assert download_models.main(["--root", str(tmp_path), "sft_a2a_mini"]) == 1
    assert "was fetched, but is missing" in capsys.readouterr().err


@pytest.mark.parametrize("hub", ["modelscope", "huggingface"])
def test_offline_is_one_clear_message(hubs, tmp_path, capsys, monkeypatch, hub):
    import huggingface_hub

    modelscope = importlib.import_module("modelscope.hub.snapshot_download")  # its package hides the module behind the function
    def fail(*_, **__):
        hubs.append("call")
        raise ConnectionError("Name or service\nnot known")

    monkeypatch.setattr(modelscope, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert download_models.main(["--root", str(tmp_path), "--source", hub]) == 1
    error = capsys.readouterr().err
    for words in (f"SenseVoiceSmall could not be fetched from {hub}", "Name or service not known", "try --source", "--repo sensevoice=",
                  "by hand", str(tmp_path / "model" / "SenseVoiceSmall")):
        assert words in error
    assert hubs == ["call"], "the other parts are not tried"
    assert not (tmp_path / "model").exists(), "no empty folder that looks like a download"


def test_too_little_disk_is_said_before(hubs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(download_models.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(10_000_000))
    assert download_models.main(["--root", str(tmp_path), "mimi"]) == 1
    assert "takes about 385 MB" in capsys.readouterr().err and hubs == []


@pytest.mark.parametrize("arguments, words", [(["everything"], "unknown part everything"), (["--repo", "mimi"], "OWNER/NAME"),
                                              (["--repo", "x=a/b"], "OWNER/NAME"),
                                              (["omni", "--repo", "mimi=a/b"], "mimi is not among the parts to be fetched"),
                                              (["--source", "ftp"], "invalid choice")])
def test_wrong_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        download_models.main(arguments)
    assert words in capsys.readouterr().err


def damaged(mirror, tmp_path, part):
    """A copy of a part in its place below tmp_path; returns the path that is checked."""
    target = tmp_path / FOLDERS[part].target
    shutil.copytree(mirror / FOLDERS[part].repository, target, dirs_exist_ok=True)
    return FOLDERS[part].path(tmp_path)


def test_check_names_what_is_wrong(mirror, sizes, tmp_path, capsys):
    def report(part):
        assert download_models.main(["--root", str(tmp_path), "--check", part]) == 1
        return capsys.readouterr().out

    assert "NOT OK  campplus     missing: no " in report("campplus")
    weights = damaged(mirror, tmp_path, "omni")
    state = load_weights(weights)
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "not a readable checkpoint" in report("omni")
    save_atomic({key: value for key, value in state.items() if "spk_proj" not in key}, weights)
    assert "1 missing: talker.spk_proj.weight" in report("omni")
    save_atomic(state, weights)
    assert "the released moe has" in report("moe") or "missing" in report("moe")
    save_atomic(state, weights.with_name("llm_768.pth"))
    assert "a language model alone was expected" in report("llm")
    codec = damaged(mirror, tmp_path, "mimi") / "model.safetensors"
    tensors = load_file(codec)
    save_file({key: value for i, (key, value) in enumerate(tensors.items()) if i}, codec, metadata={"format": "pt"})
    assert "incomplete: missing" in report("mimi")
    codec.write_bytes(codec.read_bytes()[:3000])
    assert "NOT OK  mimi" in report("mimi")
    sensevoice = damaged(mirror, tmp_path, "sensevoice") / "model.pt"
    sensevoice.write_bytes(b"<html>not found</html>")
    found = report("sensevoice")
    assert "NOT OK  sensevoice   wrong: " in found and "model.pt is not a readable checkpoint" in found
    tokenizer = damaged(mirror, tmp_path, "tokenizer") / "tokenizer_config.json"
    words = json.loads(tokenizer.read_text())
    tokenizer.write_text(json.dumps({**words, "chat_template": "{{ messages }}"}))
    assert "chat template is not MiniMind's" in report("tokenizer")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "sft_i2t.parquet").write_bytes(b"PAR1")
    assert "not a readable parquet file" in report("sft_i2t")
    (tmp_path / "model").mkdir(exist_ok=True)
    shutil.copy(mirror / "minimind-3o-pytorch" / "voices.pt", tmp_path / "model" / "voices.pt")
    assert f"missing: no {tmp_path / 'model' / 'voices_unseen.pt'}" in report("voices")
    shutil.copy(mirror / "minimind-3o-pytorch" / "voices_unseen.pt", tmp_path / "model" / "voices_unseen.pt")
    torch.save({"x": {"ref_codes": torch.zeros(3, 2)}}, tmp_path / "model" / "voices.pt")
    assert "needs ref_codes and spk_emb" in report("voices")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_full_size_folders_have_the_published_counts(tmp_path, shared, capsys):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    make_tiny_mimi(tmp_path / "model" / "mimi", **FULL_MIMI)
    vision = SiglipVisionConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=256,
                                patch_size=32)
    make_tiny_siglip(tmp_path / "model" / "siglip2-base-p32-256-ve")  # for its preprocessor_config.json
    SiglipVisionModel(vision).save_pretrained(tmp_path / "model" / "siglip2-base-p32-256-ve")
    (tmp_path / "out").mkdir()
    for name in ("dense", "moe"):
        full_size_weights(shared, tmp_path / "out", name)
    state = load_weights(tmp_path / "out" / "sft_omni_768.pth")
    save_atomic({key: value for key, value in state.items() if key.startswith(("model.", "lm_head."))}, tmp_path / "out" / "llm_768.pth")
    assert download_models.main(["--root", str(tmp_path), "--check", "mimi", "siglip", "llm"]) == 0, capsys.readouterr().out
    for variant in ("omni", "moe"):
        whole, words = download_models.state_of(FOLDERS[variant], tmp_path)
        assert whole, words
