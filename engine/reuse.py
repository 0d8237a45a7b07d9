"""What is kept of a conversation between its turns, and how much of it the next turn may use.

The next prompt repeats the conversation and appends a turn. Position by position, results must equal those of a fresh prefill, so:
- The Thinker reads text alone. Its cache is valid as far as the text ids of the new prompt are those that were fed before: the
  old prompt, the reply, its <|im_end|> and newline (the template writes replies back as they were generated). It ends earlier
  where an audio or image feature stood: in later turns a spoken question is words.
- The Talker also reads codes. The voice prompt stands at the end of every prompt, so it has moved, and replies are spoken only
  once: in the new prompt both places hold pads. Its cache is valid up to the first column that differs in any of the nine
  streams: usually where the previous turn's voice prompt began. From there on it reads again what the Thinker said, which is
  kept, too: the Thinker's layers are not run for it.
- A new speaker vector ends the Talker's part at the speaker token.

Kept by conversation key, at most `max_bytes` in all, least recently used ones go first.
"""
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import OmniConfig
from model.kv_cache import SavedRow


@dataclass
class Conversation:
    """columns (9, n) on the CPU: what was fed; the Thinker's and the Talker's caches hold the first so many of them."""
    columns: Tensor
    saved: SavedRow
    num_thought: int
    num_talked: int
    features_from: int  # first position at which a feature stood (sys.maxsize: none did)
    spk_emb: Tensor | None


class ConversationStore:
    """Conversations between turns."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.kept: OrderedDict[Hashable, Conversation] = OrderedDict()

    def put(self, key: Hashable, conversation: Conversation) -> None:
        """Keep it, forgetting the least recently used ones that it has no room beside."""
        self.take(key)
        self.kept[key] = conversation
        self.num_bytes += conversation.saved.num_bytes
        while self.num_bytes > self.max_bytes:
            self.take(next(iter(self.kept)))

    def take(self, key: Hashable) -> Conversation | None:
        """Hand it out; it is no longer kept."""
        conversation = self.kept.pop(key, None)
        if conversation is not None:
            self.num_bytes -= conversation.saved.num_bytes
        return conversation


def reusable(old: Conversation, prompt: Tensor, features_from: int, spk_emb: Tensor | None, config: OmniConfig) -> tuple[int, int]:
    """Positions of prompt (9, P) that the Thinker and the Talker need not read again; less than P: its last column is always fed.

    features_from: as in Conversation, of the new prompt.
    """
    last = prompt.shape[1] - 1
    thought = min(common_prefix(old.columns[-1:], prompt[-1:]), old.num_thought, old.features_from, features_from, last)
    talked = min(common_prefix(old.columns, prompt), old.num_talked, thought)
    if not same(old.spk_emb, spk_emb):
        talked = min(talked, first_true(old.columns[0] == config.audio_spk_token))
    return thought, talked


def same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a.cpu(), b.cpu()))


def first_true(flags: Tensor) -> int:
    """Index of the first True of (n,) flags on the CPU, n when there is none."""
    found = flags.nonzero()
    return int(found[0]) if len(found) else len(flags)


def common_prefix(a: Tensor, b: Tensor) -> int:
    """How many leading columns of (R, m) and (R, n) are equal."""
    length = min(a.shape[1], b.shape[1])
    return first_true((a[:, :length] != b[:, :length]).any(0))
