"""A tiny tokenizer, a tiny T2A parquet, and command lines of the trainer small enough for tests."""
import io
import json
from pathlib import Path

import numpy as np

from model.config import OmniConfig

NUM_CODES = OmniConfig.preset("nano").num_codes
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|spare_{i}|>" for i in range(3, 12)), "<|image_pad|>",
            *(f"<|spare_{i}|>" for i in range(13, 16)), "<|audio_pad|>", *(f"<|spare_{i}|>" for i in range(17, 25)), "<think>", "</think>"]
TEMPLATE = ("{%- for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
            "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}")
WORDS = "red blue green one two three cat dog sun moon".split()


def make_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges, with the released special ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    vocab = {token: i for i, token in enumerate(SPECIALS)}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[byte] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def make_t2a(path: Path, num_rows: int, seed: int = 0) -> None:
    """Rows of one turn: a question, its answer, and a few frames of codes that depend on the answer's words."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        answer = [int(i) for i in rng.integers(len(WORDS), size=rng.integers(1, 5))]
        text = " ".join(WORDS[i] for i in answer)
        codes = [(97 * i + 13 * k) % NUM_CODES for i in answer for k in range(8)]
        rows.append({"conversations": json.dumps([{"role": "user", "content": f"say {text}"}, {"role": "assistant", "content": text}]),
                     "answer_audios": [codes], "ref_audios": codes[:8], "spk_emb": rng.standard_normal(192).tolist()})
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=16)


def make_mixed(path: Path, num_rows: int, seconds: float = 0.5) -> None:
    """Rows that are, in turn, a spoken question with a spoken answer, a question about a picture, and plain text."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import soundfile
    from PIL import Image
    rng, rows = np.random.default_rng(0), []
    wav, picture = io.BytesIO(), io.BytesIO()
    soundfile.write(wav, 0.1 * rng.standard_normal(int(seconds * 16000)), 16000, format="WAV")
    Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(picture, "PNG")
    for i in range(num_rows):
        question = "<image>\nwhat is it?" if i % 3 == 1 else "what is it?"
        rows.append({"conversations": json.dumps([{"role": "user", "content": question}, {"role": "assistant", "content": "a cat"}]),
                     "question_audios": [wav.getvalue()] if i % 3 == 0 else [],
                     "answer_audios": [rng.integers(0, NUM_CODES, 40).tolist()] if i % 3 == 0 else [],
                     "ref_audios": None, "spk_emb": None, "image_bytes": [picture.getvalue()] if i % 3 == 1 else []})
    pq.write_table(pa.Table.from_pylist(rows), path)


def command(folder: Path, **changes) -> list[str]:
    """Arguments of a run that takes a fraction of a second per step; `changes` by flag name, None drops a flag."""
    args = dict(preset="nano", hidden_size=64, num_hidden_layers=2, talker_hidden_size=64, from_weight="none", device="cpu",
                tokenizer_dir=folder / "tokenizer", data_path=folder / "t2a.parquet", save_dir=folder / "out", max_seq_len=160,
                batch_size=4, num_workers=0, log_interval=1, save_interval=1000, learning_rate=1e-3)
    args.update(changes)
    return [part for name, value in args.items() if value is not None for part in (f"--{name}", str(value))]


def train_quietly(argv: list[str]) -> None:
    """The trainer's main in a fresh process of one thread (threads of a forked pool must not be used)."""
    import logging

    import torch
    from trainer.train_sft_omni import main
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    raise SystemExit(main(argv))
