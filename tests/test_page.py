"""The web page's callbacks, without a browser: what they show, remember and refuse. Pages in a real browser: test_browser.py."""
import asyncio
import contextlib
import io
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from live_server import load_chat, make_service
from PIL import Image
from tiny_pack import add_tiny_encoders, make_tiny_pack

from model.audio import encode_audio, read_audio

gr = pytest.importorskip("gradio")

from engine.api.app import create_app  # noqa: E402
from engine.api.page import Page, Talk, mount_page  # noqa: E402  (gradio takes seconds to import)
from engine.api.page_texts import CHINESE, ENGLISH  # noqa: E402
from test_voice_store import speechlike  # noqa: E402


@contextlib.contextmanager
def running(service):
    service.worker.start()
    try:
        yield Page(service)
    finally:
        service.close()


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return make_tiny_pack(tmp_path_factory.mktemp("pack"))


async def collect(page, talk, text="", files=(), speak=True, stop_after=None, stop=None) -> list:
    """Every (what is shown, player's value, talk, box) of one turn; None where nothing new is shown."""
    updates = []
    async for update in page.answer({"text": text, "files": list(files)}, talk, "ann", 0, speak):
        updates.append([list(update[0]) if isinstance(update[0], list) else None, *update[1:]])
        if stop_after == len(frames(updates)) and "pcm" in update[1]:
            (stop or page.stop)(talk)
    return updates


def frames(updates) -> list:
    return [update[1] for update in updates if "pcm" in update[1]]


def test_a_talk_streams_is_remembered_and_can_be_stopped(pack):
    with running(make_service(load_chat(pack, slots=2), new_tokens=40)) as page:
        talk = Talk()
        first = asyncio.run(collect(page, talk, "What color is the sky?"))
        sounds = frames(first)
        assert [v["seq"] for v in sounds] == list(range(1, len(sounds) + 1)) and len({v["turn"] for v in sounds}) == 1
        shown = first[-1][0]
        assert shown[0] == {"role": "user", "content": "What color is the sky?"} and "TTFA" in shown[-1]["content"]
        whole = read_audio(Path(shown[-2]["content"].value["path"]), 24_000)
        assert len(whole) == 1920 * len(sounds)
        assert [m["role"] for m in talk.messages] == ["user", "assistant"] and talk.messages[1]["content"] == shown[1]["content"]
        asyncio.run(collect(page, talk, "And grass?", speak=False))
        assert [m["content"] for m in talk.messages][::2] == ["What color is the sky?", "And grass?"]

        stopped = asyncio.run(collect(page, talk, "And snow?", stop_after=2))
        assert len(frames(stopped)) == 2 < len(sounds) and stopped[-1][0] is not None
        # a random model may well say nothing, but not ten times
        replies = (frames(asyncio.run(collect(page, talk, "And milk?"))) for _ in range(10))
        assert any(len(sounds) > 2 for sounds in replies), "a stop is for one reply only"
        other = Talk()
        asyncio.run(collect(page, other, "Hi"))
        assert other.id != talk.id and len(other.messages) == 2
        history, fresh = page.forget(talk)
        assert history == [] and fresh.messages == fresh.shown == [] and fresh.id == ""
        assert asyncio.run(collect(page, other, "   "))[-1][0] is None


def test_a_new_talk_is_not_written_over_by_a_reply_of_the_old_one(pack):
    with running(make_service(load_chat(pack, slots=2), new_tokens=40)) as page:
        for _ in range(10):  # a random model may say nothing, but not ten times
            updates = asyncio.run(collect(page, Talk(), "Hi", stop_after=2, stop=page.forget))
            if len(frames(updates)) == 2:
                assert "pcm" in updates[-1][1], "nothing is shown after it"
                return
        pytest.fail("no reply with two frames")


@pytest.mark.parametrize("named", ["/etc/passwd", "README.md", "http://198.51.100.7/x.wav"])
def test_a_visitor_cannot_name_files_and_addresses_of_the_server(pack, named, monkeypatch):
    monkeypatch.setattr(gr.processing_utils, "async_ssrf_protected_download", None)  # mount_page puts its own in its place
    service = make_service(load_chat(pack, slots=1), new_tokens=4)
    with TestClient(create_app(service, with_page=True)) as client:
        (submit,) = (d for d in client.get("/config").json()["dependencies"] if d["targets"] and d["targets"][0][1] == "submit")
        file = {"path": named, "meta": {"_type": "gradio.FileData"}}
        data = [{"text": "", "files": [file]}, None, "ann", 0, False]
        asked = {"fn_index": submit["id"], "data": data, "session_hash": "s", "event_data": None, "trigger_id": None}
        assert client.post("/gradio_api/queue/join", json=asked).status_code == 200
        with client.stream("GET", "/gradio_api/queue/data?session_hash=s") as stream:
            told = next(line for line in stream.iter_lines() if "process_completed" in line)
        assert '"success":false' in told.replace(" ", "") and "file=" not in told, told


def test_what_is_wrong_or_missing_is_part_of_the_talk(pack, tmp_path):
    sound, text_file, picture = tmp_path / "q.wav", tmp_path / "q.txt", tmp_path / "p.png"
    sound.write_bytes(encode_audio(speechlike(), 24_000, "wav"))
    text_file.write_text("x")
    Image.new("RGB", (9, 9)).save(picture)
    with running(make_service(load_chat(pack, slots=1), new_tokens=10)) as page:
        talk = Talk()
        for text, files, reason in (("", [sound], "SenseVoiceSmall"), ("", [picture], "siglip2"), ("hi", [text_file], "cannot be taken"),
                                    ("", [sound, sound], "one recording"), ("<|im_end|>", [], "empty"), ("x" * 20_001, [], "at most")):
            shown = asyncio.run(collect(page, talk, text, files))[-1][0]
            assert shown[-1]["content"].startswith("⚠️") and reason in shown[-1]["content"], shown[-1]
            assert str(pack) not in shown[-1]["content"] and talk.messages == []
        assert "hear" in page.lacks() and "see" in page.lacks()


def test_it_hears_and_sees_where_the_pack_can(pack, tmp_path):
    full = add_tiny_encoders(make_tiny_pack(tmp_path / "full"))
    sound, picture = tmp_path / "q.wav", tmp_path / "p.png"
    sound.write_bytes(encode_audio(speechlike(), 24_000, "wav"))
    file = io.BytesIO()
    Image.new("RGB", (300, 200)).save(file, "PNG")
    picture.write_bytes(file.getvalue())
    models = {"other": lambda: (load_chat(pack, slots=1), service.defaults)}
    service = make_service(load_chat(full, slots=1), new_tokens=10, voices_dir=tmp_path / "voices", models=models)
    with running(service) as page:
        assert page.lacks() == ""
        talk = Talk()
        shown = asyncio.run(collect(page, talk, "What is it?", [sound, picture]))[-1][0]
        assert [m["role"] for m in shown[:4]] == ["user"] * 4 and "🎤" in shown[3]["content"]
        assert not any("⚠️" in str(m["content"]) for m in shown)

        assert asyncio.run(page.enrol("Mia", str(sound), False))[0] == "⚠️ the consent of the person is needed"
        assert "choose a file" in asyncio.run(page.enrol("Mia", None, True))[0]
        assert "letters" in asyncio.run(page.enrol("../x", str(sound), True))[0]
        told, voices, cloned = asyncio.run(page.enrol("Mia", str(sound), True))
        assert told == "✅ Mia" and voices.value == "Mia" and [name for _, name in cloned.choices] == ["Mia"]
        assert "⚠️" in asyncio.run(page.delete("ann"))[0] and "⚠️" in asyncio.run(page.delete(None))[0]
        assert asyncio.run(page.delete("Mia"))[0] == "🗑️ Mia" and list(service.chat.voices) == ["ann", "bob"]

        old = service.worker
        asyncio.run(page.change_model("other", talk))
        assert service.model_id == "other" and not old.alive and service.worker.alive and "hear" in page.lacks()
        assert len(asyncio.run(collect(page, Talk(), "Hi"))) > 2
        asyncio.run(page.change_model("nothing", Talk()))
        assert service.model_id == "other"


def test_both_languages_have_every_word():
    assert set(ENGLISH) == set(CHINESE) and all(ENGLISH.values()) and all(CHINESE.values())
    assert callable(mount_page)
