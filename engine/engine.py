"""The streaming engine: many sessions speak at once, each 80 ms frame of all of them made by one step.

- `admit` a request at any time, call `step` in a loop, `cancel` at any time. No threads: one caller owns the engine.
- Continuous batching: sessions take the lowest free row of a static cache and leave it alone; a step runs over as many rows as
  are in use. When most of them have left, the last rows move down.
- Prefill runs in chunks between the frames of others: while anybody speaks, a step reads at most `prefill_chunk` prompt
  positions. It computes no logits: the first step of a session feeds the last column of its prompt.
- Greedy replies are those of generate_naive, alone or in any company; sampled ones depend on the request's generator alone.
- Whatever happens to one session (cancelled, failed, out of room) is its own: a typed `Finish`, and its row is free again.

    engine = Engine(model, mimi, tokenizer)
    slot = engine.admit(Request(prompt_ids, params))
    while engine.busy:
        for frame in engine.step():
            ...  # frame.slot, frame.text, frame.wav, frame.finish
"""
import logging
from collections.abc import Hashable

import torch

from engine.detokenize import Detokenizer
from engine.network import Network, Place
from engine.precision import choose
from engine.reuse import Conversation, ConversationStore, reusable
from engine.rows import Rows, read_report, read_wav
from engine.sampling import draw_uniforms
from engine.session import EngineFull, Finish, Frame, Reason, Request, Session
from engine.stepper import Stepper
from model.config import NUM_CODEBOOKS, NUM_STREAMS
from model.mimi import Mimi
from model.model_omni import MiniMindOmni
from model.sequence import pad_rows

MAX_LENGTH = 4096  # default cache length: ten minutes of conversation or so
REUSE_BYTES = 256 * 2**20  # default room for conversations between turns
CPU_CHUNK = {384: 128}  # prompt positions per step while others speak, up to this width of the Thinker; wider:
WIDE_CPU_CHUNK, GPU_CHUNK = 16, 2048
LONGEST_CHUNK = 1024  # while nobody speaks: more would only cost memory

log = logging.getLogger(__name__)


class Engine:
    """Sessions over one model. All of them share its device and precision.

    mimi: None yields codes without sound. tokenizer: None yields ids without text. slots: sessions at a time.
    dtype: see precision.py. mode: see stepper.py (default: graph on CUDA, else eager).
    The model's weights are rearranged into the engine's own; nothing refers to `model` afterwards.
    """

    def __init__(self, model: MiniMindOmni, mimi: Mimi | None = None, tokenizer=None, slots: int = 8, max_length: int | None = None,
                 dtype: str = "auto", mode: str | None = None, prefill_chunk: int | None = None, reuse_bytes: int = REUSE_BYTES):
        device = model.lm_head.weight.device
        self.config, self.mimi, self.tokenizer, self.slots, self.device = model.config, mimi, tokenizer, slots, device
        self.max_length = min(max_length or MAX_LENGTH, self.config.max_position_embeddings)
        mode = mode or ("graph" if device.type == "cuda" else "eager")
        self.precision = choose(dtype, device, compiled="compile" in mode)
        self.prefill_chunk = prefill_chunk or self._default_chunk()
        self.store = ConversationStore(reuse_bytes)
        self.sessions: dict[int, Session] = {}  # by slot, in the order of admission
        self._next_slot = 0
        with torch.inference_mode():
            self.network = Network(model, self.precision, self.max_length).eval()
            self.cache = self.network.new_cache(slots, self.max_length)
            self.rows = Rows.new(self.network, slots, self.max_length)
            self.mimi_state = None if mimi is None else mimi.init_state(slots, max_frames=1)
            self.stepper = Stepper(self.network, self.cache, self.rows, mimi, self.mimi_state, mode)

    def _default_chunk(self) -> int:
        if self.device.type != "cpu":
            return GPU_CHUNK
        return next((chunk for width, chunk in CPU_CHUNK.items() if self.config.hidden_size <= width), WIDE_CPU_CHUNK)

    # ---- what a caller does

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile or capture the steps of every number of sessions now, in seconds to minutes, not when the first caller waits."""
        self.stepper.warm_up()

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.sessions)

    @property
    def num_free(self) -> int:
        """Sessions that could be admitted now."""
        return self.slots - len(self.sessions)

    def check(self, request: Request) -> None:
        """Raise ValueError when `admit` would refuse the request for good."""
        request.check(self.config, self.max_length)

    @torch.inference_mode()
    def admit(self, request: Request) -> int:
        """Take a request in; returns its slot, a number never used again. It speaks when its prompt has been read.

        EngineFull when every row is taken (try again later); ValueError naming what is wrong with the request, PromptTooLong
        when there is no room for it.
        """
        self.check(request)
        if not self.num_free:
            raise EngineFull(f"all {self.slots} rows of the engine are taken: wait for a session to finish")
        prompt, on_device = request.prompt_ids.cpu(), request.prompt_ids.to(self.device)
        limit = min(request.params.max_new_tokens, self.max_length - prompt.shape[1] + 1)
        features = (None if x is None else x.to(self.device) for x in (request.audio_features, request.audio_lens, request.image_features))
        session = Session(slot=self._next_slot, row=self._free_row(), request=request, prompt=prompt, codes=on_device[:NUM_CODEBOOKS],
                          embedded=self.network.embed_prompt(on_device[-1], *features),
                          speaker=None if request.spk_emb is None else self.network.embed_speaker(request.spk_emb.to(self.device)),
                          uniform=draw_uniforms(limit, NUM_STREAMS, request.generator).to(self.device), limit=limit,
                          detokenizer=None if self.tokenizer is None else Detokenizer(self.tokenizer))
        self._next_slot += 1
        self.sessions[session.slot] = session
        # idle rows are stepped along with the others and write where they stand: the place their own first step overwrites
        self.cache.pos[session.row] = session.position
        self._continue_conversation(session)
        return session.slot

    @torch.inference_mode()
    def step(self) -> list[Frame]:
        """Read prompts for a while, then let every speaking session take one step: one frame each, longest admitted first."""
        frames = self._prefill()
        speaking = [s for s in self.sessions.values() if s.speaking]
        if not speaking:
            return frames
        self._move_rows_down()
        packed = self.stepper.run(1 + max(s.row for s in speaking), 1 + max(s.position for s in speaking),
                                  any(s.may_complete for s in speaking))
        reports, wavs = read_report(packed), read_wav(packed)
        for session in speaking:
            try:
                frame = session.take(reports[session.row], None if wavs is None else wavs[session.row], self.config)
            except Exception as error:  # a tokenizer's fault, say: it must not take the other sessions along
                frame = self._failed(session, error)
            if frame.done:
                self._leave(session, frame.finish)
            frames.append(frame)
        return frames

    def _failed(self, session: Session, error: Exception) -> Frame:
        log.error("session %d failed", session.slot, exc_info=error)
        return Frame(session.slot, finish=Finish(Reason.FAILED, session.steps, f"{type(error).__name__}: {error}"))

    @torch.inference_mode()
    def cancel(self, slot: int) -> Finish | None:
        """End a session in whatever phase it is; no frame of it will come any more. None when it is over already."""
        session = self.sessions.get(slot)
        if session is None:
            return None
        finish = Finish(Reason.CANCELLED, session.steps)
        self._leave(session, finish)
        return finish

    def forget(self, conversation: Hashable) -> None:
        """Drop what is kept of a conversation between its turns."""
        self.store.take(conversation)

    @property
    def num_bytes(self) -> dict[str, int]:
        """Memory by purpose."""
        return {"weights": self.network.num_bytes, "cache": self.cache.num_bytes, "conversations": self.store.num_bytes,
                "codec_state": self.mimi_state.num_bytes if self.mimi_state else 0}

    # ---- rows

    def _free_row(self) -> int:
        taken = {s.row for s in self.sessions.values()}
        return next(row for row in range(self.slots) if row not in taken)

    def _move_rows_down(self) -> None:
        """While the sessions would fit into a smaller step, move the last one to the lowest free row."""
        while True:
            last = max(self.sessions.values(), key=lambda s: s.row)
            if self.stepper.rows_for(last.row + 1) == self.stepper.rows_for(len(self.sessions)):
                return
            source, last.row = last.row, self._free_row()
            self.cache.move_row(source, last.row, last.used)
            self.cache.clear_row(source, last.used)
            self.rows.move_row(source, last.row)
            if self.mimi_state is not None:
                self.mimi_state.move_row(source, last.row)

    def _leave(self, session: Session, finish: Finish) -> None:
        """Free the session's row, keeping what its conversation can use."""
        del self.sessions[session.slot]
        self.rows.active[session.row] = False
        request = session.request
        if request.conversation is not None and finish.reason is not Reason.FAILED:
            try:
                self._keep(session)
            except Exception:  # out of memory, say: the next turn reads its prompt anew
                log.exception("the conversation of session %d could not be kept", session.slot)
        self.cache.clear_row(session.row, session.used)

    def _keep(self, session: Session) -> None:
        request, fed = session.request, session.fed()
        thought, talked = (fed.shape[1],) * 2 if session.speaking else (session.num_thought, session.num_talked)
        self.store.put(request.conversation, Conversation(
            fed, self.cache.save_row(session.row, thought), thought, talked, request.features_from(self.config), request.spk_emb))

    def _continue_conversation(self, session: Session) -> None:
        """Load what was kept of the session's conversation as far as it is valid for the new prompt."""
        request = session.request
        old = None if request.conversation is None else self.store.take(request.conversation)
        if old is None:
            return
        session.num_thought, session.num_talked = reusable(old, session.prompt, request.features_from(self.config),
                                                           request.spk_emb, self.config)
        self.cache.load_row(session.row, old.saved, session.num_thought)

    # ---- prefill

    def _prefill(self) -> list[Frame]:
        """Read a chunk of the prompts that wait, oldest first, and start the sessions whose prompt is read.

        Returns the last frames of those that could not be read.
        """
        waiting = [s for s in self.sessions.values() if not s.speaking]
        if not waiting:
            return []
        # nobody is kept waiting by a long chunk when nobody speaks
        room = self.prefill_chunk if len(waiting) < len(self.sessions) else max(self.prefill_chunk, min(waiting[0].to_read, LONGEST_CHUNK))
        chosen, longest = [], 0
        for session in waiting:
            if chosen and (len(chosen) + 1) * max(longest, session.to_read) > room:
                break  # it would be padded, or pad the others, beyond what a step may cost
            chosen.append(session)
            longest = max(longest, min(session.to_read, room))
        try:
            self._think(chosen, room)
            self._talk(chosen, room)
        except Exception as error:  # out of memory, say: those who speak already can go on
            frames = [self._failed(session, error) for session in chosen]
            for session, frame in zip(chosen, frames):
                self._leave(session, frame.finish)
            return frames
        for session in chosen:
            if not session.to_read:
                self._start(session)
        return []

    def _think(self, sessions: list[Session], room: int) -> None:
        """The Thinker reads at most `room` further positions of each prompt; what the Talker needs of them goes to cache.extra."""
        chunks = [(s, s.num_thought, min(s.num_thought + room, s.prompt_length - 1)) for s in sessions]
        chunks = [chunk for chunk in chunks if chunk[1] < chunk[2]]
        if not chunks:
            return
        place = self._place(chunks)
        x = pad_rows([s.embedded[a:b].T for s, a, b in chunks], 0).transpose(1, 2)
        _, bridge = self.network.think(x, place)
        self.cache.extra[place.rows[:, None], place.positions] = bridge
        for session, _, end in chunks:
            session.num_thought = end

    def _talk(self, sessions: list[Session], room: int) -> None:
        """The Talker reads at most `room` further positions of each prompt, as far as the Thinker has read."""
        chunks = [(s, s.num_talked, min(s.num_talked + room, s.num_thought)) for s in sessions]
        chunks = [chunk for chunk in chunks if chunk[1] < chunk[2]]
        if not chunks:
            return
        place = self._place(chunks)
        vectors = [s.speaker for s, _, _ in chunks]
        has_speaker = torch.tensor([v is not None for v in vectors], device=self.device)
        nobody = torch.zeros(self.config.talker_hidden_size, device=self.device)
        speaker = torch.stack([nobody if v is None else v for v in vectors])
        codes = pad_rows([s.codes[:, a:b] for s, a, b in chunks], self.config.audio_pad_token)
        self.network.talk(codes, self.cache.extra[place.rows[:, None], place.positions], speaker, has_speaker, place)
        for session, _, end in chunks:
            session.num_talked = end

    def _place(self, chunks: list[tuple[Session, int, int]]) -> Place:
        """Where chunks [start, end) of their prompts stand. A shorter chunk is padded: its pads are written to `end`, which is still in its
        prompt (the last column is the first step's) and overwritten later."""
        width = max(end - start for _, start, end in chunks)
        starts = torch.tensor([start for _, start, _ in chunks], device=self.device)
        ends = torch.tensor([end for *_, end in chunks], device=self.device)
        positions = torch.minimum(starts[:, None] + torch.arange(width, device=self.device), ends[:, None])
        rows = torch.tensor([s.row for s, _, _ in chunks], device=self.device)
        only = chunks[0][0].row
        index = slice(only, only + 1) if len(chunks) == 1 else rows
        return Place(self.cache, rows, index, positions, torch.arange(max(end for _, _, end in chunks), device=self.device))

    def _start(self, session: Session) -> None:
        """Its prompt is read: let it speak from the next step on."""
        column = session.request.prompt_ids[:, -1].to(self.device)
        self.rows.start(session.row, session.request.params, column, session.uniform, session.speaker, session.request.forced_text)
        if self.mimi_state is not None:
            self.mimi_state.reset([session.row])
        session.speaking, session.embedded = True, None
