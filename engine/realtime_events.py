"""What a client of the Realtime protocol may say (OpenAI's GA events), checked field by field before anything uses it.

- `parse(text)` returns one of the event classes below, or raises ProtocolError, which knows how to be an `error` event.
- Unknown fields are ignored, as clients of other versions send some; known fields of a wrong type or size are errors.
- semantic_vad is answered openly with the server_vad that it is mapped to: see `effective_turn_detection`.
"""
import base64
import binascii
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, TypeAdapter, ValidationError

from model.config import SAMPLE_RATE

MAX_TEXT = 20_000  # characters of one text
MAX_PARTS = 16  # of one item
SILENCE_MS = {"low": 800, "medium": 500, "auto": 500, "high": 300}  # what an eagerness of semantic_vad becomes


class ProtocolError(ValueError):
    """What is wrong with a message, for the client's eyes."""

    def __init__(self, message: str, code: str = "invalid_value", param: str | None = None, event_id: str | None = None,
                 type: str = "invalid_request_error"):
        super().__init__(message if len(message) <= 400 else message[:400] + "...")  # it may quote the client
        self.code, self.param, self.event_id, self.type = code, param, event_id, type

    def as_event(self) -> dict:
        """The protocol's `error` event, without its own event_id."""
        error = {"type": self.type, "code": self.code, "message": str(self), "param": self.param, "event_id": self.event_id}
        return {"type": "error", "error": {key: value for key, value in error.items() if value is not None}}


class Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


Id = Annotated[str, Field(min_length=1, max_length=128)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Milliseconds = Annotated[float, Field(ge=0, le=1e9)]
MaxTokens = Annotated[int, Field(ge=1)] | Literal["inf"]
Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=1)]


class Pcm(Model):
    type: Literal["audio/pcm"]
    rate: Literal[24000] = SAMPLE_RATE


class ServerVad(Model):
    type: Literal["server_vad"]
    threshold: float = Field(0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(300, ge=0, le=2000)
    silence_duration_ms: int = Field(500, ge=64, le=10_000)
    create_response: bool = True
    interrupt_response: bool = True


class SemanticVad(Model):
    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True


class Transcription(Model):
    model: Text | None = None
    language: Text | None = None


class VoiceId(Model):
    id: Id


class InputAudio(Model):
    format: Pcm | None = None
    turn_detection: Annotated[ServerVad | SemanticVad, Discriminator("type")] | None = None
    transcription: Transcription | None = None


class OutputAudio(Model):
    format: Pcm | None = None
    voice: Id | VoiceId | None = None


class SessionAudio(Model):
    input: InputAudio = InputAudio()
    output: OutputAudio = OutputAudio()


class SessionSettings(Model):
    type: Literal["realtime"] = "realtime"
    instructions: Text | None = None
    output_modalities: Modalities | None = None
    max_output_tokens: MaxTokens | None = None
    audio: SessionAudio = SessionAudio()


class Part(Model):
    type: Literal["input_text", "input_audio", "input_image", "output_text", "output_audio", "text"]
    text: Text | None = None
    audio: str | None = None
    transcript: Text | None = None
    image_url: str | None = None


class NewItem(Model):
    id: Id | None = None
    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    content: list[Part] = Field(min_length=1, max_length=MAX_PARTS)


class ItemReference(Model):
    type: Literal["item_reference"]
    id: Id


class ResponseAudio(Model):
    output: OutputAudio = OutputAudio()


class ResponseSettings(Model):
    instructions: Text | None = None
    output_modalities: Modalities | None = None
    max_output_tokens: MaxTokens | None = None
    conversation: Literal["auto", "none"] = "auto"
    metadata: dict[str, Text] | None = None
    input: Annotated[list[NewItem | ItemReference], Field(max_length=MAX_PARTS)] | None = None  # instead of the conversation
    audio: ResponseAudio = ResponseAudio()


class Event(Model):
    event_id: Id | None = None


class SessionUpdate(Event):
    type: Literal["session.update"]
    session: SessionSettings


class Append(Event):
    type: Literal["input_audio_buffer.append"]
    audio: str


class Commit(Event):
    type: Literal["input_audio_buffer.commit"]


class Clear(Event):
    type: Literal["input_audio_buffer.clear"]


class ItemCreate(Event):
    type: Literal["conversation.item.create"]
    item: NewItem
    previous_item_id: Id | None = None


class ItemRetrieve(Event):
    type: Literal["conversation.item.retrieve"]
    item_id: Id


class ItemTruncate(Event):
    type: Literal["conversation.item.truncate"]
    item_id: Id
    content_index: int = Field(0, ge=0)
    audio_end_ms: Milliseconds


class ItemDelete(Event):
    type: Literal["conversation.item.delete"]
    item_id: Id


class ResponseCreate(Event):
    type: Literal["response.create"]
    response: ResponseSettings | None = None


class ResponseCancel(Event):
    type: Literal["response.cancel"]
    response_id: Id | None = None


ClientEvent = (SessionUpdate | Append | Commit | Clear | ItemCreate | ItemRetrieve | ItemTruncate | ItemDelete | ResponseCreate
               | ResponseCancel)
EVENTS = TypeAdapter(Annotated[ClientEvent, Discriminator("type")])


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no JSON number")


def parse(text: str | bytes) -> ClientEvent:
    """The event in a message. ProtocolError, with the client's event_id where it has one, for anything else."""
    try:
        message = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError, too
        raise ProtocolError(f"the message is not JSON: {error}", "invalid_json") from error
    if not isinstance(message, dict):
        raise ProtocolError("a message must be a JSON object", "invalid_json")
    event_id = message.get("event_id")
    event_id = event_id if isinstance(event_id, str) and len(event_id) <= 128 else None
    try:
        return EVENTS.validate_python(message)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        unknown = first["type"] in ("union_tag_invalid", "union_tag_not_found") and not first["loc"]
        path = ".".join(str(step) for step in first["loc"][1:]) or "type"  # the first step is the event's own type
        raise ProtocolError(f"{path}: {first['msg']}", "unknown_event" if unknown else "invalid_value", path, event_id) from error


def decode_base64(data: str, param: str) -> bytes:
    """ProtocolError naming `param` when `data` is not base64."""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"{param} is not base64: {error}", "invalid_base64", param) from error


def effective_turn_detection(asked: ServerVad | SemanticVad | None) -> dict | None:
    """What is really done for the turn detection asked for: Silero's server_vad, or None for manual turns."""
    if isinstance(asked, SemanticVad):
        asked = ServerVad(type="server_vad", silence_duration_ms=SILENCE_MS[asked.eagerness], create_response=asked.create_response,
                          interrupt_response=asked.interrupt_response)
    return asked and asked.model_dump()
