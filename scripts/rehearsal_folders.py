"""Full-size random folders in every released format: what the commands for the released model run on where its weights are not at hand.

- Formats, names, shapes and numbers of parameters are the released ones (`python -m scripts.download_models all --check` says so of
  them); the numbers in them are random, so that what is said and heard is noise.
- The Talker is made never to say a special code: an untrained one would stop at once, and nothing would be decoded.
- Training rows are those of the benchmarks. About 3.6 GB in all.
"""
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from engine.chat import CAMPPLUS, MIMI, SENSEVOICE, SIGLIP, VOICES
from model.checkpoint import save_atomic
from model.config import INPUT_RATE, NUM_CODEBOOKS, OmniConfig
from model.encoders import _funasr_classes
from model.model_omni import MiniMindOmni
from model.weight_files import EMBEDDING, HEAD
from scripts.check_models import NEW_PARTS
from scripts.convert_omni import TOKENIZER_FILES, to_transformers
from scripts.synthetic_rows import TASKS, write_rows

VARIANTS = {"dense": "", "moe": "_moe"}  # name, ending of its files
SENSEVOICE_VOCABULARY = 25_055
SENSEVOICE_CONF = dict(output_size=512, attention_heads=4, linear_units=2048, num_blocks=50, tp_blocks=20, dropout_rate=0.1,
                       positional_dropout_rate=0.1, attention_dropout_rate=0.1, input_layer="pe",
                       pos_enc_class="SinusoidalPositionEncoder", normalize_before=True, kernel_size=11, sanm_shfit=0,
                       selfattention_layer_type="sanm")
FRONTEND_CONF = dict(fs=INPUT_RATE, window="hamming", n_mels=80, frame_length=25, frame_shift=10, lfr_m=7, lfr_n=6, cmvn_file=None)
CAMPPLUS_CONF = dict(feat_dim=80, embedding_size=192, growth_rate=32, bn_size=4, init_channels=128, config_str="batchnorm-relu",
                     memory_efficient=True, output_level="segment")
SIGLIP_CONF = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=256, patch_size=32)
ROWS = 8  # of each training file


def require_tokenizer(folder: Path) -> None:
    """Raise FileNotFoundError unless the folder has a tokenizer."""
    for name in TOKENIZER_FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}: give the folder of the released tokenizer "
                                    "(python -m scripts.download_models tokenizer fetches it)")


def build(root: Path, tokenizer: Path, voices: Path | None = None, examples: Path | None = None, variants=tuple(VARIANTS),
          per_kind: int | None = 2) -> None:
    """Fill `root` as download_models would. tokenizer: folder of the released one; voices: a voices file (random ones without).

    examples: folder of the suites' sounds and pictures, `per_kind` of each kind are taken (None: all); made up without.
    """
    model, out = root / "model", root / "out"
    require_tokenizer(tokenizer)
    for folder in (model, out, root / "dataset"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, model / name)
    write_sensevoice(model / SENSEVOICE)
    write_siglip(model / SIGLIP)
    write_mimi(model / MIMI)
    write_campplus(model / CAMPPLUS)
    for name in (VOICES, "voices_unseen.pt"):
        write_voices(model / name, voices and voices.parent / name)
    write_examples(model / "examples", examples, per_kind)
    for variant in variants:
        ending = VARIANTS[variant]
        weights = out / f"sft_omni_768{ending}.pth"
        write_weights(weights, out / f"llm_768{ending}.pth", OmniConfig(use_moe=variant == "moe"))
        to_transformers(weights, root / f"minimind-3o{ending.replace('_', '-')}", model)
    for task in TASKS:
        for suffix in ("_mini", "") if task != "i2t" else ("",):
            write_rows(root / "dataset" / f"sft_{task}{suffix}.parquet", task, ROWS, OmniConfig(), median=100, longest=200)


def random_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random values of a sane scale for a module on any device, batch-norm statistics included, on the CPU."""
    state = {}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
        elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            state[name] = 1 + 0.1 * torch.rand(tensor.shape)
        elif tensor.ndim > 1:
            state[name] = torch.randn(tensor.shape) * tensor[0].numel() ** -0.5
        else:
            state[name] = 0.1 * torch.randn(tensor.shape)
    return state


def write_weights(omni: Path, llm: Path, config: OmniConfig) -> None:
    """The whole model's .pth, half precision, as released without a sidecar; and its Thinker alone, where training starts."""
    with torch.device("meta"):
        model = MiniMindOmni(config)
    state = {name: value.half() for name, value in random_state(model).items()}
    state[EMBEDDING] *= 0.02 * config.hidden_size ** 0.5  # as embeddings are initialised
    state[HEAD] = state[EMBEDDING]
    for name, value in state.items():
        if name.startswith("talker.lm_head.") and value.shape[0] == config.audio_vocab_size:
            value[config.num_codes:] = 0
            value[:config.num_codes] *= 20  # so that the best code beats the specials' zero
    save_atomic(state, omni)
    save_atomic({name: value for name, value in state.items() if not name.startswith(NEW_PARTS)}, llm)


def write_sensevoice(folder: Path) -> None:
    import sentencepiece
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    bpe = "chn_jpn_yue_eng_ko_spectok.bpe.model"
    letters = [chr(code) for first, last in ((0x61, 0x7A), (0x3400, 0x4DBF), (0x4E00, 0x9FFF)) for code in range(first, last + 1)]
    lines = ["".join(letters[i:i + 500]) for i in range(0, len(letters), 500)]
    with open(folder / bpe, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, model_type="char", vocab_size=SENSEVOICE_VOCABULARY, character_coverage=1.0,
            minloglevel=2, user_defined_symbols=["<|en|>", "<|zh|>", "<|NEUTRAL|>", "<|Speech|>", "<|woitn|>"])
    encoder, = _funasr_classes(("funasr.models.sense_voice.model", "SenseVoiceEncoderSmall"))
    with torch.device("meta"):
        module = encoder(input_size=560, **SENSEVOICE_CONF)
    state = {f"encoder.{name}": value for name, value in random_state(module).items()}
    width = SENSEVOICE_CONF["output_size"]
    state.update({"ctc.ctc_lo.weight": torch.randn(SENSEVOICE_VOCABULARY, width) * width ** -0.5,
                  "ctc.ctc_lo.bias": torch.zeros(SENSEVOICE_VOCABULARY), "embed.weight": torch.randn(16, 560)})
    torch.save(state, folder / "model.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(
        encoder="SenseVoiceEncoderSmall", encoder_conf=SENSEVOICE_CONF, model="SenseVoiceSmall",
        model_conf=dict(length_normalized_loss=True, sos=1, eos=2, ignore_id=-1), tokenizer="SentencepiecesTokenizer",
        tokenizer_conf=dict(bpemodel=None, unk_symbol="<unk>", split_with_space=True), frontend="WavFrontend",
        frontend_conf=FRONTEND_CONF)), encoding="utf-8")
    (folder / "am.mvn").write_text("<Nnet>\n<AddShift> 560 560\n<LearnRateCoef> 0 [ " + "-8.3 " * 560 + "]\n"
                                   "<Rescale> 560 560\n<LearnRateCoef> 0 [ " + "0.25 " * 560 + "]\n</Nnet>\n")
    _configuration(folder, "model.pt", tokenizer_conf={"bpemodel": bpe}, frontend_conf={"cmvn_file": "am.mvn"})


def write_campplus(folder: Path) -> None:
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    model_class, = _funasr_classes(("funasr.models.campplus.model", "CAMPPlus"))
    with torch.device("meta"):
        module = model_class(**CAMPPLUS_CONF)
    torch.save(random_state(module), folder / "campplus_cn_common.bin")
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(model="CAMPPlus", model_conf=CAMPPLUS_CONF, frontend="WavFrontend",
                                                            frontend_conf=dict(fs=INPUT_RATE))), encoding="utf-8")
    _configuration(folder, "campplus_cn_common.bin")


def _configuration(folder: Path, weights: str, **more) -> None:
    metas = {"init_param": weights, "config": "config.yaml", **more}
    (folder / "configuration.json").write_text(json.dumps({"framework": "pytorch", "file_path_metas": metas}), encoding="utf-8")


def write_siglip(folder: Path) -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    SiglipVisionModel(SiglipVisionConfig(**SIGLIP_CONF)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(
        do_normalize=True, do_rescale=True, do_resize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2,
        image_processor_type="SiglipImageProcessor", rescale_factor=1 / 255, size=dict(height=256, width=256))), encoding="utf-8")


def write_mimi(folder: Path) -> None:
    from transformers import MimiConfig, MimiModel

    model = MimiModel(MimiConfig())  # its defaults are the released sizes
    for module in model.modules():
        if hasattr(module, "embed_sum"):  # books of zeros would give every sound the same codes
            module.embed_sum.copy_(torch.randn(module.embed_sum.shape))
    model.save_pretrained(folder)


def write_voices(path: Path, source: Path | None) -> None:
    if source is not None and source.is_file():
        shutil.copyfile(source, path)
        return
    config = OmniConfig()
    torch.save({name: {"ref_codes": torch.randint(config.num_codes, (NUM_CODEBOOKS, 40)), "spk_emb": torch.randn(config.spk_emb_size)}
                for name in ("ann", "bob")}, path)


def write_examples(folder: Path, source: Path | None, per_kind: int | None) -> None:
    """Sounds audio-* and img-* and pictures image-*: those of `source`, or noise."""
    import soundfile
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    if source is not None:
        for kind in ("audio-en-", "audio-zh-", "image-", "img-"):
            for path in sorted(source.glob(f"{kind}*"))[:per_kind]:
                shutil.copyfile(path, folder / path.name)
        return
    rng = np.random.default_rng(0)
    for name in ("audio-1.wav", "img-1.wav"):
        pauses = np.repeat(rng.random(20) < 0.7, INPUT_RATE // 10)
        soundfile.write(folder / name, 0.1 * rng.standard_normal(len(pauses)) * pauses, INPUT_RATE)
    Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(folder / "image-1.png")
