"""The real server on the nano pack, with openai's official SDK: typed, spoken and shown questions; a spoken call with barge-in.

The pack ships without encoders, so it is given untrained ones: what it hears means nothing to it, but it is heard.
"""
import asyncio
import base64
import io
import json
import time

import httpx
import numpy as np
import openai
import pytest
import soundfile as sf
from live_server import NANO, load_nano_with_senses, make_service, serve, speak
from PIL import Image

from engine.api.completions import to_be_read
from model.audio import encode_audio, read_audio, to_pcm16
from scripts import bench_call, soak

WEB = httpx.Client(timeout=60)  # one for all: making one takes longer than most requests
QUESTION = [{"role": "user", "content": "What color is the sky?"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(address of a server with all modules, spoken question (S,) at 24 kHz, its service)."""
    chat = load_nano_with_senses(tmp_path_factory.mktemp("pack"))
    spoken = speak(chat, "what is the color of the sky")
    assert 1 < len(spoken) / 24_000 < 4
    service = make_service(chat, transcript=1)  # not read alone, as the pack wants it: here the sound in the prompt is counted
    with serve(service) as address:
        yield address, spoken, service


@pytest.fixture(scope="module")
def client(world):
    return openai.OpenAI(api_key="none", base_url=f"http://{world[0]}/v1", max_retries=0)


def wav_part(wav, rate=24_000) -> dict:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(encode_audio(wav, rate, "wav")).decode(), "format": "wav"}}


def picture_part(size=(40, 30)) -> dict:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, "PNG")
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()}}


# ---- chat completions

def test_text_whole_and_streamed_are_the_same(client):
    whole = client.chat.completions.create(model="any", messages=QUESTION)
    assert "blue" in whole.choices[0].message.content and whole.choices[0].finish_reason == "stop"
    assert whole.usage.prompt_tokens > 5 and whole.usage.completion_tokens_details.audio_tokens == 0
    stream = client.chat.completions.create(model="any", messages=QUESTION, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices).strip() == whole.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == "stop"
    cut = client.chat.completions.create(model="any", messages=QUESTION, max_completion_tokens=2)
    assert cut.choices[0].finish_reason == "length"


@pytest.mark.parametrize("format", ["mp3", "pcm16"])
def test_speech_whole(client, format):
    reply = client.chat.completions.create(model="any", messages=QUESTION, modalities=["text", "audio"], seed=1,
                                           audio={"voice": "slt", "format": format})
    message = reply.choices[0].message
    assert message.content is None and "blue" in message.audio.transcript and message.audio.expires_at > time.time()
    data = base64.b64decode(message.audio.data)
    seconds = len(data) / 48_000 if format == "pcm16" else len(read_audio(data, 24_000)) / 24_000
    assert abs(seconds - 0.08 * reply.usage.completion_tokens_details.audio_tokens) < 0.1 and seconds > 0.5
    again = client.chat.completions.create(model="any", messages=[*QUESTION, {"role": "assistant", "audio": {"id": message.audio.id}},
                                                                  {"role": "user", "content": "What is the opposite of hot?"}])
    assert again.usage.prompt_tokens > reply.usage.prompt_tokens + 5, "the earlier reply is part of the prompt"


def test_speech_streamed(client):
    with client.chat.completions.stream(model="any", messages=QUESTION, modalities=["text", "audio"],
                                        audio={"voice": "alloy", "format": "pcm16"}) as stream:
        final = stream.get_final_completion()
    audio = final.choices[0].message.audio
    assert "blue" in audio["transcript"] if isinstance(audio, dict) else "blue" in audio.transcript
    data = audio["data"] if isinstance(audio, dict) else audio.data
    assert len(base64.b64decode(data, validate=True)) % 3840 == 0  # joined base64 strings are still base64
    with pytest.raises(openai.BadRequestError, match="pcm16 only"):
        client.chat.completions.create(model="any", messages=QUESTION, modalities=["text", "audio"], stream=True,
                                       audio={"voice": "slt", "format": "mp3"})


def test_a_question_may_be_spoken_and_shown(client, world):
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, wav_part(world[1]), picture_part()]}]
    reply = client.chat.completions.create(model="any", messages=messages)
    details = reply.usage.prompt_tokens_details
    assert details.audio_tokens == pytest.approx(len(world[1]) / 24_000 / 0.06, abs=2)
    assert reply.usage.prompt_tokens > 64 + details.audio_tokens
    later = [*messages, {"role": "assistant", "content": "A wall."}, {"role": "user", "content": "Is it red?"}]
    assert client.chat.completions.create(model="any", messages=later).usage.prompt_tokens_details.audio_tokens == 0  # heard as words


def shown(*parts) -> dict:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def url_part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize("changes, code", [
    ({"messages": []}, "invalid_value"), ({"messages": [{"role": "assistant", "content": "x"}]}, "invalid_value"),
    ({"messages": [{"role": "user", "content": "x" * 20_001}]}, "invalid_value"),
    ({"messages": [{"role": "user", "content": "x" * 15_000}]}, "context_length_exceeded"),
    ({"messages": [{"role": "user", "content": "<|im_end|>"}]}, "invalid_value"),
    ({"messages": [{"role": "user", "audio": {"id": "audio_x"}}]}, "audio_not_found"),
    ({"modalities": ["audio"]}, "missing_required_parameter"), ({"n": 2}, "invalid_value"), ({"temperature": -1}, "invalid_value"),
    ({"modalities": ["audio"], "audio": {"voice": "nobody", "format": "wav"}}, "invalid_value"),
    (shown({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}), "invalid_value"),
    (shown(url_part("http://127.0.0.1/x.png")), "invalid_value"), (shown(url_part("/etc/passwd")), "invalid_value"),
    (shown(wav_part(np.zeros(24_000 * 61))), "invalid_value"), (shown(wav_part(np.zeros(800))), "invalid_value"),
    (shown(picture_part((5000, 4000))), "invalid_value"), (shown(*[picture_part()] * 5), "too_many_images"),
])
def test_wrong_requests_are_typed_errors(world, changes, code):
    response = WEB.post(f"http://{world[0]}/v1/chat/completions", json={"model": "any", "messages": QUESTION, **changes})
    error = response.json()["error"]
    assert response.status_code == (404 if code == "audio_not_found" else 400)
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert 10 < len(error["message"]) < 500 and str(NANO.parent) not in error["message"]


def test_a_conversation_has_only_so_many_sounds(world):
    spoken = {"role": "user", "content": [wav_part(np.zeros(24_000))] * 8}
    response = WEB.post(f"http://{world[0]}/v1/chat/completions", json={"model": "any", "messages": [spoken, spoken, *QUESTION, spoken]})
    assert response.status_code == 400 and "24 sounds in one conversation; at most 16" in response.json()["error"]["message"]


# ---- the other routes

def test_a_long_text_is_read_in_pieces():
    assert to_be_read("The sky is blue. Is it? Yes!\nGood") == ["The sky is blue.", "Is it?", "Yes!", "Good"]
    assert to_be_read("天空是蓝色的。草是绿色的。") == ["天空是蓝色的。", "草是绿色的。"] and to_be_read(" \n") == []
    long = to_be_read("word " * 100)
    assert all(len(piece) <= 120 for piece in long) and " ".join(long).split() == ["word"] * 100


def test_a_text_is_read_aloud(client, world):
    whole = client.audio.speech.create(model="any", voice="awb", input="The sky is blue.", response_format="wav")
    assert 0.8 < len(read_audio(whole.content, 24_000)) / 24_000 < 5
    with client.audio.speech.with_streaming_response.create(model="any", voice="awb", input="Milk is white.", response_format="pcm") as r:
        pieces = list(r.iter_bytes())
    assert sum(map(len, pieces)) % 3840 == 0 and len(pieces) > 3
    both = client.audio.speech.create(model="any", voice="awb", input="The sky is blue. Milk is white.", response_format="wav")
    seconds = len(read_audio(both.content, 24_000)) / 24_000
    assert seconds > 0.8 * (len(read_audio(whole.content, 24_000)) + sum(map(len, pieces)) / 2) / 24_000, "sentence by sentence"
    for wrong in ({"input": ""}, {"input": "<|im_end|>"}, {"input": "word " * 820}, {"response_format": "aac"}, {"speed": 2}):
        body = {"model": "any", "voice": "awb", "input": "x", **wrong}
        assert WEB.post(f"http://{world[0]}/v1/audio/speech", json=body).status_code == 400, wrong


def test_models_health_figures_and_schema(client, world):
    assert [m.id for m in client.models.list()] == ["minimind-o-test"]
    def get(path):
        return WEB.get(f"http://{world[0]}{path}")
    assert get("/healthz").json() == {"status": "ok"}
    figures = get("/metrics").text
    for name in ("realtime_sessions", "queue", "speaking", "ttfa_seconds_count", "rtf_count", 'replies_total{finish="ended"}'):
        assert f"minimind_{name}" in figures, name
    assert {"/v1/chat/completions", "/v1/audio/speech", "/v1/models", "/healthz", "/metrics"} <= set(get("/openapi.json").json()["paths"])
    missing = get("/nothing")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "not_found"


# ---- Realtime

async def send_sound(connection, wav, packet_ms=40) -> None:
    pcm = to_pcm16(wav)
    for start in range(0, len(pcm), 48 * packet_ms):
        await connection.input_audio_buffer.append(audio=base64.b64encode(pcm[start:start + 48 * packet_ms]).decode())


async def until(connection, last: str, events: list) -> list:
    """Receive into `events` up to an event of that type; returns what came."""
    came = []
    while not came or came[-1].type != last:
        came.append(await asyncio.wait_for(connection.recv(), 30))
        assert came[-1].type != "error", came[-1]
    events += came
    return came


def kinds(events) -> list:
    return [e.type for e in events]


def test_a_spoken_call_with_barge_in(world):
    address, spoken, _ = world
    silence = np.zeros(24_000, np.float32)

    async def call():
        events = []
        realtime = openai.AsyncOpenAI(api_key="none", base_url=f"http://{address}/v1")
        async with realtime.realtime.connect(model="gpt-realtime") as connection:
            await until(connection, "session.created", events)
            await connection.session.update(session={"type": "realtime", "audio": {
                "input": {"turn_detection": {"type": "semantic_vad"}, "transcription": {"model": "whisper-1"}},
                "output": {"voice": "marin"}}})
            updated = (await until(connection, "session.updated", events))[-1].session
            assert updated.audio.input.turn_detection.interrupt_response and updated.audio.output.voice in ("rms", "slt", "awb")
            await send_sound(connection, np.concatenate([silence, spoken, silence]))
            first = await until(connection, "response.output_audio.delta", events)
            heard = kinds(first)
            assert heard.index("input_audio_buffer.speech_started") < heard.index("input_audio_buffer.speech_stopped") \
                < heard.index("input_audio_buffer.committed") < heard.index("response.created")
            await send_sound(connection, spoken)  # while it is spoken to, or still being played
            barged = await until(connection, "input_audio_buffer.speech_started", events)
            if "response.done" not in kinds(barged):  # then the reply was not whole yet
                barged += await until(connection, "response.done", events)
                assert barged[-1].response.status == "cancelled" and barged[-1].response.status_details.reason == "turn_detected"
            reply = next(e.response for e in barged if e.type == "response.done").output[0]
            await connection.conversation.item.truncate(item_id=reply.id, content_index=0, audio_end_ms=80)
            await until(connection, "conversation.item.truncated", events)
            await send_sound(connection, silence)
            second = (await until(connection, "response.done", events))[-1].response
            assert second.status in ("completed", "incomplete")  # to what a random ear hears, a reply may run to its limit
            assert second.output[0].content[0].transcript
            assert second.usage.input_token_details.audio_tokens > 10
        return events

    events = asyncio.run(call())
    assert "error" not in kinds(events)
    assert kinds(events).count("conversation.item.input_audio_transcription.completed") >= 1


def test_the_reply_is_begun_while_the_speaker_pauses(world, monkeypatch):
    address, spoken, service = world
    pause, silence = np.zeros(24 * 320, np.float32), np.zeros(24_000, np.float32)
    begun, reply, ear = [], service.reply, service.chat.sensevoice.transcribe
    monkeypatch.setattr(service, "reply", lambda *args: begun.append(reply(*args)) or begun[-1])
    heard = []
    monkeypatch.setattr(service.chat, "written", {})
    monkeypatch.setattr(service.chat.sensevoice, "transcribe", lambda *args: heard.append(args) or ear(*args))

    async def call():
        events = []
        realtime = openai.AsyncOpenAI(api_key="none", base_url=f"http://{address}/v1")
        async with realtime.realtime.connect(model="any") as connection:
            await send_sound(connection, np.concatenate([silence, spoken, pause]))
            while not begun:
                await asyncio.sleep(0.01)
            await send_sound(connection, spoken)  # no, there is more to say
            while begun[0].finish is None and not begun[0].stream.job.over:
                await asyncio.sleep(0.01)
            await send_sound(connection, pause)
            while len(begun) < 2 or begun[1].stream.queue.empty():
                await asyncio.sleep(0.01)
            assert "input_audio_buffer.speech_stopped" not in kinds(events)
            await send_sound(connection, silence)
            return (await until(connection, "response.done", events))[-1].response

    done = asyncio.run(call())
    assert done.output[0].content[0].transcript == begun[1].text.strip() and len(begun) == 2, "it is not begun a third time"
    assert begun[0].text == "" and len(begun[1].request.prompt_ids[0]) > len(begun[0].request.prompt_ids[0])
    assert 0 < begun[1].asked - begun[1].began < 5 and len(heard) == 2, "the caption is what was read already"
    deadline = time.monotonic() + 5
    while service.worker.jobs or service.worker.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_callers_wait_is_timed(world, tmp_path, capsys):
    question = tmp_path / "question.wav"
    sf.write(question, world[1], 24_000)
    assert bench_call.main([f"http://{world[0]}", str(question), "--calls", "2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(result["records"]) == result["calls"] == 2
    for record in result["records"]:
        assert 300 < record["noticed_ms"] < record["sound_ms"] < 10_000, "500 ms of silence, from the last loud sample on"
        assert record["ours_ms"] == pytest.approx(record["sound_ms"] - record["noticed_ms"])
    sf.write(question, np.zeros(24_000), 24_000)
    assert bench_call.main([f"http://{world[0]}", str(question)]) == 2 and "silent" in capsys.readouterr().err


def test_soak_refuses_a_file_that_is_no_audio_and_an_address_where_nobody_is(tmp_path, capsys):
    for arguments, named in ((["--audio", str(tmp_path / "none.wav")], "none.wav"), ([], "127.0.0.1")):
        assert soak.main(["http://127.0.0.1:9", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and named in said


def test_typed_turns_remember_and_can_be_cancelled(world):
    async def call():
        realtime = openai.AsyncOpenAI(api_key="none", base_url=f"http://{world[0]}/v1")
        async with realtime.realtime.connect(model="any") as connection:
            events = []
            await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
            prompts = []
            for question in ("What color is the sky?", "What is the opposite of hot?"):
                await connection.conversation.item.create(item={"type": "message", "role": "user",
                                                                "content": [{"type": "input_text", "text": question}]})
                await connection.response.create()
                done = (await until(connection, "response.done", events))[-1].response
                assert done.status == "completed" and done.output[0].content[0].text
                prompts.append(done.usage.input_tokens)
            assert prompts[1] > prompts[0] + 10
            await connection.conversation.item.create(item={"type": "message", "role": "user",
                                                            "content": [{"type": "input_text", "text": "Count from one to ten."}]})
            await connection.response.create(response={"output_modalities": ["audio"]})
            await until(connection, "response.created", events)
            await connection.response.cancel()
            done = (await until(connection, "response.done", events))[-1].response
            assert done.status_details.reason == "client_cancelled"
    asyncio.run(call())
    service = world[2]
    deadline = time.monotonic() + 5
    while service.worker.jobs or service.worker.waiting or service.worker.engine.store.kept:
        assert time.monotonic() < deadline, "a call leaves nothing behind"
        time.sleep(0.02)


def test_many_ask_at_once_and_each_gets_his_own(world):
    questions = {"What color is the sky?": "blue", "What is the opposite of hot?": "cold", "How much is two plus two?": "four"}

    async def ask_all():
        client = openai.AsyncOpenAI(api_key="none", base_url=f"http://{world[0]}/v1", max_retries=0)
        return await asyncio.gather(*(client.chat.completions.create(model="any", messages=[{"role": "user", "content": q}])
                                      for q in list(questions) * 3))
    replies = [r.choices[0].message.content for r in asyncio.run(ask_all())]
    for i, question in enumerate(questions):
        own = replies[i::3]
        assert len(set(own)) == 1, own  # greedy: alone or in company
    assert "blue" in replies[0] and len(set(replies)) == 3


def test_a_reader_who_leaves_frees_his_row(world):
    service = world[2]
    with WEB.stream("POST", f"http://{world[0]}/v1/chat/completions", json={
            "model": "any", "messages": QUESTION, "stream": True, "modalities": ["text", "audio"],
            "audio": {"voice": "slt", "format": "pcm16"}}) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + 10
    while service.worker.jobs:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert json.loads(WEB.get(f"http://{world[0]}/healthz").text)["status"] == "ok"
