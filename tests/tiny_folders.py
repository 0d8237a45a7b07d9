"""Tiny random folders in the released formats of the frozen modules, for tests of any part of the project."""
import json
from pathlib import Path

import torch

NANO_MIMI = dict(hidden_size=128, num_filters=16, codebook_size=512, codebook_dim=96, vector_quantization_hidden_dimension=96,
                 intermediate_size=256, upsample_groups=128, sliding_window=250)
FULL_MIMI = dict(hidden_size=512, num_filters=64, codebook_size=2048, codebook_dim=256, vector_quantization_hidden_dimension=256,
                 num_quantizers=32, num_hidden_layers=8, intermediate_size=2048, num_attention_heads=8, num_key_value_heads=8,
                 upsample_groups=512, sliding_window=250)


def make_tiny_mimi(path, seed: int = 0, **overrides):
    """A MimiModel folder of about 0.15 M parameters, window 10; returns the in-memory MimiModel (eval).

    Codebooks and layer scales are filled: transformers initialises them to zero and 0.01, which hides every mistake.
    """
    from transformers import MimiConfig, MimiModel

    fields = dict(hidden_size=32, num_filters=4, codebook_size=64, codebook_dim=16, vector_quantization_hidden_dimension=16,
                  num_quantizers=8, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4, num_key_value_heads=4,
                  upsample_groups=32, sliding_window=10)
    model = MimiModel(MimiConfig(**{**fields, **overrides})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("scale"):
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            else:  # variance-preserving, so that streams stay of order 1 whatever the size
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in ** 0.5)
                if name.endswith("norm.weight"):
                    parameter.add_(1.0)
        for module in model.modules():
            if hasattr(module, "embed_sum"):
                module.embed_sum.copy_(torch.randn(module.embed_sum.shape, generator=generator))
                module._embed = None
    if path is not None:
        model.save_pretrained(path)
    return model


def _randomise(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Random weights of a sane scale, batch-norm statistics included; returns the state dict."""
    generator = torch.Generator().manual_seed(seed)
    state = module.state_dict()
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif tensor.ndim > 1:
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)  # ReLU halves the power
        else:
            tensor.copy_(0.1 * noise + name.endswith("weight"))
    return state


SENSEVOICE_CONF = dict(output_size=64, attention_heads=4, linear_units=128, num_blocks=2, tp_blocks=1, dropout_rate=0.1,
                       positional_dropout_rate=0.1, attention_dropout_rate=0.1, input_layer="pe",
                       pos_enc_class="SinusoidalPositionEncoder", normalize_before=True, kernel_size=11, sanm_shfit=0,
                       selfattention_layer_type="sanm")
FRONTEND_CONF = dict(fs=16000, window="hamming", n_mels=80, frame_length=25, frame_shift=10, lfr_m=7, lfr_n=6)


def make_tiny_sensevoice(path, seed: int = 0, released_names: bool = False, rich: bool = False, **encoder_conf) -> None:
    """A SenseVoiceSmall folder in FunASR's format, 0.2 M parameters, character vocabulary.

    released_names: files named through configuration.json as in the released folder; rich: its <|tags|> in the vocabulary.
    """
    import sentencepiece
    import yaml

    from model.encoders import _funasr_classes

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    bpe = "chn_jpn_yue_eng_ko_spectok.bpe.model" if released_names else "bpe.model"
    with open(path / bpe, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 4), model_writer=file, model_type="char",
            vocab_size=40 if rich else 36, hard_vocab_limit=False, minloglevel=2,
            user_defined_symbols=["<|en|>", "<|NEUTRAL|>", "<|Speech|>", "<|woitn|>"] if rich else [])
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(path / bpe)).vocab_size()
    encoder_class, = _funasr_classes(("funasr.models.sense_voice.model", "SenseVoiceEncoderSmall"))
    conf = {**SENSEVOICE_CONF, **encoder_conf}
    state = {f"encoder.{k}": v for k, v in _randomise(encoder_class(input_size=560, **conf), seed).items()}
    generator = torch.Generator().manual_seed(seed + 1)
    state["ctc.ctc_lo.weight"] = torch.randn(vocabulary, conf["output_size"], generator=generator)
    state["ctc.ctc_lo.bias"] = torch.zeros(vocabulary)
    state["embed.weight"] = torch.randn(16, 560, generator=generator)
    torch.save(state, path / "model.pt")
    (path / "config.yaml").write_text(yaml.safe_dump(dict(
        encoder="SenseVoiceEncoderSmall", encoder_conf=conf, model="SenseVoiceSmall",
        model_conf=dict(length_normalized_loss=True, sos=1, eos=2, ignore_id=-1), tokenizer="SentencepiecesTokenizer",
        tokenizer_conf=dict(bpemodel=None, unk_symbol="<unk>", split_with_space=True), frontend="WavFrontend",
        frontend_conf={**FRONTEND_CONF, "cmvn_file": None})))
    (path / "am.mvn").write_text("<Nnet>\n<AddShift> 560 560\n<LearnRateCoef> 0 [ " + "-8.3 " * 560 + "]\n"
                                 "<Rescale> 560 560\n<LearnRateCoef> 0 [ " + "0.25 " * 560 + "]\n</Nnet>\n")
    if released_names:
        (path / "configuration.json").write_text(json.dumps({"framework": "pytorch", "file_path_metas": {
            "init_param": "model.pt", "config": "config.yaml", "tokenizer_conf": {"bpemodel": bpe},
            "frontend_conf": {"cmvn_file": "am.mvn"}}}))


def make_tiny_campplus(path, seed: int = 0, released_names: bool = False) -> None:
    """A CAM++ folder in FunASR's format: 192-d vectors, 0.2 M parameters."""
    import yaml

    from model.encoders import _funasr_classes

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    conf = dict(feat_dim=80, embedding_size=192, growth_rate=4, bn_size=2, init_channels=16, config_str="batchnorm-relu",
                memory_efficient=True, output_level="segment")
    model_class, = _funasr_classes(("funasr.models.campplus.model", "CAMPPlus"))
    weights = "campplus_cn_common.bin" if released_names else "model.pt"
    torch.save(_randomise(model_class(**conf), seed), path / weights)
    (path / "config.yaml").write_text(yaml.safe_dump(dict(model="CAMPPlus", model_conf=conf, frontend="WavFrontend",
                                                          frontend_conf=dict(fs=16000))))
    if released_names:
        (path / "configuration.json").write_text(json.dumps({"file_path_metas": {"init_param": weights, "config": "config.yaml"}}))


def make_tiny_siglip(path, whole: bool = False, seed: int = 0, hidden_size: int = 64):
    """A SigLIP2 folder (vision tower, or with `whole` both towers) of 256 pixels in 64 patches; returns the in-memory model."""
    from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

    vision = dict(hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=2, num_attention_heads=4,
                  image_size=256, patch_size=32)
    text = dict(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = (SiglipModel(SiglipConfig(vision_config=vision, text_config=text)) if whole
             else SiglipVisionModel(SiglipVisionConfig(**vision))).eval()
    _randomise(model, seed)
    model.save_pretrained(path)
    (Path(path) / "preprocessor_config.json").write_text(json.dumps(dict(
        do_convert_rgb=None, do_normalize=True, do_rescale=True, do_resize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        image_processor_type="SiglipImageProcessor", resample=2, rescale_factor=1 / 255, size=dict(height=256, width=256))))
    return model
