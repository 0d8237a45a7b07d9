"""What the server takes from its clients, in one place; a client that wants more gets an error that says so."""
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.chat import AUDIO_SECONDS
from engine.realtime_items import MAX_PICTURES


@dataclass(frozen=True)
class Limits:
    """Text lengths are engine.realtime_events.MAX_TEXT; the model's own room is checked where a prompt is built."""
    message_bytes: int = 12 * 2**20  # of one request or Realtime message: a minute of audio in base64 with a picture
    audio_seconds: float = AUDIO_SECONDS[1]
    image_pixels: int = 16_000_000
    images: int = MAX_PICTURES  # with one question
    sounds: int = 16  # of one conversation: each earlier one has to be written down
    calls: int = 16  # Realtime sessions at a time
    waiting: int = 32  # replies that wait for a free row
    new_tokens: int = 512  # steps of one reply
    idle_s: float = 1800.0  # without a message from the client: one that talks by hand says nothing for long
    body_s: float = 30.0  # for a request to arrive
    send_s: float = 10.0  # for a client to take one message
    messages_per_s: float = 100.0
    bytes_per_s: float = 512 * 2**10  # eight times what a live microphone needs


class TokenBucket:
    """Lets `rate` units a second through, after `burst` of them at once. clock() is in seconds."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic):
        self.rate, self.burst, self.clock = rate, burst, clock
        self.level, self.last = burst, clock()

    def take(self, units: float) -> float:
        """Take that many; how many seconds to wait before the next ones."""
        now = self.clock()
        self.level = min(self.burst, self.level + self.rate * (now - self.last)) - units
        self.last = now
        return max(0.0, -self.level / self.rate)
