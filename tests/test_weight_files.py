"""Reading weights in every released format and under old names: the same model, or an error that names what is wrong."""
import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from test_checkpoint import TINY, tiny_model

from model.checkpoint import load_model, load_strict, save_atomic
from model.config import OmniConfig
from model.transformers_folder import config_from_json, config_to_json, read_config
from model.weight_files import BIN, HEAD, SAFETENSORS, infer_config, load_folder, migrate

CONFIG = OmniConfig(**TINY)


def write_folder(folder, state, kind: str, config: OmniConfig = CONFIG):
    """A Transformers folder of the given kind: "safetensors" or "bin", whole or with " shards" (three of them)."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_to_json(config, "modeling")))
    name = SAFETENSORS if kind.startswith("safetensors") else BIN
    if name == SAFETENSORS:
        state = {key: value.contiguous() for key, value in state.items() if key != HEAD}
    save = (lambda part, path: save_file(part, path)) if name == SAFETENSORS else torch.save
    if "shards" not in kind:
        save(state, folder / name)
        return folder
    stem, suffix = name.split(".")
    keys, weight_map = list(state), {}
    for i in range(3):
        shard = f"{stem}-{i + 1:05d}-of-00003.{suffix}"
        save({key: state[key] for key in keys[i::3]}, folder / shard)
        weight_map.update({key: shard for key in keys[i::3]})
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "safetensors shards", "bin", "bin shards"])
def test_every_kind_of_folder_loads_the_same_model(tmp_path, kind):
    model = tiny_model()
    got = load_model(write_folder(tmp_path / "f", model.state_dict(), kind))
    assert got.config == model.config
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in got.state_dict().items())


def test_safetensors_are_preferred_as_transformers_does(tmp_path):
    model = tiny_model()
    folder = write_folder(tmp_path / "f", {key: torch.zeros_like(value) for key, value in model.state_dict().items()}, "bin")
    write_folder(folder, model.state_dict(), "safetensors")
    assert torch.equal(load_model(folder).lm_head.weight, model.lm_head.weight)


def test_broken_folders_are_named(tmp_path):
    state = tiny_model().state_dict()
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor pytorch_model.bin.*config.json"):
        (tmp_path / "none").mkdir()
        (tmp_path / "none" / "config.json").write_text("{}")
        load_folder(tmp_path / "none")
    folder = write_folder(tmp_path / "shards", state, "safetensors shards")
    shard, index = folder / "model-00002-of-00003.safetensors", folder / f"{SAFETENSORS}.index.json"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match="00002-of-00003.safetensors is not a readable safetensors file"):
        load_model(folder)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="shard model-00002-of-00003"):
        load_model(folder)
    shard.write_bytes(whole)
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**weight_map, "model.extra": "model-00001-of-00003.safetensors"}}))
    with pytest.raises(ValueError, match=r"promises \['model.extra'\]"):
        load_model(folder)
    index.write_text(json.dumps({"weight_map": {**weight_map, "model.norm.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="outside its folder"):
        load_model(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match="not an index"):
        load_model(folder)


def test_folder_with_wrong_keys_is_reported_by_name(tmp_path):
    state = tiny_model().state_dict()
    state["model.odd"] = state.pop("talker.norm.weight")
    with pytest.raises(ValueError, match=r"(?s)/f: .*1 missing: talker.norm.weight.*1 unexpected: model.odd"):
        load_model(write_folder(tmp_path / "f", state, "safetensors"))


def test_no_code_is_run_by_a_pickle(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    folder = write_folder(tmp_path / "f", tiny_model().state_dict(), "bin")
    torch.save({"x": Evil()}, folder / BIN)
    with pytest.raises(ValueError, match="pytorch_model.bin is not a readable checkpoint"):
        load_model(folder)


OLD = {  # name of the variant -> how it is made from today's state dict, and what the log says
    "wrapped by DDP": (lambda s: {f"module.{k}": v for k, v in s.items()}, "prefixes"),
    "compiled and wrapped": (lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()}, "prefixes"),
    "inside a trainer's file": (lambda s: {"model": s, "optimizer": {}, "step": 3}, "'model'"),
    "with a frozen encoder": (lambda s: {**s, "audio_encoder.x.weight": torch.ones(2), "mimi.y": torch.ones(1)}, "2 tensors of frozen"),
    "with rotary tables": (lambda s: {**s, "model.freqs_cos": torch.ones(2, 2), "talker.freqs_sin": torch.ones(2)}, "2 rotary tables"),
    "tied weights stored once": (lambda s: {k: v for k, v in s.items() if k != HEAD}, "is tied to"),
}


@pytest.mark.parametrize("variant", OLD)
def test_old_variants_are_migrated_and_logged(tmp_path, caplog, variant):
    change, words = OLD[variant]
    state = tiny_model().state_dict()
    save_atomic(change(state), tmp_path / "w_32.pth")
    with caplog.at_level(logging.INFO, "model.weight_files"):
        got = load_model(tmp_path / "w_32.pth", CONFIG)
    assert words in caplog.text
    assert all(torch.equal(value, state[key]) for key, value in got.state_dict().items())


def test_todays_weights_pass_unmentioned(caplog):
    state = tiny_model().state_dict()
    with caplog.at_level(logging.INFO, "model.weight_files"):
        assert migrate(state) == state
    assert not caplog.records


def test_an_untied_head_and_other_things_are_refused():
    state = tiny_model().state_dict()
    with pytest.raises(ValueError, match="ties the two"):
        load_strict(tiny_model(), {**state, HEAD: state[HEAD] + 1})
    for other in ([1, 2], {}, {"a": 1}):
        with pytest.raises(ValueError, match="no state dict"):
            migrate(other)


@pytest.mark.parametrize("changes", [{}, dict(use_moe=True, num_experts=3), dict(talker_hidden_size=64, num_talker_hidden_layers=2),
                                     dict(audio_vocab_size=576, audio_pad_token=513, audio_stop_token=514, audio_spk_token=515),
                                     dict(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, image_hidden_size=48)])
def test_sizes_are_read_off_the_shapes(changes):
    model = tiny_model(**changes)
    inferred = infer_config(model.state_dict())
    inferred.max_position_embeddings = model.config.max_position_embeddings  # no shape tells
    assert inferred == model.config


def test_sizes_of_a_language_model_alone():
    state = {key: value for key, value in tiny_model().state_dict().items() if key.startswith(("model.", "lm_head."))}
    assert infer_config(state).hidden_size == 32 and infer_config(state).talker_hidden_size == OmniConfig().talker_hidden_size
    with pytest.raises(ValueError, match="not the weights of a MiniMind-O"):
        infer_config({"x": torch.ones(1)})


@pytest.mark.parametrize("config", [OmniConfig(), OmniConfig(use_moe=True), OmniConfig.preset("nano"),
                                    OmniConfig(inference_rope_scaling=True, bridge_layer=2, talker_hidden_size=512)])
def test_config_json_round_trip(config):
    assert config_from_json(json.loads(json.dumps(config_to_json(config, "m")))) == config


def test_config_json_has_what_others_look_for():
    values = config_to_json(OmniConfig(), "m", "/models")
    wanted = dict(model_type="minimind-o", hidden_size=768, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
                  vocab_size=6400, intermediate_size=2432, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True,
                  max_position_embeddings=32768, use_moe=False, num_experts=4, num_experts_per_tok=1, num_talker_hidden_layers=4,
                  talker_hidden_size=768, bridge_layer=3, audio_ids=[16], audio_special_token="<|audio_pad|>", audio_hidden_size=512,
                  audio_vocab_size=2112, audio_pad_token=2049, audio_stop_token=2050, audio_spk_token=2051, spk_emb_size=192,
                  image_ids=[12], image_special_token="<|image_pad|>", image_hidden_size=768, image_token_len=64,
                  think_end_ids=[26, 234, 234], rope_scaling=None, tokenizer_class="PreTrainedTokenizerFast",
                  audio_encoder_path="/models/SenseVoiceSmall", vision_model_path="/models/siglip2-base-p32-256-ve",
                  code2wav_config=dict(mimi_path="/models/mimi", codec_num_code_layers=8, codec_sample_rate=24000, codec_pad_token=2049))
    assert {key: values[key] for key in wanted} == wanted and "rope_parameters" not in values


def test_configs_of_other_versions_are_understood(caplog):
    base = {"model_type": "minimind-o", "hidden_size": 64, "use_moe": 1, "torch_dtype": "float16", "transformers_version": "4.57.6"}
    config = config_from_json({**base, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "intermediate_size": None})
    assert (config.hidden_size, config.use_moe, config.rope_theta, config.intermediate_size) == (64, True, 10000.0, 256)
    yarn = {"type": "yarn", "factor": 16, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 2048,
            "attention_factor": 1.0}
    assert config_from_json({**base, "rope_scaling": yarn}).inference_rope_scaling
    config_from_json({**base, "my_note": 1})
    assert config_from_json({**base, "pad_token_id": None}) == config_from_json(base)  # Transformers writes null for what is not set
    assert "my_note" in caplog.text


@pytest.mark.parametrize("changes, words", [
    (dict(model_type="llama"), "model_type is 'llama'"), (dict(hidden_act="gelu"), "hidden_act"), (dict(head_dim=64), "head_dim"),
    (dict(tie_word_embeddings=False), "tie_word_embeddings"), (dict(rope_scaling={"type": "linear", "factor": 2}), "linear"),
    (dict(rope_scaling={"rope_type": "yarn", "factor": 4}), "'factor': 4"), (dict(norm_topk_prob=False), "norm_topk_prob"),
    (dict(moe_intermediate_size=100), "moe_intermediate_size"), (dict(hidden_size="wide"), "hidden_size is 'wide'")])
def test_configs_this_architecture_cannot_do_are_refused(tmp_path, changes, words):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "minimind-o", **changes}))
    with pytest.raises(ValueError, match=f"config.json: .*({words})"):
        read_config(tmp_path)


def test_unreadable_configs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        read_config(tmp_path)
    for text in ("{", "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json"):
            read_config(tmp_path)
