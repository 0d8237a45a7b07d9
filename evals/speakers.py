"""Speaker encoders that judge whose voice generated speech is in.

- An encoder is any object with `embed(wav) -> (D,) unit vector` of mono speech at 16 kHz; `load_speaker_encoder(name, pack)` makes one.
- "resemblyzer" (GE2E, Wan et al. 2018) ships its weights in the wheel and knows nothing of our training: the independent judge.
- "campplus" is the pack's own CAM++, which the model was conditioned on, so it judges more kindly.
"""
from pathlib import Path

import numpy as np

from model.encoders import CAMPPlus

LEVEL = 0.05  # root mean square that clips are brought to: resemblyzer expects normalised volume (-30 dB)


class Resemblyzer:
    """resemblyzer's voice encoder on the CPU. ImportError with the remedy when the package is missing."""

    def __init__(self):
        try:
            from resemblyzer import VoiceEncoder
        except ImportError as error:
            raise ImportError("the independent speaker encoder needs: pip install --no-deps resemblyzer==0.1.4 "
                              f"webrtcvad-wheels==2.0.14.post1 ({error})") from error
        self.encoder = VoiceEncoder("cpu", verbose=False)

    def embed(self, wav: np.ndarray) -> np.ndarray:
        return self.encoder.embed_utterance(wav * (LEVEL / (np.sqrt(np.mean(wav ** 2)) + 1e-9)))


class PackEncoder:
    """The CAM++ of a pack."""

    def __init__(self, folder: Path):
        self.encoder = CAMPPlus.load(folder)

    def embed(self, wav: np.ndarray) -> np.ndarray:
        vector = self.encoder(wav).numpy()
        return vector / np.linalg.norm(vector)


def load_speaker_encoder(name: str, pack: Path):
    """An encoder by name; ValueError names the known ones, ImportError or FileNotFoundError what is missing."""
    if name == "resemblyzer":
        return Resemblyzer()
    if name == "campplus":
        return PackEncoder(Path(pack) / "campplus")
    raise ValueError(f"unknown speaker encoder {name!r}; choose resemblyzer or campplus")
