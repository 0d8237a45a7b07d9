"""Text to speech with flite, the offline synthesiser whose voices the nano world is taught with.

- An `Utterance` is one sentence by one voice, optionally sped up or shifted in pitch (dataset/tts.py renders it).
- `voiced` and `estranged` choose who says a sentence: the main voice always, the others a share of them.
- `render` does many of them with a pool of processes into shards that are written atomically; a second run skips finished shards.
- Needs the `flite` program (apt-get install flite).

    python -m nano.speech --texts out/nano/corpus/train.jsonl --out out/nano/speech --workers 2
"""
import argparse
import hashlib
import json
import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.tts import FLITE_RATE as RATE, synthesise, synthesise_timed
from model.checkpoint import replace_atomic
from nano.corpus import SEED, read_jsonl

TRAIN_VOICES = ("slt", "rms", "awb")
MAIN_VOICE = "rms"  # speaks every answer; of the three the recogniser understands it best
UNSEEN_VOICE = "kal16"  # kept as a voice that no training has heard
STRANGERS = [(voice, pitch) for voice in TRAIN_VOICES for pitch in (0.84, 0.9, 1.1, 1.2)]  # further speakers of the training


@dataclass(frozen=True)
class Utterance:
    """One thing to say: `rate` > 1 is faster, `pitch` > 1 is higher (a smaller person)."""
    text: str
    voice: str
    rate: float = 1.0
    pitch: float = 1.0


def voiced(texts, others, seed=SEED):
    """Utterances of every distinct text: all in the main voice, a share `others` (0-1) of them in each of the other voices, too.

    Who says a text depends on it and the seed only.
    """
    utterances = []
    for text in dict.fromkeys(texts):
        rng = random.Random(f"{seed} {text}")
        for voice in TRAIN_VOICES:
            if rng.random() < others or voice == MAIN_VOICE:
                utterances.append(Utterance(text, voice))
    return utterances


def estranged(texts, share, seed=SEED):
    """Utterances of a `share` (0-1) of the distinct texts, each by one of STRANGERS."""
    utterances = []
    for text in dict.fromkeys(texts):
        rng = random.Random(f"{seed} stranger {text}")
        if rng.random() < share:
            voice, pitch = rng.choice(STRANGERS)
            utterances.append(Utterance(text, voice, pitch=pitch))
    return utterances


def render(utterances, out, workers=2, shard_size=256):
    """Synthesise a list of Utterance into `out`; returns the shard index files, in order.

    A shard is `<key>.npy` (all samples after one another, int16) and `<key>.json` (utterances, their lengths and when their phones end);
    the key names the content, so unchanged shards are not made again. The index is renamed into place last: a shard without one does
    not exist.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    shards = [utterances[i:i + shard_size] for i in range(0, len(utterances), shard_size)]
    indexes = [out / f"{_key(shard)}.json" for shard in shards]
    missing = [(shard, index) for shard, index in zip(shards, indexes) if not index.exists()]
    with ProcessPoolExecutor(workers) as pool:
        jobs = pool.map(_render_shard, *zip(*missing)) if missing else []
        for _ in tqdm(jobs, total=len(missing), desc=f"speech ({shard_size} a shard)", unit="shard"):
            pass
    return indexes


def _key(shard):
    return hashlib.sha256(json.dumps([asdict(u) for u in shard]).encode()).hexdigest()[:16]


def _render_shard(shard, index):
    wavs, phones = zip(*[synthesise_timed(**asdict(utterance)) for utterance in shard])
    replace_atomic(index.with_suffix(".npy"), partial(np.save, arr=np.concatenate(wavs)))
    items = [dict(asdict(u), samples=len(wav), phones=said) for u, wav, said in zip(shard, wavs, phones)]
    replace_atomic(index, lambda file: file.write(json.dumps(items).encode()))


def read_shard(index):
    """Yield (Utterance, (S,) int16) of one shard; `index` is its .json file."""
    for utterance, pcm, _ in read_timed_shard(index):
        yield utterance, pcm


def read_timed_shard(index):
    """Yield (Utterance, (S,) int16, [[phone, end in seconds]]) of one shard; None for the phones of a shard that does not tell."""
    index = Path(index)
    samples = np.load(index.with_suffix(".npy"), mmap_mode="r")
    start = 0
    for item in json.loads(index.read_text(encoding="utf-8")):
        count, phones = item.pop("samples"), item.pop("phones", None)
        yield Utterance(**item), np.array(samples[start:start + count]), phones
        start += count
    assert start == len(samples), (index, start, len(samples))


def main():
    parser = argparse.ArgumentParser(description="Synthesise sentences with flite into shards, each by all training voices.")
    parser.add_argument("--texts", required=True, nargs="+", help="files of JSON lines with an `answer` to speak")
    parser.add_argument("--limit", type=int, help="only the first so many texts of each file")
    parser.add_argument("--out", default="out/nano/speech")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    texts = dict.fromkeys(item["answer"] for path in args.texts for item in read_jsonl(path)[:args.limit])
    utterances = [Utterance(text, voice) for text in texts for voice in TRAIN_VOICES]
    indexes = render(utterances, args.out, args.workers)
    samples = sum(item["samples"] for index in indexes for item in json.loads(index.read_text(encoding="utf-8")))
    print(f"{len(utterances)} utterances, {samples / RATE / 3600:.2f} h of speech in {len(indexes)} shards under {args.out}")


if __name__ == "__main__":
    main()
