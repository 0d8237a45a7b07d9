"""The nano ear's front end, training and folder; conversations that need an earlier turn; rows with spoken questions."""
import io
import json
import random
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch
from transformers import AutoTokenizer

from dataset.augment import AugmentOptions
from model.audio import fbank as kaldi_fbank
from model.audio import stack_frames
from model.checkpoint import load_model, save_model
from model.config import IGNORE, OmniConfig
from model.encoders import SenseVoice
from model.model_omni import MiniMindOmni
from model.sequence import encode_text, pad_rows
from model.spelling import spelling_loss
from nano import corpus, hearing_report, listening, multi_turn, train_sensevoice
from nano.curves import read_curve
from nano.speech import RATE, TRAIN_VOICES, Utterance, read_shard
from tiny_training import make_tokenizer

TINY = dict(pieces=40, blocks=1, last_blocks=1, heads=2, inner=16, batch_size=4)
SENTENCES = ("one two three", "four five", "six seven eight nine", "ten eleven")


def tones(rng, samples):
    """Something with a spectrum that changes: (samples,) int16."""
    time = np.arange(samples) / RATE
    wav = sum(np.sin(2 * np.pi * rng.uniform(150, 4000) * time * (1 + 0.2 * np.sin(time * 7))) for _ in range(4))
    return np.round(1500 * wav + rng.normal(0, 60, samples)).astype(np.int16)


def write_shard(folder, utterances, rng):
    """A shard as nano.speech writes it, without flite; returns the index."""
    wavs = [tones(rng, int(rng.integers(8000, 20000))) for _ in utterances]
    np.save(folder / "0123abcd.npy", np.concatenate(wavs))
    index = folder / "0123abcd.json"
    index.write_text(json.dumps([dict(text=u.text, voice=u.voice, rate=u.rate, pitch=u.pitch, samples=len(w))
                                 for u, w in zip(utterances, wavs)]))
    return index


@pytest.fixture
def speech(tmp_path):
    rng = np.random.default_rng(0)
    utterances = [Utterance(SENTENCES[i % 4], TRAIN_VOICES[i % 3], 1.0 + 0.05 * i) for i in range(12)]
    return train_sensevoice.Speech(read_shard(write_shard(tmp_path, utterances, rng)), "cpu")


@pytest.fixture(scope="module")
def pairs():
    return corpus.build()


# the front end


def test_features_are_kaldis():
    rng = np.random.default_rng(1)
    wavs = [tones(rng, n) for n in (16000, 7777, 400, 1234)]
    lens = torch.tensor([len(w) for w in wavs])
    starts = torch.cumsum(lens, 0) - lens
    wav = listening.gather(torch.from_numpy(np.concatenate(wavs)), starts, lens, torch.zeros_like(lens), 16000)
    frames, counts = listening.fbank(wav, lens, listening.mel_filters())
    stacked, rows = listening.stack(frames, counts)
    for i, pcm in enumerate(wavs):
        expected = stack_frames(kaldi_fbank(pcm.astype(np.float32) / 32768, window="hamming", scale=32768.0))
        assert rows[i] == len(expected)
        np.testing.assert_allclose(stacked[i, :rows[i]].numpy(), expected, atol=2e-3)


def roughen(seed=0, **wave):
    options = {**dict(speed=0, reverb=0, white_noise=0, pink_noise=0, lowpass=0, gain=0, time_mask=0), **wave}
    return listening.Roughen(listening.HearingOptions(wave=AugmentOptions(**options)), torch.Generator().manual_seed(seed))


def some_wav(rows=6, samples=16000):
    lens = torch.linspace(samples // 2, samples, rows).long()
    wav = torch.randn(rows, samples, generator=torch.Generator().manual_seed(3)) * 0.1
    return wav * (torch.arange(samples) < lens[:, None]), lens


def test_nothing_chosen_changes_nothing():
    wav, lens = some_wav()
    heard, heard_lens = roughen().wave(wav, lens)
    assert torch.equal(heard_lens, lens)
    torch.testing.assert_close(heard, wav, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["white_noise", "pink_noise"])
def test_noise_has_the_wanted_level(kind):
    wav, lens = some_wav(samples=48000)
    heard, _ = roughen(**{kind: 1, "snr_db": (10, 10)}).wave(wav, lens)
    noise = heard - wav
    assert (noise[torch.arange(48000) >= lens[:, None]] == 0).all()  # nothing is heard after the end
    snr = 10 * torch.log10(wav.square().sum(1) / noise.square().sum(1))
    assert (snr - 10).abs().max() < 2  # the noise's power is fixed over the batch's width, not over each row


def test_pink_noise_falls_by_three_decibels_an_octave():
    wav = torch.full((4, 64000), 1e-3)
    noise = roughen(pink_noise=1, snr_db=(-20, -20)).wave(wav, torch.full((4,), 64000))[0] - wav
    power = torch.fft.rfft(noise).abs().square().mean(0)
    low, high = power[2000:4000].mean(), power[8000:16000].mean()  # two octaves apart
    assert 10 * torch.log10(low / high) == pytest.approx(6, abs=0.7)


def test_everything_at_once_is_finite_and_repeatable():
    always = dict(speed=1, reverb=1, white_noise=1, pink_noise=1, lowpass=1, gain=1, time_mask=1)
    wav, lens = some_wav()
    wav[0] = 0  # a silent clip
    first, again = (roughen(5, **always).wave(wav, lens) for _ in range(2))
    assert first[0].isfinite().all() and first[0].abs().max() <= 1
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], roughen(6, **always).wave(wav, lens)[0])


def test_speed_scales_time_and_pitch():
    time = torch.arange(16000) / RATE
    wav, lens = listening.change_speed(torch.sin(2 * np.pi * 1000 * time)[None], torch.tensor([16000]), 1.25)
    assert wav.shape[1] == lens[0] == pytest.approx(12800, rel=0.01)
    hertz = torch.fft.rfft(wav[0]).abs().argmax() * RATE / wav.shape[1]
    assert hertz == pytest.approx(1250, rel=0.02)


def test_warp_moves_the_spectrum_down_for_factors_above_one():
    frames = torch.zeros(2, 3, 80)
    frames[:, :, 40] = 1
    torch.testing.assert_close(listening.warp(frames, torch.ones(2, 1)), frames, atol=1e-4, rtol=0)
    assert listening.warp(frames, torch.tensor([[1.15], [0.87]])).argmax(-1)[:, 0].tolist() < [40, 40]
    assert listening.warp(frames, torch.tensor([[0.87]]).expand(2, 1)).argmax(-1).min() > 40


def test_masks_leave_most_of_the_frames():
    options = listening.HearingOptions(warp=0, tilt=0)
    hearing = listening.Roughen(options, torch.Generator().manual_seed(0))
    frames = torch.randn(8, 100, 80, generator=torch.Generator().manual_seed(1))
    changed = (hearing.frames(frames, torch.full((8,), 100)) - frames).abs() > 1e-3
    assert changed.any()
    assert changed.all(2).sum(1).max() <= 2 * options.mask_frames and changed.all(1).sum(1).max() <= 2 * options.mask_bins


# training and the folder


def options(**changes):
    return train_sensevoice.Options(**{**TINY, **changes})


def test_a_killed_run_continues_as_if_nothing_had_happened(speech, tmp_path):
    tokenizer = train_sensevoice.train_tokenizer(SENTENCES, 40)
    settings = dict(device="cpu", steps=4, log_interval=1, save_interval=0)
    whole = train_sensevoice.train(options(), speech, tokenizer, tmp_path / "whole", **settings)
    train_sensevoice.train(options(), speech, tokenizer, tmp_path / "cut", stop_after=3, **settings)
    cut = train_sensevoice.train(options(), speech, tokenizer, tmp_path / "cut", **settings)
    assert cut.step == whole.step == 4
    for name, value in whole.average.state_dict().items():
        torch.testing.assert_close(cut.average.state_dict()[name], value, atol=0, rtol=0, msg=name)
    rows = (tmp_path / "cut" / "curve.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "1", "2", "3", "4"]
    with pytest.raises(ValueError, match="other sentences"):
        train_sensevoice.train(options(inner=32), speech, tokenizer, tmp_path / "cut", **settings)


def test_the_ear_learns(speech, tmp_path):
    tokenizer = train_sensevoice.train_tokenizer(SENTENCES, 40)
    run = train_sensevoice.train(options(clean=1.0, lr=1e-3), speech, tokenizer, tmp_path, "cpu", steps=40, log_interval=1)
    losses = [float(row["loss"]) for row in read_curve(tmp_path, run.step)]
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])


def test_the_folder_hears_what_training_heard(speech, tmp_path):
    tokenizer = train_sensevoice.train_tokenizer(SENTENCES, 40)
    run = train_sensevoice.train(options(), speech, tokenizer, tmp_path / "work", "cpu", steps=1)
    train_sensevoice.save_folder(run.average, run.options, tokenizer, tmp_path / "SenseVoiceSmall")
    ear = SenseVoice.load(tmp_path / "SenseVoiceSmall")
    wav, lens = speech.batch([0, 5])
    feats, counts = ear.features([wav[0, :lens[0]], wav[1, :lens[1]]])
    assert feats.shape == (2, int(counts.max()), train_sensevoice.FEATURES)
    stacked, rows = listening.stack(*listening.fbank(wav, lens, run.filters))
    assert counts.tolist() == rows.tolist()
    scores = run.average(stacked, rows)[1, :rows[1]]
    heard = torch.nn.functional.linear(feats[1, :rows[1]], *ear.head).log_softmax(-1)
    torch.testing.assert_close(heard, scores, atol=0.05, rtol=0)  # fp16 on disk
    assert isinstance(ear.transcribe(wav[0, :lens[0]]), str)


def test_a_run_goes_on_from_a_folder(speech, tmp_path):
    tokenizer = train_sensevoice.train_tokenizer(SENTENCES, 40)
    run = train_sensevoice.train(options(), speech, tokenizer, tmp_path / "work", "cpu", steps=2)
    train_sensevoice.save_folder(run.average, run.options, tokenizer, tmp_path / "ear")
    start = train_sensevoice.Run(options(seed=7), tokenizer, "cpu", tmp_path / "ear")
    for name, value in run.average.state_dict().items():
        for ear in (start.model, start.average):
            torch.testing.assert_close(ear.state_dict()[name], value, atol=1e-3, rtol=1e-3, msg=name)  # fp16 on disk
    more = train_sensevoice.train(options(seed=7), speech, tokenizer, tmp_path / "more", "cpu", steps=1, start_from=tmp_path / "ear")
    assert torch.equal(more.model.shift, start.model.shift), "the folder's normalisation is kept"


def test_questions_of_a_data_set_are_heard_with_their_words(tmp_path):
    sound, wav = io.BytesIO(), tones(np.random.default_rng(0), 8000)
    sf.write(sound, wav, 16_000, format="FLAC")
    turns = [{"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": "It is red."},
             {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    row = {"conversations": json.dumps(turns), "question_audios": [sound.getvalue(), None]}
    pq.write_table(pa.Table.from_pylist([row, {**row, "question_audios": []}]), tmp_path / "shard-00000.parquet")
    (utterance, heard), = train_sensevoice.read_questions([tmp_path])
    assert utterance.text == "What is it?" and np.abs(heard.astype(int) - wav).max() <= 1


def test_the_default_folder_fits_the_pack(tmp_path):
    tokenizer = train_sensevoice.train_tokenizer(SENTENCES, 40)
    full = train_sensevoice.Options()
    train_sensevoice.save_folder(train_sensevoice.Ear(full, full.pieces), full, tokenizer, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 8e6


def test_word_errors():
    assert hearing_report.errors("a b c".split(), "a x c d".split()) == 2
    assert hearing_report.errors("a b".split(), []) == 2 and hearing_report.errors([], ["a"]) == 1


def test_a_thinkers_projector_learns_along_and_nothing_else_of_it_changes(tmp_path):
    """--speller: the projector spells better afterwards, and the weights that come out differ in nothing else."""
    make_tokenizer(tmp_path / "tokenizer")
    thinker_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    torch.manual_seed(0)
    save_model(MiniMindOmni(OmniConfig.preset("nano", hidden_size=64, talker_hidden_size=64)), tmp_path / "omni_64.pth", {"step": 3})
    utterances = [Utterance(("one", "two", "six", "ten")[i % 4], TRAIN_VOICES[i % 3]) for i in range(12)]
    speech = train_sensevoice.Speech(read_shard(write_shard(tmp_path, utterances, np.random.default_rng(0))), "cpu")
    tokenizer = train_sensevoice.train_tokenizer(SENTENCES, 40)
    words = [torch.tensor(encode_text(thinker_tokenizer, utterance.text)) for utterance in speech.utterances]
    first = train_sensevoice.Run(options(), tokenizer, "cpu", speller=tmp_path / "omni_64.pth")
    run = train_sensevoice.train(options(clean=1.0, lr=2e-3), speech, tokenizer, tmp_path / "along", "cpu", steps=25, log_interval=1,
                                 speller=tmp_path / "omni_64.pth", thinker_tokenizer=thinker_tokenizer)

    def nats(ear):
        stacked, lens = run.hear(speech, range(12), clean=True)
        return spelling_loss(ear.projector(ear.features(stacked, lens)), lens, pad_rows(words, IGNORE), ear.embeddings, ear.blank)
    untaught = nats(first.average)
    assert untaught > 3 and nats(run.average) < 0.7 * untaught

    train_sensevoice.save_speller(run.average, tmp_path / "omni_64.pth", tmp_path / "heard_64.pth")
    before, after = (load_model(tmp_path / f"{name}_64.pth").state_dict() for name in ("omni", "heard"))
    assert {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])} == {"audio_proj"}
    assert json.loads((tmp_path / "heard_64.json").read_text())["step"] == 3
    train_sensevoice.save_folder(run.average, run.options, tokenizer, tmp_path / "SenseVoiceSmall")
    assert SenseVoice.load(tmp_path / "SenseVoiceSmall").can_transcribe, "the projector is no part of the ear's folder"


def test_nothing_held_out_is_heard_in_training(pairs, tmp_path):
    for name, items in zip(("train", "heldout"), pairs):
        corpus.write_jsonl(items, tmp_path / f"{name}.jsonl")
    train, questions = train_sensevoice.sentences(tmp_path)
    asked = {corpus.normalise(text) for text in questions}
    heard = {corpus.normalise(text) for text in train}
    assert len(asked) >= 60 and len(heard) == len(train) > 10_000 and not asked & heard
    assert not {corpus.normalise(item["answer"]) for item in pairs[1]} & heard


# conversations


@pytest.fixture(scope="module")
def talks(pairs):
    return multi_turn.build(*pairs, random.Random(1), count=4000)


def last(talk):
    return corpus.normalise(talk["messages"][-1]["content"])


def test_conversations_are_many_and_different(talks):
    train, heldout = talks
    kinds = Counter(talk["kind"] for talk in train)
    assert len(kinds) >= 6 and min(kinds.values()) >= 50 and len(train) > 3000
    assert len({json.dumps(talk["messages"]) for talk in train}) == len(train)
    assert {talk["kind"] for talk in heldout} == set(kinds) - {"apart"} and len(heldout) >= 60
    for talk in train + heldout:
        assert [m["role"] for m in talk["messages"]] == ["user", "assistant"] * (len(talk["messages"]) // 2) and len(talk["messages"]) >= 4


def test_what_is_held_out_does_not_depend_on_how_much_is_taught(talks, pairs):
    """A pack's stages learn from sets of different sizes; none may have seen what the others hold out."""
    fewer = multi_turn.build(*pairs, random.Random(1), count=500)
    assert fewer[1] == talks[1] and len(fewer[0]) < len(talks[0])


def test_some_conversations_change_the_subject(talks, pairs):
    """The last question is a pair of the corpus, word for word, after one turn or many that have nothing to do with it."""
    asked = {pair["question"]: pair["answer"] for pair in pairs[0]}
    changed = [talk["messages"] for talk in talks[0] if talk["kind"] == "apart"]
    assert len(changed) > 300 and all(asked[messages[-2]["content"]] == messages[-1]["content"] for messages in changed)
    assert {len(messages) // 2 - 1 for messages in changed} >= set(range(1, multi_turn.EARLIER_TURNS + 1))


def test_some_earlier_questions_are_as_an_ear_writes_them(talks):
    asked = [message["content"] for talk in talks[0] for message in talk["messages"][:-2:2]]
    heard = [text == corpus.normalise(text) for text in asked]
    assert 0.3 < sum(heard) / len(heard) < 0.5
    assert all(talk["messages"][-2]["content"][0].isupper() for talk in talks[0])


def test_the_last_question_alone_does_not_say_the_answer(talks):
    answers, kinds = defaultdict(set), {}
    for talk in (talk for talk in talks[0] if talk["kind"] != "apart"):
        question = talk["messages"][-2]["content"]
        answers[question].add(last(talk))
        kinds[question] = talk["kind"]
    unclear = Counter(kinds[question] for question, found in answers.items() if len(found) > 1)
    asked = Counter(kinds.values())
    assert {kind for kind in asked if unclear[kind] / asked[kind] < 0.5} <= {"count", "person", "place"}  # these name the thing asked about
    assert all(unclear[kind] for kind in asked)


def test_held_out_replies_are_said_nowhere_in_training(talks, pairs):
    train, heldout = talks
    said = {corpus.normalise(m["content"]) for talk in train for m in talk["messages"]} | {corpus.normalise(p["answer"]) for p in pairs[0]}
    assert {last(talk) for talk in heldout} & said == set()
    assert not {corpus.normalise(p["answer"]) for p in pairs[1]} & {last(talk) for talk in train}


def test_replies_use_only_taught_words(talks, pairs):
    taught = {word for pair in pairs[0] for word in corpus.words(pair["answer"])}
    said = {word for part in talks for talk in part for text in multi_turn.replies(talk) for word in corpus.words(text)}
    assert said <= taught, sorted(said - taught)
