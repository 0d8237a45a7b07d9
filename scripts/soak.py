"""Soak test of a running server: calls in waves, with broken messages, slow readers and callers who hang up, for minutes on end.

- Every question's reply is known from asking it alone, by a server at --temperature 0; a caller must never get another question's: no
  cross-talk.
- At the end no session, queue or row may be left, and the server's memory must not have grown (--pid) by more than a tenth since the
  first waves.
- Questions are typed: a pack without SenseVoice will do. With --audio others are spoken, by callers who pause, so that a reply is begun,
  and then go on speaking or hang up.
- The last line is JSON; exit code 1 when something was wrong.

    python -m scripts.soak http://127.0.0.1:7860 --pid $(pgrep -f web_demo_omni) --audio model/nano/examples/audio-*.wav
"""
import argparse
import asyncio
import base64
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx  # noqa: E402  (the root has to be importable first)
import numpy as np  # noqa: E402
import websockets  # noqa: E402
from websockets.exceptions import WebSocketException  # noqa: E402

from model.audio import read_audio, to_pcm16  # noqa: E402
from model.config import SAMPLE_RATE  # noqa: E402
from model.refusal import INPUT_ERRORS, refuse  # noqa: E402
from scripts.bench_call import ADDRESS  # noqa: E402

QUESTIONS = {  # at temperature 0 the answer is the same whoever else is being answered
    "What color is the sky?", "What is the opposite of hot?", "How much is two plus two?", "What is the opposite of big?",
    "What color is grass?", "How much is seven plus three?", "What color is milk?", "What is the opposite of up?"}
JUNK = ("", "{", "[]", "null", '{"type": "no.such.event"}', '{"type": "response.cancel"}', '{"type": 3}', "\x00" * 50,
        '{"type": "input_audio_buffer.append", "audio": "!"}', '{"type": "conversation.item.delete", "item_id": "x"}')
KINDS = ("good", "good", "good", "rude", "slow", "gone")
HESITANT = "hesitant"
PAUSE_S = 0.35  # long enough for a reply to be begun, too short to be the end of the turn
PACKET = SAMPLE_RATE // 5
SETTLED_WAVES = 3  # after which memory is first read: caches and threads are there


class Caller:
    """One call. kind: good, rude (broken messages), slow (reads late), gone (hangs up in the middle of the reply), hesitant.

    headers: what lets it in. wav: (S,) float32 at 24 kHz, what a hesitant one says.
    """

    def __init__(self, url: str, headers: dict, question: str, kind: str, rng: random.Random, wav: np.ndarray | None = None):
        self.url, self.headers, self.question, self.kind, self.rng, self.wav = url, headers, question, kind, rng, wav

    async def run(self) -> str | None:
        """The reply's text; None for a call that was not to have a whole one."""
        async with websockets.connect(self.url, additional_headers=self.headers, max_size=None, open_timeout=60,
                                      close_timeout=5) as socket:
            if self.kind == HESITANT:
                return await self.hesitate(socket)
            await self.send(socket, "session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
            if self.kind == "rude":
                for _ in range(20):
                    await socket.send(self.rng.choice(JUNK))
                sound = base64.b64encode(self.rng.randbytes(self.rng.randrange(4000))).decode()
                await self.send(socket, "input_audio_buffer.append", audio=sound)
                await self.send(socket, "input_audio_buffer.clear")
            content = [{"type": "input_text", "text": self.question}]
            await self.send(socket, "conversation.item.create", item={"type": "message", "role": "user", "content": content})
            await self.send(socket, "response.create")
            return await self.listen(socket)

    async def hesitate(self, socket) -> None:
        """Speak, pause, speak and pause; then hang up, or wait for the reply."""
        silence = np.zeros(round(PAUSE_S * SAMPLE_RATE), np.float32)
        stays = self.rng.random() < 0.5
        pcm = to_pcm16(np.concatenate([silence, self.wav, silence, self.wav, silence] + [silence] * 4 * stays))
        for start in range(0, len(pcm), 2 * PACKET):
            sound = base64.b64encode(pcm[start:start + 2 * PACKET]).decode()
            await self.send(socket, "input_audio_buffer.append", audio=sound)
            await asyncio.sleep(self.rng.random() * 0.1)
        if stays:
            await self.listen(socket)

    async def send(self, socket, type: str, **fields) -> None:
        await socket.send(json.dumps({"type": type, **fields}))

    async def listen(self, socket) -> str | None:
        text, frames = "", 0
        last = self.rng.randrange(1, 15) if self.kind == "gone" else None
        while True:
            event = json.loads(await asyncio.wait_for(socket.recv(), 120))
            if event["type"] == "response.output_audio_transcript.delta":
                text += event["delta"]
            elif event["type"] == "response.output_audio.delta":
                frames += 1
                if frames == last:
                    return None
                if self.kind == "slow":
                    await asyncio.sleep(self.rng.random() * 0.2)
            elif event["type"] == "response.done":
                status = event["response"]["status"]
                if status == "cancelled" and self.kind == HESITANT:  # its clip ends in silence: the turn was over, and speech cut in
                    continue
                if status not in ("completed", "incomplete"):
                    raise RuntimeError(f"a reply ended as {status}: {event['response'].get('status_details')}")
                return text.strip()
            elif event["type"] == "error" and self.kind != "rude":
                raise RuntimeError(f"error event: {event['error']}")


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no memory: it has ended")


async def soak(address: str, headers: dict, seconds: float, wave: int, pid: int | None, seed: int, wavs: list[np.ndarray]) -> dict:
    rng, kinds = random.Random(seed), (*KINDS, *[HESITANT] * (2 if wavs else 0))
    url = f"ws{address.removeprefix('http')}/v1/realtime"
    questions = sorted(QUESTIONS)
    replies: dict[str, Counter] = {question: Counter() for question in questions}
    counts, failures, memory = Counter(), Counter(), []
    for question in questions:  # alone: what each reply is when nobody else talks; the wording is then known
        replies[question][await Caller(url, headers, question, "good", rng).run()] += 1
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        callers = [Caller(url, headers, rng.choice(questions), rng.choice(kinds), rng, rng.choice(wavs) if wavs else None)
                   for _ in range(wave)]
        results = await asyncio.gather(*(caller.run() for caller in callers), return_exceptions=True)
        for caller, result in zip(callers, results):
            counts[caller.kind] += 1
            if isinstance(result, Exception):
                failures[f"{type(result).__name__}: {result}"[:200]] += 1
            elif result is not None:
                replies[caller.question][result] += 1
        if pid is not None:
            memory.append(rss_mib(pid))
    report = {"calls": dict(counts), "failures": {}, "crosstalk": crosstalk(replies), "left": await what_is_left(address, headers)}
    if len(memory) > SETTLED_WAVES:
        report["rss_mib"] = [round(memory[SETTLED_WAVES]), round(memory[-1])]
        report["rss_growth"] = round(memory[-1] / memory[SETTLED_WAVES] - 1, 3)
    elif pid is not None:
        failures[f"only {len(memory)} waves: too few to tell whether memory grows; give it more --minutes"] += 1
    report["failures"] = dict(failures)
    report["ok"] = not (failures or report["crosstalk"] or report["left"]) and report.get("rss_growth", 0) <= 0.1
    return report


def crosstalk(replies: dict[str, Counter]) -> list[str]:
    """Replies that were given to a question though, alone, another question had them."""
    alone = {question: next(iter(counter)) for question, counter in replies.items()}
    return sorted({f"{question} -> {text}" for question, counter in replies.items() for text in counter
                   if text != alone[question] and text in {own for other, own in alone.items() if other != question}})


async def what_is_left(address: str, headers: dict, patience_s: float = 20) -> dict:
    """Gauges of /metrics that have not come back to zero."""
    left = {}
    async with httpx.AsyncClient(headers=headers, timeout=30) as client:
        deadline = time.monotonic() + patience_s
        while True:
            lines = (await client.get(f"{address}/metrics")).text.splitlines()
            values = dict(line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
            left = {name: float(values[f"minimind_{name}"]) for name in ("realtime_sessions", "speaking", "queue")}
            left = {name: value for name, value in left.items() if value}
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.5)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="of a running server, such as http://127.0.0.1:7860")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--wave", type=int, default=8, help="calls at the same time")
    parser.add_argument("--pid", type=int, help="the server's process, to watch its memory")
    parser.add_argument("--audio", nargs="*", default=[], help="spoken questions, for callers who hesitate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--api-key", default="", help="if the server wants one")
    args = parser.parse_args(argv)
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    try:
        wavs = [read_audio(path, SAMPLE_RATE) for path in args.audio]
        report = asyncio.run(soak(args.address.rstrip("/"), headers, 60 * args.minutes, args.wave, args.pid, args.seed, wavs))
    except (*INPUT_ERRORS, RuntimeError, WebSocketException, httpx.HTTPError) as error:  # no audio file, nobody at the address, no key
        return refuse(error, ADDRESS * isinstance(error, WebSocketException))
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
