"""Guided attention: where the Talker should look, and that the loss is what its heads do."""
import math

import pytest
import torch

from model.config import IGNORE, OmniConfig
from model.model_omni import MiniMindOmni
from trainer import attention_guide as guide_module
from trainer.attention_guide import AttentionGuide, count_letters

STOP = 66
LETTERS = torch.tensor([0.0, 3.0, 5.0, 0.0])  # of tokens 0-3


def labels(tokens, frames):
    """text_labels (1, R), audio_labels (1, 8, R): the reply's tokens, then its end (token 3); codes one position later, then stop."""
    width = max(len(tokens) + 1, frames + 2)
    text, audio = torch.full((1, width), IGNORE), torch.full((1, 8, width), IGNORE)
    text[0, :len(tokens) + 1] = torch.tensor([*tokens, 3])
    audio[0, 0, 1:frames + 1], audio[0, 0, frames + 1] = 7, STOP
    return text, audio


def unknown(text):
    return torch.full(text.shape, torch.nan)


def small_model(layers=3):
    torch.manual_seed(0)
    return MiniMindOmni(OmniConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, talker_hidden_size=32, num_attention_heads=4,
                                   num_key_value_heads=2, num_talker_hidden_layers=layers, audio_vocab_size=68, audio_pad_token=65,
                                   audio_stop_token=STOP, audio_spk_token=67)).eval()


def test_expected_token_moves_through_the_reply_at_the_pace_of_its_letters():
    text, audio = labels([1, 2, 0, 2], frames=16)  # 3, 5, no and 5 letters; 13 frames of sound: one letter a frame
    wanted, spoken = AttentionGuide(small_model(), LETTERS).expected(text, audio, unknown(text), STOP)
    assert spoken[0].tolist() == [False] + [True] * 16 + [False]
    best = wanted[0, 1:17].argmax(-1).tolist()
    assert best == [0] * 5 + [1] * 5 + [3] * 6, "1.5 frames of silence and 3 letters, 5 letters, 5 letters and silence"
    assert wanted[0, 2, 0] == 0 and wanted[0, 2, 1] == pytest.approx(-0.5 * (3 / guide_module.WIDTH) ** 2), "middle of frame 1: letter 0"
    assert (wanted[0, :, [2, 4]] == guide_module.NOWHERE).all(), "neither a token without letters nor the end is ever wanted"


def test_letters_that_are_known_are_looked_at_and_nothing_else():
    text, audio = labels([1, 2, 0, 2], frames=4)
    letters = unknown(text)
    letters[0, 1:4] = torch.tensor([12.5, 0.5, 3.5])  # in the last token, in the first, in the second; the fourth frame is not known
    wanted, _ = AttentionGuide(small_model(), LETTERS).expected(text, audio, letters, STOP)
    assert wanted[0, 1:4].argmax(-1).tolist() == [3, 0, 1] and (wanted[0, 1:4].amax(-1) == 0).all()
    assert wanted[0, 2, 1] == pytest.approx(-0.5 * (2.5 / guide_module.KNOWN_WIDTH) ** 2)
    assert wanted[0, 4, 3] == 0 and wanted[0, 4, 1] > -2, "the even pace: at the end, and not far from the token before"


def test_loss_is_the_attention_that_the_guided_heads_give_the_expected_tokens():
    model, (text, audio) = small_model(), labels([1, 2, 2], frames=9)
    guide, positions = AttentionGuide(model, LETTERS), 4 + torch.arange(text.shape[1])[None]
    ids = torch.randint(0, 60, (1, 9, 4 + text.shape[1] + 1))
    inputs = {}
    for i in guide_module.LAYERS:
        model.talker.layers[i].self_attn.register_forward_pre_hook(lambda m, args, i=i: inputs.__setitem__(i, args))
    with torch.no_grad():
        model(ids, positions=positions)
    loss = guide(positions, text, audio, unknown(text), STOP)
    wanted, spoken = guide.expected(text, audio, unknown(text), STOP)
    values = []
    for i, (x, (cos, sin), *_) in inputs.items():
        attention = model.talker.layers[i].self_attn
        for head in range(guide_module.HEADS):
            def rotated(proj, norm, h):
                y = norm(proj(x[0]).view(x.shape[1], -1, attention.head_dim)[:, h])
                first, second = y.chunk(2, dim=-1)
                return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
            q, k = rotated(attention.q_proj, attention.q_norm, head), rotated(attention.k_proj, attention.k_norm, head // 2)
            for r in spoken[0].nonzero()[:, 0].tolist():
                here = int(positions[0, r])
                shares = (k[:here + 1] @ q[here] / math.sqrt(attention.head_dim)).softmax(0)
                tokens = [j for j in range(text.shape[1]) if positions[0, j] + 1 <= here]
                values.append(-math.log(sum(float(shares[positions[0, j] + 1].detach() * wanted[0, r, j].exp()) for j in tokens)))
    assert loss.item() == pytest.approx(sum(values) / len(values), rel=1e-4)


def test_a_few_steps_teach_the_heads_where_to_look():
    model, (text, audio) = small_model(), labels([1, 2, 2, 1], frames=14)
    guide, positions = AttentionGuide(model, LETTERS), 4 + torch.arange(text.shape[1])[None]
    ids = torch.randint(0, 60, (1, 9, 4 + text.shape[1] + 1))
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(40):
        model(ids, positions=positions)
        losses.append(guide(positions, text, audio, unknown(text), STOP))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert not guide.seen, "nothing is kept from one step to the next"


def test_reply_without_words_or_speech_is_not_guided():
    guide = AttentionGuide(small_model(), LETTERS)
    text, audio = labels([0], frames=5)
    assert not guide.expected(text, audio, unknown(text), STOP)[1].any()
    text, audio = labels([1, 2], frames=5)
    assert not guide.expected(text, torch.full_like(audio, IGNORE), unknown(text), STOP)[1].any()


def test_talker_without_these_layers_is_refused():
    with pytest.raises(ValueError, match="3 layers"):
        AttentionGuide(small_model(layers=2), LETTERS)


def test_letters_of_the_tokenizer(tokenizer_dir):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    letters = count_letters(tokenizer, 6400)
    ids = tokenizer("The cat sits.")["input_ids"]
    assert letters[ids].sum() == len("Thecatsits.")
    assert letters[tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|audio_pad|>"])].sum() == 0
