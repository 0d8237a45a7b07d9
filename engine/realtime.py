"""The OpenAI Realtime protocol (GA) as a state machine: client messages and pieces of replies in, events and commands out.

- No sockets, no threads, no model: whoever drives it sends the dicts it returns and carries out the commands between them.
- Every method returns a list, in order: dicts are events for the client; StartReply, CancelReply, Transcribe, Prepare and Discard are
  for the engine.
- A turn has ended when its speaker has been silent for long enough. While that is not yet sure, the reply is prepared.
- Barge-in: speech while a reply is in progress or still being played. The order is the protocol's: speech_started, then what
  closes the cancelled response. Pieces of a reply that is no longer the current one are dropped.
- Truncation is honest: of the stored transcript the share stays that was heard.
- Wrong messages become `error` events that carry the client's event_id; they change nothing.
"""
import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.realtime_events import (Append, Clear, Commit, ItemCreate, ItemDelete, ItemReference, ItemRetrieve, ItemTruncate,
                                    ProtocolError, ResponseCancel, ResponseCreate, ResponseSettings, ServerVad, SessionUpdate, VoiceId,
                                    decode_base64, effective_turn_detection, parse)
from engine.realtime_items import Content, Item, build_item, heard_share, history
from engine.realtime_mic import BYTES_PER_MS, MAX_UTTERANCE_S, Microphone, Utterance
from engine.vad import SpeechStarted
from engine.voices import match_voice
from model.config import SAMPLE_RATE

MAX_ITEMS = 200  # of a conversation: the oldest go first, and the client is told
MAX_HELD_BYTES = 32 * 2**20  # of sound and pictures that wait for an answer
MIN_COMMIT_MS = 100  # the least that the model can hear
PCM_FORMAT = {"type": "audio/pcm", "rate": SAMPLE_RATE}


@dataclass(frozen=True)
class StartReply:
    """Generate a reply. messages: {"role", "content"}, the last from the user; pcm (24 kHz) and images belong to that one."""
    response_id: str
    messages: list[dict]
    pcm: bytes
    images: list[bytes]
    voice: str
    max_tokens: int | None
    spoken: bool  # otherwise text is all that is wanted


@dataclass(frozen=True)
class Prepare:
    """This reply (its id is '') may be asked for in a moment; begin with it. A StartReply that asks for another one discards it."""
    start: StartReply


@dataclass(frozen=True)
class Discard:
    """What was to be prepared is not wanted."""


@dataclass(frozen=True)
class CancelReply:
    """Stop generating; whatever it still yields is not wanted."""
    response_id: str


@dataclass(frozen=True)
class Transcribe:
    """Write down what was said (24 kHz), then call `transcribed` or `transcription_failed`."""
    item_id: str
    pcm: bytes


@dataclass(frozen=True)
class Usage:
    """Tokens of one reply."""
    input_text: int = 0
    input_audio: int = 0
    input_image: int = 0
    output_text: int = 0
    output_audio: int = 0

    def as_dict(self) -> dict:
        asked, said = self.input_text + self.input_audio + self.input_image, self.output_text + self.output_audio
        return {"total_tokens": asked + said, "input_tokens": asked, "output_tokens": said,
                "input_token_details": {"text_tokens": self.input_text, "audio_tokens": self.input_audio,
                                        "image_tokens": self.input_image, "cached_tokens": 0},
                "output_token_details": {"text_tokens": self.output_text, "audio_tokens": self.output_audio}}


@dataclass
class Response:
    """The reply in progress."""
    id: str
    item: Item
    spoken: bool  # audio with a transcript; otherwise text
    in_conversation: bool
    voice: str
    metadata: dict | None = None

    @property
    def part(self) -> Content:
        return self.item.content[0]

    @property
    def where(self) -> dict:
        return {"response_id": self.id, "item_id": self.item.id, "output_index": 0, "content_index": 0}


@dataclass
class RealtimeSession:
    """One client's session. new_vad makes a speech model for it (see vad.Listener); the first of `voices` is the default, stand_ins as in
    match_voice."""
    id: str
    model: str
    voices: Sequence[str]
    new_vad: Callable
    stand_ins: Sequence[str] = ()
    items: list[Item] = field(default_factory=list)
    response: Response | None = None

    def __post_init__(self):
        self.mic = Microphone(self.new_vad)
        self.out: list = []
        self.count = 0
        self.next_item_id: str | None = None  # announced by speech_started
        self.prepared_ms: int | None = None  # end of the utterance whose reply is being prepared
        self.reply_owed = False  # a turn ended while a reply that may not be interrupted was going on
        self.ms_per_character = 70.0  # of English speech; then of the last whole reply
        detection = effective_turn_detection(ServerVad(type="server_vad"))
        self.settings = {"instructions": "", "output_modalities": ["audio"], "max_output_tokens": "inf", "turn_detection": detection,
                         "transcription": None, "voice": self.voices[0]}
        self.mic.configure(detection)

    # ---- what the outside calls

    def start(self) -> list:
        """The first events of a session."""
        self._send("session.created", session=self._session())
        return self._drain()

    def receive(self, text: str | bytes) -> list:
        """Take a client's message."""
        event_id = None
        try:
            event = parse(text)
            event_id = event.event_id
            HANDLERS[type(event)](self, event)
        except ProtocolError as error:
            error.event_id = error.event_id or event_id
            self._error(error)
        return self._drain()

    def piece(self, response_id: str, text: str = "", pcm: bytes = b"") -> list:
        """A reply has become longer. Pieces of a reply that was cancelled are dropped."""
        response = self.response
        if response is None or response.id != response_id:
            return []
        response.part.text += text
        if text:
            kind = "response.output_audio_transcript.delta" if response.spoken else "response.output_text.delta"
            self._send(kind, **response.where, delta=text)
        if pcm and response.spoken:
            response.part.audio_ms += len(pcm) / BYTES_PER_MS
            self.mic.sent(pcm)
            self._send("response.output_audio.delta", **response.where, delta=base64.b64encode(pcm).decode("ascii"))
        return self._drain()

    def finished(self, response_id: str, usage: Usage, complete: bool) -> list:
        """A reply is over: by itself, or, not `complete`, because it had reached its limit."""
        if self.response is not None and self.response.id == response_id:
            details = {"type": "completed"} if complete else {"type": "incomplete", "reason": "max_output_tokens"}
            self._close(details, usage)
            self._answer_owed()
        return self._drain()

    def failed(self, response_id: str, error: ProtocolError) -> list:
        """A reply could not be made, or broke off."""
        if self.response is not None and self.response.id == response_id:
            self._close({"type": "failed", "error": {"type": error.type, "code": error.code, "message": str(error)}}, Usage())
            if error.type == "invalid_request_error":  # what cannot be heard or seen must not stand before all later questions
                for item in self.items:
                    item.become_words()
            self._answer_owed()
        return self._drain()

    def transcribed(self, item_id: str, text: str, seconds: float) -> list:
        """What was said in a user's item; it is part of the conversation from then on, whether or not the client wants to know."""
        item = self._find(item_id)
        if item is not None:
            index = next(i for i, part in enumerate(item.content) if part.type == "input_audio")
            item.content[index].text = text
            if self.settings["transcription"] is not None:
                self._send("conversation.item.input_audio_transcription.completed", item_id=item_id, content_index=index,
                           transcript=text, usage={"type": "duration", "seconds": seconds})
        return self._drain()

    def transcription_failed(self, item_id: str, error: ProtocolError) -> list:
        if self._find(item_id) is not None and self.settings["transcription"] is not None:
            self._send("conversation.item.input_audio_transcription.failed", item_id=item_id, content_index=0,
                       error={"type": error.type, "code": error.code, "message": str(error)})
        return self._drain()

    def error(self, error: ProtocolError) -> list:
        """Tell the client of an error that belongs to no response."""
        self._error(error)
        return self._drain()

    # ---- the parts of an answer

    def _drain(self) -> list:
        out, self.out = self.out, []
        return out

    def _new_id(self, kind: str) -> str:
        self.count += 1
        return f"{kind}_{self.id}_{self.count}"

    def _send(self, type: str, **fields) -> None:
        self.out.append({"type": type, "event_id": self._new_id("event"), **fields})

    def _error(self, error: ProtocolError) -> None:
        event = error.as_event()
        self._send(event.pop("type"), **event)

    def _session(self) -> dict:
        s = self.settings
        given = {"format": PCM_FORMAT, "turn_detection": s["turn_detection"]}
        if s["transcription"] is not None:
            given["transcription"] = s["transcription"]
        return {"type": "realtime", "object": "realtime.session", "id": self.id, "model": self.model,
                "instructions": s["instructions"], "output_modalities": s["output_modalities"],
                "max_output_tokens": s["max_output_tokens"], "tools": [], "tool_choice": "auto",
                "audio": {"input": given, "output": {"format": PCM_FORMAT, "voice": s["voice"], "speed": 1.0}}}

    def _find(self, item_id: str) -> Item | None:
        return next((item for item in self.items if item.id == item_id), None)

    def _require(self, item_id: str) -> Item:
        item = self._find(item_id)
        if item is None:
            raise ProtocolError(f"no item {item_id!r} in the conversation", "item_not_found", "item_id")
        return item

    def _previous(self, index: int) -> dict:
        return {"previous_item_id": self.items[index - 1].id} if index else {}

    def _has_room(self, num_bytes: int) -> bool:
        return sum(item.num_bytes for item in self.items) + num_bytes <= MAX_HELD_BYTES

    def _check_room(self, num_bytes: int) -> None:
        if not self._has_room(num_bytes):
            raise ProtocolError(f"more than {MAX_HELD_BYTES // 2**20} MiB of sound and pictures wait for an answer: ask for a response or "
                                "delete some", "too_much_input")

    def _insert(self, item: Item, index: int) -> None:
        self.items.insert(index, item)
        self._send("conversation.item.added", item=item.as_dict(), **self._previous(index))
        if len(self.items) > MAX_ITEMS:
            oldest = 1 if index == 0 else 0  # never the new one
            self._send("conversation.item.deleted", item_id=self.items.pop(oldest).id)

    # ---- messages

    def _update(self, event: SessionUpdate) -> None:
        new, s = event.session, self.settings
        voice = self._voice(new.audio.output.voice, "session.audio.output.voice")
        for name in ("instructions", "output_modalities", "max_output_tokens"):
            if getattr(new, name) is not None:
                s[name] = getattr(new, name)
        given = new.audio.input
        if "turn_detection" in given.model_fields_set:
            s["turn_detection"] = effective_turn_detection(given.turn_detection)
            self.mic.configure(s["turn_detection"])
        if "transcription" in given.model_fields_set:
            s["transcription"] = given.transcription and given.transcription.model_dump(exclude_none=True)
        s["voice"] = voice or s["voice"]
        self._send("session.updated", session=self._session())

    def _voice(self, wanted: str | VoiceId | None, param: str) -> str | None:
        if wanted is None:
            return None
        try:
            return match_voice(self.voices, wanted.id if isinstance(wanted, VoiceId) else wanted, self.stand_ins)
        except ValueError as error:
            raise ProtocolError(str(error), param=param) from error

    def _append(self, event: Append) -> None:
        pcm = decode_base64(event.audio, "audio")
        if self.mic.listener is None and len(self.mic.pcm) + len(pcm) > 1000 * MAX_UTTERANCE_S * BYTES_PER_MS:
            raise ProtocolError(f"the buffer holds at most {MAX_UTTERANCE_S} s: commit or clear it first", "input_audio_buffer_full",
                                "audio")
        for heard in self.mic.append(pcm):
            if isinstance(heard, SpeechStarted):
                self._speech_started(heard)
            else:
                self._speech_stopped(heard)
        self._prepare()

    def _prepare(self) -> None:
        """Have the reply prepared that a pause in the speech may ask for."""
        answers = self.response is None and (self.settings["turn_detection"] or {}).get("create_response")
        pause_ms = self.mic.pause_ms if answers else None
        if pause_ms == self.prepared_ms:
            return
        if self.prepared_ms is not None:
            self.out.append(Discard())
        self.prepared_ms = pause_ms
        if pause_ms is not None:
            spoken = Item("", "user", [Content("input_audio", pcm=self.mic.so_far(pause_ms))])
            self.out.append(Prepare(self._start_reply("", ResponseSettings(), [*self.items, spoken])))

    def _speech_started(self, heard: SpeechStarted) -> None:
        self.next_item_id = self._new_id("item")
        self._send("input_audio_buffer.speech_started", audio_start_ms=heard.at_ms, item_id=self.next_item_id)
        if self.settings["turn_detection"]["interrupt_response"]:
            self.mic.hush()
            if self.response is not None:
                self._cancel("turn_detected")

    def _speech_stopped(self, heard: Utterance) -> None:
        self._send("input_audio_buffer.speech_stopped", audio_end_ms=heard.end_ms, item_id=self.next_item_id)
        self._commit_audio(heard.pcm, self.next_item_id)
        if not self.settings["turn_detection"]["create_response"]:
            return
        self.reply_owed = True
        if self.response is None:
            self._answer_owed()

    def _answer_owed(self) -> None:
        if not self.reply_owed:
            return
        self.reply_owed = False  # whatever comes of it
        try:
            self._respond(ResponseSettings())
        except ProtocolError as error:  # the client has deleted what was to be answered
            self._error(error)

    def _commit(self, event: Commit) -> None:
        kept_ms = len(self.mic.pcm) / BYTES_PER_MS
        if kept_ms < MIN_COMMIT_MS:
            raise ProtocolError(f"the buffer holds {kept_ms:.0f} ms of sound, {MIN_COMMIT_MS} ms are needed",
                                "input_audio_buffer_commit_empty")
        self._check_room(len(self.mic.pcm))
        announced = self.next_item_id if self.mic.in_speech else None
        self._commit_audio(self.mic.take(), announced)

    def _commit_audio(self, pcm: bytes, item_id: str | None) -> None:
        for item in self.items:  # of turns that nobody has asked to answer, the oldest are words from now on
            if self._has_room(len(pcm)):
                break
            item.become_words()
        item = Item(item_id or self._new_id("item"), "user", [Content("input_audio", pcm=pcm)])
        self._send("input_audio_buffer.committed", item_id=item.id, **self._previous(len(self.items)))
        self._add_whole(item, len(self.items))

    def _add_whole(self, item: Item, index: int) -> None:
        self._insert(item, index)
        self._send("conversation.item.done", item=item.as_dict(), **self._previous(self.items.index(item)))
        for part in item.content:
            if part.pcm:
                self.out.append(Transcribe(item.id, part.pcm))
                break

    def _clear(self, event: Clear) -> None:
        self.mic.clear()
        self._send("input_audio_buffer.cleared")

    def _create_item(self, event: ItemCreate) -> None:
        if event.item.id is not None and self._find(event.item.id) is not None:
            raise ProtocolError(f"the conversation has an item {event.item.id!r} already", param="item.id")
        index = len(self.items)
        if event.previous_item_id is not None:
            index = 0 if event.previous_item_id == "root" else 1 + self.items.index(self._require(event.previous_item_id))
        item = build_item(event.item, event.item.id or self._new_id("item"))
        self._check_room(item.num_bytes)
        self._add_whole(item, index)

    def _retrieve(self, event: ItemRetrieve) -> None:
        self._send("conversation.item.retrieved", item=self._require(event.item_id).as_dict())

    def _truncate(self, event: ItemTruncate) -> None:
        item = self._require(event.item_id)
        if item.role != "assistant" or event.content_index >= len(item.content):
            raise ProtocolError("only a part of a reply can be truncated", param="content_index" if item.role == "assistant" else "item_id")
        part = item.content[event.content_index]
        whole_ms = part.audio_ms
        if item.status == "incomplete":  # its text came before its sound: more of it is known than was ever to be heard
            whole_ms = max(whole_ms, self.ms_per_character * len(part.text))
        if event.audio_end_ms < whole_ms:
            part.text = heard_share(part.text, event.audio_end_ms / whole_ms)
            part.audio_ms = min(part.audio_ms, event.audio_end_ms)
            self.mic.hush()  # the client has stopped playing it
        self._send("conversation.item.truncated", item_id=item.id, content_index=event.content_index, audio_end_ms=int(event.audio_end_ms))

    def _delete(self, event: ItemDelete) -> None:
        item = self._require(event.item_id)
        if self.response is not None and self.response.item is item:
            raise ProtocolError("this item is being said: cancel the response first", param="item_id")
        self.items.remove(item)
        self._send("conversation.item.deleted", item_id=item.id)

    def _create_response(self, event: ResponseCreate) -> None:
        if self.response is not None:
            raise ProtocolError(f"response {self.response.id} is in progress: wait for its response.done, or cancel it",
                                "conversation_already_has_active_response")
        self._respond(event.response or ResponseSettings())

    def _cancel_response(self, event: ResponseCancel) -> None:
        if self.response is None or event.response_id not in (None, self.response.id):
            raise ProtocolError("no such response is in progress", "response_cancel_not_active")
        self._cancel("client_cancelled")
        self._answer_owed()

    # ---- responses

    def _start_reply(self, response_id: str, asked: ResponseSettings, items: list[Item]) -> StartReply:
        """The command to answer a conversation of `items`."""
        s = self.settings
        if asked.input is not None:
            items = [self._require(new.id) if isinstance(new, ItemReference) else build_item(new, "", f"response.input.{i}")
                     for i, new in enumerate(asked.input)]
        voice = self._voice(asked.audio.output.voice, "response.audio.output.voice") or s["voice"]
        voice = voice if voice in self.voices else self.voices[0]  # another model may have taken the place of the one that had it
        limit = asked.max_output_tokens or s["max_output_tokens"]
        instructions = s["instructions"] if asked.instructions is None else asked.instructions
        messages, pcm, images = history(items, instructions, wanted=asked.instructions or "")
        spoken = (asked.output_modalities or s["output_modalities"]) == ["audio"]
        return StartReply(response_id, messages, pcm, images, voice, None if limit == "inf" else limit, spoken)

    def _respond(self, asked: ResponseSettings) -> None:
        start = self._start_reply(self._new_id("resp"), asked, self.items)
        self.prepared_ms, self.reply_owed = None, False  # what was prepared is taken or discarded now
        item, spoken = Item(self._new_id("item"), "assistant", status="in_progress"), start.spoken
        self.response = response = Response(start.response_id, item, spoken, asked.conversation == "auto", start.voice, asked.metadata)
        self._send("response.created", response=self._response("in_progress"))
        self._send("response.output_item.added", response_id=response.id, output_index=0, item=item.as_dict())
        if response.in_conversation:
            self._insert(item, len(self.items))
        item.content.append(Content("output_audio" if spoken else "output_text"))
        part = {"type": "audio", "transcript": ""} if spoken else {"type": "text", "text": ""}
        self._send("response.content_part.added", **response.where, part=part)
        self.out.append(start)

    def _response(self, status: str, details: dict | None = None, usage: Usage | None = None) -> dict:
        response = self.response
        fields = {"id": response.id, "object": "realtime.response", "status": status,
                  "output": [] if status == "in_progress" else [response.item.as_dict()],
                  "output_modalities": ["audio" if response.spoken else "text"],
                  "audio": {"output": {"format": PCM_FORMAT, "voice": response.voice}}}
        if response.in_conversation:
            fields["conversation_id"] = f"conv_{self.id}"
        optional = {"status_details": details, "usage": usage and usage.as_dict(), "metadata": response.metadata}
        return {**fields, **{key: value for key, value in optional.items() if value is not None}}

    def _cancel(self, reason: str) -> None:
        self.out.append(CancelReply(self.response.id))
        self._close({"type": "cancelled", "reason": reason}, Usage())

    def _close(self, details: dict, usage: Usage) -> None:
        """End the response in progress, with everything the protocol wants said about it."""
        response, status = self.response, details["type"]
        item, part = response.item, response.part
        item.status = "completed" if status == "completed" else "incomplete"
        if response.spoken:
            self._send("response.output_audio.done", **response.where)
            self._send("response.output_audio_transcript.done", **response.where, transcript=part.text)
            self._send("response.content_part.done", **response.where, part={"type": "audio", "transcript": part.text})
        else:
            self._send("response.output_text.done", **response.where, text=part.text)
            self._send("response.content_part.done", **response.where, part={"type": "text", "text": part.text})
        self._send("response.output_item.done", response_id=response.id, output_index=0, item=item.as_dict())
        if item in self.items:
            self._send("conversation.item.done", item=item.as_dict(), **self._previous(self.items.index(item)))
        self._send("response.done", response=self._response(status, details, usage))
        self.response = None
        if status == "completed" and part.text and part.audio_ms:
            self.ms_per_character = part.audio_ms / len(part.text)
        if status == "completed" and response.in_conversation:  # its question is answered: from now on it is words
            for earlier in self.items[:self.items.index(item)] if item in self.items else ():
                earlier.become_words()


HANDLERS = {SessionUpdate: RealtimeSession._update, Append: RealtimeSession._append, Commit: RealtimeSession._commit,
            Clear: RealtimeSession._clear, ItemCreate: RealtimeSession._create_item, ItemRetrieve: RealtimeSession._retrieve,
            ItemTruncate: RealtimeSession._truncate, ItemDelete: RealtimeSession._delete, ResponseCreate: RealtimeSession._create_response,
            ResponseCancel: RealtimeSession._cancel_response}
