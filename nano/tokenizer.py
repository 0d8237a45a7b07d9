"""Our own byte-level BPE tokenizer, with the special ids and the chat template of the released one.

- Ids 0-35 are the released special and added tokens in the released order, so that every id in OmniConfig stays true; then come the
  256 bytes (any text round-trips) and the merges learnt from the nano corpus.
- The chat template renders what ARCHITECTURE.md describes: turns between <|im_start|> and <|im_end|>, a think block before every
  reply, tools in the system turn.
- Everything is written by this code: no file of the released tokenizer is needed.

    python -m nano.tokenizer --corpus out/nano/corpus --out model/nano
"""
import argparse
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from model.checkpoint import replace_atomic, save_json
from nano.corpus import read_jsonl

VOCAB_SIZE = 1024
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIAL_TOKENS += [f"<|{name}|>" for name in ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end",
                                              "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad",
                                              "audio_start", "audio_end", "audio_pad")]
SPECIAL_TOKENS += ["<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>"]
# added tokens that stay visible when special tokens are skipped
ADDED_TOKENS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
ADDED_TOKENS += [f"<|buffer{i}|>" for i in range(1, 10)]

TOOLS_INTRODUCTION = (
    "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n"
    "You are provided with function signatures within <tools></tools> XML tags:\\n<tools>")
TOOLS_END = (
    '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> '
    'XML tags:\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call><|im_end|>\\n')
# Jinja, one macro per kind of turn. `-` at every tag: the template's own line breaks never reach the text.
CHAT_TEMPLATE = """
{%- macro turn(role, content) -%}{{- '<|im_start|>' + role + '\\n' + content + '<|im_end|>\\n' -}}{%- endmacro -%}

{%- macro call(tool_call) -%}
    {%- set function = tool_call.function or tool_call -%}
    {%- set arguments = function.arguments if function.arguments is string else function.arguments | tojson -%}
    {{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' + arguments + '}\\n</tool_call>' -}}
{%- endmacro -%}

{%- macro reply(message, content) -%}
    {%- set thought = '' -%}
    {%- if message.reasoning_content is string -%}
        {%- set thought = message.reasoning_content -%}
    {%- elif '</think>' in content -%}
        {%- set thought = content.split('</think>')[0].split('<think>')[-1] -%}
        {%- set content = content.split('</think>')[-1] -%}
    {%- endif -%}
    {%- set content = content.lstrip('\\n') -%}
    {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content -}}
    {%- for tool_call in message.tool_calls or [] -%}
        {{- '\\n' if content or not loop.first else '' -}}{{- call(tool_call) -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
{%- endmacro -%}

{%- set opening = messages[0].content if messages[0].role == 'system' else none -%}
{%- if tools -%}
    {{- '<|im_start|>system\\n' + (opening + '\\n\\n' if opening is string else '') + "TOOLS_INTRODUCTION" -}}
    {%- for tool in tools -%}{{- '\\n' -}}{{- tool | tojson -}}{%- endfor -%}
    {{- "TOOLS_END" -}}
{%- elif opening is string -%}
    {{- turn('system', opening) -}}
{%- endif -%}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else '' -%}
    {%- if message.role == 'user' or message.role == 'system' and not loop.first -%}
        {{- turn(message.role, content) -}}
    {%- elif message.role == 'assistant' -%}
        {{- reply(message, content) -}}
    {%- elif message.role == 'tool' -%}
        {{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' else '' -}}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' -}}
        {{- '<|im_end|>\\n' if loop.last or loop.nextitem.role != 'tool' else '' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n<think>\\n' -}}
    {%- if open_thinking is not defined or open_thinking is not true -%}{{- '\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
""".strip().replace("TOOLS_INTRODUCTION", TOOLS_INTRODUCTION).replace("TOOLS_END", TOOLS_END)


def added_tokens():
    """The 36 special and added tokens as AddedToken, in id order."""
    return [AddedToken(token, normalized=False, special=token in SPECIAL_TOKENS) for token in SPECIAL_TOKENS + ADDED_TOKENS]


def train(texts, vocab_size=VOCAB_SIZE):
    """A tokenizers.Tokenizer of `vocab_size` entries learnt from an iterable of texts; ids 0-35 are the released ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=added_tokens(), show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(texts, trainer)
    # the trainer marks all its reserved tokens special; those that replies may show are not
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] in SPECIAL_TOKENS
    return Tokenizer.from_str(json.dumps(content))


def tokenizer_config():
    """What transformers needs beside tokenizer.json, with the released settings."""
    decoder = {str(i): dict(content=token.content, lstrip=False, normalized=False, rstrip=False, single_word=False, special=token.special)
               for i, token in enumerate(added_tokens())}
    names = {"image_token": "<|image_pad|>", "audio_token": "<|audio_pad|>", "video_token": "<|video_pad|>",
             "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>",
             "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"}
    return dict(add_bos_token=False, add_eos_token=False, add_prefix_space=False, added_tokens_decoder=decoder,
                additional_special_tokens=SPECIAL_TOKENS[1:], bos_token="<|im_start|>", eos_token="<|im_end|>",
                pad_token="<|endoftext|>", unk_token="<|endoftext|>", clean_up_tokenization_spaces=False, legacy=True,
                model_max_length=131072, sp_model_kwargs={}, spaces_between_special_tokens=False, **names,
                chat_template=CHAT_TEMPLATE, tokenizer_class="PreTrainedTokenizerFast")


def save(tokenizer, folder):
    """Write tokenizer.json and tokenizer_config.json, each atomically, for AutoTokenizer.from_pretrained(folder)."""
    text = tokenizer.to_str(pretty=True) + "\n"
    replace_atomic(Path(folder) / "tokenizer.json", lambda file: file.write(text.encode()))
    save_json(tokenizer_config(), Path(folder) / "tokenizer_config.json")


def main():
    parser = argparse.ArgumentParser(description="Train the nano tokenizer on the nano corpus.")
    parser.add_argument("--corpus", default="out/nano/corpus")
    parser.add_argument("--out", default="model/nano")
    args = parser.parse_args()
    items = read_jsonl(Path(args.corpus) / "train.jsonl")
    tokenizer = train(text for item in items for text in (item["question"], item["answer"]))
    save(tokenizer, args.out)
    tokens = sum(len(tokenizer.encode(item["answer"]).ids) for item in items)
    count = sum(len(item["answer"].split()) for item in items)
    print(f"{tokenizer.get_vocab_size()} entries, {tokens / count:.2f} tokens a word of the answers -> {args.out}")


if __name__ == "__main__":
    main()
