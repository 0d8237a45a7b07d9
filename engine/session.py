"""What goes into the engine and comes out of it: requests, frames, how a session finished, and the host's view of one session."""
import sys
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from engine.detokenize import Detokenizer
from engine.generate import GenerationParams
from engine.rows import Report
from model.config import NUM_STREAMS, OmniConfig


class EngineFull(RuntimeError):
    """Every row has a session; admit again when one has finished."""


class PromptTooLong(ValueError):
    """The prompt leaves no room in the cache for a single step."""


class Reason(Enum):
    """Why a session is over."""
    ENDED = "ended"  # text and speech came to their end
    MAX_NEW_TOKENS = "max_new_tokens"  # the request's limit
    CACHE_FULL = "cache_full"  # no position is left
    CANCELLED = "cancelled"
    FAILED = "failed"  # see Finish.error


@dataclass(frozen=True)
class Finish:
    """The last word on a session. error: what went wrong (FAILED only)."""
    reason: Reason
    steps: int
    error: str | None = None


@dataclass
class Frame:
    """What a session gained by one step; the last one of a session has `finish`."""
    slot: int
    text: str = ""  # whole characters only; "" without a tokenizer
    token: int | None = None  # text id; None once the text has ended
    codes: list[int] | None = None  # (8,) of a complete frame
    wav: np.ndarray | None = None  # (1920,) float32 at 24 kHz of that frame
    finish: Finish | None = None

    @property
    def done(self) -> bool:
        return self.finish is not None


@dataclass
class Request:
    """One reply to be generated.

    prompt_ids (9, P) from sequence.build_prompt; spk_emb (192,); audio_features (1, L, 512) of which audio_lens (1,) are valid;
    image_features (1, N, 64, 768) or (1, 64, 768). generator decides everything that is sampled (None: torch's default one).
    conversation: requests with the same key continue one another, see reuse.py; None keeps nothing.
    forced_text: text ids that the reply must say, <|im_end|> among them; only its speech is then up to the model.
    """
    prompt_ids: Tensor
    params: GenerationParams
    spk_emb: Tensor | None = None
    audio_features: Tensor | None = None
    audio_lens: Tensor | None = None
    image_features: Tensor | None = None
    generator: torch.Generator | None = None
    conversation: Hashable | None = None
    forced_text: list[int] | None = None

    def check(self, config: OmniConfig, max_length: int) -> None:
        """Raise ValueError (PromptTooLong for that) naming what the model cannot take: on a GPU one bad id would end all sessions."""
        ids = self.prompt_ids
        if ids.ndim != 2 or ids.shape[0] != NUM_STREAMS or not ids.shape[1] or ids.is_floating_point():
            raise ValueError(f"prompt_ids must be integers of shape ({NUM_STREAMS}, P), P > 0, not {ids.dtype} {tuple(ids.shape)}")
        if ids.shape[1] > max_length:
            raise PromptTooLong(f"the prompt is {ids.shape[1]} tokens long, the KV cache holds {max_length} positions: shorten it")
        for name, part, size in (("text", ids[-1], config.vocab_size), ("code", ids[:-1], config.audio_vocab_size)):
            if int(part.min()) < 0 or int(part.max()) >= size:
                raise ValueError(f"{name} ids must lie in 0..{size - 1}, the prompt holds {int(part.min())}..{int(part.max())}")
        if self.forced_text and not (0 <= min(self.forced_text) and max(self.forced_text) < config.vocab_size):
            raise ValueError(f"forced text ids must lie in 0..{config.vocab_size - 1}")
        if self.forced_text and len(self.forced_text) > self.params.max_new_tokens:
            raise ValueError(f"the text to be said is {len(self.forced_text)} tokens long, a reply has at most "
                             f"{self.params.max_new_tokens}")
        if self.spk_emb is not None and self.spk_emb.shape != (config.spk_emb_size,):
            raise ValueError(f"spk_emb must be of shape ({config.spk_emb_size},), not {tuple(self.spk_emb.shape)}")
        for name, features, dims, width in (("audio_features", self.audio_features, (3,), config.audio_hidden_size),
                                            ("image_features", self.image_features, (3, 4), config.image_hidden_size)):
            if features is not None and (features.ndim not in dims or features.shape[0] != 1 or features.shape[-1] != width):
                raise ValueError(f"{name} must be one item of width {width}, not {tuple(features.shape)}")
        for name in ("spk_emb", "audio_features", "image_features"):
            tensor = getattr(self, name)
            if tensor is not None and not torch.isfinite(tensor).all():
                raise ValueError(f"{name} holds NaN or infinity")
        if self.feature_pads(config)[-1]:
            raise ValueError("a prompt must not end with an audio or image pad: the reply starts behind a turn's end")

    def feature_pads(self, config: OmniConfig) -> Tensor:
        """(P,) bool on the CPU: positions that features stand at, or may."""
        ids = [*(config.audio_ids if self.audio_features is not None else []),
               *(config.image_ids if self.image_features is not None else [])]
        return torch.isin(self.prompt_ids[-1].cpu(), torch.tensor(ids, dtype=torch.long))

    def features_from(self, config: OmniConfig) -> int:
        """The first position that features stand at; beyond any position when there are none."""
        found = self.feature_pads(config).nonzero()
        return int(found[0]) if len(found) else sys.maxsize


@dataclass
class Session:
    """The host's view of one admitted request."""
    slot: int
    row: int
    request: Request
    prompt: Tensor  # (9, P) on the CPU
    codes: Tensor  # (8, P) on the device
    embedded: Tensor | None  # (P, C) the Thinker's inputs, until all are read
    speaker: Tensor | None  # (W,) the Talker's input at the speaker token
    limit: int  # steps it may take
    uniform: Tensor  # (limit, 9) the numbers that decide what is sampled
    detokenizer: Detokenizer | None
    num_thought: int = 0  # prompt positions the Thinker has read; the last one is read by the first step
    num_talked: int = 0  # and the Talker
    speaking: bool = False  # prefill is over
    may_complete: bool = False  # the next step may complete a frame
    text_open: bool = True
    columns: list[list[int]] = field(default_factory=list)  # (9,) each: what the reply was fed after the prompt

    @property
    def prompt_length(self) -> int:
        return self.prompt.shape[1]

    @property
    def to_read(self) -> int:
        """Prompt positions that prefill has yet to read with the Thinker or the Talker."""
        return self.prompt_length - 1 - min(self.num_thought, self.num_talked)

    @property
    def steps(self) -> int:
        return len(self.columns)

    @property
    def used(self) -> int:
        """Cache positions written so far (a prompt's whole length once it is admitted: idle steps write at its end)."""
        return self.prompt_length + max(self.steps - 1, 0)

    @property
    def position(self) -> int:
        """Cache position of the column that the next step feeds."""
        return self.prompt_length - 1 + self.steps

    def fed(self) -> Tensor:
        """(9, n) every column whose keys and values are in the cache, prompt first."""
        reply = torch.tensor(self.columns[:-1], dtype=self.prompt.dtype).view(-1, NUM_STREAMS).T
        return torch.cat([self.prompt, reply], dim=1)[:, :self.position]

    def take(self, report: Report, wav: Tensor | None, config: OmniConfig) -> Frame:
        """Turn a step's report into a frame; `wav` (1920,) is read where the report has a frame."""
        self.columns.append(report.column)
        self.may_complete = report.speaks
        frame = Frame(self.slot, token=report.text, codes=report.frame)
        if report.frame is not None and wav is not None:
            frame.wav = wav.numpy().copy()
        if self.text_open and report.text is not None:
            self.text_open = report.text != config.eos_token_id
            if self.detokenizer is not None:
                frame.text = self.detokenizer.push(report.text) if self.text_open else self.detokenizer.flush()
        if not report.finite:
            frame = Frame(self.slot, finish=Finish(Reason.FAILED, self.steps, "the model's numbers overflowed"))
        elif report.done:
            frame.finish = Finish(Reason.ENDED, self.steps)
        elif self.steps >= self.limit:
            whole = self.limit == self.request.params.max_new_tokens
            frame.finish = Finish(Reason.MAX_NEW_TOKENS if whole else Reason.CACHE_FULL, self.steps)
        if frame.done and self.text_open and self.detokenizer is not None:
            frame.text += self.detokenizer.flush()  # cut off: what is pending can no longer become more
        return frame

