"""The shipped nano pack: small, whole, and it talks. Its figures are evals.eval_nano's; here are bounds that a broken pack misses."""
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import MimiModel

from engine.chat import Chat, find_weights, listen, read_image
from engine.voices import pick_voice
from evals.asr import load_recogniser
from evals.eval_nano import HELDOUT, ask, read_questions
from evals.eval_voices import decode_references, judge
from evals.metrics import wer, words
from evals.speakers import load_speaker_encoder
from model.audio import read_audio, resample
from model.checkpoint import load_weights
from model.config import INPUT_RATE, NUM_CODEBOOKS, SAMPLE_RATE, OmniConfig
from model.encoders import SenseVoice
from nano.build_examples import ASKERS, KINDS, PICTURES
from nano.corpus import SEED, build, more_questions, more_sentences, normalise, read_jsonl
from nano.scenes import draw_scene, questions

PACK = Path(__file__).resolve().parents[1] / "model" / "nano"
MAX_MEGABYTES = 48


@pytest.fixture(scope="module")
def chat():
    before = torch.get_num_threads()
    chat = Chat.load(PACK, find_weights(PACK))
    chat.use_few_threads()
    yield chat
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recogniser():
    pytest.importorskip("pocketsphinx")
    return load_recogniser()


def params(chat, **changes):
    return chat.settings(max_new_tokens=256, **changes)


def test_it_is_small_and_its_parts_fit_each_other(chat):
    size = sum(path.stat().st_size for path in PACK.rglob("*") if path.is_file()) / 1e6
    assert size <= MAX_MEGABYTES, f"{size:.1f} MB"
    assert chat.config.to_dict() == OmniConfig.preset("nano", think_end_ids=chat.config.think_end_ids).to_dict()
    assert all(tensor.isfinite().all() for tensor in load_weights(find_weights(PACK)).values())
    assert len(chat.voices) >= 3


def test_the_codec_loads_as_a_transformers_model_and_keeps_speech(chat, recogniser):
    mimi = MimiModel.from_pretrained(PACK / "mimi").eval()
    item = read_questions(PACK / HELDOUT, 1, 0)[0]
    spoken = ask(chat, recogniser, item, pick_voice(chat.voices, None), params(chat), seed=0)
    assert spoken["audio_s"] > 0.5
    answer = listen(lambda: chat.reply([{"role": "user", "content": item["question"]}], params(chat),
                                       pick_voice(chat.voices, None), generator=torch.Generator().manual_seed(0)), params(chat))
    with torch.no_grad():
        codes = mimi.encode(torch.from_numpy(answer.wav)[None, None], num_quantizers=NUM_CODEBOOKS).audio_codes
        again = mimi.decode(codes).audio_values[0, 0].numpy()
    assert codes.unique().numel() > 100  # not one code over and over
    heard = recogniser.transcribe(again, SAMPLE_RATE)
    assert set(words(answer.text)) & set(words(heard)), (answer.text, heard)


def test_held_out_questions_are_answered_aloud(chat, recogniser):
    """Twenty-four questions whose sentences no training has seen: bounds far from the measured figures, but far from broken, too."""
    items = read_questions(PACK / HELDOUT, 24, 0)
    records = [ask(chat, recogniser, item, pick_voice(chat.voices, None), params(chat), seed=i) for i, item in enumerate(items)]
    assert sum(r["exact"] for r in records) >= 14, [(r["reply"], r["answer"]) for r in records if not r["exact"]]
    assert sum(r["ended"] for r in records) >= 22
    assert wer([(r["reply"], r["heard"]) for r in records]) <= 0.55


def test_the_ear_writes_down_what_it_hears():
    """The bundled questions in voices it was trained with; the third one's voice it has never heard."""
    heldout, rng = read_jsonl(PACK / HELDOUT), random.Random(SEED)
    asked = [rng.choice([item["question"] for item in heldout if item["kind"] == kind]) for kind in KINDS]
    clips = [read_audio(PACK / "examples" / f"audio-{i:02d}-{voice}.wav", INPUT_RATE) for i, voice in enumerate(ASKERS, 1)]
    ear = SenseVoice.load(PACK / "SenseVoiceSmall")
    assert wer([(text, ear.transcribe(clip)) for text, clip in zip(asked[:2], clips)]) <= 0.4


def test_a_question_passes_the_ear_once(chat, monkeypatch):
    """Its features are the prompt's, and what is read beside them, or in their place, is read off the same ones."""
    wav = read_audio(PACK / "examples" / f"audio-01-{ASKERS[0]}.wav", INPUT_RATE)
    read = chat.transcribe(wav)
    typed = [chat.request([{"role": "user", "content": read}], params(chat), audio=sound) for sound in (wav, None)]
    passes = []
    encode = chat.sensevoice.encode
    monkeypatch.setattr(chat.sensevoice, "encode", lambda *inputs: passes.append(1) or encode(*inputs))
    for changes, expected in (({"transcript": 1}, typed[0]), ({"transcript": 2}, typed[1]), ({}, typed[1])):  # by default it is read
        heard = chat.request([{"role": "user", "content": ""}], params(chat, **changes), audio=wav)
        assert len(passes) == 1 and read and torch.equal(heard.prompt_ids, expected.prompt_ids)
        assert (heard.audio_features is None) == (expected.audio_features is None)
        passes.clear()


def test_it_sees(chat):
    """Colors and counts in the bundled pictures, which are held-out scenes: right answers by chance are one in eight or fewer."""
    right = []
    for number in range(1, PICTURES + 1):
        scene_rng = np.random.default_rng((SEED, number))
        scene, picture = draw_scene(scene_rng, heldout=True), read_image(PACK / "examples" / f"image-{number:02d}.png")
        for question, answer, kind in questions(scene, np.random.default_rng(number)):
            if kind in ("color", "count"):
                said = listen(lambda: chat.reply([{"role": "user", "content": question}], params(chat), images=[picture],
                                                 generator=torch.Generator().manual_seed(0)), params(chat))
                right.append(said.text == answer)
    assert sum(right) >= len(right) / 2 >= 2, right


def test_every_voice_of_the_pack_speaks_and_is_told_from_the_others(chat):
    encoder, spoken = load_speaker_encoder("campplus", PACK), {}
    for name in chat.voices:
        answer = listen(lambda: chat.reply([{"role": "user", "content": "What color is the sky?"}], params(chat),
                                           pick_voice(chat.voices, name), generator=torch.Generator().manual_seed(0)), params(chat))
        assert answer.ended and "blue" in answer.text and 0.5 < answer.audio_s < 10, (name, answer.text, answer.audio_s)
        spoken[name] = [resample(answer.wav, SAMPLE_RATE, INPUT_RATE)]
    right = {name: found["right"] for name, found in judge(encoder, decode_references(chat, chat.voices), spoken).items()}
    kinds = {kind: [right[name] for name, voice in chat.voices.items() if voice.kind == kind] for kind in ("built-in", "unseen")}
    assert len(kinds["built-in"]) == 3 and sum(kinds["built-in"]) >= 2 and len(kinds["unseen"]) == 7 and sum(kinds["unseen"]) >= 5, right


def test_the_held_out_questions_are_not_what_it_was_taught():
    items = read_jsonl(PACK / HELDOUT)
    assert len(items) >= 60 and len({item["answer"] for item in items}) > 0.9 * len(items)
    train, heldout = build()
    taught = train + more_questions(train, heldout) + more_sentences(train, heldout)
    for key in ("question", "answer"):
        assert not {normalise(item[key]) for item in items} & {normalise(item[key]) for item in taught}, key
