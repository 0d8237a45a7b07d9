"""Replies to be judged: one loaded model is asked, each reply is heard by a recogniser, and all that is kept about it is a `Sample`.

- Every question has its own seed, so a figure does not depend on the order of the questions or on how many there are.
- A reply that two tables need is generated once.
"""
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from engine.chat import Chat, listen
from engine.voices import Voice, pick_voice
from evals.metrics import HAN, characters, edit_distance, words
from model.config import SAMPLE_RATE

MAX_STEPS = {"nano": 256, "general": 512}  # of one reply, 80 ms each


@dataclass
class Sample:
    """One reply. Times in seconds; `answer` is the expected text where there is one. wav (S,) at 24 kHz is not part of the JSON."""
    name: str
    question: str
    voice: str
    text: str
    heard: str
    answer: str | None
    ended: bool
    ttft_s: float | None
    ttfa_s: float | None
    rtf: float | None
    wav: np.ndarray = field(repr=False)

    @property
    def word_errors(self) -> tuple[int, int]:
        """(errors, words of the text)."""
        said = words(self.text)
        return edit_distance(said, words(self.heard)), len(said)

    @property
    def character_errors(self) -> tuple[int, int]:
        said = characters(self.text)
        return edit_distance(said, characters(self.heard)), len(said)

    @property
    def length(self) -> int:
        """Words of the text, or characters where it is Chinese."""
        return len(characters(self.text) if HAN.search(self.text) else words(self.text))

    def to_dict(self) -> dict:
        values = asdict(self)
        del values["wav"]
        return {**values, "audio_s": round(len(self.wav) / SAMPLE_RATE, 2)}


class Examinee:
    """A loaded model and the recogniser that judges it."""

    def __init__(self, chat: Chat, recogniser, world: str, seed: int):
        self.chat, self.recogniser, self.world, self.seed = chat, recogniser, world, seed
        self.params = chat.settings(max_new_tokens=MAX_STEPS[world])
        self._asked: dict[tuple, Sample] = {}

    def ask(self, number: int, question: str, voice: Voice | None = None, answer: str | None = None) -> Sample:
        """The reply to a typed question in `voice` (default: the pack's first)."""
        voice = voice or pick_voice(self.chat.voices, None)
        key = (number, question, voice.name)
        if key not in self._asked:
            self._asked[key] = self.reply(number, question, voice, answer)
        return self._asked[key]

    def reply(self, number: int, question: str, voice: Voice, answer: str | None = None, audio: np.ndarray | None = None, images=(),
              name: str | None = None) -> Sample:
        """The reply to a question that is typed, or spoken as `audio` (S,) at 16 kHz, perhaps about pictures (PIL)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        messages = [{"role": "user", "content": "" if audio is not None else question}]
        got = listen(lambda: self.chat.reply(messages, self.params, voice, audio, images, generator), self.params)
        return Sample(name or f"{number + 1:02d}", question, voice.name, got.text, self.recogniser.transcribe(got.wav, SAMPLE_RATE),
                      answer and answer.strip(), got.ended, got.ttft_s, got.ttfa_s, got.rtf, got.wav)
