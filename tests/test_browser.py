"""The pages in headless Chromium against the real server: a chat with text, picture and sound; a phone call with barge-in.

Needs playwright and Chromium; skipped, with the reason, where they are missing. The nano pack has untrained ears and eyes here, so
the replies of the call are forced words: what is tested is what is played, and when.
"""
import base64
from pathlib import Path

import numpy as np
import pytest
from live_server import load_nano_with_senses, make_service, serve, speak
from PIL import Image

from model.audio import encode_audio, from_pcm16, write_wav

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

from scripts.screenshots import ask, chromium  # noqa: E402

RATE = 24_000
RECORDER = Path(__file__).with_name("recorder.js")
WORDS = "one two three four five six seven eight nine ten. the sky is blue and the grass is green."
GUARD_MS = 200  # of sustained speech before it is a barge-in
LATE_MS = 900  # on a free machine: from the end of speech to the first sound of the reply, the silence of 500 ms that ends a turn included
CUT_MS = 300  # on a free machine: from the onset of a barge-in to silence, beyond the guard
QUIET = 0.02


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(address, spoken question (S,) at 24 kHz); every spoken question is answered with WORDS."""
    folder = tmp_path_factory.mktemp("pack")
    chat = load_nano_with_senses(folder)
    spoken = speak(chat, "what is the color of the sky")
    service = make_service(chat, voices_dir=folder / "voices")
    request = service.request

    def forced(question):
        question.say = WORDS if question.wav is not None else None
        return request(question)
    service.request = forced
    with serve(service, with_page=True) as address:
        yield address, spoken


@pytest.fixture
def browser(tmp_path, request):
    microphone = request.getfixturevalue("microphone") if "microphone" in request.fixturenames else None
    try:
        with chromium(microphone) as browser:
            yield browser
    except RuntimeError as error:
        pytest.skip(f"{error}: apt-get install chromium")


@pytest.fixture
def microphone(tmp_path, world):
    """The WAV that the browser hears: a question, then, while it is answered, another one."""
    quiet = np.zeros(RATE, np.float32)
    path = tmp_path / "microphone.wav"
    write_wav(path, np.concatenate([quiet, quiet, world[1], quiet, quiet, world[1], quiet]), RATE)
    return path


def open_page(browser, url: str, **context):
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(100_000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(url)
    return page


def test_the_chat_page(world, browser, tmp_path):
    picture, sound = tmp_path / "p.png", tmp_path / "q.wav"
    Image.new("RGB", (64, 48), (200, 30, 30)).save(picture)
    sound.write_bytes(encode_audio(world[1], RATE, "wav"))
    page = open_page(browser, f"http://{world[0]}/", locale="zh-CN", viewport={"width": 390, "height": 844})
    ask(page, "What color is the sky?")
    assert "blue" in page.inner_text("#talk") and "TTFA" in page.inner_text("#talk")
    page.wait_for_function("minimindPlayer.received > 24000 && minimindPlayer.played === minimindPlayer.received")
    assert "聊天" in page.inner_text("body"), "the browser speaks Chinese"

    page.locator("#question input[type=file]").first.set_input_files([picture, sound])
    page.locator("#question .thumbnail-item, #question .thumbnail-wrapper, #question img").first.wait_for()
    turn = page.evaluate("minimindPlayer.turn")
    ask(page, "What is this?")
    assert "one two three" in page.inner_text("#talk") and page.locator("#talk img").count() >= 1
    page.wait_for_function("turn => minimindPlayer.turn !== turn && minimindPlayer.played > 2400", arg=turn)
    page.click("#stop")
    page.wait_for_function("minimindPlayer.silenced === minimindPlayer.turn")
    page.wait_for_timeout(300)  # what was on its way to the loudspeaker
    assert page.evaluate("minimindPlayer.played < minimindPlayer.received")
    assert page.errors == []


def call_until(page, condition: str, seconds: float = 60) -> None:
    page.wait_for_function(condition, timeout=1000 * seconds)


def runs_of_zeros(samples: np.ndarray) -> int:
    """Length of the longest."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], samples == 0, [0]]).astype(int)))
    return int(np.max(edges[1::2] - edges[::2], initial=0))


@pytest.mark.parametrize("slack", [3, pytest.param(1, marks=pytest.mark.slow, id="on-a-free-machine")])
def test_a_phone_call_with_barge_in(world, browser, microphone, slack):
    page = open_page(browser, "about:blank", bypass_csp=True)
    page.add_init_script(path=str(RECORDER))
    # the page asks for echo cancellation and gain control, which would change the sound that we measure
    page.add_init_script("""const media = navigator.mediaDevices, get = media.getUserMedia.bind(media);
        media.getUserMedia = () => get({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } });""")
    page.goto(f"http://{world[0]}/phone")
    page.click("#call")
    done = "events.filter((e) => e.type === 'response.done').length"
    call_until(page, f"{done} >= 2")
    call_until(page, "document.body.dataset.state === 'listening'")
    page.wait_for_timeout(500)
    events = page.evaluate("events")
    played, heard = (from_pcm16(base64.b64decode(channel)) for channel in page.evaluate("recorded()"))
    captions = page.locator("#captions p.model").all_inner_texts()
    timer = page.inner_text("#timer")
    page.click("#hangup")
    assert page.evaluate("document.body.dataset.state") == "idle" and page.errors == []
    assert not [e for e in events if e["type"] == "error"] and page.inner_text("#message") == ""
    assert timer != "0:00" and captions[-1].strip().startswith("one two three")

    speech = np.flatnonzero(np.abs(heard) > QUIET)
    pause = speech[np.argmax(np.diff(speech))]  # the end of the first question: the longest pause follows
    onset = speech[np.argmax(np.diff(speech)) + 1]
    sounding = np.flatnonzero(played)
    first = sounding[0]
    assert sounding[sounding > onset].size, "nothing was being said when it was interrupted"
    gap = np.flatnonzero(np.diff(sounding) > RATE // 4)
    cut = sounding[gap[0]]  # between the two replies it is silent for at least a turn's end
    second = sounding[gap[0] + 1:]
    delay_ms, cut_ms = 1000 * (first - pause) / RATE, 1000 * (cut - onset) / RATE
    items = [e["item_id"] for e in events if e["type"] == "response.output_audio.delta"]
    sent = {item: b"".join(base64.b64decode(e["delta"]) for e in events
                           if e["type"] == "response.output_audio.delta" and e["item_id"] == item) for item in items}
    last = from_pcm16(sent[items[-1]])
    whole = played[second[0]:second[-1] + 1]
    assert np.array_equal(whole[whole != 0], last[last != 0]), "what was sent is what is heard, all of it, in order"
    underrun_ms = 1000 * (runs_of_zeros(whole) - runs_of_zeros(last[np.flatnonzero(last)[0]:np.flatnonzero(last)[-1]])) / RATE
    assert len(set(items)) == 2 and len(last) > 2 * RATE
    print(f"end of speech to first sound {delay_ms:.0f} ms, barge-in to silence {cut_ms:.0f} ms, longest gap {underrun_ms:.0f} ms")
    assert delay_ms < slack * LATE_MS and cut_ms < GUARD_MS + slack * CUT_MS
    assert underrun_ms <= 20 or slack > 1


def test_a_page_without_a_microphone_says_why(world, browser):
    port = world[0].partition(":")[2]
    page = open_page(browser, f"http://127.0.0.1:{port}/phone")
    page.add_init_script("navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('x', 'NotAllowedError'); }")
    page.reload()
    page.click("#call")
    page.wait_for_function("document.querySelector('#message').textContent.includes('denied')")
    assert page.evaluate("document.body.dataset.state") == "idle"
