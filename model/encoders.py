"""Frozen modules that only listen or look: SenseVoice (speech), SigLIP2 (pictures), CAM++ (speaker vectors).

- Each loads a local folder in its released format, or one of ours in the same format; a missing folder is a FileNotFoundError
  that says how to download it, missing weights are a ValueError. Nothing here touches the network.
- All are in eval mode, fp32 and without gradients: SenseVoice computes its positions in the input's precision, and in bf16
  they are off by more than the signal after a few seconds.
- Only FunASR's network classes are used. Importing `funasr` itself takes seconds and walks thousands of modules, so its
  package `__init__` is stepped over (`_funasr_classes`).
- Preprocessing draws no random numbers (no dither): the same audio always gives the same features.
"""
import importlib
import importlib.util
import json
import re
import sys
import types
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import audio, ctc
from model.config import INPUT_RATE
from model.ctc import NGram
from model.mimi import quiet_transformers
from model.weight_files import WRAPPERS, load_weights, names_folder
from model.writing import Writing

NGRAM, WRITING = "ngram.npz", "writing.json"  # in the folder of an ear of ours: how people speak and write (nano.train_language)
MIN_SPEAKER_SAMPLES = INPUT_RATE // 5  # CAM++ pools over time; below 0.2 s there is hardly anything to pool


def sensevoice_frames(num_samples: int) -> int:
    """Feature vectors `SenseVoice.features` gives for that many 16 kHz samples: one per 60 ms."""
    return audio.lfr_frames(num_samples)


class SenseVoice:
    """SenseVoice-Small's encoder; with `transcribe` when the folder also has the CTC head and the tokenizer."""

    def __init__(self, encoder, frontend, head=None, queries=None, tokenizer=None, ngram: NGram | None = None,
                 writing: Writing | None = None):
        self.encoder, self.frontend = encoder, frontend
        self.head = head  # (weight (V, D), bias (V,)) of the CTC layer, or None
        self.queries = queries  # (16, 560) prompt vectors (language, event, emotion, style), or None
        self.tokenizer = tokenizer  # sentencepiece, or None
        self.ngram, self.writing = ngram, writing  # of the tokenizer's tokens; of its words
        self.device = next(encoder.parameters()).device

    @classmethod
    @names_folder
    def load(cls, folder, device="cpu") -> "SenseVoice":
        """From a FunASR folder: config.yaml, weights, optionally am.mvn, a sentencepiece model and, of ours, ngram.npz and writing.json."""
        files = _funasr_files(folder, "SenseVoiceSmall", {"config": "config.yaml", "weights": "model.pt"})
        config, state = _read_yaml(files["config"]), _read_weights(files["weights"])
        encoder_class, frontend_class = _funasr_classes(("funasr.models.sense_voice.model", "SenseVoiceEncoderSmall"),
                                                        ("funasr.frontends.wav_frontend", "WavFrontend"))
        options = {**config["frontend_conf"], "dither": 0.0, "cmvn_file": None}
        if "cmvn" in files:
            options["cmvn_file"] = str(files["cmvn"])
        frontend = frontend_class(**options)
        weights = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
        encoder = _build(encoder_class, {**config["encoder_conf"], "input_size": frontend.output_size()}, weights, files["weights"])
        head = (state["ctc.ctc_lo.weight"], state["ctc.ctc_lo.bias"]) if "ctc.ctc_lo.weight" in state else None
        tokenizer = None
        if "tokenizer" in files:
            from sentencepiece import SentencePieceProcessor
            tokenizer = SentencePieceProcessor(model_file=str(files["tokenizer"]))
        head = head and tuple(t.to(device, torch.float32) for t in head)
        queries = state["embed.weight"].to(device, torch.float32) if "embed.weight" in state else None
        ngram = NGram.load(files["ngram"]) if "ngram" in files else None
        writing = Writing.load(files["writing"]) if "writing" in files else None
        return cls(_freeze(encoder, device), frontend, head, queries, tokenizer, ngram, writing)

    def fbank(self, wavs: list) -> tuple[Tensor, Tensor]:
        """16 kHz clips (S_i,) -> normalised, stacked filter banks (B, L, 560) on the CPU, zero padded, and lengths (B,)."""
        rows = []
        for wav in wavs:
            wav = torch.as_tensor(wav, dtype=torch.float32).cpu()
            if wav.ndim != 1 or not len(wav):
                raise ValueError(f"SenseVoice needs audio of shape (S,) with S > 0, got {tuple(wav.shape)}")
            wav = F.pad(wav, (0, max(0, audio.FBANK_WINDOW - len(wav))))
            rows.append(self.frontend(wav[None], torch.tensor([len(wav)]))[0][0])
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])

    @torch.no_grad()
    def encode(self, fbank: Tensor, lens: Tensor) -> Tensor:
        """(B, L, 560), lens (B,) -> (B, L, D) float32, zero beyond each row's length. The input is not changed."""
        lens = lens.to(self.device)
        out, _ = self.encoder(fbank.to(self.device, copy=True), lens)  # FunASR scales its input in place
        valid = torch.arange(out.shape[1], device=self.device) < lens[:, None]
        return torch.where(valid[..., None], out.float(), 0)

    def features(self, wavs: list) -> tuple[Tensor, Tensor]:
        """16 kHz clips (S_i,) -> features (B, L, D) zero padded, and lengths (B,) = `sensevoice_frames` of each, on the device."""
        fbank, lens = self.fbank(wavs)
        return self.encode(fbank, lens), lens.to(self.device)

    @property
    def can_transcribe(self) -> bool:
        return self.head is not None and self.tokenizer is not None

    @torch.no_grad()
    def transcribe(self, wav, features: Tensor | None = None) -> str:
        """Text of a 16 kHz clip (S,) by CTC; tags such as <|en|> are dropped. ValueError without head or tokenizer.

        The likeliest tokens; where the folder knows how people speak the likeliest text, and where it knows how they write, with
        capital letters and marks.
        The released model was trained with four query vectors in front of the speech, ours without: the vocabulary tells.
        features (1, L, D): `features` of the clip where they are there already; they save a pass where no query vectors are needed.
        """
        if not self.can_transcribe:
            raise ValueError("this SenseVoice folder has no CTC head or no sentencepiece tokenizer: it gives features only")
        if self.queries is not None and self.tokenizer.piece_to_id("<|en|>") != self.tokenizer.unk_id():
            fbank, lens = self.fbank([wav])
            front = self.queries[[0, 1, 2, 15]].cpu()  # language unknown, event, emotion, no inverse text normalisation
            features = self.encode(torch.cat([front[None], fbank], dim=1), lens + 4)
        elif features is None:
            features, _ = self.features([wav])
        log_probs = F.linear(features[0], *self.head).log_softmax(dim=-1).cpu().numpy()
        ids = ctc.greedy(log_probs) if self.ngram is None else ctc.search(log_probs, self.ngram)
        text = re.sub(r"<\|[^|]*\|>", "", self.tokenizer.decode(ids)).strip()
        return self.writing(text) if self.writing else text


class SigLIP2:
    """SigLIP2's vision tower: 64 patch vectors per picture."""

    def __init__(self, model, size: tuple[int, int], resample: int, scale: float, mean, std):
        self.model, self.size, self.resample = model, size, resample
        self.scale, self.mean, self.std = scale, np.asarray(mean, np.float32), np.asarray(std, np.float32)
        self.device = next(model.parameters()).device

    @classmethod
    @names_folder
    def load(cls, folder, device="cpu") -> "SigLIP2":
        """From a transformers folder of the vision tower or of the whole SigLIP model, with preprocessor_config.json."""
        from transformers import SiglipVisionModel

        name = "siglip2-base-p32-256-ve"
        for file in ("config.json", "preprocessor_config.json"):
            if not (Path(folder) / file).is_file():
                raise FileNotFoundError(_how_to_get(folder, name, file))
        with quiet_transformers():
            model, info = SiglipVisionModel.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True,
                                                            output_loading_info=True)
        missing = [k for k in info["missing_keys"] if "head." not in k]  # the pooling head is not used
        if missing or info["mismatched_keys"]:
            raise ValueError(f"SigLIP2 folder {folder} is incomplete: missing {sorted(missing)[:5]}, "
                             f"of another shape {list(info['mismatched_keys'])[:5]}")
        options = json.loads((Path(folder) / "preprocessor_config.json").read_text(encoding="utf-8"))
        size = (options["size"]["width"], options["size"]["height"])
        return cls(_freeze(model, device), size, options.get("resample", 3), options.get("rescale_factor", 1 / 255),
                   options.get("image_mean", [0.5] * 3), options.get("image_std", [0.5] * 3))

    def preprocess(self, images: list) -> Tensor:
        """PIL pictures or uint8 arrays (H, W, 3) -> (B, 3, 256, 256) float32 on the CPU."""
        from PIL import Image

        rows = []
        for image in images:
            image = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
            pixels = np.asarray(image.convert("RGB").resize(self.size, resample=self.resample), dtype=np.float32)
            rows.append((pixels * np.float32(self.scale) - self.mean) / self.std)
        return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)

    @torch.no_grad()
    def __call__(self, images: list) -> Tensor:
        """Pictures (a non-empty list) -> (B, 64, C) float32 on the device, C = 768 when released."""
        assert images, "no pictures"
        return self.model(pixel_values=self.preprocess(images).contiguous().to(self.device)).last_hidden_state.float()


class CAMPPlus:
    """CAM++ speaker encoder. Its vectors are not normalised: their norm is about the square root of their size."""

    def __init__(self, model):
        self.model = model
        self.device = next(model.parameters()).device

    @classmethod
    @names_folder
    def load(cls, folder, device="cpu") -> "CAMPPlus":
        """From a FunASR folder: config.yaml and weights."""
        files = _funasr_files(folder, "campplus", {"config": "config.yaml", "weights": "model.pt"})
        model_class, = _funasr_classes(("funasr.models.campplus.model", "CAMPPlus"))
        options = {**_read_yaml(files["config"]).get("model_conf", {}), "memory_efficient": False}  # checkpointing is for training
        return cls(_freeze(_build(model_class, options, _read_weights(files["weights"]), files["weights"]), device))

    @torch.no_grad()
    def __call__(self, wav) -> Tensor:
        """Speech (S,) at 16 kHz -> speaker vector (192,) float32 on the CPU. ValueError below 0.2 s."""
        wav = np.asarray(wav, dtype=np.float32)
        if wav.ndim != 1 or len(wav) < MIN_SPEAKER_SAMPLES:
            raise ValueError(f"a speaker vector needs mono audio of 0.2 s or more at 16 kHz, got shape {wav.shape}")
        return self.model(speaker_fbank(wav)[None].to(self.device))[0].float().cpu()


def speaker_fbank(wav: np.ndarray) -> Tensor:
    """(S,) at 16 kHz -> (F, 80) log-mel features less their mean, as CAM++ was trained on."""
    frames = torch.from_numpy(audio.fbank(wav))
    return frames - frames.mean(dim=0)


# ---- folders and FunASR

def _how_to_get(folder, name: str, file: str) -> str:
    return f"no {name} in {folder} ({file} is missing): run `modelscope download --model gongjy/{name} --local_dir {folder}`"


def _funasr_files(folder, name: str, required: dict[str, str]) -> dict[str, Path]:
    """Paths of all parts that are there; configuration.json may rename FunASR's own, which otherwise have their default names."""
    folder = Path(folder)
    names = {**required, "cmvn": "am.mvn", "tokenizer": "bpe.model", "ngram": NGRAM, "writing": WRITING}
    if (folder / "configuration.json").is_file():
        given = json.loads((folder / "configuration.json").read_text(encoding="utf-8")).get("file_path_metas", {})
        names["config"] = given.get("config", names["config"])
        names["weights"] = given.get("init_param", names["weights"])
        names["tokenizer"] = given.get("tokenizer_conf", {}).get("bpemodel", names["tokenizer"])
        names["cmvn"] = given.get("frontend_conf", {}).get("cmvn_file", names["cmvn"])
    for part in required:
        if not (folder / names[part]).is_file():
            raise FileNotFoundError(_how_to_get(folder, name, names[part]))
    return {part: folder / file for part, file in names.items() if (folder / file).is_file()}


def _read_yaml(path: Path) -> dict:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _read_weights(path: Path) -> dict[str, Tensor]:
    state = load_weights(path)
    for wrapper in WRAPPERS:  # FunASR's own trainers wrap it, too
        if isinstance(state.get(wrapper), dict):
            return state[wrapper]
    return state


def _build(module_class, options: dict, state: dict, path: Path):
    """A module holding exactly `state`; built without memory or random numbers for the weights it is about to get."""
    with torch.device("meta"):
        module = module_class(**options)
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its config.yaml: {error}") from error
    return module


def _freeze(module, device):
    return module.to(device, torch.float32).eval().requires_grad_(False)


@contextmanager
def _funasr_stub():
    """A bare `funasr` package for the duration of an import, so that submodules load without its `__init__`."""
    if "funasr" in sys.modules:
        yield
        return
    spec = importlib.util.find_spec("funasr")
    if spec is None:
        raise ImportError("FunASR is not installed: run `pip install funasr kaldi_native_fbank`")
    stub = types.ModuleType("funasr")
    stub.__path__, stub.__spec__ = list(spec.submodule_search_locations), spec
    sys.modules["funasr"] = stub
    try:
        yield
    finally:
        del sys.modules["funasr"]  # a later `import funasr` gets the real package


def _funasr_classes(*wanted: tuple[str, str]) -> list[type]:
    """FunASR classes by (module, name)."""
    with _funasr_stub(), redirect_stdout(StringIO()):  # its modules print advice about ffmpeg, which nothing here uses
        return [getattr(importlib.import_module(module), name) for module, name in wanted]
