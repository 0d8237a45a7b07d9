"""Parquet rows to batches: layout goldens, random choices, broken rows, reading by row group; augmentation."""
import io
import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from dataset.augment import AugmentOptions, add_noise, add_reverb, augment, change_speed, low_pass, mask_time, pink_noise
from dataset.omni_dataset import SYSTEM_PROMPTS, BadRow, OmniDataset, OmniSample, Variants, collate
from dataset.parquet_rows import ParquetRows
from model.config import IGNORE, OmniConfig
from model.sequence import EMPTY_THINK, build_prompt, encode_text, render_chat, undelay

CONFIG = OmniConfig()
PAD, STOP, SPK = CONFIG.audio_pad_token, CONFIG.audio_stop_token, CONFIG.audio_spk_token


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return AutoTokenizer.from_pretrained(tokenizer_dir)


def frames_of(num_samples: int) -> int:
    return num_samples // 1600  # the goldens' stand-in for the encoder's frame count


def wav_bytes(seconds: float = 1.0, rate: int = 16000) -> bytes:
    buffer = io.BytesIO()
    tone = 0.3 * np.sin(2 * np.pi * 300 * np.arange(int(seconds * rate)) / rate)
    soundfile.write(buffer, tone.astype(np.float32), rate, format="WAV")
    return buffer.getvalue()


def png_bytes(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def chat(*texts: str) -> str:
    return json.dumps([{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)])


def codes(num_frames: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 2048, 8 * num_frames).tolist()


def t2a_row(**changes) -> dict:
    row = dict(conversations=chat("Hello, who are you?", "I am a small model."), answer_audios=[codes(12)], ref_audios=codes(4, 1),
               spk_emb=np.linspace(-1, 1, 192).tolist())
    return {**row, **changes}


SCHEMA = pa.schema([("conversations", pa.string()), ("question_audios", pa.list_(pa.binary())),
                    ("answer_audios", pa.list_(pa.list_(pa.int64()))), ("ref_audios", pa.list_(pa.int64())),
                    ("spk_emb", pa.list_(pa.float32())), ("image_bytes", pa.list_(pa.binary()))])


def write(path, rows: list[dict], row_group_size: int = 1000, schema: pa.Schema = SCHEMA):
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=row_group_size)
    return path


@pytest.fixture
def dataset(tmp_path, tokenizer):
    """dataset(rows, variants, max_length, ...) -> an OmniDataset over these rows."""
    def make(rows, variants=Variants.fixed(), max_length=512, **kwargs):
        path = write(tmp_path / "rows.parquet", rows)
        return OmniDataset(path, tokenizer, CONFIG, max_length, variants, audio_frames=frames_of, **kwargs)
    return make


def text_of(sample: OmniSample, tokenizer) -> str:
    return tokenizer.decode(sample.input_ids[8]).replace("<|endoftext|>", "")


# --- layout ---

def pad_to(sample: OmniSample, length: int):
    """The batch of this sample and an empty one of `length` positions: the batch's padding, seen on row 0."""
    filler = OmniSample(torch.zeros(9, length, dtype=torch.int64), torch.zeros(length, dtype=torch.int64),
                        torch.zeros(8, length, dtype=torch.int64), sample.spk_emb, None, 0, [], CONFIG)
    return collate([sample, filler])


@pytest.mark.parametrize("name, max_length", [("layout", 96), ("layout", 256), ("layout2", 64), ("layout2", 150), ("layout2", 256)])
def test_layout_golden(name, max_length, shared, tokenizer):
    expected = np.load(shared / "golden" / f"{name}.npz")
    data = OmniDataset(shared / "golden" / f"{name}.parquet", tokenizer, CONFIG, max_length, Variants.fixed(), audio_frames=frames_of)
    samples = [data[i] for i in range(len(data))]
    assert len(samples) == 3
    together = collate(samples)
    for i, sample in enumerate(samples):
        padded = pad_to(sample, max_length - 1)
        for field in ("input_ids", "text_labels", "audio_labels"):
            golden = torch.from_numpy(expected[f"{max_length}_{i}_{field}"]).long()
            assert torch.equal(getattr(padded, field)[0], golden), (i, field)
            batch = getattr(together, field)
            assert torch.equal(batch[i], golden[..., :batch.shape[-1]]), (i, field)
            beyond = golden[..., batch.shape[-1]:]
            assert (beyond == (IGNORE if "labels" in field else torch.tensor([PAD] * 8 + [0])[:, None])).all(), "content was left out"
        assert sample.audio_len == expected[f"{max_length}_{i}_audio_len"]
        assert np.array_equal(sample.spk_emb, expected[f"{max_length}_{i}_spk_emb"])
        assert (sample.wav is not None) == (sample.audio_len > 0)
    assert together.audio_lens.tolist() == [s.audio_len for s in samples]


@pytest.mark.parametrize("spk", [[], np.linspace(-1, 1, 192).tolist()])
@pytest.mark.parametrize("num_ref", [0, 4, 200])
@pytest.mark.parametrize("num_turns", [1, 2])
@pytest.mark.parametrize("strip", [0, 1])
def test_training_prompt_is_the_generation_prompt(spk, num_ref, num_turns, strip, dataset, tokenizer):
    texts = ["Hi", "Hello!", "How are you?", "Fine, thanks."][:2 * num_turns]
    row = t2a_row(conversations=chat(*texts), answer_audios=[codes(3, 5)] * num_turns, spk_emb=spk, ref_audios=codes(num_ref, 1))
    sample = dataset([row], Variants.fixed(strip_think=strip))[0]
    text = render_chat(tokenizer, json.loads(row["conversations"])[:-1], generation=True)
    ids = encode_text(tokenizer, text.replace(EMPTY_THINK, "") if strip else text)
    ref = torch.tensor(row["ref_audios"], dtype=torch.int64).reshape(-1, 8).T
    prompt = build_prompt(ids, ref, bool(spk), CONFIG)
    assert torch.equal(sample.input_ids[:, :len(ids)], prompt)
    spoken = undelay(sample.input_ids[:8, len(ids) + 1:len(ids) + 1 + 3 + 1 + 7])
    assert spoken[:, :3].T.flatten().tolist() == codes(3, 5) and (spoken[:, 3] == STOP).all()


def test_reply_of_the_kept_turn_is_the_one_that_speaks(dataset, tokenizer):
    row = t2a_row(conversations=chat("a", "one", "b", "two", "c", "three"), answer_audios=[codes(2, i) for i in range(3)])
    data = dataset([row], Variants.fixed(random_cut=True))
    seen = set()
    for epoch in range(30):
        sample = data.sample(0, epoch)
        kept = text_of(sample, tokenizer).count("<|im_start|>assistant")
        seen.add(kept)
        start = int((sample.text_labels != IGNORE).nonzero()[0]) + 1
        assert undelay(sample.input_ids[:8, start + 1:start + 10])[:, :2].T.flatten().tolist() == codes(2, kept - 1)
    assert seen == {1, 2, 3}
    data = dataset([row := {**row, "answer_audios": [[], codes(2), []]}], Variants.fixed(random_cut=True))
    assert {text_of(data.sample(0, epoch), tokenizer).count("<|im_start|>assistant") for epoch in range(20)} == {2}, "the one that speaks"
    assert text_of(dataset([row])[0], tokenizer).count("<|im_start|>assistant") == 3, "evaluation takes the last turn"


def test_missing_reply_codes_leave_all_pads(dataset):
    for answers in ([], None, [[]]):
        sample = dataset([t2a_row(answer_audios=answers)])[0]
        assert (sample.input_ids[:8] == PAD).all() and (sample.audio_labels == IGNORE).all()


# --- random choices ---

def share(data: OmniDataset, test, epochs: int = 400) -> float:
    return float(np.mean([bool(test(data.sample(0, epoch))) for epoch in range(epochs)]))


def test_default_shares_of_the_random_choices(dataset, tokenizer):
    data = dataset([t2a_row()], Variants())
    assert share(data, lambda s: "<|im_start|>system" in text_of(s, tokenizer)) == pytest.approx(0.2, abs=0.07)
    assert share(data, lambda s: EMPTY_THINK in text_of(s, tokenizer)) == pytest.approx(0.2, abs=0.07)
    no_ref = share(data, lambda s: (s.input_ids[:8, :int((s.text_labels != IGNORE).nonzero()[0]) + 1] < 2048).sum() == 0)
    assert no_ref == pytest.approx(0.5, abs=0.09)
    assert share(data, lambda s: (s.input_ids[:8] == SPK).sum() == 8) == 1.0, "the speaker token stays when the codes go"
    assert share(data, lambda s: s.spk_emb.abs().sum() > 0) == 1.0


def test_system_prompt_stays_away_from_rows_that_have_one(dataset, tokenizer):
    messages = [{"role": "system", "content": "Be kind."}] + json.loads(chat("Hi", "Hello"))
    sample = dataset([t2a_row(conversations=json.dumps(messages))], Variants.fixed(system=1))[0]
    assert text_of(sample, tokenizer).count("<|im_start|>system") == 1
    added = text_of(dataset([t2a_row()], Variants.fixed(system=1))[0], tokenizer)
    assert any(added.startswith(f"<|im_start|>system\n{p}<|im_end|>\n") for p in SYSTEM_PROMPTS if p.isascii())


def test_spoken_question_placements(dataset, tokenizer):
    row = t2a_row(conversations=chat("Hi there", "Hello!"), question_audios=[wav_bytes(0.5)])
    pads = "<|audio_pad|>" * 5
    expected = [(pads, 0.4), ("Hi there", 0.2), (f"{pads}\n\nHi there", 0.2), (f"Hi there\n\n{pads}", 0.2)]
    data = dataset([row], Variants.fixed(question_mix=(0.4, 0.2, 0.2, 0.2)))
    count = {form: 0 for form, _ in expected}
    for epoch in range(400):
        sample = data.sample(0, epoch)
        form = text_of(sample, tokenizer).split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
        count[form] += 1
        assert sample.audio_len == form.count("<|audio_pad|>") == (0 if sample.wav is None else frames_of(len(sample.wav)))
    for form, probability in expected:
        assert count[form] / 400 == pytest.approx(probability, abs=0.08), form


def test_only_the_last_kept_question_is_spoken(dataset, tokenizer):
    row = t2a_row(conversations=chat("a", "one", "b", "two"), question_audios=[wav_bytes(1.0), wav_bytes(0.5)])
    sample = dataset([row])[0]
    assert text_of(sample, tokenizer).count("<|audio_pad|>") == 5 and len(sample.wav) == 8000
    for second in (None, b""):
        row["question_audios"] = [wav_bytes(1.0), second]
        sample = dataset([row])[0]
        assert sample.wav is None and "<|audio_pad|>" not in text_of(sample, tokenizer)


def test_image_placements(dataset, tokenizer):
    row = dict(conversations=chat(" <image>\nWhat is it?\n", "A cat."), image_bytes=[png_bytes()])
    pads, question = "<|image_pad|>" * 64, "What is it?"
    expected = {f"{pads}\n{question}", f"{pads}\n\n{question}", f"{question}\n{pads}", f"{question}\n\n{pads}"}
    data = dataset([row], Variants.fixed(image_before=0.5, image_blank_line=0.5))
    seen = set()
    for epoch in range(60):
        sample = data.sample(0, epoch)
        seen.add(text_of(sample, tokenizer).split("<|im_start|>user\n")[1].split("<|im_end|>")[0])
        assert len(sample.images) == 1 and sample.images[0].mode == "RGB"
    assert seen == expected


def test_images_keep_their_order_and_stay_with_a_heard_question(dataset, tokenizer):
    row = dict(conversations=chat("<image><image> Compare.", "Red, blue."), image_bytes=[png_bytes("red"), png_bytes("blue")],
               question_audios=[wav_bytes(0.5)])
    sample = dataset([row], Variants.fixed(question_mix=(1, 0, 0, 0)))[0]
    assert [image.getpixel((0, 0)) for image in sample.images] == [(255, 0, 0), (0, 0, 255)]
    user = text_of(sample, tokenizer).split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    image = "<|image_pad|>" * 64
    assert user == "<|audio_pad|>" * 5 + f"\n\n{image}\n{image}"


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_questions_is_augmented(dataset, share):
    row = dict(conversations=chat("Hi", "Hello."), question_audios=[wav_bytes(1)])
    clean = dataset([row], Variants.fixed())[0].wav
    loud = AugmentOptions(speed=0, gain=1, gain_db=(3.0, 6.0))
    data = dataset([row], Variants.fixed(augment=loud, augment_share=share))
    as_it_was = [torch.equal(data.sample(0, epoch).wav, clean) for epoch in range(60)]
    assert sum(as_it_was) / 60 == pytest.approx(1 - share, abs=0.2 if share == 0.5 else 0)


def test_scheduled_sampling_touches_only_the_reply(dataset, tokenizer):
    row = t2a_row(conversations=chat("Hi <image>", "word " * 60), answer_audios=[codes(60)], question_audios=[wav_bytes(1)],
                  image_bytes=[png_bytes()])
    clean = dataset([row])[0]
    data = dataset([row], Variants.fixed(scheduled_sampling=0.05, text_sampling=0.05))
    changed = torch.stack([data.sample(0, epoch).input_ids != clean.input_ids for epoch in range(60)])
    for epoch in range(60):
        sample = data.sample(0, epoch)
        assert torch.equal(sample.text_labels, clean.text_labels) and torch.equal(sample.audio_labels, clean.audio_labels)
        assert not np.isin(sample.input_ids[8][changed[epoch, 8]], list(tokenizer.get_added_vocab().values())).any()
        assert (sample.input_ids[:8][changed[epoch, :8]] < 2048).all()
    start = int((clean.text_labels != IGNORE).nonzero()[0]) + 1
    assert not changed[:, :, :start].any(), "the prompt and its feature pads stay"
    is_code = (clean.input_ids[:8] < 2048) & (torch.arange(clean.input_ids.shape[1]) >= start)
    assert not changed[:, :8][:, ~is_code].any() and changed[:, :8][:, is_code].float().mean().item() == pytest.approx(0.05, abs=0.01)
    words = slice(start, start + int((clean.text_labels != IGNORE).sum()) - 2)
    assert changed[:, 8, words].float().mean().item() == pytest.approx(0.05, abs=0.02)
    assert not changed[:, 8, words.stop:].any()


def test_history_dropout_hides_whole_positions_of_the_reply(dataset):
    row = t2a_row(answer_audios=[codes(60)])
    clean, data = dataset([row])[0], dataset([row], Variants.fixed(history_dropout=0.8))
    spoken = (clean.audio_labels.roll(1, dims=1) != IGNORE) & (clean.input_ids[:8] < 2048)
    shares = []
    for epoch in range(60):
        sample = data.sample(0, epoch)
        assert torch.equal(sample.audio_labels, clean.audio_labels) and torch.equal(sample.input_ids[8], clean.input_ids[8])
        changed = sample.input_ids[:8] != clean.input_ids[:8]
        assert (sample.input_ids[:8][changed] == 2049).all() and not changed[~spoken].any()
        assert torch.equal(changed, spoken & changed.any(0)), "a position keeps all its codes or none"
        shares.append(changed[spoken].float().mean().item())
    assert np.mean(shares) == pytest.approx(0.4, abs=0.1) and max(shares) > 0.6 and min(shares) < 0.15


def same(a: OmniSample, b: OmniSample) -> bool:
    wavs = (a.wav is None and b.wav is None) or (a.wav is not None and b.wav is not None and torch.equal(a.wav, b.wav))
    return torch.equal(a.input_ids, b.input_ids) and torch.equal(a.audio_labels, b.audio_labels) and wavs


def test_rows_depend_on_seed_epoch_and_index_only(dataset):
    rows = [t2a_row(question_audios=[wav_bytes()]) for _ in range(8)]
    first, again, other = dataset(rows, Variants(), seed=1), dataset(rows, Variants(), seed=1), dataset(rows, Variants(), seed=2)
    backwards = {i: again[i] for i in reversed(range(8))}
    assert all(same(first[i], backwards[i]) for i in range(8))
    assert all(same(first.sample(i, 3), again.sample(i, 3)) for i in range(8))
    assert not all(same(first[i], other[i]) for i in range(8)) and not all(same(first[i], first.sample(i, 3)) for i in range(8))
    assert not all(same(first[0], first[i]) for i in range(1, 8)), "equal rows get their own choices"


def test_workers_give_the_same_batches(dataset):
    data = dataset([t2a_row(question_audios=[wav_bytes(0.2)]) for _ in range(8)], Variants())
    for plain, worker in zip(*(DataLoader(data, 4, collate_fn=collate, num_workers=n) for n in (0, 1)), strict=True):
        assert torch.equal(plain.input_ids, worker.input_ids)
        assert [w is None for w in plain.wavs] == [w is None for w in worker.wavs]


# --- broken rows ---

BROKEN = {
    "bad JSON": dict(conversations='[{"role": "user", "content"'),
    "empty": dict(conversations=None),
    "not a list": dict(conversations='{"role": "user", "content": "a"}'),
    "no assistant": dict(conversations=chat("Hi")),
    "content is no text": dict(conversations='[{"role": "user", "content": 3}, {"role": "assistant", "content": "b"}]'),
    "unknown role": dict(conversations='[{"role": "wizard", "content": "a"}, {"role": "assistant", "content": "b"}]'),
    "deep JSON": dict(conversations="[" * 200_000),
    "half a surrogate": dict(conversations='[{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "b"}]'),
    "codes not in eights": dict(answer_audios=[codes(3)[:-1]]),
    "code too high": dict(answer_audios=[codes(3)[:-1] + [2048]]),
    "code negative": dict(answer_audios=[codes(3)[:-1] + [-1]]),
    "code beyond int16": dict(answer_audios=[codes(3)[:-1] + [65536 + 5]]),
    "code null": dict(answer_audios=[codes(3)[:-1] + [None]]),
    "reference not in eights": dict(ref_audios=codes(2)[:-3]),
    "reference too high": dict(ref_audios=codes(2)[:-1] + [2051]),
    "speaker NaN": dict(spk_emb=[float("nan")] * 192),
    "speaker infinite": dict(spk_emb=[float("inf")] * 192),
    "speaker null": dict(spk_emb=[None] * 192),
    "speaker too short": dict(spk_emb=[0.5] * 191),
    "audio": dict(question_audios=[b"this is not audio"]),
    "audio cut off": dict(question_audios=[wav_bytes()[:30]]),
    "audio without samples": dict(question_audios=[wav_bytes(0)]),
    "audio too short": dict(question_audios=[wav_bytes(0.01)]),
    "image": dict(conversations=chat("<image> What?", "A cat."), image_bytes=[b"no image"]),
    "image cut off": dict(conversations=chat("<image> What?", "A cat."), image_bytes=[png_bytes()[:40]]),
    "image without tag": dict(image_bytes=[png_bytes()]),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("variants", [Variants.fixed(), Variants()], ids=["fixed", "random"])
def test_broken_row_is_skipped_counted_and_named(case, variants, dataset, caplog):
    data = dataset([t2a_row(), t2a_row(**BROKEN[case]), t2a_row()], variants)
    with caplog.at_level(logging.WARNING, "dataset.omni_dataset"):
        samples = [data[i] for i in range(3)]
    assert [type(s) for s in samples] == [OmniSample, BadRow, OmniSample], samples[1]
    assert samples[1].row == 1 and samples[1].file.endswith("rows.parquet") and samples[1].reason
    assert len(caplog.records) == 1 and "rows.parquet" in caplog.text and "row 1 " in caplog.text
    batch = collate(samples)
    assert len(batch) == 2 and batch.num_skipped == 1 and len(batch.wavs) == len(batch.images) == 2


def test_batch_of_broken_rows_is_empty(dataset):
    data = dataset([t2a_row(conversations="?")] * 2)
    batch = collate([data[0], data[1]])
    assert len(batch) == 0 and batch.num_skipped == 2
    assert batch.input_ids.shape == (0, 9, 0) and batch.audio_labels.shape == (0, 8, 0) and batch.text_labels.shape == (0, 0)
    assert batch.spk_emb.shape == (0, 192) and batch.audio_lens.shape == (0,)


def test_absent_null_and_odd_columns(tmp_path, tokenizer):
    def first(table: pa.Table):
        pq.write_table(table, tmp_path / "odd.parquet")
        return OmniDataset(tmp_path / "odd.parquet", tokenizer, CONFIG, 512, Variants.fixed())[0]
    text = [chat("Hi", "Hello")]
    assert isinstance(first(pa.table({"conversations": text})), OmniSample)
    assert isinstance(first(pa.table({"conversations": text, "answer_audios": [None], "spk_emb": [None], "ref_audios": [[]]})), OmniSample)
    assert "conversations" in first(pa.table({"spk_emb": [[0.0] * 192]})).reason
    assert isinstance(first(pa.table({"conversations": [7]})), BadRow)
    assert isinstance(first(pa.table({"conversations": text, "spk_emb": ["loud"]})), BadRow)
    assert isinstance(first(pa.table({"conversations": text, "answer_audios": [[[0.5] * 8]]})), BadRow)
    narrow = pa.table({"conversations": pa.array(text, pa.large_string()),
                       "answer_audios": pa.array([[codes(3)]], pa.large_list(pa.large_list(pa.int16()))),
                       "spk_emb": pa.array([[0.5] * 192], pa.list_(pa.float64(), 192))})
    sample = first(narrow)
    assert (sample.audio_labels != IGNORE).sum() == 8 * 4 and (sample.spk_emb == 0.5).all()
    image = pa.table({"conversations": [chat("<image> What?", "A cat.")], "image_bytes": [png_bytes()]})
    assert len(first(image).images) == 1, "one picture may be plain binary"


def test_letters_stand_where_their_frames_do(tmp_path, tokenizer):
    """The optional column answer_letters, in a batch with a row that has none."""
    def dataset(letters):
        table = pa.table({"conversations": [chat("Hi", "Hello"), chat("Hi", "Hello you")], "answer_audios": [[codes(3)], [codes(5)]],
                          "answer_letters": pa.array([letters, None], pa.list_(pa.list_(pa.float32())))})
        pq.write_table(table, tmp_path / "letters.parquet")
        return OmniDataset(tmp_path / "letters.parquet", tokenizer, CONFIG, 512, Variants.fixed())

    batch = collate([dataset([[0.0, 2.5, 4.5]])[i] for i in (0, 1)])
    first = int((batch.audio_labels[0, 0] != IGNORE).int().argmax())
    assert batch.letters[0, first:first + 3].tolist() == [0.0, 2.5, 4.5]
    assert batch.letters[0].isnan().sum() == batch.letters.shape[1] - 3 and batch.letters[1].isnan().all()
    assert "2 numbers for 3 frames" in dataset([[0.0, 2.5]])[0].reason


def test_a_row_may_end_with_its_text(tmp_path, tokenizer):
    path = write(tmp_path / "a.parquet", [t2a_row()])
    spoken, written = (OmniDataset(path, tokenizer, CONFIG, 512, Variants.fixed(speech=speech))[0] for speech in (True, False))
    length = written.input_ids.shape[1]
    assert length < spoken.input_ids.shape[1] and (written.audio_labels == IGNORE).all()
    assert (written.input_ids[:-1] == CONFIG.audio_pad_token).all(), "and has no voice prompt"
    assert torch.equal(written.text_labels, spoken.text_labels[:length]) and (spoken.text_labels[length:] == IGNORE).all()


def test_spoken_rows_need_the_frame_count(tmp_path, tokenizer):
    path = write(tmp_path / "a.parquet", [t2a_row(question_audios=[wav_bytes()])])
    with pytest.raises(RuntimeError, match="audio_frames"):
        OmniDataset(path, tokenizer, CONFIG, 512)[0]


# --- reading ---

def test_files_globs_and_row_names(tmp_path, tokenizer):
    for name, texts in (("b", "xyz"), ("a", "uv")):
        write(tmp_path / f"{name}.parquet", [t2a_row(conversations=chat("Hi", text)) for text in texts], row_group_size=2)
    expected = ["u", "v", "x", "y", "z"]
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    for paths in (tmp_path, f"{tmp_path}/*.parquet", f"{a},{b}", [a, str(b)]):
        rows = ParquetRows(paths, 2048, 192)
        assert [rows[i].messages[-1]["content"] for i in range(len(rows))] == expected
    assert [rows.where(i) for i in range(5)] == [(a, 0), (a, 1), (b, 0), (b, 1), (b, 2)]
    with pytest.raises(IndexError):
        rows[5]
    for missing in (tmp_path / "c.parquet", f"{tmp_path}/*.pq", [a, "nowhere"], []):
        with pytest.raises(FileNotFoundError, match="no parquet file"):
            ParquetRows(missing, 2048, 192)
    (tmp_path / "text.parquet").write_text("not parquet at all")
    with pytest.raises(ValueError, match="text.parquet"):
        ParquetRows(tmp_path / "text.parquet", 2048, 192)


def test_few_row_groups_are_kept_and_each_is_read_once_in_shuffled_order(tmp_path, monkeypatch):
    path = write(tmp_path / "many.parquet", [t2a_row(conversations=chat("Hi", str(i))) for i in range(60)], row_group_size=5)
    whole = ParquetRows(path, 2048, 192)
    group_bytes = whole._group(0).nbytes
    rows = ParquetRows(path, 2048, 192, cache_bytes=int(6.5 * group_bytes))
    reads = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, group, **kw: reads.append(group) or read(self, group, **kw))
    order = rows.shuffled(seed=0, epoch=0)
    assert sorted(order) == list(range(60)) and list(order) != list(range(60))
    assert [rows[int(i)].messages[-1]["content"] for i in order] == [str(i) for i in order]
    assert sorted(reads) == list(range(12))
    assert sum(group.nbytes for group in rows._cache.values()) <= 6.5 * group_bytes
    assert np.array_equal(order, rows.shuffled(0, 0)) and not np.array_equal(order, rows.shuffled(0, 1))


def test_damaged_row_group_is_reported_row_by_row(tmp_path, tokenizer):
    path = write(tmp_path / "damaged.parquet", [t2a_row(conversations=chat("Hi", f"text {i}")) for i in range(4)], row_group_size=2)
    column = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start:start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    data = OmniDataset(path, tokenizer, CONFIG, 512)
    assert [type(data[i]) for i in range(4)] == [BadRow, BadRow, OmniSample, OmniSample]


# --- augmentation ---

@pytest.fixture
def tone() -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)).astype(np.float32)


def power(wav: np.ndarray) -> float:
    return float(np.mean(np.square(wav, dtype=np.float64)))


def test_augment_is_reproducible_and_bounded(tone):
    results = [augment(tone, np.random.default_rng(i)) for i in range(40)]
    for i, wav in enumerate(results):
        assert wav.dtype == np.float32 and np.abs(wav).max() <= 1 and 16000 / 1.61 < len(wav) < 16000 / 0.69
        assert np.array_equal(wav, augment(tone, np.random.default_rng(i)))
    assert len({len(wav) for wav in results}) > 10 and any(np.array_equal(wav, tone) for wav in results)


def test_every_effect_can_run_on_very_short_and_silent_audio():
    always = AugmentOptions(speed=1, reverb=1, white_noise=1, pink_noise=1, lowpass=1, gain=1, time_mask=1)
    for size in (1, 5, 400):
        for wav in (np.zeros(size, np.float32), np.ones(size, np.float32)):
            assert np.isfinite(augment(wav, np.random.default_rng(0), always)).all()


def test_single_effects(tone):
    rng = np.random.default_rng(0)
    fast = change_speed(tone, 1.5)
    assert abs(len(fast) - 16000 / 1.5) < 2
    assert np.argmax(np.abs(np.fft.rfft(fast))) * 16000 / len(fast) == pytest.approx(660, abs=3)
    noisy = add_noise(tone, rng.standard_normal(16000), snr_db=20)
    assert 10 * np.log10(power(tone) / power(noisy - tone)) == pytest.approx(20, abs=0.01)
    spectrum = np.abs(np.fft.rfft(pink_noise(160_000, rng))) ** 2  # bins of 0.1 Hz
    assert spectrum[1000:2000].mean() / spectrum[10_000:20_000].mean() == pytest.approx(10, rel=0.2), "power falls with 1 / f"
    white = rng.standard_normal(16000).astype(np.float32)
    passed = np.abs(np.fft.rfft(low_pass(white, 3000))) ** 2
    assert passed[6000:].mean() < 0.01 * passed[:2500].mean()
    echo = add_reverb(tone, 0.3, rng)
    assert len(echo) == len(tone) and power(echo) == pytest.approx(power(tone), rel=1e-3) and not np.allclose(echo, tone, atol=0.01)
    masked = mask_time(np.ones(16000, np.float32), 0.05, rng)
    assert (masked == 0).sum() == 800
