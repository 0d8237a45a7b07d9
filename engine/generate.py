"""Generation of one reply, plainly: per step one text token and up to 8 codes; a frame as soon as all 8 of its codes are there.

- The oracle of engine.py, which does the same for many sessions at once and on the device: results must be equal.
- `Reply` is the bookkeeping of the nine streams (delay, newline, stops, frames), free of tensors and of sampling.
- `generate` runs it on a KV cache; `generate_naive` recomputes everything each step.
- The choice of ids is a function that can be replaced, so that the bookkeeping is testable to the last id.
"""
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from engine.sampling import MAX_TOP_K, draw_uniforms, sample_codes, sample_text
from model.config import NUM_CODEBOOKS, NUM_STREAMS, OmniConfig
from model.model_omni import MiniMindOmni, OmniOutput

GENERATION = "generation_config.json"  # of a pack

RECENT_CODES = 3  # how far back the audio repetition penalty looks


@dataclass
class GenerationParams:
    """newline_id: the tokenizer's id of a line break, fed once after <|im_end|>. thinking: the prompt ends inside an open <think>.
    transcript: a question that is only spoken is heard (0), heard and read as the pack's own ear writes it down (1), or read (2); where the
    ear writes nothing it is heard.

    ValueError for a setting that cannot be sampled with.
    """
    newline_id: int
    max_new_tokens: int = 512  # steps, of 80 ms of speech each
    temperature: float = 0.7  # of the text; 0 is greedy for both streams
    top_p: float = 0.9
    text_repetition_penalty: float = 1.0
    audio_temperature: float = 0.2
    audio_top_k: int = 50
    audio_repetition_penalty: float = 1.05
    thinking: bool = False
    transcript: int = 0

    def __post_init__(self):
        wrong = [name for name, fine in (
            ("max_new_tokens", self.max_new_tokens >= 1), ("temperature", 0 <= self.temperature < math.inf), ("top_p", 0 < self.top_p <= 1),
            ("text_repetition_penalty", 0 < self.text_repetition_penalty < math.inf),
            ("audio_temperature", 0 < self.audio_temperature < math.inf), ("audio_top_k", 1 <= self.audio_top_k <= MAX_TOP_K),
            ("audio_repetition_penalty", 0 < self.audio_repetition_penalty < math.inf), ("transcript", self.transcript in (0, 1, 2)))
            if not fine]
        if wrong:
            raise ValueError(f"generation settings out of range: {', '.join(f'{name} = {getattr(self, name)}' for name in wrong)} "
                             f"(temperatures and penalties positive, temperature 0 for greedy, 0 < top_p <= 1, top_k 1..{MAX_TOP_K}, "
                             "transcript 0..2)")


def read_settings(path: Path) -> dict:
    """What a pack's generation_config.json (the file that Transformers has for it) says of GenerationParams; {} when it is not there.

    Fields of other names are Transformers' own and are passed over. ValueError for a broken file or a setting that cannot be sampled with.
    """
    if not path.is_file():
        return {}
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        names = [field.name for field in fields(GenerationParams) if field.name != "newline_id"]  # which is the tokenizer's
        settings = {name: found[name] for name in names if name in found}
        GenerationParams(**{"newline_id": 0, **settings})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a file of generation settings ({error}); mend or delete it") from error
    return settings


@dataclass
class Step:
    """What one step brought: a text id (None once the text has ended) and a complete frame of 8 codes (None when there is none)."""
    text: int | None
    frame: list[int] | None


class Reply:
    """The nine streams of one reply, step by step.

    Codebook i speaks from step i + 1 on, counted from the first token of the answer proper (after any thinking); before that,
    and after it has stopped, it is fed pad. Text: <|im_end|>, then one newline, then pad.
    """

    def __init__(self, config: OmniConfig, params: GenerationParams):
        self.config, self.params = config, params
        self.text: list[int] = []
        self.codes: list[list[int]] = [[] for _ in range(NUM_CODEBOOKS)]
        self.stopped = [False] * NUM_CODEBOOKS
        self.steps = 0
        self.text_ended = self.newline_fed = False
        self.audio_step: int | None = None if params.thinking else 0  # None while still thinking

    @property
    def speaking(self) -> list[int]:
        """Codebooks that sample at this step."""
        started = 0 if self.audio_step is None else min(self.audio_step, NUM_CODEBOOKS)
        return [i for i in range(started) if not self.stopped[i]]

    @property
    def done(self) -> bool:
        """The text has ended and every codebook has stopped (or never may start: the reply ended while thinking)."""
        return self.text_ended and (all(self.stopped) or self.audio_step is None)

    @property
    def truncated(self) -> bool:
        """Out of steps before it was done."""
        return not self.done and self.steps >= self.params.max_new_tokens

    def push(self, text_id: int, codes: list[int]) -> tuple[list[int], Step]:
        """Take the sampled ids of this step (those of silent streams are ignored); return the next input column and the Step."""
        column = [self.config.audio_pad_token] * NUM_CODEBOOKS
        for i in self.speaking:
            column[i] = codes[i]
            self.codes[i].append(codes[i])
            self.stopped[i] = codes[i] >= self.config.num_codes
        text = None
        if not self.text_ended:
            text = text_id
            self.text.append(text_id)
            self.text_ended = text_id == self.config.eos_token_id
            column.append(text_id)
        else:
            column.append(self.config.pad_token_id if self.newline_fed else self.params.newline_id)
            self.newline_fed = True
        step = Step(text, self._complete_frame())
        self._advance()
        return column, step

    def _complete_frame(self) -> list[int] | None:
        """The frame whose last code came at this step, if every codebook was still alive at that frame."""
        if self.audio_step is None or self.audio_step < NUM_CODEBOOKS:
            return None
        f = self.audio_step - NUM_CODEBOOKS
        alive = [len(codes) - stopped for codes, stopped in zip(self.codes, self.stopped)]
        return [codes[f] for codes in self.codes] if min(alive) > f else None

    def _advance(self) -> None:
        self.steps += 1
        if self.audio_step is not None:
            self.audio_step += 1
        elif self.text[-len(self.config.think_end_ids):] == self.config.think_end_ids:
            self.audio_step = 0


Choose = Callable[[OmniOutput, Reply], tuple[int, list[int]]]


def sampler(params: GenerationParams, generator: torch.Generator | None = None) -> Choose:
    """The choice of one step's ids from its logits, as ARCHITECTURE's streaming generation describes; one device-to-host copy."""
    uniforms = draw_uniforms(params.max_new_tokens, NUM_STREAMS, generator)

    def choose(out: OmniOutput, reply: Reply) -> tuple[int, list[int]]:
        device = out.logits.device

        def row(value, dtype=torch.float32):
            return torch.tensor([value], dtype=dtype, device=device)

        logits = out.logits[:, -1].float()
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[0, reply.text] = True
        uniform = uniforms[reply.steps, None].to(device)
        text = sample_text(logits, seen, uniform[:, 0], row(params.temperature), row(params.top_p), row(params.text_repetition_penalty))
        recent = row([([-1] * RECENT_CODES + codes)[-RECENT_CODES:] for codes in reply.codes], torch.long)
        codes = sample_codes(out.audio_logits[:, :, -1].float(), recent, uniform[:, 1:], row(params.audio_temperature),
                             row(params.audio_top_k, torch.long), row(params.audio_repetition_penalty),
                             row(params.temperature == 0, torch.bool))
        text_id, *code_ids = torch.cat((text[:, None], codes), dim=1)[0].tolist()
        return text_id, code_ids

    return choose


@torch.inference_mode()
def generate(model: MiniMindOmni, prompt_ids: Tensor, params: GenerationParams, spk_emb: Tensor | None = None,
             audio_features: Tensor | None = None, audio_lens: Tensor | None = None, image_features: Tensor | None = None,
             generator: torch.Generator | None = None, choose: Choose | None = None) -> Iterator[Step]:
    """Stream one reply to prompt_ids (9, P) int64 (from sequence.build_prompt).

    spk_emb (192,); audio_features (1, L, 512), audio_lens (1,), image_features (1, N, 64, 768) as in the model's forward.
    Raises ValueError when prompt and reply together exceed the model's positions.
    """
    reply = Reply(model.config, params)
    choose = choose or sampler(params, generator)
    cache = model.new_cache(1, min(prompt_ids.shape[1] + params.max_new_tokens, model.config.max_position_embeddings))
    out = model(prompt_ids[None], audio_features, audio_lens, image_features, _row(spk_emb), cache=cache, last_only=True)
    while True:
        column, step = reply.push(*choose(out, reply))
        yield step
        if reply.done or reply.truncated:
            return
        out = model(prompt_ids.new_tensor(column)[None, :, None], spk_emb=_row(spk_emb), cache=cache, last_only=True)


@torch.inference_mode()
def generate_naive(model: MiniMindOmni, prompt_ids: Tensor, params: GenerationParams, spk_emb: Tensor | None = None,
                   audio_features: Tensor | None = None, audio_lens: Tensor | None = None, image_features: Tensor | None = None,
                   generator: torch.Generator | None = None, choose: Choose | None = None) -> Iterator[Step]:
    """As `generate`, but without a cache: the whole sequence is recomputed at every step. Slow, and obviously right."""
    reply = Reply(model.config, params)
    choose = choose or sampler(params, generator)
    ids = prompt_ids[None]
    while not (reply.done or reply.truncated):
        out = model(ids, audio_features, audio_lens, image_features, _row(spk_emb))
        column, step = reply.push(*choose(out, reply))
        yield step
        ids = torch.cat((ids, ids.new_tensor(column)[None, :, None]), dim=2)


def _row(spk_emb: Tensor | None) -> Tensor | None:
    return None if spk_emb is None else spk_emb[None]
