"""POST /v1/chat/completions and POST /v1/audio/speech, as OpenAI's clients speak them.

- Text, input_audio and image_url (data URLs only: nothing is fetched) in; text, or speech with its transcript, out; streamed or whole.
- Sound and pictures belong to the last question; in earlier turns a spoken question is its transcript.
- A stream carries pcm16, one whole 80 ms frame per chunk: 3840 bytes, so that joined base64 strings stay valid.
- /v1/audio/speech has the model read a text aloud, sentence by sentence: the replies' text is forced, their speech is the model's.
"""
import base64
import json
import re
import textwrap
import time
import uuid
from collections import OrderedDict
from contextlib import aclosing
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from engine.api.service import Question, Reply, Service
from engine.realtime_events import MAX_TEXT, ProtocolError, decode_base64
from engine.realtime_items import decode_image_url
from model.audio import encode_audio, from_pcm16
from model.config import SAMPLE_RATE

KEPT_S = 3600  # how long a reply's audio id stands for its transcript
KEPT = 1000  # of them at most
READ_ALOUD = "Say after me: "  # how the model was asked for it in training
READ_AT_ONCE = 120  # characters: of more, a small model leaves words out
MEDIA = {"mp3": "audio/mpeg", "wav": "audio/wav", "flac": "audio/flac", "opus": "audio/ogg", "pcm": "application/octet-stream"}


class Model(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(min_length=1, max_length=128)]


class ById(Model):
    id: Name


class SoundData(Model):
    data: str
    format: Literal["wav", "mp3", "flac", "ogg"] = "wav"


class PictureUrl(Model):
    url: str


class Part(Model):
    type: Literal["text", "input_audio", "image_url"]
    text: Text | None = None
    input_audio: SoundData | None = None
    image_url: PictureUrl | None = None


class Message(Model):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=16)] | None = None
    audio: ById | None = None


class Audio(Model):
    voice: Name | ById
    format: Literal["wav", "mp3", "flac", "opus", "pcm16"]


class StreamOptions(Model):
    include_usage: bool = False


class ChatRequest(Model):
    model: Name
    messages: list[Message] = Field(min_length=1, max_length=200)
    modalities: list[Literal["text", "audio"]] | None = None
    audio: Audio | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-2**63, lt=2**63)
    n: Literal[1] | None = None


class SpeechRequest(Model):
    model: Name
    input: Annotated[str, Field(min_length=1, max_length=4096)]
    voice: Name | ById
    response_format: Literal["mp3", "wav", "flac", "opus", "pcm"] = "mp3"
    speed: float | None = Field(None, ge=1, le=1)  # the model has one


class Transcripts:
    """What replies said, by audio id, for clients that send ids back instead of words."""

    def __init__(self):
        self.kept: OrderedDict[str, tuple[str, int]] = OrderedDict()

    def put(self, text: str) -> tuple[str, int]:
        """Its new id, and when (unix seconds) that is forgotten."""
        audio_id, expires = f"audio_{uuid.uuid4().hex}", int(time.time()) + KEPT_S
        self.kept[audio_id] = (text, expires)
        while len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return audio_id, expires

    def set(self, audio_id: str, text: str) -> None:
        if audio_id in self.kept:
            self.kept[audio_id] = (text, self.kept[audio_id][1])

    def get(self, audio_id: str) -> str:
        """ProtocolError when there is none, or no longer."""
        text, expires = self.kept.get(audio_id, ("", 0))
        if expires < time.time():
            raise ProtocolError("no reply is kept under this audio id", "audio_not_found", "messages.audio.id")
        return text


def read_conversation(service: Service, messages: list[Message], transcripts: Transcripts) -> Question:
    """The question that a request asks; to be run in the encoders' thread. ValueErrors name what is wrong."""
    sounds = sum(part.type == "input_audio" for message in messages if isinstance(message.content, list) for part in message.content)
    if sounds > service.limits.sounds:
        raise ProtocolError(f"{sounds} sounds in one conversation; at most {service.limits.sounds} are heard: send the earlier ones as "
                            "text", param="messages")
    question = Question([])
    last = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    if last < len(messages) - 1:
        raise ProtocolError("the last message must be the user's", param="messages")
    for i, message in enumerate(messages):
        where = f"messages.{i}"
        if message.audio is not None:
            content = transcripts.get(message.audio.id)
        elif isinstance(message.content, list):
            content = _read_parts(service, message.content, where, question if i == last else None)
        else:
            content = message.content or ""
        role = "system" if message.role == "developer" else message.role
        if question.messages and question.messages[-1]["role"] == role:
            question.messages[-1]["content"] += f"\n\n{content}"
        else:
            question.messages.append({"role": role, "content": content})
    if sum(len(m["content"]) for m in question.messages) > MAX_TEXT:
        raise ProtocolError(f"the messages are longer than {MAX_TEXT} characters together", "context_length_exceeded", "messages")
    return question


def _read_parts(service: Service, parts: list[Part], where: str, question: Question | None) -> str:
    """The text of a message's parts; its sound and pictures go into the question, when it is that message."""
    texts = []
    for j, part in enumerate(parts):
        param = f"{where}.content.{j}.{part.type}"
        data = getattr(part, part.type)
        if data is None:
            raise ProtocolError(f"{param} is missing", "missing_required_parameter", param)
        if part.type == "text":
            texts.append(data)
        elif part.type == "input_audio":
            wav = service.read_wav(decode_base64(data.data, param), param)
            if question is None:
                texts.append(service.transcribe(wav))
            elif question.wav is not None:
                raise ProtocolError("one input_audio at a time can be heard", param=param)
            else:
                question.wav = wav
        elif question is not None:
            service.check_images(len(question.images) + 1)
            question.images.append(service.read_picture(decode_image_url(data.url, param), param))
    return "\n\n".join(filter(None, texts))


def to_be_read(text: str) -> list[str]:
    """A text in pieces that are read aloud one after the other: sentences, and of long ones at most READ_AT_ONCE characters."""
    sentences = re.split(r"(?<=[.!?])\s+|(?<=[。！？；])|\n+", text)
    return [piece for sentence in sentences for piece in textwrap.wrap(sentence, READ_AT_ONCE)]


def chat_usage(reply: Reply) -> dict:
    u = reply.usage()
    asked, said = u.input_text + u.input_audio + u.input_image, u.output_text + u.output_audio
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said,
            "prompt_tokens_details": {"audio_tokens": u.input_audio, "cached_tokens": 0},
            "completion_tokens_details": {"audio_tokens": u.output_audio, "reasoning_tokens": 0}}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


async def pieces_of(reply: Reply):
    """A reply's (text, pcm), piece by piece; it is closed at the end, or when nobody wants more."""
    try:
        async for piece in reply:
            yield piece
    finally:
        reply.close()


async def begun(pieces):
    """The same pieces, with the first one made: what fails before there is anything to hear fails here, as an ordinary error."""
    try:
        first = [await anext(pieces)]
    except StopAsyncIteration:
        first = []

    async def go_on():
        async with aclosing(pieces):
            for piece in first:
                yield piece
            async for piece in pieces:
                yield piece
    return go_on()


def make_router(service: Service) -> APIRouter:
    router, transcripts = APIRouter(prefix="/v1"), Transcripts()

    @router.post("/chat/completions")
    async def chat_completions(body: ChatRequest):
        """One reply to a conversation, as text or as speech with its transcript."""
        began = time.perf_counter()
        spoken = "audio" in (body.modalities or ())
        if spoken and body.audio is None:
            raise ProtocolError("modalities with audio need audio: {voice, format}", "missing_required_parameter", "audio")
        if spoken and body.stream and body.audio.format != "pcm16":
            raise ProtocolError("speech is streamed as pcm16 only", param="audio.format")
        question = await service.encode(read_conversation, service, body.messages, transcripts)
        if spoken:
            voice = body.audio.voice
            question.voice = service.voice_named(voice.id if isinstance(voice, ById) else voice, "audio.voice")
        question.max_tokens = body.max_completion_tokens or body.max_tokens
        question.temperature, question.top_p, question.seed = body.temperature, body.top_p, body.seed
        reply = await service.answer(service.request, question, spoken, began)
        pieces = await begun(pieces_of(reply))
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(chunks(reply, pieces, spoken, usage), media_type="text/event-stream")
        sound = b"".join([pcm async for _, pcm in pieces])
        text = reply.text.strip()
        message = {"role": "assistant", "content": None if spoken else text, "refusal": None}
        if spoken:
            audio_id, expires = transcripts.put(text)
            data = await service.encode(encode_audio, from_pcm16(sound), SAMPLE_RATE, body.audio.format)
            message["audio"] = {"id": audio_id, "data": b64(data), "expires_at": expires, "transcript": text}
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()), "model": service.model_id,
                "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop" if reply.complete else "length"}],
                "usage": chat_usage(reply)}

    async def chunks(reply: Reply, pieces, spoken: bool, include_usage: bool):
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion.chunk", "created": int(time.time()),
                "model": service.model_id}

        def event(delta=None, finish=None, **fields):
            choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
            return f"data: {json.dumps({**head, 'choices': choices, **fields})}\n\n"

        audio_id, expires = transcripts.put("") if spoken else (None, 0)
        yield event({"role": "assistant", "content": None if spoken else ""})
        if spoken:
            yield event({"audio": {"id": audio_id, "transcript": ""}})
        try:
            async for text, pcm in pieces:
                if text:
                    yield event({"audio": {"transcript": text}} if spoken else {"content": text})
                if pcm:
                    yield event({"audio": {"data": b64(pcm)}})
        except ProtocolError as error:
            service.metrics.errors.labels(error.code).inc()
            yield f"data: {json.dumps({'error': {'message': str(error), 'type': error.type, 'param': None, 'code': error.code}})}\n\n"
            return
        if spoken:
            transcripts.set(audio_id, reply.text.strip())
            yield event({"audio": {"expires_at": expires}})
        yield event({}, "stop" if reply.complete else "length")
        if include_usage:
            yield event(usage=chat_usage(reply))
        yield "data: [DONE]\n\n"

    @router.post("/audio/speech", response_class=Response)
    async def audio_speech(body: SpeechRequest, client: Request):
        """A given text, read aloud. `pcm` comes while it is spoken, the other formats when it is whole."""
        voice = service.voice_named(body.voice.id if isinstance(body.voice, ById) else body.voice, "voice")
        texts = [text for text in to_be_read(body.input) if service.chat.plain(text)]
        if not texts:
            raise ProtocolError("there is nothing to read", param="input")

        async def read():
            for text in texts:
                if await client.is_disconnected():
                    return
                question = Question([{"role": "user", "content": READ_ALOUD + text}], voice=voice, say=text)
                reply = await service.answer(service.request, question, True, time.perf_counter())
                async with aclosing(pieces_of(reply)) as pieces:
                    async for _, pcm in pieces:
                        yield pcm

        sound = await begun(read())
        if body.response_format == "pcm":
            return StreamingResponse(sound, media_type=MEDIA["pcm"])
        whole = from_pcm16(b"".join([pcm async for pcm in sound]))
        data = await service.encode(encode_audio, whole, SAMPLE_RATE, body.response_format)
        return Response(data, media_type=MEDIA[body.response_format])

    return router
