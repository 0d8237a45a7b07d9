"""Example inputs for the nano pack's suites: spoken questions (audio-*), pictures (image-*) and questions about pictures (img-*).

- Sentences and scenes are held-out ones, so the examples show what the model can do with what it has not seen.
- One question is asked by kal16, a voice that no training has heard.

    python -m nano.build_examples --corpus out/nano/corpus --out model/nano/examples
"""
import argparse
import random
from pathlib import Path

import numpy as np

from model.audio import write_wav
from nano.corpus import SEED, read_jsonl
from nano.scenes import draw, draw_scene
from nano.speech import RATE, synthesise

ASKERS = ("slt", "awb", "kal16")
KINDS = ("animals", "opposites", "countries")  # of the corpus, one spoken question each
PICTURES = 3
PICTURE_QUESTIONS = {"describe": "Describe the picture.", "how-many": "How many things are there?"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="out/nano/corpus")
    parser.add_argument("--out", default="model/nano/examples", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    heldout, rng = read_jsonl(Path(args.corpus) / "heldout.jsonl"), random.Random(args.seed)
    for number, (kind, voice) in enumerate(zip(KINDS, ASKERS), 1):
        question = rng.choice([item["question"] for item in heldout if item["kind"] == kind])
        save(args.out / f"audio-{number:02d}-{voice}.wav", question, voice)
    for number in range(1, PICTURES + 1):
        picture_rng = np.random.default_rng((args.seed, number))
        image, _ = draw(draw_scene(picture_rng, heldout=True), picture_rng)
        image.save(args.out / f"image-{number:02d}.png", optimize=True)
    for name, question in PICTURE_QUESTIONS.items():
        save(args.out / f"img-{name}.wav", question, ASKERS[0])
    for path in sorted(args.out.iterdir()):
        print(f"{path} {path.stat().st_size / 1000:.0f} kB")


def save(path, text, voice):
    write_wav(path, synthesise(text, voice).astype(np.float32) / 32768, RATE)


if __name__ == "__main__":
    main()
