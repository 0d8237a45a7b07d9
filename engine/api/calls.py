"""WS /v1/realtime: a socket, a RealtimeSession, and the tasks that carry out what the session commands.

- Everything that happens in a call happens under its lock, in order: a client's messages, pieces of its replies, transcripts.
- A client that sends too fast is read more slowly. One whose messages are too large, that stays silent too long or does not read loses
  its own call, with an error that says why.
"""
import asyncio
import json
import logging
import time
import uuid
from dataclasses import dataclass, replace

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from engine.api.limits import TokenBucket
from engine.api.service import Question, Reply, Service
from engine.realtime import CancelReply, Discard, Prepare, RealtimeSession, StartReply, Transcribe
from engine.realtime_events import ProtocolError
from engine.vad import SileroVAD
from model.config import INPUT_RATE

log = logging.getLogger(__name__)
NORMAL, POLICY, TRY_LATER = 1000, 1008, 1013  # close codes of RFC 6455


@dataclass
class Prepared:
    """A reply that was begun before it was asked for."""
    start: StartReply
    reply: "asyncio.Task[Reply]"

    def discard(self) -> None:
        self.reply.cancel()
        if self.reply.done() and not self.reply.cancelled() and self.reply.exception() is None:
            self.reply.result().close()


class Call:
    """One client's call, from its first event to its last. send() of the socket is used by one task at a time."""

    def __init__(self, socket: WebSocket, service: Service):
        self.socket, self.service, self.limits = socket, service, service.limits
        self.session = RealtimeSession(uuid.uuid4().hex[:12], service.model_id, service.voices, SileroVAD, service.stand_ins)
        self.lock, self.gone = asyncio.Lock(), asyncio.Event()
        self.replies: dict[str, asyncio.Task] = {}
        self.prepared: Prepared | None = None
        self.tasks: set[asyncio.Task] = set()
        self.messages = TokenBucket(self.limits.messages_per_s, 4 * self.limits.messages_per_s)
        self.bytes = TokenBucket(self.limits.bytes_per_s, 2 * self.limits.message_bytes)

    async def run(self) -> None:
        """Serve until the client leaves or is sent away."""
        try:
            await self._act(self.session.start)
            while True:
                message = await self._next_message()
                if message is None:
                    return await self._send_away("idle_timeout", f"nothing was heard for {self.limits.idle_s:g} s", NORMAL)
                if message["type"] == "websocket.disconnect":
                    return
                text = message.get("text") or message.get("bytes") or ""
                await asyncio.sleep(max(self.messages.take(1), self.bytes.take(len(text))))
                # of the model that is served now; cloned voices come and go, too
                self.session.voices, self.session.stand_ins = self.service.voices, self.service.stand_ins
                await self._act(self.session.receive, text, in_thread=True)
        except (WebSocketDisconnect, asyncio.TimeoutError):  # it has left while it was written to, or reads too slowly
            log.info("call %s: the client left or did not read", self.session.id)
        finally:
            self._discard()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            self.service.worker.forget(self.session.id)

    async def _next_message(self) -> dict | None:
        """The client's next message, None when it is silent for too long. WebSocketDisconnect when a writer has found it gone."""
        receive, gone = asyncio.ensure_future(self.socket.receive()), asyncio.ensure_future(self.gone.wait())
        done, pending = await asyncio.wait((receive, gone), timeout=self.limits.idle_s, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if gone in done:
            raise WebSocketDisconnect(POLICY)
        return receive.result() if receive in done else None

    async def _send_away(self, code: str, message: str, close: int) -> None:
        await self._act(self.session.error, ProtocolError(message, code))
        await self.socket.close(close)

    async def _act(self, method, *args, in_thread: bool = False) -> None:
        """Let something happen in the session, send the events and start what it commands."""
        async with self.lock:
            out = await asyncio.to_thread(method, *args) if in_thread else method(*args)
            # a reply is waited for, a transcript is not: it is begun later
            for one in sorted(out, key=lambda one: isinstance(one, Transcribe)):
                if isinstance(one, dict):
                    await self._send(one)
                elif isinstance(one, Prepare):
                    self._discard()
                    if self.service.worker.has_room:  # somebody else's reply is surely wanted, this one is not
                        self.prepared = Prepared(one.start, asyncio.create_task(self._begin(one.start)))
                elif isinstance(one, Discard):
                    self._discard()
                elif isinstance(one, StartReply):
                    self.replies[one.response_id] = self._spawn(self._reply(one, self._take_prepared(one)))
                elif isinstance(one, CancelReply):
                    self.replies[one.response_id].cancel()
                else:
                    self._spawn(self._transcribe(one))

    async def _send(self, event: dict) -> None:
        if event["type"] == "error":
            self.service.metrics.errors.labels(event["error"]["code"]).inc()
        try:
            await asyncio.wait_for(self.socket.send_text(json.dumps(event)), self.limits.send_s)
        except RuntimeError as error:  # starlette's word for a socket that is closed
            raise WebSocketDisconnect(NORMAL) from error

    def _spawn(self, work) -> asyncio.Task:
        task = asyncio.create_task(self._guarded(work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _guarded(self, work) -> None:
        try:
            await work
        except (WebSocketDisconnect, asyncio.TimeoutError):
            log.info("call %s: the client left or did not read", self.session.id)
            self.gone.set()

    # ---- commands

    def _discard(self) -> None:
        if self.prepared is not None:
            self.prepared.discard()
            self.prepared = None

    def _take_prepared(self, start: StartReply) -> Prepared | None:
        """What was prepared, if it is this reply."""
        if self.prepared is None or self.prepared.start != replace(start, response_id=""):
            return self._discard()
        prepared, self.prepared = self.prepared, None
        return prepared

    async def _begin(self, start: StartReply) -> Reply:
        began = time.perf_counter()
        return await self.service.answer(self._request, start, start.spoken, began)

    async def _reply(self, start: StartReply, prepared: Prepared | None) -> None:
        asked = time.perf_counter()
        try:
            try:
                reply = await (prepared.reply if prepared else self._begin(start))
            except asyncio.CancelledError:  # perhaps in the moment in which it was begun
                if prepared is not None:
                    prepared.discard()
                raise
            reply.asked = asked
            try:
                async for text, pcm in reply:
                    await self._act(self.session.piece, start.response_id, text, pcm)
            finally:
                reply.close()
            await self._act(self.session.finished, start.response_id, reply.usage(), reply.complete)
        except ProtocolError as error:
            self.service.metrics.errors.labels(error.code).inc()
            await self._act(self.session.failed, start.response_id, error)
        finally:
            del self.replies[start.response_id]

    def _request(self, start: StartReply):
        self.service.check_images(len(start.images))  # before they are unpacked
        wav = self.service.hear(start.pcm) if start.pcm else None
        images = [self.service.read_picture(image, "input_image") for image in start.images]
        return self.service.request(Question(start.messages, wav, images, start.voice, start.max_tokens, conversation=self.session.id))

    async def _transcribe(self, command: Transcribe) -> None:
        try:
            wav = await self.service.encode(self.service.hear, command.pcm)
            text = await self.service.encode(self.service.transcribe, wav)
        except ProtocolError as error:
            await self._act(self.session.transcription_failed, command.item_id, error)
        else:
            await self._act(self.session.transcribed, command.item_id, text, round(len(wav) / INPUT_RATE, 3))


def make_router(service: Service) -> APIRouter:
    router = APIRouter()
    calls: set[WebSocket] = set()

    @router.websocket("/v1/realtime")
    async def realtime(socket: WebSocket):
        # a browser drops the connection unless one of the subprotocols it offers is chosen
        await socket.accept(subprotocol="realtime" if "realtime" in socket.scope["subprotocols"] else None)
        if len(calls) >= service.limits.calls:
            error = ProtocolError(f"{service.limits.calls} calls are going on already; try again later", "session_limit_reached",
                                  type="rate_limit_error")
            service.metrics.errors.labels(error.code).inc()
            await socket.send_text(json.dumps({**error.as_event(), "event_id": "event_0"}))
            return await socket.close(TRY_LATER)
        calls.add(socket)  # before anything is waited for
        service.metrics.calls.set(len(calls))
        try:
            call = await asyncio.to_thread(Call, socket, service)  # the first one loads Silero
            await call.run()
        finally:
            calls.discard(socket)
            service.metrics.calls.set(len(calls))

    return router
