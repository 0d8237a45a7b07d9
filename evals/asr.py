"""Speech recognisers that judge generated speech, independent of anything we train.

- A recogniser is any object with `transcribe(wav, rate) -> text`; `load_recogniser(name)` makes one.
- pocketsphinx ships its US English model in the wheel: offline, CPU, about 8 x real time.
"""
import numpy as np

from model.audio import resample

ASR_RATE = 16_000
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
        """(S,) or (S, channels) float samples at `rate` Hz -> lower-case words, '' when nothing was heard.

        A clip's transcript does not depend on the clips before it. ValueError for NaN or infinite samples.
        """
        wav = np.asarray(wav, dtype=np.float32)
        wav = wav.mean(axis=1) if wav.ndim == 2 else wav
        assert wav.ndim == 1, wav.shape
        if not np.isfinite(wav).all():
            raise ValueError("cannot transcribe audio with NaN or infinite samples")
        if not wav.size or not np.abs(wav).max():
            return ""  # the decoder would guess words into digital silence
        wav = resample(wav, rate, ASR_RATE)
        pcm = (wav / (np.abs(wav).max() + 1e-6) * ASR_PEAK * 32767).astype("<i2").tobytes()
        self.decoder.reinit_feat()  # forget the mean adapted on earlier clips: it shifted WER by 0.02 with the order of the files
        self.decoder.start_utt()
        self.decoder.process_raw(pcm, full_utt=True)
        self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""


RECOGNISERS = {"pocketsphinx": PocketSphinx}


def load_recogniser(name: str = "pocketsphinx"):
    """An instance by name; ValueError names the known ones, ImportError the package to install."""
    if name not in RECOGNISERS:
        raise ValueError(f"unknown recogniser {name!r}; choose from {sorted(RECOGNISERS)}")
    return RECOGNISERS[name]()
