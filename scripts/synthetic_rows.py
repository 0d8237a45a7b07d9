"""Made-up training rows of realistic sizes, for benchmarks: nothing is learnt from them, but they cost what real ones cost.

- T2A: a short question, and a reply whose length makes the whole row log-normal in positions, as spoken replies are.
- A2A: the question is also spoken (encoded 16 kHz noise of 2 to 6 s). I2T: a noise picture beside it.
"""
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.config import FRAME_SAMPLES, INPUT_RATE, NUM_CODEBOOKS, SAMPLE_RATE, OmniConfig

WORDS = "the a of to and in is it you that he was for on are with as they be at one have this from or had by hot but some what".split()
FRAMES_PER_WORD = 4  # of speech at an ordinary pace
PROMPT_POSITIONS = 32  # of the question, the roles around it and the delay of the last codebook
SIGMA = 0.5  # of the logarithm of a row's length
SHORTEST = 4  # frames
ROW_GROUP = 256
TASKS = ("t2a", "a2a", "i2t")


def make_row(task: str, rng: np.random.Generator, config: OmniConfig, median: int, longest: int) -> dict:
    """One row by column name; its length in positions is about log-normal around `median`, at most `longest`."""
    positions = min(longest, int(median * np.exp(SIGMA * rng.standard_normal())))
    frames = max(SHORTEST, positions - PROMPT_POSITIONS)
    question, answer = (" ".join(rng.choice(WORDS, n)) for n in (8, 1 + frames // FRAMES_PER_WORD))
    codes = rng.integers(0, config.num_codes, (frames + SHORTEST, NUM_CODEBOOKS), dtype=np.int16)
    row = {"conversations": json.dumps([{"role": "user", "content": question + "<image>" * (task == "i2t")},
                                        {"role": "assistant", "content": answer}]),
           "answer_audios": [codes[:frames].ravel()], "ref_audios": codes[frames:].ravel(),
           "spk_emb": rng.standard_normal(config.spk_emb_size).astype(np.float32)}
    if task == "a2a":
        row["question_audios"] = [_encoded_noise(rng, int(INPUT_RATE * rng.uniform(2, 6)))]
    if task == "i2t":
        row["image_bytes"] = [_encoded_picture(rng)]
    return row


def write_rows(path: Path, task: str, num_rows: int, config: OmniConfig, median: int = 180, longest: int = 512, seed: int = 0) -> None:
    """A parquet file of `num_rows` rows of a task of TASKS."""
    rng = np.random.default_rng(seed)
    kinds = {"conversations": pa.string(), "answer_audios": pa.list_(pa.list_(pa.int16())), "ref_audios": pa.list_(pa.int16()),
             "spk_emb": pa.list_(pa.float32())}
    kinds.update({"a2a": {"question_audios": pa.list_(pa.binary())}, "i2t": {"image_bytes": pa.list_(pa.binary())}}.get(task, {}))
    with pq.ParquetWriter(path, pa.schema(list(kinds.items()))) as writer:
        for first in range(0, num_rows, ROW_GROUP):
            rows = [make_row(task, rng, config, median, longest) for _ in range(min(ROW_GROUP, num_rows - first))]
            writer.write_table(pa.Table.from_pydict({name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()}))


def speech_hours(path: Path, task: str) -> float:
    """Hours of the questions' speech for A2A, else of the replies'."""
    if task == "a2a":
        import soundfile
        clips = pq.read_table(path, columns=["question_audios"])["question_audios"].to_pylist()
        return sum(soundfile.info(io.BytesIO(clip)).duration for clip, in clips) / 3600
    codes = pq.read_table(path, columns=["answer_audios"])["answer_audios"].combine_chunks().flatten().flatten()
    return len(codes) / NUM_CODEBOOKS * FRAME_SAMPLES / SAMPLE_RATE / 3600


def _encoded_noise(rng: np.random.Generator, samples: int) -> bytes:
    import soundfile
    file = io.BytesIO()
    soundfile.write(file, 0.1 * rng.standard_normal(samples), INPUT_RATE, format="FLAC")
    return file.getvalue()


def _encoded_picture(rng: np.random.Generator) -> bytes:
    from PIL import Image
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()
