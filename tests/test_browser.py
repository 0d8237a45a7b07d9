"""The pages in headless Chromium against the real server: a chat with text, picture and sound; calls, one with barge-in, four at once.

Needs playwright and Chromium; skipped, with the reason, where they are missing. Mostly the replies to what is spoken are forced words: what
is tested is what is played, and when. In one call the pack answers for itself, and a recogniser that knows nothing of it writes down what
the loudspeaker played.
"""
import base64
import shutil
from pathlib import Path

import numpy as np
import pytest
from live_server import NANO, load_chat, load_nano_with_senses, make_service, serve, speak
from PIL import Image

from dataset.tts import FLITE_RATE, Flite
from evals.asr import load_recogniser
from evals.metrics import wer
from model.audio import encode_audio, from_pcm16, resample, write_wav

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

from scripts.screenshots import ask, chromium  # noqa: E402

RATE = 24_000
RECORDER = Path(__file__).with_name("recorder.js")
WORDS = "one two three four five six seven eight nine ten. the sky is blue and the grass is green."
GUARD_MS = 200  # of sustained speech before it is a barge-in
LATE_MS = 900  # on a free machine: from the end of speech to the first sound of the reply, the silence of 500 ms that ends a turn included
CUT_MS = 300  # on a free machine: from the onset of a barge-in to silence, beyond the guard
QUIET = 0.02
CALLERS = 4
HEARD_WER = 0.35  # of what the loudspeaker plays, by the captions
ASKED = ("What color is grass?", "What does a horse eat?", "Say after me: The little dog is looking for fresh water.",
         "What is the opposite of cold?", "How many legs does a spider have?", "Where does the baker work?",
         "Repeat after me: My sister bought seven apples this morning.", "What is the capital of Italy?")


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
def browser(request):
    wav = next((name for name in ("microphone", "questions") if name in request.fixturenames), None)
    try:
        with chromium(wav and request.getfixturevalue(wav)) as browser:
            yield browser
    except RuntimeError as error:
        pytest.skip(f"{error}: apt-get install chromium")


@pytest.fixture
def questions(tmp_path):
    """The WAV that the browser hears: ASKED by flite, with time for an answer after each."""
    if shutil.which("flite") is None:
        pytest.skip("flite is not installed: apt-get install flite")
    path, flite = tmp_path / "questions.wav", Flite()
    spoken = [resample(flite.speak(text, "slt").wav, FLITE_RATE, RATE) for text in ASKED]
    quiet = np.zeros(RATE, np.float32)
    write_wav(path, np.concatenate([quiet, *(part for wav in spoken for part in (quiet, wav, *[quiet] * 7))]), RATE)
    return path


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


def dial(browser, address: str):
    """A page with a call that has begun, recorded."""
    page = open_page(browser, "about:blank", bypass_csp=True)
    page.add_init_script(path=str(RECORDER))
    # the page asks for echo cancellation and gain control, which would change the sound that we measure
    page.add_init_script("""const media = navigator.mediaDevices, get = media.getUserMedia.bind(media);
        media.getUserMedia = () => get({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } });""")
    page.goto(f"http://{address}/phone")
    page.click("#call")
    return page


def replied(page, count: int, seconds: float = 60) -> None:
    """Wait until `count` replies have been sent and played."""
    call_until(page, f"events.filter((e) => e.type === 'response.done').length >= {count}", seconds)
    call_until(page, "document.body.dataset.state === 'listening'")
    page.wait_for_timeout(500)


def recorded(page) -> tuple[np.ndarray, np.ndarray]:
    """What the loudspeaker played and what the microphone heard, (S,) each at RATE."""
    return tuple(from_pcm16(base64.b64decode(channel)) for channel in page.evaluate("recorded()"))


def sent(events: list[dict]) -> dict[str, np.ndarray]:
    """{item: (S,) samples}, in the order of the replies."""
    found = {}
    for event in events:
        if event["type"] == "response.output_audio.delta":
            found[event["item_id"]] = found.get(event["item_id"], b"") + base64.b64decode(event["delta"])
    return {item: from_pcm16(data) for item, data in found.items()}


def longest_gap_ms(played: np.ndarray, reply: np.ndarray) -> float:
    """By how much the longest silence in what was played exceeds the longest one of the reply."""
    return 1000 * (runs_of_zeros(np.trim_zeros(played)) - runs_of_zeros(np.trim_zeros(reply))) / RATE


@pytest.mark.parametrize("slack", [3, pytest.param(1, marks=pytest.mark.slow, id="on-a-free-machine")])
def test_a_phone_call_with_barge_in(world, browser, microphone, slack):
    page = dial(browser, world[0])
    replied(page, 2)
    events, (played, heard) = page.evaluate("events"), recorded(page)
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
    replies = list(sent(events).values())
    whole, last = played[second[0]:second[-1] + 1], replies[-1]
    assert np.array_equal(whole[whole != 0], last[last != 0]), "what was sent is what is heard, all of it, in order"
    underrun_ms = longest_gap_ms(whole, last)
    assert len(replies) == 2 and len(last) > 2 * RATE
    print(f"end of speech to first sound {delay_ms:.0f} ms, barge-in to silence {cut_ms:.0f} ms, longest gap {underrun_ms:.0f} ms")
    assert delay_ms < slack * LATE_MS and cut_ms < GUARD_MS + slack * CUT_MS
    assert underrun_ms <= 20 or slack > 1


@pytest.mark.slow
def test_four_calls_at_once(world, browser, microphone):
    pages = [dial(browser, world[0]) for _ in range(CALLERS)]
    gaps = []
    for page in pages:
        replied(page, 2, seconds=120)
        played, replies = recorded(page)[0], list(sent(page.evaluate("events")).values())
        sounding = np.flatnonzero(played)
        whole = played[sounding[np.flatnonzero(np.diff(sounding) > RATE // 4)[-1] + 1]:sounding[-1] + 1]  # of the last reply
        assert np.array_equal(whole[whole != 0], replies[-1][replies[-1] != 0])
        gaps.append(longest_gap_ms(whole, replies[-1]))
        page.click("#hangup")
    print(f"{CALLERS} calls, longest gaps {', '.join(f'{gap:.0f}' for gap in gaps)} ms")
    assert max(gaps) <= 20


@pytest.mark.slow
def test_what_the_loudspeaker_plays_is_what_the_captions_say(browser, questions):
    chat = load_chat(NANO)
    with serve(make_service(chat), with_page=True) as address:
        page = dial(browser, address)
        replied(page, len(ASKED), seconds=30 + 12 * len(ASKED))
        events, played = page.evaluate("events"), recorded(page)[0]
        captions = page.locator("#captions p.model").all_inner_texts()
        page.click("#hangup")
    assert not [event for event in events if event["type"] == "error"] and len(captions) == len(ASKED)
    sounding = np.flatnonzero(played)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(sounding) > RATE) + 1])  # nobody pauses for a second in a reply
    pieces = [played[piece[0]:piece[-1] + 1] for piece in np.split(sounding, starts[1:])]
    assert len(pieces) == len(captions), "one stretch of sound for each reply"
    recogniser = load_recogniser("pocketsphinx")
    pairs = [(caption.strip(), recogniser.transcribe(piece, RATE)) for caption, piece in zip(captions, pieces)]
    error = wer(pairs)
    print(f"WER {error:.3f} of what was played:", *pairs, sep="\n")
    assert error <= HEARD_WER


def test_a_page_without_a_microphone_says_why(world, browser):
    port = world[0].partition(":")[2]
    page = open_page(browser, f"http://127.0.0.1:{port}/phone")
    page.add_init_script("navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('x', 'NotAllowedError'); }")
    page.reload()
    page.click("#call")
    page.wait_for_function("document.querySelector('#message').textContent.includes('denied')")
    assert page.evaluate("document.body.dataset.state") == "idle"
