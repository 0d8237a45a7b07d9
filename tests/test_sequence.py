"""The (9, T) layout: delay pattern, voice prompt, training rows against generation prompts."""
import itertools

import pytest
import torch
from transformers import AutoTokenizer

from model.config import IGNORE, OmniConfig
from model.sequence import (EMPTY_THINK, build_prompt, build_training_row, delay, encode_text, pad_inputs, pad_rows, place_voice_prompt,
                            render_chat, split_reply, tokenize_turns, undelay)

CONFIG = OmniConfig()
PAD, STOP, SPK = CONFIG.audio_pad_token, CONFIG.audio_stop_token, CONFIG.audio_spk_token


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return AutoTokenizer.from_pretrained(tokenizer_dir)


def random_codes(num_frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2048, (8, num_frames), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_frames", [0, 1, 3, 8, 40])
def test_delay_staircase_and_back(num_frames):
    codes = random_codes(num_frames)
    rows = delay(codes, PAD)
    assert rows.shape == (8, num_frames + 7)
    for book, place in itertools.product(range(8), range(num_frames + 7)):
        frame = place - book
        expected = codes[book, frame] if 0 <= frame < num_frames else PAD
        assert rows[book, place] == expected, (book, place)
    assert torch.equal(undelay(rows), codes)


def test_undelay_of_too_few_columns_is_empty():
    assert undelay(torch.zeros(8, 3, dtype=torch.int64)).shape == (8, 0)


@pytest.mark.parametrize("has_speaker", [False, True])
@pytest.mark.parametrize("num_ref", [None, 0, 1, 4, 5, 6, 9])
@pytest.mark.parametrize("length", [0, 1, 5])
def test_voice_prompt_is_right_aligned_after_the_speaker_token(length, num_ref, has_speaker):
    ref = None if num_ref is None else random_codes(num_ref)
    empty = torch.full((8, length), PAD)
    rows = place_voice_prompt(empty, ref, has_speaker, CONFIG)
    kept = min(num_ref or 0, max(length - has_speaker, 0))
    columns = [] if ref is None else list(ref.unbind(1))[(num_ref - kept):]
    if has_speaker and length:
        columns = [torch.full((8,), SPK)] + columns
    columns = [torch.full((8,), PAD)] * (length - len(columns)) + columns
    assert [c.tolist() for c in rows.unbind(1)] == [c.tolist() for c in columns]
    assert (empty == PAD).all(), "the rows passed in must stay as they are"


@pytest.mark.parametrize("has_speaker", [False, True])
@pytest.mark.parametrize("num_ref", [None, 3, 50])
def test_training_prompt_equals_generation_prompt(num_ref, has_speaker):
    prompt, reply = list(range(40, 60)), [70, 71, 2, 234]
    ref = None if num_ref is None else random_codes(num_ref, 1)
    ids, _, _ = build_training_row(prompt, reply, random_codes(6), ref, has_speaker, 512, CONFIG)
    assert torch.equal(ids[:, :20], build_prompt(prompt, ref, has_speaker, CONFIG))


def test_training_row_targets():
    prompt, reply, codes = list(range(40, 50)), [70, 71, 2, 234], random_codes(6)
    ids, text_labels, audio_labels = build_training_row(prompt, reply, codes, random_codes(3, 1), True, 512, CONFIG)
    assert ids.shape[1] == text_labels.shape[0] == audio_labels.shape[1]
    assert text_labels[9:13].tolist() == reply and (text_labels != IGNORE).sum() == 4
    assert (audio_labels != IGNORE).sum() == 8 * 7 and (audio_labels == SPK).sum() == 0
    for book in range(8):
        first = 10 + book  # label of the logits at A + book is what stands at A + book + 1
        assert audio_labels[book, first:first + 7].tolist() == codes[book].tolist() + [STOP]
    labelled = audio_labels[:, :-1] != IGNORE
    assert torch.equal(ids[:8, 1:][labelled], audio_labels[:, :-1][labelled]), "an input is the label of the position before it"
    assert ids[7, -1] == STOP, "the last stop token is an input too"


def test_row_without_codes_has_no_voice_prompt():
    for codes in (None, random_codes(0)):
        ids, _, audio_labels = build_training_row([5] * 10, [7, 2, 234], codes, random_codes(3), True, 512, CONFIG)
        assert (ids[:8] == PAD).all() and (audio_labels == IGNORE).all()


@pytest.mark.parametrize("max_length", [5, 10, 11, 12, 20, 27, 28, 200])
def test_cut_row_is_the_beginning_of_the_uncut_one(max_length):
    args = (list(range(40, 50)), [70, 71, 2, 234], random_codes(9), random_codes(3, 1), True)
    whole, cut = build_training_row(*args, 512, CONFIG), build_training_row(*args, max_length, CONFIG)
    for full, part in zip(whole, cut):
        assert part.shape[-1] == min(full.shape[-1], max_length - 1)
        assert torch.equal(part, full[..., :part.shape[-1]])


def test_padding_uses_each_row_s_own_pad():
    rows = [build_training_row([5] * n, [7, 2, 234], random_codes(n), None, True, 512, CONFIG) for n in (4, 9)]
    ids = pad_inputs([row[0] for row in rows], CONFIG)
    short = rows[0][0].shape[1]
    assert (ids[0, :8, short:] == PAD).all() and (ids[0, 8, short:] == 0).all() and ids.shape[2] == rows[1][0].shape[1]
    assert (pad_rows([row[1] for row in rows], IGNORE)[0, short:] == IGNORE).all()


CHATS = [
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi, there."}],
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "  two blanks first"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好"}, {"role": "assistant", "content": "\n\n你好！"},
     {"role": "user", "content": "More\n\n<|audio_pad|><|audio_pad|>"}, {"role": "assistant", "content": "Yes."}],
]


@pytest.mark.parametrize("messages", CHATS)
def test_prompt_ids_equal_what_generation_renders(messages, tokenizer):
    prompt, reply = tokenize_turns(tokenizer, messages)
    assert prompt == encode_text(tokenizer, render_chat(tokenizer, messages[:-1], generation=True))
    assert tokenizer.decode(reply) == messages[-1]["content"].lstrip("\n") + "<|im_end|>\n"
    stripped, same_reply = tokenize_turns(tokenizer, messages, strip_think=True)
    assert same_reply == reply
    assert EMPTY_THINK not in tokenizer.decode(stripped) and tokenizer.decode(stripped).endswith("<|im_start|>assistant\n")


def test_reasoning_belongs_to_the_prompt(tokenizer):
    messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\nFour."}]
    prompt, reply = tokenize_turns(tokenizer, messages, strip_think=True)
    assert tokenizer.decode(prompt).endswith("<think>\ntwo and two\n</think>\n\n") and tokenizer.decode(reply) == "Four.<|im_end|>\n"
    assert prompt[-3:] == CONFIG.think_end_ids
    open_prompt = render_chat(tokenizer, messages[:-1], generation=True, thinking=True)
    assert tokenizer.decode(prompt).startswith(open_prompt) and open_prompt.endswith("assistant\n<think>\n")


def test_split_reply_refuses_another_text():
    with pytest.raises(ValueError, match="does not end with"):
        split_reply("<|im_start|>assistant\nYes<|im_end|>\n", {"role": "assistant", "content": "No"})
