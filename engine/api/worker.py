"""The one thread that owns the engine: requests in from any thread, frames out to the event loop that asked.

- Requests beyond the engine's rows wait in order; beyond `max_waiting` they are refused with Busy.
- A frame goes to its reader through a queue that no slow reader can make grow beyond one reply.
- Closing a FrameStream in whatever phase cancels its session; its row is free at the next step.
"""
import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from engine.engine import Engine
from engine.session import Finish, Frame, Reason, Request

log = logging.getLogger(__name__)


class Busy(RuntimeError):
    """Too many replies are waiting, or the engine has stopped; try again later."""


@dataclass(eq=False)
class Job:
    """A request on its way. deliver is called from the worker's thread, the last time with a frame that has `finish`."""
    request: Request
    deliver: Callable[[Frame], None]
    slot: int | None = None
    over: bool = False


class Worker:
    """Steps `engine` while there is anything to do. Start it with `start`; nothing else may touch the engine until `stop`."""

    def __init__(self, engine: Engine, max_waiting: int):
        self.engine, self.max_waiting = engine, max_waiting
        self.changed = threading.Condition()
        self.inbox: deque[Callable[[], None]] = deque()
        self.waiting: deque[Job] = deque()
        self.jobs: dict[int, Job] = {}
        self.stopping = False
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def alive(self) -> bool:
        return self.thread.is_alive()

    @property
    def has_room(self) -> bool:
        """Whether a request would be begun at once."""
        return not self.waiting and self.engine.num_free > 0

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """End the thread; whoever waits for a frame gets a failed one."""
        with self.changed:
            self.stopping = True
            self.changed.notify()
        self.thread.join()

    def submit(self, request: Request, deliver: Callable[[Frame], None]) -> Job:
        """Have a request answered as soon as there is a row. Raises Busy."""
        if not self.alive:
            raise Busy("the engine is not running")
        job = Job(request, deliver)
        with self.changed:
            if len(self.waiting) >= self.max_waiting:
                raise Busy(f"{self.max_waiting} replies are waiting already; try again later")
            self.waiting.append(job)
            self.changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """No frame of it will be delivered once the worker has heard of this; nothing when it is over."""
        self._post(lambda: self._cancel(job))

    def forget(self, conversation: Hashable) -> None:
        """Drop what is kept of a conversation between its turns."""
        self._post(lambda: self.engine.forget(conversation))

    def _post(self, action: Callable[[], None]) -> None:
        with self.changed:
            self.inbox.append(action)
            self.changed.notify()

    # ---- in the thread

    def _run(self) -> None:
        try:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.stopping or self.inbox or self.waiting or self.engine.busy)
                    if self.stopping:
                        return
                    actions = list(self.inbox)
                    self.inbox.clear()
                for action in actions:
                    try:
                        action()
                    except Exception:  # one caller's leaving is no reason to leave all others
                        log.exception("a session could not be ended, or forgotten")
                self._admit()
                self._step()
        finally:
            for job in [*self.waiting, *self.jobs.values()]:
                self._end(job, "the server is stopping")

    def _cancel(self, job: Job) -> None:
        if job.slot is not None and not job.over:
            self.engine.cancel(job.slot)
            del self.jobs[job.slot]
        elif not job.over:
            self.waiting.remove(job)
        job.over = True

    def _admit(self) -> None:
        while self.waiting and self.engine.num_free:
            job = self.waiting.popleft()
            try:
                job.slot = self.engine.admit(job.request)
                self.jobs[job.slot] = job
            except Exception as error:  # out of memory, say: the others can go on
                log.exception("a request could not be admitted")
                self._end(job, f"{type(error).__name__}: {error}")

    def _step(self) -> None:
        try:
            frames = self.engine.step() if self.engine.busy else []
        except Exception as error:  # the engine keeps faults of one session to it; this is one of the machine
            log.exception("a step of the engine failed")
            for slot, job in list(self.jobs.items()):
                self.engine.cancel(slot)
                self._end(job, f"{type(error).__name__}: {error}")
            self.jobs.clear()
            return
        for frame in frames:
            job = self.jobs.pop(frame.slot) if frame.done else self.jobs[frame.slot]
            job.over = frame.done
            job.deliver(frame)

    def _end(self, job: Job, error: str) -> None:
        job.over = True
        job.deliver(Frame(-1 if job.slot is None else job.slot, finish=Finish(Reason.FAILED, 0, error)))


class FrameStream:
    """The frames of one request, for `async for`. Close it in the end; it may be closed early. The constructor raises Busy."""

    def __init__(self, worker: Worker, request: Request):
        loop = asyncio.get_running_loop()
        self.worker, self.queue, self.ended = worker, asyncio.Queue(), False

        def deliver(frame: Frame) -> None:
            if not loop.is_closed():  # else its reader is gone, and must not take the engine's thread along
                loop.call_soon_threadsafe(self.queue.put_nowait, frame)
        self.job = worker.submit(request, deliver)

    def __aiter__(self):
        return self

    async def __anext__(self) -> Frame:
        if self.ended:
            raise StopAsyncIteration
        frame = await self.queue.get()
        self.ended = frame.done
        return frame

    def close(self) -> None:
        self.worker.cancel(self.job)
