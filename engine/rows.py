"""What every row of a batch is in the middle of saying, kept on the device, and the step that says the next frame of all rows.

- `decode_frame` is the only function that runs per step: network, sampling, the nine streams' bookkeeping (`next_report`), codec.
  Static shapes, everything in place, no host sync: it can be compiled or captured in a CUDA graph (see stepper.py).
- Its one result is one int32 tensor with all that the host wants to know: a single copy per step for all sessions.
- The bookkeeping is that of generate.Reply, with masks instead of branches; rows that are not `active` keep their state.
"""
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from engine.generate import RECENT_CODES, GenerationParams
from engine.network import Network, Place
from engine.sampling import sample_codes, sample_text
from model.config import FRAME_SAMPLES, NUM_CODEBOOKS, NUM_STREAMS
from model.kv_cache import KVCache
from model.mimi import Mimi, MimiState

THINKING = -1  # audio_step of a row whose answer proper has not begun
NONE = -1  # a code or text id that is not there


@dataclass
class Rows:
    """State of B rows; every tensor has the rows first."""
    active: Tensor  # (B,) bool: rows that speak
    column: Tensor  # (B, 9) the column to feed next
    speaker: Tensor  # (B, W) what stands at the speaker token
    has_speaker: Tensor  # (B,) bool
    step: Tensor  # (B,) steps taken
    audio_step: Tensor  # (B,) steps since the answer proper began, THINKING before
    text_ended: Tensor  # (B,) bool
    newline_fed: Tensor  # (B,) bool
    stopped: Tensor  # (B, 8) bool
    tail: Tensor  # (B, n) the last text ids, as many as end the thinking
    seen: Tensor  # (B, vocab) bool: text ids said so far
    history: Tensor  # (B, 8, 8) each codebook's codes at the last 8 steps, NONE where it was silent or stopped
    uniform: Tensor  # (B, steps, 9) the numbers that decide what is sampled
    forced: Tensor  # (B, steps) text ids to be said whatever is sampled, NONE where the text is free
    temperature: Tensor  # the rest: (B,) settings of GenerationParams
    top_p: Tensor
    text_penalty: Tensor
    audio_temperature: Tensor
    audio_top_k: Tensor
    audio_penalty: Tensor
    newline_id: Tensor

    @classmethod
    def new(cls, network: Network, rows: int, steps: int) -> "Rows":
        """`rows` idle rows for replies of at most `steps` steps."""
        config, device = network.config, network.embedding.device

        def whole(*shape, dtype=torch.long, value=0):
            return torch.full((rows, *shape), value, dtype=dtype, device=device)

        def flag(*shape):
            return whole(*shape, dtype=torch.bool, value=False)

        ones = {name: whole(dtype=torch.float32, value=1.0) for name in
                ("temperature", "top_p", "text_penalty", "audio_temperature", "audio_penalty")}
        return cls(active=flag(), column=whole(NUM_STREAMS), speaker=whole(config.talker_hidden_size, dtype=torch.float32, value=0.0),
                   has_speaker=flag(), step=whole(), audio_step=whole(), text_ended=flag(), newline_fed=flag(),
                   stopped=flag(NUM_CODEBOOKS), tail=whole(len(config.think_end_ids), value=NONE), seen=flag(config.vocab_size),
                   history=whole(NUM_CODEBOOKS, NUM_CODEBOOKS, value=NONE),
                   uniform=whole(steps, NUM_STREAMS, dtype=torch.float32, value=0.0), forced=whole(steps, value=NONE),
                   audio_top_k=whole(value=1), newline_id=whole(), **ones)

    def start(self, row: int, params: GenerationParams, column: Tensor, uniform: Tensor, speaker: Tensor | None,
              forced: list[int] | None = None) -> None:
        """Make `row` begin a reply by feeding `column` (9,), the last of its prompt; `uniform` (steps, 9), speaker (W,) or None.

        forced: text ids that it must say first.
        """
        values = dict(active=True, step=0, audio_step=THINKING if params.thinking else 0, text_ended=False, newline_fed=False,
                      stopped=False, tail=NONE, seen=False, history=NONE, has_speaker=speaker is not None, forced=NONE,
                      temperature=params.temperature, top_p=params.top_p, text_penalty=params.text_repetition_penalty,
                      audio_temperature=params.audio_temperature, audio_top_k=params.audio_top_k,
                      audio_penalty=params.audio_repetition_penalty, newline_id=params.newline_id, column=column)
        for name, value in values.items():
            getattr(self, name)[row] = value
        self.uniform[row, :len(uniform)] = uniform
        if forced:
            forced = forced[:self.forced.shape[1]]
            self.forced[row, :len(forced)] = torch.tensor(forced, device=self.forced.device)
        if speaker is not None:
            self.speaker[row] = speaker

    def first(self, rows: int) -> "Rows":
        """Views of the first `rows` rows."""
        return Rows(*(getattr(self, f.name)[:rows] for f in fields(self)))

    def move_row(self, source: int, target: int) -> None:
        """Copy the state of row `source` to row `target` and let `source` fall silent."""
        for f in fields(self):
            tensor = getattr(self, f.name)
            tensor[target] = tensor[source]
        self.active[source] = False


@dataclass
class Report:
    """What one row brought at one step, as read by the host."""
    column: list[int]  # (9,) the column it will be fed next
    text: int | None
    frame: list[int] | None  # (8,) a complete frame
    speaks: bool  # a frame may be complete at the next step
    done: bool
    finite: bool  # False: its numbers have overflowed, nothing it brings is of use


REPORT_INTS = NUM_STREAMS + 1 + NUM_CODEBOOKS + 1


def read_report(packed: Tensor) -> list[Report]:
    """The host's side of `decode_frame`: packed (B, >= REPORT_INTS) int32 on the CPU -> a Report per row."""
    reports = []
    for row in packed[:, :REPORT_INTS].tolist():
        column, text, frame, flags = row[:NUM_STREAMS], row[NUM_STREAMS], row[NUM_STREAMS + 1:-1], row[-1]
        reports.append(Report(column, None if text == NONE else text, None if NONE in frame else frame,
                              bool(flags & 1), bool(flags & 2), bool(flags & 4)))
    return reports


def read_wav(packed: Tensor) -> Tensor | None:
    """(B, 1920) float32 of the same result, or None when the step ran without the codec."""
    return packed[:, REPORT_INTS:].contiguous().view(torch.float32) if packed.shape[1] > REPORT_INTS else None


def decode_frame(network: Network, cache: KVCache, rows: Rows, indices: Tensor, reach: Tensor, mimi: Mimi | None,
                 mimi_state: MimiState | None, next_step=None) -> Tensor:
    """The next step of the first B rows: returns (B, REPORT_INTS [+ 1920]) int32 on the device, for read_report and read_wav.

    rows: views of B rows; indices (B,) = 0..B - 1; reach = arange(end): the cache positions that any of them may look at.
    mimi and mimi_state (B rows): None for steps in which no row can complete a frame. next_step: another way to run `next_report`.
    """
    report = (next_step or next_report)(network, cache, rows, indices, reach)
    if mimi is None:
        return report
    frame = report[:, NUM_STREAMS + 1:-1].long()
    wav = mimi.decode_step(frame.clamp(min=0)[:, :, None], mimi_state, rows.active & (frame >= 0).all(1))
    return torch.cat([report, wav.float().contiguous().view(torch.int32)], dim=1)


def next_report(network: Network, cache: KVCache, rows: Rows, indices: Tensor, reach: Tensor) -> Tensor:
    """`decode_frame` without the codec: (B, REPORT_INTS)."""
    B = rows.active.shape[0]
    position = cache.pos[:B]
    place = Place(cache, indices, slice(0, B), position[:, None], reach)
    thought, bridge = network.think(network.embed_text(rows.column[:, NUM_CODEBOOKS:]), place)
    cache.extra[indices[:, None], place.positions] = bridge
    spoken = network.talk(rows.column[:, :NUM_CODEBOOKS, None], bridge, rows.speaker, rows.has_speaker, place)
    position += rows.active
    thought, spoken = thought[:, -1], spoken[:, -1]
    step = rows.step.clamp(max=rows.uniform.shape[1] - 1)
    uniform, forced = rows.uniform[indices, step], rows.forced[indices, step]
    text = sample_text(network.text_logits(thought), rows.seen, uniform[:, 0], rows.temperature, rows.top_p, rows.text_penalty)
    text = torch.where(forced >= 0, forced, text)
    codes = sample_codes(network.code_logits(spoken), rows.history[:, :, -RECENT_CODES:], uniform[:, 1:], rows.audio_temperature,
                         rows.audio_top_k, rows.audio_penalty, rows.temperature == 0)
    finite = (thought.isfinite().all(-1) & spoken.isfinite().all(-1)).long()
    column, said, frame, flags = _push(rows, text, codes, network.config, network.think_end)
    return torch.cat([column, said, frame, (flags + 4 * finite)[:, None]], dim=1).int()


def _push(rows: Rows, text: Tensor, codes: Tensor, config, think_end: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take sampled text (B,) and codes (B, 8), as generate.Reply.push does; returns next column, text id, frame, flags."""
    speaking = (rows.audio_step[:, None] > torch.arange(NUM_CODEBOOKS, device=text.device)) & ~rows.stopped
    real = codes < config.num_codes
    history = torch.cat([rows.history[..., 1:], torch.where(speaking & real, codes, NONE)[..., None]], dim=-1)
    # codebook i is i steps behind codebook 0, so the frame that codebook 7 completes now lies on the diagonal
    frame = history.diagonal(dim1=1, dim2=2)
    frame = torch.where((frame >= 0).all(1, keepdim=True) & (rows.audio_step >= NUM_CODEBOOKS)[:, None], frame, NONE)
    stopped = rows.stopped | (speaking & ~real)
    silent = torch.where(rows.newline_fed, config.pad_token_id, rows.newline_id)
    said = torch.where(rows.text_ended, NONE, text)
    column = torch.cat([torch.where(speaking, codes, config.audio_pad_token),
                        torch.where(rows.text_ended, silent, text)[:, None]], dim=1)
    text_ended = rows.text_ended | (text == config.eos_token_id)
    tail = torch.where(rows.text_ended[:, None], rows.tail, torch.cat([rows.tail[:, 1:], text[:, None]], dim=1))
    thought = (tail == think_end).all(1)
    audio_step = torch.where(rows.audio_step >= 0, rows.audio_step + 1, torch.where(thought, 0, THINKING))
    done = text_ended & (stopped.all(1) | (audio_step < 0))
    said_now = (rows.active & ~rows.text_ended)[:, None]
    rows.seen.scatter_(1, text[:, None], rows.seen.gather(1, text[:, None]) | said_now)
    new = dict(column=column, step=rows.step + 1, audio_step=audio_step, newline_fed=rows.text_ended, text_ended=text_ended,
               stopped=stopped, tail=tail, history=history)
    for name, value in new.items():
        old = getattr(rows, name)
        old.copy_(torch.where(rows.active.view(-1, *[1] * (old.ndim - 1)), value, old))
    return column, said[:, None], frame, (audio_step >= NUM_CODEBOOKS).long() + 2 * done

