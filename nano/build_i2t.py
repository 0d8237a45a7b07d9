"""The parquet files with pictures: scenes -> questions -> flite speech -> codec codes -> rows.

- `i2t_*`: picture and typed question. `mix_*`: picture and spoken question. `told_*`: the same scenes told in words, no picture: a text
  stage can learn the task from them before any eyes are attached. Each as `_train` and `_heldout`; held-out scenes are never trained on.
- The project's schema, plus a column `kind` (color, count, ...) for reports. Answers are spoken, with a voice prompt of their speaker.
- Speech and codes are cached in the same shards as nano.build_data's, pictures are painted by a pool of processes; equal seeds give
  equal files, and each is renamed into place when complete.

    python -m nano.build_i2t --codec model/nano/mimi --device cuda --workers 16
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
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
import torch
from tqdm import tqdm

from nano.build_data import codec_key, encode_all, frame_major, reference_pool, speaker_function, voiced
from nano.corpus import SEED
from nano.scenes import draw, draw_scene, png, questions, told
from nano.speech import RATE, TRAIN_VOICES, Utterance, read_shard, render

ROW_GROUP = 512
RATES = (0.9, 0.95, 1.0, 1.05, 1.1)  # of those who ask
SCHEMA = pa.schema([("conversations", pa.string()), ("question_audios", pa.list_(pa.binary())), ("image_bytes", pa.list_(pa.binary())),
                    ("answer_audios", pa.list_(pa.list_(pa.int16()))), ("ref_audios", pa.list_(pa.int16())),
                    ("spk_emb", pa.list_(pa.float32())), ("kind", pa.string())])


def picture_rng(seed, heldout, number):
    """The generator of picture `number`: it draws the scene, then paints it."""
    return np.random.default_rng((seed, int(heldout), number))


def plan(count, per_picture, heldout, seed):
    """`count` items {"question", "answer", "kind", "told", "picture"}, `per_picture` of different kinds about each picture."""
    items, number = [], 0
    while len(items) < count:
        scene = draw_scene(picture_rng(seed, heldout, number), heldout)
        rng = np.random.default_rng((seed, int(heldout), number, 1))
        found = questions(scene, rng)
        for i in rng.permutation(len(found))[:min(per_picture, count - len(items))]:
            question, answer, kind = found[i]
            items.append({"question": question, "answer": answer, "kind": kind, "told": told(scene), "picture": number})
        number += 1
    return items


def paint(seed, heldout, number):
    """PNG bytes of picture `number`, the one that `plan` asks about."""
    rng = picture_rng(seed, heldout, number)
    return png(draw(draw_scene(rng, heldout), rng)[0])


def asking(items, seed):
    """Who asks each item's question aloud: one Utterance per item, a training voice at some rate."""
    rng = random.Random(f"{seed} asking")
    return [Utterance(item["question"], rng.choice(TRAIN_VOICES), rng.choice(RATES)) for item in items]


def recordings(indexes):
    """FLAC bytes of every utterance in the speech shards: {Utterance: bytes}."""
    found = {}
    for index in indexes:
        for utterance, pcm in read_shard(index):
            buffer = io.BytesIO()
            sf.write(buffer, pcm, RATE, format="FLAC", subtype="PCM_16")
            found[utterance] = buffer.getvalue()
    return found


def row(item, utterance, codes, reference, picture=None, recording=None):
    """One row of SCHEMA. Without a picture the scene is told in words before the question."""
    question = f"{item['told']} {item['question']}" if picture is None else f"<image>\n{item['question']}"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": item["answer"]}]
    return {"conversations": json.dumps(turns), "question_audios": [recording] if recording else [],
            "image_bytes": [picture] if picture else [], "answer_audios": [frame_major(codes[utterance])],
            "ref_audios": frame_major(reference[1]), "spk_emb": reference[2], "kind": item["kind"]}


def write_rows(rows, count, path):
    """Atomically write `count` rows from an iterator."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    rows = iter(rows)
    with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for start in tqdm(range(0, count, ROW_GROUP), desc=path.name, unit="group"):
            group = [next(rows) for _ in range(min(ROW_GROUP, count - start))]
            columns = {name: [values[name] for values in group] for name in SCHEMA.names}
            writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=ROW_GROUP)
    os.replace(temporary, path)


def write_variants(items, codes, pool, asked, pictures, paths, seed):
    """Write one part's three files; `asked` are the FLAC recordings of the first len(asked) items, `pictures` PNG bytes by number."""
    by_text = {}
    for utterance in codes:
        by_text.setdefault(utterance.text, []).append(utterance)
    for utterances in by_text.values():
        utterances.sort(key=lambda u: (u.voice, u.rate))

    def rows(variant, chosen):
        rng = random.Random(f"{seed} {variant}")
        for i in rng.sample(range(len(chosen)), len(chosen)):
            item = chosen[i]
            utterance = rng.choice(by_text[item["answer"]])
            reference = rng.choice([entry for entry in pool[utterance.voice, utterance.pitch] if entry[0].text != utterance.text])
            yield row(item, utterance, codes, reference, None if variant == "told" else pictures[item["picture"]],
                      asked[i] if variant == "mix" else None)
    for variant, path in paths.items():
        chosen = items[:len(asked)] if variant == "mix" else items
        if chosen:
            write_rows(rows(variant, chosen), len(chosen), path)
            print(f"{path}: {len(chosen)} rows, {Path(path).stat().st_size / 1e6:.1f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speech", default="out/nano/speech", help="speech shards; the missing ones are made")
    parser.add_argument("--codec", default="out/nano/codec/targets.pt", help="targets.pt of nano.train_mimi, or a MimiModel folder")
    parser.add_argument("--out", default="out/nano/data")
    parser.add_argument("--questions", type=int, default=20_000, help="for training")
    parser.add_argument("--spoken", type=int, default=6000, help="how many of them are also asked aloud")
    parser.add_argument("--per_picture", type=int, default=2, help="training questions about one picture")
    parser.add_argument("--heldout", type=int, default=300, help="held-out questions, each with its own picture, typed and spoken")
    parser.add_argument("--others", type=float, default=0.25, help="share of the answers that each voice but the main one speaks, too")
    parser.add_argument("--speaker_encoder", default="mel", help="a CAM++ folder, 'mel' (spectral statistics) or 'none'")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    codec_key(args.codec)  # fail before the long steps
    speaker = speaker_function(args.speaker_encoder, args.device)
    parts = {"train": plan(args.questions, args.per_picture, False, args.seed), "heldout": plan(args.heldout, 1, True, args.seed)}
    spoken = {"train": args.spoken, "heldout": args.heldout}
    pool = None
    for part, items in parts.items():
        codes = encode_all(render(voiced(items, args.others, (1.0,), args.seed), args.speech, args.workers),
                           args.codec, args.device, args.out)
        pool = pool or reference_pool(codes, speaker, args.seed)
        askers = asking(items[:spoken[part]], f"{args.seed} {part}")
        recorded = recordings(render(list(dict.fromkeys(askers)), args.speech, args.workers))
        numbers = list(dict.fromkeys(item["picture"] for item in items))
        with ProcessPoolExecutor(args.workers) as workers:
            painted = workers.map(partial(paint, args.seed, part == "heldout"), numbers, chunksize=32)
            pictures = dict(zip(numbers, tqdm(painted, total=len(numbers), desc="pictures")))
        paths = {variant: f"{args.out}/{variant}_{part}.parquet" for variant in ("i2t", "mix", "told")}
        write_variants(items, codes, pool, [recorded[asker] for asker in askers], pictures, paths, args.seed)


if __name__ == "__main__":
    main()
