"""The (9, T) layout: the one place where text, speech codes and voice prompt are put into a sequence.

- Rows 0-7 hold Mimi codes, row 8 text. Training and generation both build their rows here, so they cannot drift apart.
- Delay pattern: with the reply's text starting at A, frame f of codebook i stands at A + 1 + i + f, then one stop token.
- Voice prompt: reference codes (not delayed) end just before A, the speaker token stands just before them.
- Prompt and reply are tokenised apart, as at inference; A is the number of prompt tokens and needs no searching.
- Nothing here is random and nothing here reads files: see dataset/omni_dataset.py.
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from model.config import IGNORE, NUM_CODEBOOKS, NUM_STREAMS, OmniConfig

EMPTY_THINK = "<think>\n\n</think>\n\n"  # what the chat template writes before a reply without reasoning


def delay(codes: torch.Tensor, pad: int) -> torch.Tensor:
    """(K, T) -> (K, T + K - 1): codebook i starts i positions later; free places hold `pad`."""
    num_books, num_frames = codes.shape
    rows = codes.new_full((num_books, num_frames + num_books - 1), pad)
    staircase(rows, 0, num_frames).copy_(codes)
    return rows


def undelay(rows: torch.Tensor) -> torch.Tensor:
    """(K, T + K - 1) -> (K, T): inverse of `delay`. Fewer than K columns give T = 0."""
    num_books, width = rows.shape
    return staircase(rows, 0, max(width - num_books + 1, 0)).clone()


def staircase(rows: torch.Tensor, start: int, num_frames: int) -> torch.Tensor:
    """The places of `num_frames` delayed frames in rows (K, W), the first codebook's at `start`: a view (K, T), to read or write."""
    down, right = rows.stride()
    return rows.as_strided((rows.shape[0], num_frames), (down + right, right), rows.storage_offset() + start * right)


def place_voice_prompt(rows: torch.Tensor, ref_codes: torch.Tensor | None, has_speaker: bool, config: OmniConfig) -> torch.Tensor:
    """Write a voice prompt into the code rows of a prompt; returns a new tensor.

    rows (K, P): code rows of the whole prompt, normally all pad. ref_codes (K, R) or None (R = 0 is the same).
    The last codes that fit are kept: P of them, or P - 1 when the speaker token must stand before them.
    """
    rows = rows.clone()
    _write_voice_prompt(rows, ref_codes, has_speaker, config)
    return rows


def _write_voice_prompt(rows, ref_codes, has_speaker: bool, config: OmniConfig) -> None:
    """The same in place; tensors or arrays."""
    length = rows.shape[1]
    room = length - int(has_speaker)
    num_ref = 0 if ref_codes is None else max(min(ref_codes.shape[1], room), 0)
    if num_ref:
        rows[:, length - num_ref:] = ref_codes[:, ref_codes.shape[1] - num_ref:]
    if has_speaker and length:
        rows[:, length - num_ref - 1] = config.audio_spk_token


def build_prompt(text_ids, ref_codes: torch.Tensor | None, has_speaker: bool, config: OmniConfig) -> torch.Tensor:
    """Generation prompt (9, P) int64 from P text ids (list or tensor) and an optional voice prompt, see place_voice_prompt."""
    text = torch.as_tensor(text_ids, dtype=torch.int64)
    empty = text.new_full((NUM_CODEBOOKS, len(text)), config.audio_pad_token)
    return torch.cat([place_voice_prompt(empty, ref_codes, has_speaker, config), text[None]])


def build_training_row(prompt_ids: list[int], reply_ids: list[int], codes: torch.Tensor | None, ref_codes: torch.Tensor | None,
                       has_speaker: bool, max_length: int, config: OmniConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One training row, cut at max_length but not padded to it.

    prompt_ids end where the reply starts (A = len(prompt_ids)); reply_ids end with "<|im_end|>\\n".
    codes (8, R) of the reply or None; without them rows 0-7 are all pad and no voice prompt is placed.
    Returns input_ids (9, T - 1), text_labels (T - 1), audio_labels (8, T - 1), int64, labels aligned with the logits.
    T - 1 <= max_length - 1 is as long as the row's content, so padding (see `pad_rows`) changes no number.
    """
    start = len(prompt_ids)
    spoken = codes is not None and codes.shape[1] > 0
    length = start + len(reply_ids)
    if spoken:  # the last codebook's stop token stands at start + 1 + 7 + R
        length = max(length, start + NUM_CODEBOOKS + codes.shape[1] + 1)
    length += 1  # one column of pads: the shift below must drop that, not the last stop token
    # numpy: torch takes several times as long for an operation on so little, and a loader makes thousands of rows a second
    rows = np.full((NUM_STREAMS, length), config.audio_pad_token, np.int64)
    labels = np.full((NUM_STREAMS, length), IGNORE, np.int64)
    text = np.array(prompt_ids + reply_ids, np.int64)
    rows[-1, :len(text)] = text
    rows[-1, len(text):] = config.pad_token_id
    labels[-1, start:len(text)] = text[start:]
    if spoken:
        if has_speaker or ref_codes is not None:
            _write_voice_prompt(rows[:-1, :start], None if ref_codes is None else ref_codes.numpy(), has_speaker, config)
        target = F.pad(codes, (0, 1), value=config.audio_stop_token)
        for place in (rows, labels):
            staircase(torch.from_numpy(place[:-1]), start + 1, target.shape[1]).copy_(target)
    length = min(length, max_length)
    parts = rows[:, :length - 1], labels[-1, 1:length], labels[:-1, 1:length]
    return tuple(torch.from_numpy(part) for part in parts)


def pad_rows(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    """Stack tensors (..., T_b) to (B, ..., max T_b), filled up on the right with `value`."""
    padded = pad_sequence([row.movedim(-1, 0) for row in rows], batch_first=True, padding_value=value)
    return padded.movedim(1, -1).contiguous()


def pad_inputs(rows: list[torch.Tensor], config: OmniConfig) -> torch.Tensor:
    """Stack input rows (9, T_b) to (B, 9, max T_b): codes filled up with the audio pad, text with the text pad."""
    out = pad_rows(rows, config.audio_pad_token)
    lengths = torch.tensor([row.shape[-1] for row in rows], device=out.device)
    out[:, -1].masked_fill_(torch.arange(out.shape[-1], device=out.device) >= lengths[:, None], config.pad_token_id)
    return out


def render_chat(tokenizer, messages: list[dict], generation: bool = False, thinking: bool = False) -> str:
    """Conversation as text by the tokenizer's chat template.

    `generation` appends the opening of a reply: with an empty think block, or with an open one when `thinking`.
    """
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation, open_thinking=thinking)


def render_plain(messages: list[dict]) -> str:
    """The same text as `render_chat` for system, user and assistant turns of plain text, a hundred times faster than its template.

    Only for tokenizers whose template is of this form: ask `template_is_plain`.
    """
    parts = []
    for message in messages:
        role, content, think = message["role"], message["content"], ""
        if role == "assistant":
            before, closed, after = content.rpartition("</think>")
            reasoning = before.split("</think>")[0].split("<think>")[-1].strip("\n") if closed else ""
            think, content = f"<think>\n{reasoning}\n</think>\n\n", after.lstrip("\n")
        parts.append(f"<|im_start|>{role}\n{think}{content}<|im_end|>\n")
    return "".join(parts)


def template_is_plain(tokenizer) -> bool:
    """Whether the tokenizer's chat template writes plain conversations as `render_plain` does."""
    probe = [{"role": "system", "content": " s\n"}, {"role": "user", "content": "\nu "}, {"role": "assistant", "content": "\n\n a\n"},
             {"role": "user", "content": "v"}, {"role": "assistant", "content": "<think>\nr\n\n</think>\n\nb"}]
    return all(render_plain(part) == render_chat(tokenizer, part) for part in (probe, probe[1:], probe[1:3]))


def encode_text(tokenizer, text: str) -> list[int]:
    """Token ids of rendered text; special tokens written in it become their ids, none are added."""
    # a quarter of the time of tokenizer(text): "fast" because it does not note where in the text each token stands
    return tokenizer.backend_tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids


def split_reply(rendered: str, message: dict) -> tuple[str, str]:
    """Cut a rendered conversation into (prompt, reply), the reply being what `message`, its last one, says aloud.

    The reply starts after "</think>\\n\\n" where the template wrote one and includes its "<|im_end|>\\n".
    Raises ValueError when the rendered text does not end with that message.
    """
    reply = message["content"].split("</think>")[-1].lstrip("\n") + "<|im_end|>\n"
    if not rendered.endswith(reply):
        raise ValueError(f"the chat template does not end with the last reply {reply[:80]!r}: ...{rendered[-80:]!r}")
    return rendered[:-len(reply)], reply


def tokenize_turns(tokenizer, messages: list[dict], strip_think: bool = False, plain: bool = False) -> tuple[list[int], list[int]]:
    """(prompt_ids, reply_ids) of a conversation that ends with an assistant message; A = len(prompt_ids).

    strip_think removes every empty think block, as most training rows do. `plain` renders with `render_plain`.
    Prompt and reply are encoded apart: the prompt then has the very ids that generation is given.
    """
    prompt, reply = split_reply(render_plain(messages) if plain else render_chat(tokenizer, messages), messages[-1])
    if strip_think:
        prompt = prompt.replace(EMPTY_THINK, "")
    return encode_text(tokenizer, prompt), encode_text(tokenizer, reply)
