"""How long a caller waits: spoken questions in real time to a running server, and when the first sound comes back.

- Microphone packets of 20 ms, sent when they would have been recorded. A question's end is its last sample louder than QUIET.
- Three delays after that end: until the turn counts as ended (the silence that the server waits for, and what its speech detector takes
  to notice it), until the first sound arrives, and the difference, which is what hearing, thinking and speaking add.
- `--calls N` are made at once, each on its own connection. Last line is JSON.

    python -m scripts.bench_call http://127.0.0.1:7860 model/nano/examples/audio-*.wav
"""
import argparse
import asyncio
import base64
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402  (the root has to be importable first)
import websockets  # noqa: E402
from websockets.exceptions import WebSocketException  # noqa: E402

from model.audio import read_audio, to_pcm16  # noqa: E402
from model.config import SAMPLE_RATE  # noqa: E402
from model.refusal import INPUT_ERRORS, refuse  # noqa: E402

QUIET = 0.01  # of full scale
PACKET = SAMPLE_RATE // 50
ADDRESS = ": give an address such as http://127.0.0.1:7860, and --api-key if the server wants one"
BEFORE_S, AFTER_S = 0.5, 10  # silence around a question: somebody is on the line before and after


async def call(url: str, wav: np.ndarray, api_key: str) -> dict:
    """{"noticed_ms", "sound_ms"} after the end of `wav` (S,) at 24 kHz. RuntimeError for an error event, or when no sound comes."""
    end_s = BEFORE_S + (np.flatnonzero(np.abs(wav) > QUIET)[-1] + 1) / SAMPLE_RATE
    silence = [np.zeros(round(seconds * SAMPLE_RATE), np.float32) for seconds in (BEFORE_S, AFTER_S)]
    pcm, size = to_pcm16(np.concatenate([silence[0], wav, silence[1]])), 2 * PACKET
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
    async with websockets.connect(url, max_size=None, additional_headers=headers) as socket:
        began, came = time.perf_counter(), {}

        async def speak():
            for start in range(0, len(pcm), size):
                await asyncio.sleep(max(0.0, began + (start + size) / 2 / SAMPLE_RATE - time.perf_counter()))
                sound = base64.b64encode(pcm[start:start + size]).decode()
                await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": sound}))

        speaker = asyncio.create_task(speak())
        try:
            while "response.output_audio.delta" not in came:
                event = json.loads(await asyncio.wait_for(socket.recv(), len(pcm) / 2 / SAMPLE_RATE + 5))
                came.setdefault(event["type"], time.perf_counter() - began - end_s)
                if event["type"] == "error":
                    raise RuntimeError(f"error event: {event['error']}")
        except TimeoutError as error:
            raise RuntimeError(f"no answer; events: {', '.join(came)}") from error
        finally:
            speaker.cancel()
    return {"noticed_ms": 1000 * came["input_audio_buffer.speech_stopped"], "sound_ms": 1000 * came["response.output_audio.delta"]}


async def bench(url: str, wavs: dict[str, np.ndarray], calls: int, api_key: str) -> list[dict]:
    """A record per question and call, printed as they come."""
    records = []
    print(f"{'question':28} {'turn ended':>12} {'first sound':>12} {'of it ours':>12}")
    for name, wav in wavs.items():
        for record in await asyncio.gather(*(call(url, wav, api_key) for _ in range(calls))):
            records.append({"question": name, **record, "ours_ms": record["sound_ms"] - record["noticed_ms"]})
            print(f"{name[:28]:28} " + " ".join(f"{records[-1][key]:9.0f} ms" for key in ("noticed_ms", "sound_ms", "ours_ms")), flush=True)
    return records


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("server", help="address of a running server")
    parser.add_argument("questions", nargs="+", help="audio files")
    parser.add_argument("--calls", type=int, default=1, help="callers who ask the same thing at the same time")
    parser.add_argument("--api-key", default="", help="if the server wants one")
    args = parser.parse_args(argv)
    url = args.server.rstrip("/").replace("http", "ws", 1) + "/v1/realtime"
    try:
        wavs = {Path(path).name: read_audio(path, SAMPLE_RATE) for path in args.questions}
        for name, wav in wavs.items():
            if np.abs(wav).max() <= QUIET:
                raise ValueError(f"{name} is silent: give a recorded question")
        records = asyncio.run(bench(url, wavs, args.calls, args.api_key))
    except (*INPUT_ERRORS, RuntimeError, WebSocketException) as error:
        return refuse(error, ADDRESS * isinstance(error, WebSocketException))
    worst = {key: round(max(record[key] for record in records)) for key in ("noticed_ms", "sound_ms", "ours_ms")}
    print(json.dumps({"calls": args.calls, "worst": worst, "records": records}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
