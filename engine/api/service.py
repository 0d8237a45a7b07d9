"""What all protocols share: a question of any kind becomes a request, a request becomes pieces of text and pcm16, counted and timed.

- One model is served at a time. Another one of `models` can take its place: replies that are going on then end with an error.
- Voices can be cloned from clips; those are kept in a VoiceStore under `voices_dir`.
- The frozen encoders run in one thread of their own, so that the engine's steps and the event loop never wait for them.
- Everything a client can get wrong is a ProtocolError with a code; what it may not know (paths of this machine) is left out.
- Nothing that was said is logged, unless `log_transcripts`.
"""
import asyncio
import logging
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from engine.api.limits import Limits
from engine.api.metrics import Metrics
from engine.api.worker import Busy, FrameStream, Worker
from engine.chat import Chat, MissingPart, read_image
from engine.generate import GenerationParams
from engine.realtime import Usage
from engine.realtime_events import ProtocolError
from engine.session import Finish, PromptTooLong, Reason, Request
from engine.voice_store import VoiceStore, check_name, codec_id
from engine.voices import NO_VOICE, Voice, match_voice, pick_voice
from model.audio import from_pcm16, read_audio, resample, to_pcm16
from model.config import FRAME_SAMPLES, INPUT_RATE, SAMPLE_RATE

log = logging.getLogger(__name__)
LoadModel = Callable[[], tuple[Chat, GenerationParams]]  # a model and the settings of its replies


@dataclass
class Question:
    """What to answer. messages as Chat.reply wants them; wav (S,) at 16 kHz and images (PIL) belong to the last one."""
    messages: list[dict]
    wav: np.ndarray | None = None
    images: list = field(default_factory=list)
    voice: str = NO_VOICE.name
    max_tokens: int | None = None  # steps; None: as many as the server allows
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    conversation: Hashable | None = None
    say: str | None = None  # the reply must consist of these words


class Service:
    """A loaded pack and everything needed to serve it. `defaults`: settings of a reply where a client names none."""

    def __init__(self, chat: Chat, model_id: str, defaults: GenerationParams, limits: Limits = Limits(), log_transcripts: bool = False,
                 models: dict[str, LoadModel] | None = None, voices_dir: str | Path | None = None):
        self.limits, self.log_transcripts, self.voices_dir = limits, log_transcripts, voices_dir
        self.models = models or {}
        self.encoders = ThreadPoolExecutor(1, "encoders")
        self.changing = asyncio.Lock()
        self._take(chat, model_id, defaults)
        self.metrics = Metrics(self)

    async def start(self) -> None:
        """Warm up and begin to answer. A fault of the pack's parts ends the start here, not the first call."""
        await asyncio.get_running_loop().run_in_executor(self.encoders, self.chat.warm_up)
        self.worker.start()

    def _take(self, chat: Chat, model_id: str, defaults: GenerationParams) -> None:
        self.chat, self.model_id, self.defaults = chat, model_id, replace(defaults, max_new_tokens=self.limits.new_tokens)
        self.worker = Worker(chat.engine, self.limits.waiting)
        self.store = None
        if self.voices_dir is not None and chat.mimi is not None:
            self.store = VoiceStore(Path(self.voices_dir) / codec_id(chat.mimi), chat.config)
            cloned = {name: voice for name, voice in self.store.load().items() if name not in chat.voices}
            chat.voices = {**chat.voices, **cloned}

    @property
    def voices(self) -> list[str]:
        """Names to choose from, the default first."""
        return list(self.chat.voices) or [NO_VOICE.name]

    @property
    def stand_ins(self) -> list[str]:
        """The voices that OpenAI's stand for: those the model knows well, whatever else was cloned."""
        return [name for name, voice in self.chat.voices.items() if voice.kind == "built-in"]

    def close(self) -> None:
        self.worker.stop()
        self.encoders.shutdown(cancel_futures=True)

    async def change_model(self, name: str) -> None:
        """Serve another one of `models` from now on; the old one goes on until it is loaded. ProtocolError when it cannot be."""
        if name not in self.models:
            raise ProtocolError(f"no model {name[:80]!r}; there are {', '.join(self.models)}", "model_not_found", "model")
        async with self.changing:
            if name == self.model_id:
                return
            try:
                chat, defaults = await asyncio.to_thread(self._load, name)  # beside the encoders, which others need meanwhile
            except ValueError as error:
                raise ProtocolError(str(error)) from error
            old = self.worker
            self._take(chat, name, defaults)
            self.worker.start()
            await asyncio.to_thread(old.stop)

    def _load(self, name: str) -> tuple[Chat, GenerationParams]:
        try:
            chat, defaults = self.models[name]()
            chat.warm_up()
            return chat, defaults
        except FileNotFoundError as error:  # its message names a path
            log.warning("model %s cannot be loaded: %s", name, error)
            raise ValueError(f"model {name} lacks a file; the server's log says which") from error

    # ---- voices

    def enrol(self, name: str, clip: bytes) -> Voice:
        """Clone a voice from an encoded file's bytes and keep it; to be run in the encoders' thread. ValueErrors say what is wrong."""
        if self.store is None:
            raise ProtocolError("this server keeps no cloned voices", "missing_module")
        voice = self.chat.clone(clip, check_name(name, self.chat.voices))
        self.store.save(voice)
        self.chat.voices = {**self.chat.voices, voice.name: voice}
        return voice

    def delete_voice(self, name: str) -> None:
        """Forget a cloned voice, here and on disk; to be run in the encoders' thread."""
        if name not in self.chat.voices:
            raise ProtocolError("there is no such voice", "voice_not_found", "name")
        if self.chat.voices[name].kind != "cloned":
            raise ProtocolError("only a cloned voice can be deleted", param="name")
        self.store.delete(name)
        self.chat.voices = {key: voice for key, voice in self.chat.voices.items() if key != name}

    # ---- decoding, in the encoders' thread

    async def encode(self, run: Callable, *args):
        """`run(*args)` in the encoders' thread; its errors as ProtocolErrors."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self.encoders, run, *args)
        except ProtocolError:
            raise
        except MissingPart as error:
            raise ProtocolError(f"{error.wanted_by} needs {error.part}, which the pack of model {self.model_id} does not have",
                                "missing_module") from error
        except PromptTooLong as error:
            raise ProtocolError(str(error), "context_length_exceeded") from error
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        except Exception as error:  # out of memory, say: this question's alone
            log.exception("a question could not be read")
            raise ProtocolError("the question could not be read through a fault of the server", "server_error",
                                type="server_error") from error

    def read_wav(self, data: bytes, param: str) -> np.ndarray:
        """(S,) at 16 kHz from an encoded file's bytes. ValueError names `param`."""
        return read_audio(data, INPUT_RATE, param, self.limits.audio_seconds)

    def read_picture(self, data: bytes, param: str):
        return read_image(data, param, self.limits.image_pixels)

    def check_images(self, count: int) -> None:
        if count > self.limits.images:
            raise ProtocolError(f"{count} pictures with one question; at most {self.limits.images} are looked at", "too_many_images")

    def voice_named(self, name: str, param: str) -> str:
        try:
            return match_voice(list(self.chat.voices), name, self.stand_ins)
        except ValueError as error:
            raise ProtocolError(str(error), param=param) from error

    def request(self, question: Question) -> Request:
        """The engine's request for a question; ValueErrors as Chat.request. Call it through `encode`."""
        chat = self.chat
        params = replace(self.defaults, max_new_tokens=min(question.max_tokens or self.limits.new_tokens, self.limits.new_tokens))
        for name in ("temperature", "top_p"):
            if getattr(question, name) is not None:
                params = replace(params, **{name: getattr(question, name)})
        self.check_images(len(question.images))
        generator = None if question.seed is None else torch.Generator().manual_seed(question.seed % 2**63)
        if self.log_transcripts:
            log.info("asked: %r", question.messages[-1]["content"])
        messages = chat.fit(question.messages, params, question.wav, len(question.images))
        return chat.request(messages, params, pick_voice(chat.voices, question.voice), question.wav, question.images, generator,
                            question.conversation, question.say)

    def hear(self, pcm: bytes) -> np.ndarray:
        """24 kHz pcm16 -> (S,) at 16 kHz."""
        return resample(from_pcm16(pcm), SAMPLE_RATE, INPUT_RATE)

    def transcribe(self, wav: np.ndarray) -> str:
        text = self.chat.transcribe(wav)
        if self.log_transcripts:
            log.info("heard: %r", text)
        return text

    async def answer(self, make_request: Callable, question, spoken: bool, began: float) -> "Reply":
        """The reply to `make_request(question)`, which runs in the encoders' thread. Errors as `encode` and `reply`."""
        chat = self.chat
        request = await self.encode(make_request, question)
        if self.chat is not chat:  # a request is made of one model's tokens and vectors
            raise ProtocolError("the model was changed while the question was read; ask again", "server_error", type="server_error")
        return self.reply(request, spoken, began)

    def reply(self, request: Request, spoken: bool, began: float) -> "Reply":
        """Have a request answered. began: time.perf_counter() when it was asked. ProtocolError when the server is too busy."""
        if spoken and self.chat.mimi is None:
            raise ProtocolError(f"model {self.model_id} is served without speech: ask for text", "missing_module")
        try:
            return Reply(self, request, spoken, began)
        except Busy as error:
            raise ProtocolError(str(error), "server_busy", type="rate_limit_error") from error


class Reply:
    """One reply being generated: `async for text, pcm in reply` (either may be empty), then `usage()` and `complete`. Close it.

    began: when work on it was; asked: when it was asked for, which is later for a reply that was prepared.
    """

    def __init__(self, service: Service, request: Request, spoken: bool, began: float):
        self.service, self.request, self.spoken, self.began, self.asked = service, request, spoken, began, began
        self.stream = FrameStream(service.worker, request)
        self.finish: Finish | None = None
        self.text, self.text_tokens, self.frames = "", 0, 0

    async def __aiter__(self):
        metrics, eos = self.service.metrics, self.service.chat.config.eos_token_id
        async for frame in self.stream:
            now = time.perf_counter() - self.asked
            self.finish = frame.finish
            if frame.token is not None:
                self.text_tokens += 1
            if frame.text:
                if not self.text:
                    metrics.ttft.observe(now)
                self.text += frame.text
            pcm = b""
            if self.spoken and frame.wav is not None:
                if not self.frames:
                    metrics.ttfa.observe(now)
                self.frames += 1
                pcm = to_pcm16(frame.wav)
            if frame.text or pcm:
                yield frame.text, pcm
            if not self.spoken and frame.token == eos:  # its speech is not wanted
                self.finish = self.finish or Finish(Reason.ENDED, self.text_tokens)
                break
        metrics.replies.labels(self.finish.reason.value).inc()
        if self.finish.reason is Reason.FAILED:
            log.error("a reply failed: %s", self.finish.error)
            raise ProtocolError("the reply broke off through a fault of the server; ask again", "reply_failed", type="server_error")
        if self.frames:
            metrics.rtf.observe((time.perf_counter() - self.began) / (self.frames * FRAME_SAMPLES / SAMPLE_RATE))
        if self.service.log_transcripts:
            log.info("said: %r", self.text)

    @property
    def complete(self) -> bool:
        """Whether it came to its own end, rather than to a limit."""
        return self.finish is not None and self.finish.reason is Reason.ENDED

    def usage(self) -> Usage:
        config, text = self.service.chat.config, self.request.prompt_ids[-1]
        audio, image = (int(torch.isin(text, torch.tensor(ids)).sum()) for ids in (config.audio_ids, config.image_ids))
        return Usage(len(text) - audio - image, audio, image, self.text_tokens, self.frames)

    def close(self) -> None:
        """Stop generating, if it is not over."""
        if self.finish is None:
            self.service.metrics.replies.labels(Reason.CANCELLED.value).inc()
        self.stream.close()
