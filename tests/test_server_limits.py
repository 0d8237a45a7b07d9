"""Who is let in and how much is taken: key, origin, host, sizes, rates, idle and slow clients, and 150 (slow: 2,000) broken messages."""
import asyncio
import base64
import contextlib
import json
import random
import socket
import threading
import time

import httpx
import pytest
from live_server import load_chat, make_service, serve
from tiny_pack import make_tiny_pack
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from engine.api.app import create_app
from engine.api.limits import TokenBucket
from scripts.web_demo_omni import LOOPBACK, main

ASK = {"model": "m", "messages": [{"role": "user", "content": "What color is the sky?"}]}
KEY = "s3cret"
WEB = httpx.Client(timeout=60)  # one for all: making one takes longer than most requests


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return load_chat(make_tiny_pack(tmp_path_factory.mktemp("tiny")), slots=1)


@pytest.fixture
def server(chat):
    """server(limits, **guard): start one with these limits; yields its address. Stopped when the test is over."""
    with contextlib.ExitStack() as stack:
        yield lambda limits=None, **guard: stack.enter_context(serve(make_service(chat, **(limits or {})), **guard))


def realtime(address, **kwargs):
    return connect(f"ws://{address}/v1/realtime?model=m", open_timeout=20, max_size=None, **kwargs)


def receive(call) -> dict:
    return json.loads(call.recv(timeout=20))


def test_without_the_key_no_route_is_open(chat, server):
    address = server(api_key=KEY)
    routes = [(method, path) for path, methods in create_app(make_service(chat)).openapi()["paths"].items() for method in methods]
    assert len(routes) >= 5
    for method, path in [*routes, ("GET", "/openapi.json"), ("GET", "/nothing"), ("POST", "/v1/realtime")]:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic !!"}, {"Cookie": "minimind_key=x"}):
            response = WEB.request(method, f"http://{address}{path}", headers=headers)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Basic", (method, path, headers)
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        with pytest.raises(InvalidStatus) as refused:
            realtime(address, additional_headers=headers)
        assert refused.value.response.status_code == 401
    assert WEB.get(f"http://{address}/healthz", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    page = WEB.get(f"http://{address}/healthz", auth=("anybody", KEY))
    WEB.cookies.clear()
    cookie = page.headers["set-cookie"]
    assert page.status_code == 200 and "HttpOnly" in cookie and "SameSite=Strict" in cookie and KEY not in cookie
    ways = ({"additional_headers": {"Authorization": f"Bearer {KEY}"}}, {"additional_headers": {"Cookie": cookie.partition(";")[0]}},
            {"subprotocols": ["realtime", f"openai-insecure-api-key.{KEY}"]})
    for way in ways:
        with realtime(address, **way) as call:
            assert receive(call)["type"] == "session.created"
            assert call.subprotocol == ("realtime" if "subprotocols" in way else None)


def test_a_user_gets_in_by_his_password_and_nobody_else(server):
    address = server(auth="me:pass:word")
    url = f"http://{address}/phone"
    for wrong in (None, ("me", "word"), ("me", ""), ("you", "pass:word"), ("", "pass:word")):
        assert WEB.get(url, auth=wrong).status_code == 401, wrong
    assert WEB.get(url, headers={"Authorization": "Bearer me:pass:word"}).status_code == 401  # that is no key
    page = WEB.get(url, auth=("me", "pass:word"))
    WEB.cookies.clear()
    assert page.status_code == 200
    with realtime(address, additional_headers={"Cookie": page.headers["set-cookie"].partition(";")[0]}) as call:
        assert receive(call)["type"] == "session.created"
    both = server(auth="me:word", api_key=KEY)
    for who, status in ((("me", "word"), 200), (("anybody", KEY), 200), (("me", "x"), 401)):
        assert WEB.get(f"http://{both}/healthz", auth=who).status_code == status
        WEB.cookies.clear()


def test_pages_and_names_of_others_are_refused(server):
    address = server(hosts=LOOPBACK, origins=frozenset({"https://friend.example"}))
    assert WEB.get(f"http://{address}/healthz", headers={"Host": "evil.example"}).status_code == 421
    asked = WEB.options(f"http://{address}/v1/models", headers={"Origin": "https://friend.example", "Access-Control-Request-Method": "GET",
                                                                "Access-Control-Request-Headers": "authorization"})
    assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == "https://friend.example"
    assert WEB.get(f"http://{address}/healthz", headers={"Host": "["}).status_code == 421
    for origin, status in (("http://evil.example", 403), ("http://[", 403), ("null", 403), (f"http://{address}", 200),
                           ("https://friend.example", 200)):
        assert WEB.get(f"http://{address}/healthz", headers={"Origin": origin}).status_code == status, origin
    with pytest.raises(InvalidStatus) as refused:
        realtime(address, origin="http://evil.example")
    assert refused.value.response.status_code == 403
    with realtime(address, origin=f"http://{address}") as call:
        assert receive(call)["type"] == "session.created"


def test_large_and_slow_requests(chat, server):
    address = server({"message_bytes": 5000, "body_s": 0.5})
    url = f"http://{address}/v1/chat/completions"
    assert WEB.post(url, json={**ASK, "filler": "x" * 5000}).status_code == 413
    assert WEB.post(url, content=(b"x" * 1000 for _ in range(6))).status_code == 413  # no length announced
    assert WEB.post(url, content=b"{").json()["error"]["code"] == "invalid_value"
    assert WEB.post(url, json={**ASK, "max_tokens": 3}).status_code == 200
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b"408" in slow.recv(1000)
    with realtime(address) as call:
        receive(call)
        call.send("x" * 6000)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                receive(call)
        assert closed.value.rcvd.code == 1009


def test_calls_rates_and_silence_are_limited(server):
    address = server({"calls": 1, "messages_per_s": 5, "idle_s": 1.0})
    with realtime(address) as call:
        receive(call)
        with realtime(address) as other:
            assert receive(other)["error"]["code"] == "session_limit_reached"
            with pytest.raises(ConnectionClosed) as closed:
                other.recv(timeout=10)
            assert closed.value.rcvd.code == 1013
        began = time.monotonic()
        for _ in range(26):  # 20 at once, then five a second: they wait, and none is lost
            call.send("{}")
        assert {receive(call)["error"]["code"] for _ in range(26)} == {"unknown_event"}
        assert time.monotonic() - began > 0.9
    deadline = time.monotonic() + 10
    while True:  # its place is free again
        with realtime(address) as call:
            if receive(call)["type"] == "session.created":
                assert receive(call)["error"]["code"] == "idle_timeout"
                break
        assert time.monotonic() < deadline


def test_sound_may_come_only_so_fast(server):
    address = server({"bytes_per_s": 100_000, "message_bytes": 70_000})
    with realtime(address) as call:
        receive(call)
        began = time.monotonic()
        for _ in range(4):  # 256 kB, 140 of them at once
            call.send(json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(48_000)).decode()}))
        call.send("{}")
        assert receive(call)["error"]["code"] == "unknown_event" and time.monotonic() - began > 1


def test_replies_beyond_the_queue_are_refused(server):
    address = server({"waiting": 1})

    async def ask_many():
        async with httpx.AsyncClient(timeout=60) as client:
            spoken = {**ASK, "max_tokens": 60, "modalities": ["audio"], "audio": {"voice": "ann", "format": "wav"}}
            return await asyncio.gather(*(client.post(f"http://{address}/v1/chat/completions", json=spoken) for _ in range(5)))
    responses = asyncio.run(ask_many())
    statuses = sorted(r.status_code for r in responses)
    assert statuses[0] == 200 and statuses[-1] == 429 and set(statuses) == {200, 429}
    assert {r.json()["error"]["code"] for r in responses if r.status_code == 429} == {"server_busy"}


def wait_for_calls(address: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while f"minimind_realtime_sessions {count}.0" not in WEB.get(f"http://{address}/metrics").text:
        assert time.monotonic() < deadline, f"there are not {count} calls"
        time.sleep(0.1)


def test_a_reader_who_does_not_read_loses_only_his_call(server):
    address = server({"send_s": 0.3, "messages_per_s": 1e6, "bytes_per_s": 1e9})
    host, _, port = address.partition(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((host, int(port)))
    deaf = connect(f"ws://{address}/v1/realtime", sock=raw, max_queue=1, compression=None, close_timeout=0.1)
    wait_for_calls(address, 1)
    text = json.dumps({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [
        {"type": "input_text", "text": "x" * 20_000}]}})

    def talk():
        with contextlib.suppress(ConnectionClosed, OSError):
            while True:
                deaf.send(text)
    talking = threading.Thread(target=talk, daemon=True)
    talking.start()
    wait_for_calls(address, 0)
    assert WEB.post(f"http://{address}/v1/chat/completions", json={**ASK, "max_tokens": 3}).status_code == 200
    raw.shutdown(socket.SHUT_RDWR)
    talking.join(30)
    assert not talking.is_alive()


def test_what_the_pack_lacks_is_said(server):
    """This pack has no SenseVoice: a spoken turn is found and committed, and the reply to it fails with the reason."""
    address = server()
    sound = base64.b64encode(bytes(48_000)).decode()
    item = {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": sound}]}
    with realtime(address) as call:
        call.send(json.dumps({"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "x"}}}}}))
        call.send(json.dumps({"type": "conversation.item.create", "item": item}))
        call.send(json.dumps({"type": "response.create"}))
        events = []
        wanted = {"response.done", "conversation.item.input_audio_transcription.failed"}  # in either order: two threads make them
        while not wanted <= {e["type"] for e in events}:
            events.append(receive(call))
    done = next(e["response"] for e in events if e["type"] == "response.done")
    failed = next(e for e in events if e["type"] == "conversation.item.input_audio_transcription.failed")
    assert done["status"] == "failed"
    for error in (done["status_details"]["error"], failed["error"]):
        assert error["code"] == "missing_module" and "SenseVoiceSmall" in error["message"]
    assert not [e for e in events if e["type"] == "error"]


# ---- broken messages

VALID = [
    {"type": "session.update", "session": {"type": "realtime", "instructions": "x", "audio": {"input": {"turn_detection": None}}}},
    {"type": "input_audio_buffer.append", "audio": "AAAA"}, {"type": "input_audio_buffer.commit"}, {"type": "input_audio_buffer.clear"},
    {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}},
    {"type": "conversation.item.truncate", "item_id": "a", "content_index": 0, "audio_end_ms": 10},
    {"type": "conversation.item.delete", "item_id": "a"}, {"type": "conversation.item.retrieve", "item_id": "a"},
    {"type": "response.create", "response": {"output_modalities": ["text"], "max_output_tokens": 2}}, {"type": "response.cancel"},
]
JUNK = [None, True, -1, 2**70, 1.5, float("nan"), float("inf"), "", "\ud800", "x" * 3000, "\0", [], {}, [[[[]]]], {"a": {}},
        "data:image/png;base64,AAAA", "../../etc/passwd", "response.create", {"type": "message"}, [{}], "inf", 0]


def break_value(value, rng):
    """A copy with something in it replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        copy = dict(value)
        if rng.random() < 0.2:
            del copy[key]
        else:
            copy[key] = break_value(value[key], rng)
        if rng.random() < 0.1:
            copy[rng.choice(["event_id", "item", "x", "response"])] = rng.choice(JUNK)
        return copy
    if isinstance(value, list) and value and rng.random() < 0.7:
        return [break_value(item, rng) for item in value] * rng.choice([1, 1, 2, 30])
    return rng.choice(JUNK)


def broken_message(rng) -> str | bytes:
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(rng.randrange(60))
    text = json.dumps(break_value(rng.choice(VALID), rng))
    if kind < 0.2:
        return text[:rng.randrange(len(text) + 1)]
    if kind < 0.25:
        return "[" * rng.choice([3, 100_000])
    return text


def fuzz(address: str, count: int, seed: int) -> int:
    """Send broken messages, each followed by one whose answer is known; returns how many were answered with a typed error."""
    rng, errors = random.Random(seed), 0
    with realtime(address) as call:
        receive(call)
        for number in range(count):
            message = broken_message(rng)
            call.send(message)
            call.send(json.dumps({"type": "conversation.item.retrieve", "item_id": "none", "event_id": f"mark-{number}"}))
            while True:
                event = receive(call)
                if event["type"] != "error":
                    continue  # what was left of the message was valid
                error = event["error"]
                assert error["type"] == "invalid_request_error" and error["code"] and error["message"], (message, event)
                if error.get("event_id") == f"mark-{number}":
                    assert error["code"] == "item_not_found"
                    break
                errors += 1
    return errors


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_broken_messages_are_typed_errors_and_do_no_harm(server, count):
    address = server({"messages_per_s": 1e6, "bytes_per_s": 1e9})
    assert fuzz(address, count, seed=count) > 0.6 * count
    assert WEB.get(f"http://{address}/healthz").status_code == 200
    assert WEB.post(f"http://{address}/v1/chat/completions", json={**ASK, "max_tokens": 3}).status_code == 200
    figures = WEB.get(f"http://{address}/metrics").text
    assert 'code="server_error"' not in figures and 'code="reply_failed"' not in figures


# ---- small parts

def test_a_bucket_lets_through_what_it_says():
    now = [0.0]
    bucket = TokenBucket(rate=10, burst=20, clock=lambda: now[0])
    assert [bucket.take(10) for _ in range(3)] == [0, 0, 1]
    now[0] = 1.5
    assert [bucket.take(4), bucket.take(2)] == [0, pytest.approx(0.1)]
    now[0] = 1000
    assert [bucket.take(20), bucket.take(1)] == [0, pytest.approx(0.1)]


@pytest.mark.parametrize("argv, message", [
    (["--load_from", "/nowhere"], "no such folder"), (["--ssl-certfile", "/nowhere.pem"], "no such file"),
    (["--api-key", " "], "--api-key"), (["--auth", "me"], "USER:PASSWORD"), (["--auth", ":x"], "USER:PASSWORD"),
    (["--save_dir", "/nowhere", "--port", "0"], "no weights")])
def test_wrong_arguments_end_with_one_line(argv, message, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
