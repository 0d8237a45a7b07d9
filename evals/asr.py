"""Speech recognisers that judge generated speech.

- A recogniser is any object with `transcribe(wav, rate) -> text`; `load_recogniser(name, pack)` makes one.
- `pocketsphinx` ships its US English model in the wheel: offline, CPU, about 8 x real time, and it has never met our data.
- `sensevoice[:FOLDER]` is the SenseVoice of a pack (FunASR's network, greedy CTC): the nano pack's own transcriber, or the released one.
- `transformers:NAME` is any recogniser that Transformers loads from a folder or the hub: Whisper, wav2vec 2.0, Qwen3-ASR, ...
"""
from pathlib import Path

import numpy as np

from model.audio import resample

ASR_RATE = 16_000
MAX_TOKENS = 448  # of one transcript
ASR_PEAK = 0.8  # level every clip is brought to: the recogniser's silence threshold is absolute


class PocketSphinx:
    """pocketsphinx with its bundled US English model. ImportError with the remedy when the package is missing."""

    def __init__(self):
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise ImportError("the recogniser needs pocketsphinx: pip install pocketsphinx") from error
        self.decoder = Decoder(samprate=ASR_RATE, loglevel="ERROR")

    def transcribe(self, wav, rate: int) -> str:
        """As `prepare`; lower-case words, '' when nothing was heard. A transcript does not depend on the clips before it."""
        wav = prepare(wav, rate)
        if wav is None:
            return ""
        pcm = (wav / (np.abs(wav).max() + 1e-6) * ASR_PEAK * 32767).astype("<i2").tobytes()
        self.decoder.reinit_feat()  # forget the mean adapted on earlier clips: it shifted WER by 0.02 with the order of the files
        self.decoder.start_utt()
        self.decoder.process_raw(pcm, full_utt=True)
        self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""


class SenseVoiceRecogniser:
    """The SenseVoice in a folder. FileNotFoundError without it, ValueError when it can only hear, not write."""

    def __init__(self, folder: Path):
        from model.encoders import SenseVoice

        self.model = SenseVoice.load(folder)
        if not self.model.can_transcribe:
            raise ValueError(f"the SenseVoice in {folder} has no CTC head or no sentencepiece model: it cannot judge speech")

    def transcribe(self, wav, rate: int) -> str:
        wav = prepare(wav, rate)
        return "" if wav is None else self.model.transcribe(wav)


class TransformersRecogniser:
    """A recogniser by folder or hub name: by its processor's transcription request where it has one (Qwen3-ASR, Fun-ASR, ...), else by
    the pipeline (Whisper, CTC models). No code from the folder is run."""

    def __init__(self, name: str, device: str = "cpu"):
        from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline

        processor = AutoProcessor.from_pretrained(name)
        self.device, self.processor = device, processor if hasattr(processor, "apply_transcription_request") else None
        if self.processor:
            self.model = AutoModelForSpeechSeq2Seq.from_pretrained(name).to(device).eval()
        else:
            self.model = pipeline("automatic-speech-recognition", model=name, device=device)

    def transcribe(self, wav, rate: int) -> str:
        wav = prepare(wav, rate)
        if wav is None:
            return ""
        if not self.processor:
            options = {"return_timestamps": True} if self.model.type == "seq2seq_whisper" else {}  # else it refuses more than 30 s
            return self.model({"raw": wav, "sampling_rate": ASR_RATE}, **options)["text"].strip()
        inputs = self.processor.apply_transcription_request(wav).to(self.device, self.model.dtype)
        ids = self.model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1]:]
        return self.processor.decode(ids, return_format="transcription_only").strip()


def prepare(wav, rate: int) -> np.ndarray | None:
    """(S,) or (S, channels) float samples at `rate` Hz -> (S,) float32 at ASR_RATE; None for silence, into which recognisers guess words.

    ValueError for NaN or infinite samples.
    """
    wav = np.asarray(wav, dtype=np.float32)
    wav = wav.mean(axis=1) if wav.ndim == 2 else wav
    assert wav.ndim == 1, wav.shape
    if not np.isfinite(wav).all():
        raise ValueError("cannot transcribe audio with NaN or infinite samples")
    return resample(wav, rate, ASR_RATE) if wav.size and np.abs(wav).max() else None


def sensevoice_folder(source: str, pack: str | Path) -> Path:
    return Path(source or Path(pack) / "SenseVoiceSmall")


def recogniser_files(name: str, pack: str | Path) -> list[Path]:
    """The files of a SenseVoice, which is often trained anew; other recognisers are what their name says."""
    kind, _, source = name.partition(":")
    return sorted(path for path in sensevoice_folder(source, pack).rglob("*") if path.is_file()) if kind == "sensevoice" else []


def load_recogniser(name: str = "pocketsphinx", pack: str | Path = "model", device: str = "cpu"):
    """An instance by name, see above; `pack` is where "sensevoice" without a folder looks.

    ValueError names the known ones, ImportError the package to install, OSError what is missing.
    """
    kind, _, source = name.partition(":")
    if kind == "pocketsphinx" and not source:
        return PocketSphinx()
    if kind == "sensevoice":
        return SenseVoiceRecogniser(sensevoice_folder(source, pack))
    if kind == "transformers" and source:
        return TransformersRecogniser(source, device)
    raise ValueError(f"unknown recogniser {name!r}; choose pocketsphinx, sensevoice[:FOLDER] or transformers:FOLDER_OR_NAME")
