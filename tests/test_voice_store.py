"""Cloned voices: names, files that survive a restart, and the HTTP routes around them on a pack with tiny encoders."""
import base64

import httpx
import numpy as np
import pytest
import torch
from live_server import load_chat, make_service, serve
from tiny_pack import add_tiny_encoders, make_tiny_pack

from engine.model_menu import scan
from engine.voice_store import MAX_NAME, VoiceStore, check_name, codec_id
from engine.voices import Voice
from model.audio import encode_audio
from model.config import OmniConfig
from model.mimi import Mimi

RATE = 24_000
WEB = httpx.Client(timeout=60)  # one for all: making one takes longer than most requests
VOICE = Voice("Mia", torch.zeros(8, 4, dtype=torch.long), torch.ones(192))


def speechlike(seconds: float = 2.0, level: float = 0.4) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * 180 * t) * (np.sin(2 * np.pi * 2 * t) > 0)).astype(np.float32)


def body(name: str, wav=None, **changes) -> dict:
    audio = base64.b64encode(encode_audio(speechlike() if wav is None else wav, RATE, "wav")).decode()
    return {"name": name, "audio": audio, "consent": True, **changes}


def test_names():
    assert check_name(" Mia ", ()) == "Mia" and check_name("小明 2", ("Mia",)) == "小明 2" and check_name("a-b_c", ()) == "a-b_c"
    assert check_name("e\u0301va", ()) == "\u00e9va"  # one spelling for one name
    for name in ("", " ", ".", "..", "a/b", "a\\b", "../x", "a.pt", "a\0", "a\nb", "-a", "a  b", "x" * (MAX_NAME + 1), "%2e", "CON:", "~a"):
        with pytest.raises(ValueError, match="letters"):
            check_name(name, ())
    for name in ("none", "None", "alloy", "MARIN"):
        with pytest.raises(ValueError, match="reserved"):
            check_name(name, ())
    for name in ("mia", "MIA"):
        with pytest.raises(ValueError, match="already"):
            check_name(name, ("Mia",))


def test_voices_survive_and_broken_files_do_not_matter(tmp_path, caplog):
    folder, config = tmp_path / "voices", OmniConfig()
    store = VoiceStore(folder, config)
    assert store.load() == {}
    store.save(VOICE)
    (folder / "junk.pt").write_bytes(b"junk")
    torch.save({"x": {"ref_codes": torch.full((8, 3), 9999), "spk_emb": torch.ones(192)}}, folder / "foreign.pt")
    loaded = VoiceStore(folder, config).load()
    assert list(loaded) == ["Mia"] and loaded["Mia"].kind == "cloned" and torch.equal(loaded["Mia"].spk_emb, VOICE.spk_emb)
    assert "junk" in caplog.text and "foreign" in caplog.text
    store.delete("Mia")
    assert VoiceStore(folder, config).load() == {}


def test_there_is_an_end_to_them(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.voice_store.MAX_VOICES", 1)
    store = VoiceStore(tmp_path, OmniConfig())
    store.save(VOICE)
    with pytest.raises(ValueError, match="delete one"):
        store.save(VOICE)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return add_tiny_encoders(make_tiny_pack(tmp_path_factory.mktemp("pack")))


def test_a_voice_is_enrolled_spoken_with_kept_and_deleted(pack, tmp_path):
    voices_dir = tmp_path / "voices"
    with serve(make_service(load_chat(pack, slots=1), voices_dir=voices_dir)) as address:
        url = f"http://{address}/v1"
        assert WEB.get(f"{url}/voices").json()["data"] == [{"id": n, "kind": "built-in"} for n in ("ann", "bob")]
        made = WEB.post(f"{url}/voices", json=body("Mia"))
        assert made.status_code == 201 and made.json() == {"id": "Mia", "kind": "cloned"}
        assert WEB.get(f"{url}/voices").json()["data"][2] == {"id": "Mia", "kind": "cloned"}
        assert WEB.get(f"{url}/models").json()["data"][0]["voices"] == ["ann", "bob", "Mia"]
        spoken = WEB.post(f"{url}/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": "What color?"}],
                          "max_tokens": 20, "modalities": ["audio"], "audio": {"voice": "Mia", "format": "wav"}})
        assert spoken.status_code == 200
        wrong = [(body("../x"), "letters"), (body("mia"), "already"), (body("ann"), "already"), (body("alloy"), "reserved"),
                 (body("x", consent=False), "consent"), (body("x", audio="!"), "base64"), (body("x", audio="AAAA"), "cannot decode"),
                 (body("x", speechlike(0.5)), "0.5 s long"), (body("x", speechlike(31)), "30 s"),
                 (body("x", speechlike(level=1e-4)), "silent"), (body("x", np.clip(speechlike() * 9, -1, 1)), "clipped"),
                 (body("x", np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32) * 0.1), "noisy")]
        for request, reason in wrong:
            answer = WEB.post(f"{url}/voices", json=request)
            assert answer.status_code == 400 and reason in answer.json()["error"]["message"], (request["name"], answer.text)
            assert str(tmp_path) not in answer.text and str(pack) not in answer.text
    assert [path.name for path in voices_dir.rglob("*.pt")] == ["Mia.pt"]

    with serve(make_service(load_chat(pack, slots=1), voices_dir=voices_dir)) as address:  # the server was started anew
        url = f"http://{address}/v1/voices"
        assert WEB.get(url).json()["data"][2]["id"] == "Mia"
        assert WEB.delete(f"{url}/ann").status_code == 400 and WEB.delete(f"{url}/..%2fx").status_code == 404
        assert WEB.delete(f"{url}/Mia").json() == {"id": "Mia", "deleted": True}
        assert WEB.delete(f"{url}/Mia").status_code == 404
    assert not list(voices_dir.rglob("*.pt"))


def test_another_codec_has_other_voices(pack, tmp_path):
    other = make_tiny_pack(tmp_path)
    first, second = (Mimi.load(folder / "mimi", encoder=False) for folder in (pack, other))
    assert codec_id(first) == codec_id(second)  # the same seed
    second.encode_chains[1].tables[0, 0, 0] += 1
    assert codec_id(first) != codec_id(second)


def test_a_pack_without_the_encoder_says_so(tmp_path):
    chat = load_chat(make_tiny_pack(tmp_path / "pack"), slots=1)
    with serve(make_service(chat, voices_dir=tmp_path / "voices")) as address:
        answer = WEB.post(f"http://{address}/v1/voices", json=body("Mia"))
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "missing_module" and "campplus" in answer.text


def test_the_menu_finds_models_in_both_formats(tmp_path):
    pack = make_tiny_pack(tmp_path / "pack")
    out = tmp_path / "out"
    out.mkdir()
    for suffix in (".pth", ".json"):
        (out / f"mine_64{suffix}").write_bytes((pack / f"sft_omni_64{suffix}").read_bytes())
        (out / f"mine_64_resume{suffix}").write_bytes(b"")
    (out / "strange_99.pth").write_bytes(b"")  # of the released vocabulary, by its missing sidecar: no pack fits
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "other"}')
    found = scan([out, tmp_path], [pack])
    assert {name: (choice.weights.name, choice.pack.name) for name, choice in found.items()} == {
        "pack/sft_omni_64": ("sft_omni_64.pth", "pack"), "out/mine_64": ("mine_64.pth", "pack")}
