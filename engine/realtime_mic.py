"""The microphone's side of a Realtime session: packets of pcm16 in, utterances out. No sockets, no model but the VAD handed in.

- Time is counted in received samples, never in packets or by a clock: every figure can be tested, and a stalled client stalls itself.
- The server makes speech faster than it is played, so what the client is playing is reckoned: from the moment it was sent, one
  frame after the other, on the same clock. That is what decides whether speech is barge-in.
- With turn detection only the last moments of silence are kept; without it everything is, up to MAX_UTTERANCE_S.
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.vad import Listener, SpeechStarted, TurnDetector
from model.audio import from_pcm16
from model.config import INPUT_RATE, SAMPLE_RATE

BYTES_PER_MS = 2 * SAMPLE_RATE // 1000
MAX_UTTERANCE_S = 60  # the longest that the model can hear; then the turn ends whether or not anybody has stopped
TAIL_MS = 100  # of the silence after an utterance that is kept with it
LOOK_BACK_MS = 2500  # of silence kept: the longest prefix, and the speech before it is found to be such


@dataclass(frozen=True)
class Utterance:
    """pcm: 24 kHz; end_ms: where it ends on the microphone's clock."""
    pcm: bytes
    end_ms: int


class Microphone:
    """Sound received so far and what of it has not become an utterance."""

    def __init__(self, new_vad: Callable[[], Callable[[np.ndarray], float]]):
        self.new_vad = new_vad
        self.pcm, self.first_ms = bytearray(), 0  # what is kept, and where it starts
        self.playing_until_ms = 0.0  # when the client will have played all it was sent
        self.detection: dict | None = None
        self.listener: Listener | None = None

    @property
    def now_ms(self) -> int:
        return self.first_ms + len(self.pcm) // BYTES_PER_MS

    def configure(self, detection: dict | None) -> None:
        """Turn detection as in realtime_events.effective_turn_detection; a change forgets speech that is going on."""
        if detection == self.detection:
            return
        self.detection, self.listener = detection, None
        if detection is not None:
            import soxr

            self.listener = Listener(TurnDetector(detection["threshold"], detection["silence_duration_ms"]), self.new_vad())
            self.resampler = soxr.ResampleStream(SAMPLE_RATE, INPUT_RATE, 1, dtype="float32", quality="MQ")
            self.listening_since_ms, self.unheard = self.now_ms, b""
            self.start_ms: int | None = None  # of the utterance that is going on

    @property
    def in_speech(self) -> bool:
        return self.listener is not None and self.listener.detector.in_speech

    @property
    def pause_ms(self) -> int | None:
        """Where the utterance that is going on ends, should its speaker say no more; None while there is no telling."""
        at_ms = None if self.listener is None else self.listener.detector.pause_ms
        return None if at_ms is None else self._end_ms(at_ms)

    def so_far(self, end_ms: int) -> bytes:
        """The sound of the utterance that is going on, up to there."""
        start, end = ((ms - self.first_ms) * BYTES_PER_MS for ms in (self.start_ms, end_ms))
        return bytes(self.pcm[start:end])

    def append(self, pcm: bytes) -> list[SpeechStarted | Utterance]:
        """Hear a packet of any number of bytes. SpeechStarted.at_ms then includes the prefix that was asked for."""
        self.pcm += pcm
        if self.listener is None:
            return []
        data = self.unheard + pcm
        self.unheard = data[len(data) - len(data) % 2:]
        samples = self.resampler.resample_chunk(from_pcm16(data[:len(data) - len(data) % 2]))
        results = [self._note(event) for event in self.listener.push(samples, self.model_speaks)]
        if self.in_speech and self.now_ms - self.start_ms >= 1000 * MAX_UTTERANCE_S:
            results.append(self.cut())
        if not self.in_speech:
            self._forget(self.now_ms - LOOK_BACK_MS)
        return results

    def _note(self, event) -> SpeechStarted | Utterance:
        if isinstance(event, SpeechStarted):
            at_ms = self.listening_since_ms + event.at_ms
            self.start_ms = max(at_ms - self.detection["prefix_padding_ms"], self.first_ms)
            return SpeechStarted(self.start_ms, event.barge_in)
        return self._utterance(self._end_ms(event.at_ms))

    def _end_ms(self, at_ms: int) -> int:
        """Where an utterance is cut off whose speech, by the listener's clock, has ended there."""
        return min(self.listening_since_ms + at_ms + TAIL_MS, self.now_ms)

    def _utterance(self, end_ms: int) -> Utterance:
        utterance = Utterance(self.so_far(end_ms), end_ms)
        self.start_ms = None
        self._forget(end_ms)
        return utterance

    def cut(self) -> Utterance:
        """End the utterance that is going on here and now."""
        self.listener.detector.reset()
        return self._utterance(self.now_ms)

    def take(self) -> bytes:
        """Everything kept, which then is no longer; whole samples only."""
        pcm = bytes(self.pcm[:len(self.pcm) // 2 * 2])
        self.clear()
        return pcm

    def clear(self) -> None:
        """Drop what is kept and the speech that is going on."""
        self.first_ms = self.now_ms
        self.pcm.clear()
        if self.listener is not None:
            self.listener.detector.reset()
            self.start_ms, self.unheard = None, b""

    def _forget(self, before_ms: int) -> None:
        gone = max(before_ms - self.first_ms, 0)
        del self.pcm[:gone * BYTES_PER_MS]
        self.first_ms += gone

    # ---- what the client plays

    def model_speaks(self) -> bool:
        """Whether the client, by our reckoning, is playing."""
        return self.now_ms < self.playing_until_ms

    def sent(self, pcm: bytes) -> None:
        """Speech was sent to the client."""
        self.playing_until_ms = max(self.playing_until_ms, self.now_ms) + len(pcm) / BYTES_PER_MS

    def hush(self) -> None:
        """The client was told to stop playing."""
        self.playing_until_ms = 0.0
