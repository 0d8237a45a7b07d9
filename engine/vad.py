"""Turn taking: when somebody starts to speak, stops, or speaks over the model. A state machine over speech probabilities.

- `TurnDetector` is pure: a probability per 512-sample chunk in, SpeechStarted and SpeechStopped out, all times in milliseconds of
  microphone audio. Tests script the probabilities.
- While the model speaks, what an echo canceller leaves of its voice may come back through the microphone. Two guards: speech must last
  200 ms to count as barge-in, and the threshold rises with the mean probability that this echo reaches. A loud echo passes both.
- `Listener` turns packets of any size into exact chunks (the remainder is kept) and asks a speech model for their probabilities.
- `SileroVAD` is that model: the ONNX file inside the `silero-vad` package. Its weights are shared, its state belongs to one call.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from model.config import INPUT_RATE

CHUNK = 512  # samples at 16 kHz that Silero wants, exactly
CHUNK_MS = 1000 * CHUNK // INPUT_RATE  # 32
CONTEXT = 64  # samples of the chunk before that the model sees again
HYSTERESIS = 0.15  # speech goes on until the probability is this far below the threshold
SURE_SILENCE = 0.01  # a probability that is silence under any threshold
MIN_SPEECH_MS = 64  # shorter sounds are no speech
BARGE_IN_MS = 200  # the same while the model speaks
PAUSE_MS = 192  # so much silence may become the end of the turn
SPEAKING_MARGIN = 0.15  # how much the threshold rises while the model speaks, and stays above the mean of the echo
MAX_THRESHOLD = 0.95
ECHO_RATE = 0.03  # of the running mean of the echo's probabilities: it follows within a second


@dataclass(frozen=True)
class SpeechStarted:
    """at_ms: where the speech begins. barge_in: the model was speaking."""
    at_ms: int
    barge_in: bool


@dataclass(frozen=True)
class SpeechStopped:
    """at_ms: where the speech ends; noticed `silence_ms` later."""
    at_ms: int


class TurnDetector:
    """One call's turns. threshold and silence_ms may be changed at any time; `in_speech` is whether somebody is speaking."""

    def __init__(self, threshold: float = 0.5, silence_ms: int = 500):
        self.threshold, self.silence_ms = threshold, silence_ms
        self.chunks = 0  # heard so far
        self.echo = 0.0  # mean probability of what was heard while the model spoke and nobody else did
        self.reset()

    def reset(self) -> None:
        """Forget the speech that is going on; time goes on."""
        self.in_speech = False
        self.run = self.pause = 0  # chunks of speech before it counts as such, of silence before it ends

    @property
    def now_ms(self) -> int:
        return self.chunks * CHUNK_MS

    @property
    def pause_ms(self) -> int | None:
        """Where the speech ends if the silence that is going on, of PAUSE_MS or more, turns out to be its end."""
        return self.now_ms - self.pause * CHUNK_MS if self.in_speech and self.pause * CHUNK_MS >= PAUSE_MS else None

    def level(self, model_speaks: bool) -> float:
        """The probability that counts as speech at present."""
        if not model_speaks:
            return self.threshold
        return min(max(self.threshold, self.echo) + SPEAKING_MARGIN, max(MAX_THRESHOLD, self.threshold))

    def push(self, probability: float, model_speaks: bool) -> SpeechStarted | SpeechStopped | None:
        """Take the next chunk's probability of speech."""
        self.chunks += 1
        level = self.level(model_speaks and not self.in_speech)
        quiet = max(level - HYSTERESIS, SURE_SILENCE)
        if self.in_speech:
            self.pause = self.pause + 1 if probability < quiet else 0
            if self.pause * CHUNK_MS < self.silence_ms:
                return None
            stopped = SpeechStopped(self.now_ms - self.pause * CHUNK_MS)
            self.reset()
            return stopped
        if model_speaks:
            self.echo += ECHO_RATE * (probability - self.echo)
        if probability >= level:
            self.run += 1
        elif probability < quiet:
            self.run = 0
        if not self.run or self.run * CHUNK_MS < (BARGE_IN_MS if model_speaks else MIN_SPEECH_MS):
            return None
        started = SpeechStarted(self.now_ms - self.run * CHUNK_MS, barge_in=model_speaks)
        self.reset()
        self.in_speech = True
        return started


class Listener:
    """Packets of 16 kHz samples in, turn events out. `probability` maps (512,) float32 to the probability that it is speech."""

    def __init__(self, detector: TurnDetector, probability: Callable[[np.ndarray], float]):
        self.detector, self.probability = detector, probability
        self.rest = np.zeros(0, np.float32)

    def push(self, samples: np.ndarray, model_speaks: Callable[[], bool]) -> list[SpeechStarted | SpeechStopped]:
        """Hear (S,) samples, S >= 0; what does not fill a chunk waits for the next packet."""
        samples = np.concatenate([self.rest, samples])
        whole = len(samples) // CHUNK * CHUNK
        self.rest = samples[whole:]
        events = (self.detector.push(self.probability(chunk), model_speaks()) for chunk in samples[:whole].reshape(-1, CHUNK))
        return [event for event in events if event is not None]


@cache
def _silero_session():
    """Silero's network, shared: running it changes nothing in it. ImportError naming the package when it is not installed."""
    import onnxruntime

    package = find_spec("silero_vad")  # found, not imported: importing it sets torch's threads for the whole process
    if package is None:
        raise ImportError("turn detection needs the package silero-vad: pip install -r requirements.txt")
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    path = Path(package.submodule_search_locations[0]) / "data" / "silero_vad.onnx"
    return onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])


class SileroVAD:
    """Silero's state in one call: call it with consecutive chunks (512,) float32 at 16 kHz."""

    def __init__(self):
        self.session = _silero_session()
        self.state = np.zeros((2, 1, 128), np.float32)
        self.context = np.zeros(CONTEXT, np.float32)

    def __call__(self, chunk: np.ndarray) -> float:
        """The probability of speech. ValueError for any other number of samples."""
        if chunk.shape != (CHUNK,):
            raise ValueError(f"Silero wants {CHUNK} samples at {INPUT_RATE} Hz at a time, got {chunk.shape}")
        heard = np.concatenate([self.context, chunk.astype(np.float32, copy=False)])[None]
        probability, self.state = self.session.run(None, {"input": heard, "state": self.state, "sr": np.array(INPUT_RATE)})
        self.context = heard[0, -CONTEXT:]
        return float(probability[0, 0])
