"""The published tables measured on a tiny random pack by a scripted recogniser: their figures, what is skipped, and the files."""
import base64
import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from tiny_pack import add_tiny_encoders, make_tiny_pack

from engine.chat import Chat
from evals import asr, eval_nano, run
from evals.metrics import words
from evals.report import picture
from evals.results import Figure, ratio
from evals.samples import Examinee, Sample
from evals.tables import BUCKETS, Plan, error_rows



class Scripted:
    """Hears nothing but "blue", whatever is said."""

    def transcribe(self, wav, rate):
        return "blue"


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A whole pack with held-out questions and example inputs."""
    from PIL import Image
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = add_tiny_encoders(make_tiny_pack(tmp_path_factory.mktemp("pack")))
    heldout = [{"question": f"Question {i}?", "answer": "blue", "kind": "k"} for i in range(4)]
    (folder / "heldout.jsonl").write_text("".join(json.dumps(item) + "\n" for item in heldout))
    (folder / "examples").mkdir()
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(folder / "examples" / "image-1.png")
    soundfile.write(folder / "examples" / "audio-1.wav", 0.3 * np.sin(np.arange(16000) * 0.05), 16000)
    torch.save({"eve": torch.load(folder / "voices.pt", weights_only=True)["bob"]}, folder / "voices_unseen.pt")
    yield folder
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    monkeypatch.setattr(run, "load_recogniser", lambda name, pack, device: Scripted())
    monkeypatch.setattr("evals.samples.MAX_STEPS", {"nano": 16, "general": 16})


def evaluate(pack, out, *options) -> dict:
    """The command's results.json, tables by name."""
    assert run.main([*options, "--pack", str(pack), "--save_dir", str(pack), "--device", "cpu", "--output_dir", str(out),
                     "--data", str(pack / "data"), "--n", "3", "--clone_n", "2", "--samples", "2"]) == 0
    return {table["table"]: table for table in json.loads((out / "results.json").read_text())["tables"]}


@pytest.mark.timeout(600)
def test_all_tables_and_the_page(pack, tmp_path, capsys):
    tables = evaluate(pack, tmp_path, "all")
    assert list(tables) == ["consistency", "cloning", "t2a", "pictures", "latency", "a2a"]
    done = {name for name, table in tables.items() if not table["skipped"]}
    assert done >= {"consistency", "cloning", "t2a", "pictures", "latency"}
    if shutil.which("flite"):
        assert "a2a" in done and tables["a2a"]["rows"][-1]["group"] == "flite kal16 (unseen)"
    else:
        assert "apt-get install flite" in tables["a2a"]["skipped"]
    consistency, = [row for row in tables["consistency"]["rows"] if row["group"] == "Talker 64: all"]
    replies = tables["consistency"]["samples"]
    errors = sum(len(words(s["text"])) - ("blue" in words(s["text"])) if words(s["text"]) else 1 for s in replies)
    said = sum(len(words(s["text"])) for s in replies)
    assert consistency["n"] == 3 and consistency["WER"]["value"] == pytest.approx(errors / max(said, 1), abs=1e-4)
    assert tables["t2a"]["samples"] == replies, "a reply that two tables need is generated once"
    groups = [row["group"] for row in tables["cloning"]["rows"]]
    assert groups == ["all seen", "all unseen", "ann (seen)", "bob (seen)", "eve (unseen)"]
    assert [row["n"] for row in tables["cloning"]["rows"]] == [4, 2, 2, 2, 2], "two questions for each voice, each in one group"
    assert -1 <= tables["cloning"]["rows"][0]["campplus cosine"]["value"] <= 1
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    sounds = re.findall(r"data:audio/mpeg;base64,([^\"]+)", page)
    assert len(sounds) >= 6 and base64.b64decode(sounds[0])[:2] in (b"\xff\xfb", b"\xff\xf3", b"ID")
    assert page.count("waveform and spectrogram") == len(sounds) and "http://" not in page and "https://" not in page
    assert (tmp_path / "figures.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| Talker 64: all | 3 |" in text and text.strip() in capsys.readouterr().out


def test_what_lacks_a_module_is_skipped_with_the_reason_and_works_once_it_is_there(pack, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(pack, bare, ignore=shutil.ignore_patterns("SenseVoiceSmall", "siglip2-*"))
    tables = evaluate(bare, tmp_path / "o", "pictures", "a2a", "latency")
    assert "siglip2-base-p32-256-ve" in tables["pictures"]["skipped"] and "SenseVoiceSmall" in tables["a2a"]["skipped"]
    assert "Skipped: " in (tmp_path / "o" / "results.md").read_text()
    shutil.copytree(pack / "siglip2-base-p32-256-ve", bare / "siglip2-base-p32-256-ve")
    assert not evaluate(bare, tmp_path / "o", "pictures")["pictures"]["skipped"]


def test_nothing_to_measure_is_an_error_of_one_line(pack, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(pack, bare, ignore=shutil.ignore_patterns("SenseVoiceSmall", "siglip2-*"))
    assert run.main(["pictures", "--pack", str(bare), "--save_dir", str(bare), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run.main(["t2a", "--pack", str(bare), "--save_dir", str(tmp_path / "none"), "--device", "cpu"]) == 2


def test_further_weights_are_rows_of_table_one(pack, tmp_path):
    other = tmp_path / "talker_64.pth"  # without a sidecar: its sizes are told from the file
    shutil.copyfile(pack / "sft_omni_64.pth", other)
    tables = evaluate(pack, tmp_path / "o", "consistency", "--ablation", str(other))
    assert [row["group"] for row in tables["consistency"]["rows"]].count("Talker 64: all") == 2


def test_further_weights_that_are_missing_are_named_before_anything_is_measured(pack, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("hours of work for nothing"))
    assert run.main(["consistency", "--pack", str(pack), "--device", "cpu", "--ablation", str(tmp_path / "no.pth")]) == 2
    assert "no.pth is not there" in capsys.readouterr().err


def test_finished_questions_are_asked_again_for_their_sound_and_for_other_ears(pack, tmp_path, monkeypatch):
    asked, ask = [], eval_nano.ask
    monkeypatch.setattr(eval_nano, "load_recogniser", lambda name, pack, device: Scripted())
    monkeypatch.setattr(eval_nano, "ask", lambda *args: asked.append(1) or ask(*args))
    ears = shutil.copytree(pack / "SenseVoiceSmall", tmp_path / "ears")
    command = ["--pack", str(pack), "--device", "cpu", "--n", "2", "--max_new_tokens", "16", "--output_dir", str(tmp_path / "o"),
               "--asr", f"sensevoice:{ears}"]

    def times(*more) -> int:
        asked.clear()
        assert eval_nano.main([*command, *more]) == 0
        return len(asked)
    assert [times(), times(), times("--save_wavs"), times("--save_wavs")] == [2, 0, 2, 0]
    wavs = sorted((tmp_path / "o" / "wavs").iterdir())
    wavs[1].unlink()
    assert len(wavs) == 2 and times("--save_wavs") == 1 and wavs[1].is_file()
    (ears / "ngram.npz").write_bytes(b"another way to listen")
    assert times() == 2


def test_replies_do_not_depend_on_their_neighbours(pack):
    from engine.chat import find_weights
    chat = Chat.load(pack, find_weights(pack))
    first, second = (Examinee(chat, Scripted(), "nano", seed=1) for _ in range(2))
    alone = second.ask(2, "Question 2?")
    assert [first.ask(i, f"Question {i}?").text for i in range(3)][2] == alone.text
    assert np.array_equal(first.ask(2, "Question 2?").wav, alone.wav)


def sample(text, heard):
    return Sample("", "", "v", text, heard, None, True, 0.1, 0.2, 0.3, np.zeros(0, np.float32))


def test_rows_by_length():
    samples = [sample("one two", "one too"), sample(" ".join(["word"] * 9), " ".join(["word"] * 9))]
    rows = error_rows(samples, BUCKETS["nano"], by_bucket=[{"WER": 0.5}])
    assert [(row.group, row.n) for row in rows] == [("all", 2), ("1-7 words", 1), ("8-10 words", 1)]
    assert [row.figures["WER"].value for row in rows] == [pytest.approx(1 / 11), 0.5, 0]
    assert rows[1].published == {"WER": 0.5} and rows[2].published == {}
    assert ratio([]).value != ratio([]).value and str(ratio([])) == "-"
    assert str(Figure(0.5, 0.4, 0.61)) == "0.500 (0.400-0.610)"
    assert sample("天空是蓝色的", "").length == 6


def test_every_preset_has_questions(tmp_path):
    from evals.tables import questions

    class World:
        world, seed = "general", 0

    plan = Plan(60, 8, tmp_path, "dense", tmp_path, tmp_path, True)
    assert len(questions(World, plan, english_only=True)) == 20 and len(questions(World, plan, english_only=False)) > 20


def test_a_picture_of_silence_is_drawn():
    assert picture(np.zeros(100, np.float32))[:4] == b"\x89PNG"


# ---- recognisers

def test_a_recogniser_of_transformers_is_loaded_by_folder(tmp_path):
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor
    torch.manual_seed(0)
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5, "b": 6}))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(tmp_path / "m")
    model = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                          conv_dim=(8, 8), conv_stride=(20, 16), conv_kernel=(20, 16), num_feat_extract_layers=2,
                                          num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2))
    model.lm_head.bias.data[5] = 10
    model.save_pretrained(tmp_path / "m")
    recogniser = asr.load_recogniser(f"transformers:{tmp_path / 'm'}")
    assert recogniser.transcribe(0.1 * np.sin(np.arange(24000)), 24000) == "a"
    assert recogniser.transcribe(np.zeros(24000, np.float32), 24000) == ""


@pytest.mark.parametrize("kind, options", [("seq2seq_whisper", {"return_timestamps": True}), ("ctc", {})])
def test_whisper_is_asked_for_more_than_half_a_minute(monkeypatch, kind, options):
    """Its pipeline refuses longer clips unless it may write timestamps, which others do not know."""
    import transformers

    class Pipeline:
        type = kind

        def __call__(self, inputs, **given):
            assert given == options
            return {"text": f" {len(inputs['raw']) // 16000} s "}
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda name: object())
    monkeypatch.setattr(transformers, "pipeline", lambda *_, **__: Pipeline())
    assert asr.load_recogniser("transformers:any/name").transcribe(np.full(41 * 16000, 0.1), 16000) == "41 s"


def test_a_processor_with_transcription_requests_is_asked_that_way(monkeypatch):
    """Qwen3-ASR's protocol in Transformers 5; its weights cannot be had here."""
    import transformers

    class Inputs(dict):
        def to(self, device, dtype):
            return self

    class Processor:
        def apply_transcription_request(self, wav):
            assert wav.shape == (16000,)
            return Inputs(input_ids=torch.tensor([[7, 8]]))

        def decode(self, ids, return_format):
            assert return_format == "transcription_only"
            return f" heard {ids.tolist()} "

    class Model:
        dtype = torch.float32

        def to(self, device):
            return self

        def eval(self):
            return self

        def generate(self, input_ids, max_new_tokens, do_sample):
            return torch.cat([input_ids, torch.tensor([[9]])], dim=1)

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda name: Processor())
    monkeypatch.setattr(transformers.AutoModelForSpeechSeq2Seq, "from_pretrained", lambda name: Model())
    assert asr.load_recogniser("transformers:any/name").transcribe(np.full(24000, 0.1), 24000) == "heard [9]"


def test_sensevoice_of_a_pack_listens(pack):
    assert isinstance(asr.load_recogniser("sensevoice", pack).transcribe(0.1 * np.sin(np.arange(24000)), 24000), str)
    assert asr.load_recogniser(f"sensevoice:{pack / 'SenseVoiceSmall'}").model.can_transcribe
    for name, error in (("sensevoice", FileNotFoundError), ("ears", ValueError), ("transformers:", ValueError)):
        with pytest.raises(error):
            asr.load_recogniser(name, pack / "none")
