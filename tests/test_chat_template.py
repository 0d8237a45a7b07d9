"""The released tokenizer and voices against our layout code: a thousand random conversations, and every voice there is."""
import random

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from engine.generate import GenerationParams, generate
from engine.voices import load_voices
from model.config import OmniConfig
from model.model_omni import MiniMindOmni
from model.sequence import EMPTY_THINK, build_prompt, encode_text, render_chat, render_plain, template_is_plain, tokenize_turns

PIECES = ["Hello", "what is 2 + 2?", "你好，世界", "été", "🙂", " ", "  ", "\n", "\n\n", "\t", "a\nb", "<think>", "</think>", "<image>",
          "<think>\n\n</think>\n\n", "<|im_end|>", "<|im_start|>user\n", "<|audio_pad|>" * 3, "<|image_pad|>" * 2, "{{ x }}", "{% if %}",
          "&lt;b&gt;", "'\"\\", "<tool_response>", "</tool_response>", "\u200b", "\x85", "\r\n", "\u2028"]


def random_conversation(rng: random.Random) -> list[dict]:
    """Perhaps a system prompt, then one to four turns; the contents are made of pieces that have broken templates before."""
    def content() -> str:
        return "".join(rng.choices(PIECES, k=rng.randint(0, 6)))

    messages = [{"role": "system", "content": content()}] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 4)):
        messages.append({"role": "user", "content": content()})
        answer = content()
        if rng.random() < 0.3:
            answer = f"<think>\n{content()}\n</think>\n\n{answer}"
        messages.append({"role": "assistant", "content": answer})
    return messages


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return PreTrainedTokenizerFast.from_pretrained(str(tokenizer_dir))


def test_a_thousand_conversations_are_rendered_alike(tokenizer):
    assert template_is_plain(tokenizer)
    rng = random.Random(0)
    for i in range(1000):
        messages = random_conversation(rng)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        assert render_plain(messages) == whole, (i, messages)
        prompt, reply = tokenize_turns(tokenizer, messages, plain=True)
        assert (prompt, reply) == tokenize_turns(tokenizer, messages)
        # prompt and reply are encoded apart, and together they are the template's text to the last character
        assert tokenizer.decode(prompt) + tokenizer.decode(reply) == whole, (i, messages)
        stripped, same = tokenize_turns(tokenizer, messages, strip_think=True, plain=True)
        assert same == reply and EMPTY_THINK not in tokenizer.decode(stripped)
        question = messages[:-1]
        for thinking, opening in ((False, EMPTY_THINK), (True, "<think>\n")):
            template = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True, open_thinking=thinking)
            assert render_chat(tokenizer, question, generation=True, thinking=thinking) == template
            assert template == render_plain(question) + "<|im_start|>assistant\n" + opening


def test_special_ids_are_the_released_tokenizers(tokenizer):
    config = OmniConfig()
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == tuple(
        tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]))
    assert encode_text(tokenizer, config.audio_special_token) == config.audio_ids
    assert encode_text(tokenizer, config.image_special_token) == config.image_ids
    assert encode_text(tokenizer, "</think>\n\n") == config.think_end_ids
    assert len(tokenizer) == config.vocab_size


@pytest.mark.parametrize("file", ["voices.pt", "voices_unseen.pt"])
def test_released_voices_load_and_drive_generation(shared, tokenizer, file):
    """Every voice's codes and vector reach the model: a reply changes with the codes, and again with the vector."""
    voices = load_voices(shared / "assets" / "voices" / file, OmniConfig())
    assert len(voices) >= 5
    torch.manual_seed(0)
    model = MiniMindOmni(OmniConfig(hidden_size=64, num_hidden_layers=2, talker_hidden_size=64, num_talker_hidden_layers=1,
                                    max_position_embeddings=2048)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    text_ids = encode_text(tokenizer, render_chat(tokenizer, [{"role": "user", "content": "Hi"}] * 9, generation=True))
    params = GenerationParams(newline_id=encode_text(tokenizer, "\n")[-1], max_new_tokens=3, temperature=0)
    seen = []

    def logits_of(voice_codes, spk_emb) -> torch.Tensor:
        def choose(out, reply):
            seen.append(out.audio_logits[0, :, -1])
            return 300, [7] * 8
        prompt = build_prompt(text_ids, voice_codes, spk_emb is not None, model.config)
        assert len(list(generate(model, prompt, params, spk_emb=spk_emb, choose=choose))) == 3
        return seen[-1].clone()

    silent = logits_of(None, None)
    heard = {name: logits_of(voice.ref_codes, voice.spk_emb) for name, voice in voices.items()}
    for name, voice in voices.items():
        assert not torch.allclose(heard[name], silent)
        assert not torch.allclose(heard[name], logits_of(voice.ref_codes, None)), f"{name}: the vector is not heard"
        assert not torch.allclose(heard[name], logits_of(None, voice.spk_emb)), f"{name}: the codes are not heard"
    names = list(heard)
    assert not any(torch.allclose(heard[a], heard[b]) for i, a in enumerate(names) for b in names[:i]), "voices differ"
