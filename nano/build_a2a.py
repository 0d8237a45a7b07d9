"""The parquet files with spoken questions: corpus and conversations -> flite speech -> rows with encoded sound and codec codes.

- `a2a_train`: every question of the corpus asked aloud by several voices; `multi_train`: conversations of nano/multi_turn.py, every turn
  asked aloud and answered (which turn a training row ends with, and whether it is heard or read, is dataset/omni_dataset.py's choice).
- Held-out sentences: `a2a_heldout` and `multi_heldout` by the training voices, `a2a_unseen` and `multi_unseen` by kal16, which no training
  has heard, `a2a_noisy` and `multi_noisy` the training voices again under 10 dB of pink noise.
- The project's schema, plus a column `kind`. Training recordings are Ogg Vorbis (a tenth of the size), held-out ones FLAC.
- Resumable: speech, recordings and codes lie in shards named by their content, and nano.build_data's are used again; a parquet file is
  renamed into place when complete. Equal seeds ask and answer the same.

    python -m nano.build_a2a --codec model/nano/mimi --device cuda --workers 16
"""
import argparse
import io
import json
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import soundfile as sf
import torch
from tqdm import tqdm

from dataset.augment import add_noise, pink_noise
from nano import multi_turn
from nano.build_data import codec_key, encode_all, frame_major, reference_pool, speaker_function, voiced
from nano.build_i2t import write_rows
from nano.corpus import SEED, read_jsonl
from nano.speech import RATE, TRAIN_VOICES, Utterance, read_shard, render

UNSEEN_VOICE = "kal16"
NOISE_DB = 10.0
RATES = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2)  # of those who ask
PITCHES = (0.9, 0.95, 1.05, 1.12)
PITCH_SHARE = 0.3
VORBIS = dict(format="OGG", subtype="VORBIS", compression_level=0.8)
FLAC = dict(format="FLAC", subtype="PCM_16")


def as_talks(items):
    """Pairs of the corpus as conversations of one turn."""
    return [multi_turn.conversation(item["kind"], [(item["question"], item["answer"])]) for item in items]


def replies(talk):
    return [message["content"] for message in talk["messages"] if message["role"] == "assistant"]


def ask(talks, voices, seed, plain=False):
    """Who asks: for every conversation the Utterances of its user turns, by one voice at one rate; `plain` means as flite speaks."""
    asked = []
    for i, talk in enumerate(talks):
        rng = random.Random(f"{seed} {i} asks")
        voice, rate, pitch = rng.choice(voices), rng.choice(RATES), rng.choice(PITCHES) if rng.random() < PITCH_SHARE else 1.0
        asked.append([Utterance(text, voice) if plain else Utterance(text, voice, rate, pitch) for text in multi_turn.user_turns(talk)])
    return asked


def record(index, folder, sound, noise_db=None):
    """Encode one speech shard: {Utterance: bytes}, kept in `folder` under a name that says what was done."""
    path = Path(folder) / f"{index.stem}_{sound['format'].lower()}{'' if noise_db is None else f'_{noise_db:.0f}dB'}.npz"
    if not path.exists():
        rng, files = np.random.default_rng(int(index.stem, 16)), []
        for _, pcm in read_shard(index):
            wav = pcm.astype(np.float32) / 32768
            if noise_db is not None:
                wav = add_noise(wav, pink_noise(len(wav), rng), noise_db)
            buffer = io.BytesIO()
            sf.write(buffer, wav.clip(-1, 1), RATE, **sound)
            files.append(np.frombuffer(buffer.getvalue(), np.uint8))
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with open(temporary, "wb") as file:
            np.savez(file, data=np.concatenate(files), sizes=np.array([len(f) for f in files]))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    with np.load(path) as shard:
        pieces = np.split(shard["data"], np.cumsum(shard["sizes"])[:-1])
    return {utterance: piece.tobytes() for (utterance, _), piece in zip(read_shard(index), pieces, strict=True)}


def recordings(asked, args, sound, noise_db=None):
    """Encoded sound of all Utterances in `asked` (lists per conversation): {Utterance: bytes}."""
    wanted = list(dict.fromkeys(utterance for turns in asked for utterance in turns))
    indexes = render(wanted, args.speech, args.workers)
    folder = Path(args.out) / "recordings"
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    with ProcessPoolExecutor(args.workers) as pool:
        shards = pool.map(partial(record, folder=folder, sound=sound, noise_db=noise_db), indexes)
        for shard in tqdm(shards, total=len(indexes), desc="recordings", unit="shard"):
            found |= shard
    return found


def answer_codes(talks, corpus, args):
    """Codes of every reply: {text: {voice: (Utterance, (8, T))}}; replies of the corpus come from nano.build_data's shards."""
    indexes = render(voiced(corpus, args.others, (1.0,), args.seed), args.speech, args.workers)
    found = encode_all(indexes, args.codec, args.device, args.out)
    there = {item["answer"] for item in corpus}
    missing = [{"answer": text} for text in dict.fromkeys(text for talk in talks for text in replies(talk)) if text not in there]
    if missing:
        indexes = render(voiced(missing, args.others, (1.0,), args.seed), args.speech, args.workers)
        found |= encode_all(indexes, args.codec, args.device, args.out)
    by_text = {}
    for utterance, codes in found.items():
        by_text.setdefault(utterance.text, {})[utterance.voice] = (utterance, codes)
    return by_text, found


def rows(talks, asked, recorded, codes, pool, seed):
    """Parquet rows in random order. One voice answers a conversation, with another sentence of its own as the voice prompt."""
    rng = random.Random(f"{seed} rows")
    for i in rng.sample(range(len(talks)), len(talks)):
        talk = talks[i]
        spoken = [codes[text] for text in replies(talk)]
        voice = rng.choice(sorted(set.intersection(*map(set, spoken))) or sorted(spoken[-1]))
        said = [turn.get(voice) for turn in spoken]  # an earlier reply may lack this voice: then it has no codes
        texts = {utterance.text for utterance, _ in filter(None, said)}
        reference = rng.choice([entry for entry in pool[voice, 1.0] if entry[0].text not in texts])
        yield {"conversations": json.dumps(talk["messages"]), "question_audios": [recorded[utterance] for utterance in asked[i]],
               "image_bytes": [], "answer_audios": [[] if turn is None else frame_major(turn[1]) for turn in said],
               "ref_audios": frame_major(reference[1]), "spk_emb": reference[2], "kind": talk["kind"]}


def write(name, talks, asked, recorded, codes, pool, args):
    path = Path(args.out) / f"{name}.parquet"
    write_rows(rows(talks, asked, recorded, codes, pool, f"{args.seed} {name}"), len(talks), path)
    print(f"{path}: {len(talks)} rows, {path.stat().st_size / 1e6:.1f} MB")


def write_train(name, talks, codes, pool, args):
    asked = ask(talks, TRAIN_VOICES, f"{args.seed} {name}")
    write(f"{name}_train", talks, asked, recordings(asked, args, VORBIS), codes, pool, args)


def write_heldout(name, talks, codes, pool, args):
    conditions = (("heldout", TRAIN_VOICES, None), ("noisy", TRAIN_VOICES, NOISE_DB), ("unseen", (UNSEEN_VOICE,), None))
    for condition, voices, noise_db in conditions:
        asked = ask(talks, voices, f"{args.seed} {name}", plain=True)
        write(f"{name}_{condition}", talks, asked, recordings(asked, args, FLAC, noise_db), codes, pool, args)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="out/nano/corpus")
    parser.add_argument("--speech", default="out/nano/speech", help="speech shards; the missing ones are made")
    parser.add_argument("--codec", default="out/nano/codec/targets.pt", help="targets.pt of nano.train_mimi, or a MimiModel folder")
    parser.add_argument("--out", default="out/nano/data")
    parser.add_argument("--askings", type=int, default=2, help="rows for each pair of the corpus, asked and answered by other voices")
    parser.add_argument("--conversations", type=int, default=6000, help="at most so many of several turns, for training")
    parser.add_argument("--others", type=float, default=0.25, help="share of the answers that each voice but the main one speaks, too")
    parser.add_argument("--speaker_encoder", default="mel", help="a CAM++ folder, 'mel' (spectral statistics) or 'none'")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=int, help="only so many pairs and conversations of each part, to try things out")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    codec_key(args.codec)  # fail before the long steps
    train, heldout = (read_jsonl(Path(args.corpus) / f"{name}.jsonl") for name in ("train", "heldout"))
    talks, other_talks = multi_turn.build(train, heldout, random.Random(args.seed), args.conversations)
    train, heldout, talks, other_talks = (part[:args.limit] for part in (train, heldout, talks, other_talks))
    speaker = speaker_function(args.speaker_encoder, args.device)
    codes, utterances = answer_codes(talks, train, args)
    pool = reference_pool(utterances, speaker, args.seed)
    write_train("a2a", as_talks(train) * args.askings, codes, pool, args)
    write_train("multi", talks, codes, pool, args)
    codes = answer_codes(other_talks, heldout, args)[0]
    write_heldout("a2a", as_talks(heldout), codes, pool, args)
    write_heldout("multi", other_talks, codes, pool, args)


if __name__ == "__main__":
    main()
