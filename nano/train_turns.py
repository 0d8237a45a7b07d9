"""Teach the Thinker's layers up to the bridge to keep turns apart: a turn shall look the same wherever it stands in a talk.

- They were learnt from short talks. After one turn about other things a turn's bridge states are 0.6 of their squared length away from what
  they are when the turn stands alone, after six turns 0.8: neither the layers above nor the Talker know them any more. Training the layers
  above with long talks does not help; what reaches them is spoilt.
- Here the target of a turn's bridge states, within a talk of up to TURNS, are those that the layers as they were give it alone (a
  distillation of their own short contexts; Hinton et al. 2015). Rotary positions are relative, so both can be the same.
- What was asked earlier in a talk is still there: the layers above the bridge see all of its turns.
- Turns are rows of any sets. trainer/train_nano.sh gives it text and spoken ones: when it runs, the eyes are not there yet.
- Embeddings, projectors, Talker and the layers above stay as they are.
- Resumable: the checkpoint keeps weights, optimizers and step, and the talks of a step depend on that and the seed alone.

    python -m nano.train_turns --from_weight out/nano/model/ears_256.pth --out out/nano/model/turns_256.pth --steps 1200
"""
import argparse
import copy
import hashlib
import random
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoTokenizer

from dataset.omni_dataset import OmniDataset, OmniSample, Variants
from model.checkpoint import load_strict, load_weights, save_atomic, save_model
from model.config import OmniConfig
from model.encoders import SenseVoice, SigLIP2, sensevoice_frames
from model.hardware import fast_bfloat16, keep_freed_memory
from model.model_minimind import compile_blocks
from model.model_omni import MiniMindOmni
from model.optimizers import adamw_and_muon, take_step
from nano.corpus import write_jsonl
from nano.train_llm import learning_rate, resume

TURNS = 8  # of a talk, at most
MAX_LENGTH = 256  # of a turn
PART = 4  # talks that are padded to one length
WARMUP = 30
VARIANTS = Variants(system=0.0, speech=False, text_sampling=0.0, scheduled_sampling=0.0, augment=None, question_mix=(0.7, 0.1, 0.1, 0.1))
DEPTHS = (0, 1, 3, 6)  # turns before, of the report


def read_turns(model, paths, tokenizer, pack, count, seed):
    """`count` rows of the sets as embedded turns, a list of (T, C): words, projected sounds, projected pictures."""
    data = OmniDataset(paths, tokenizer, model.config, MAX_LENGTH, VARIANTS, seed, sensevoice_frames)
    ear, eye = SenseVoice.load(pack / "SenseVoiceSmall"), None
    found = []
    for row in tqdm(random.Random(seed).sample(range(len(data)), min(count, len(data))), desc="turns", mininterval=5):
        sample = data.sample(row, 0)
        if isinstance(sample, OmniSample):
            audio = ear.features([sample.wav]) if sample.wav is not None else (None, None)
            if sample.images and eye is None:
                eye = SigLIP2.load(pack / "siglip2-base-p32-256-ve")
            images = eye(sample.images)[None] if sample.images else None
            with torch.no_grad():
                found.append(model.embed(sample.input_ids[None, -1], *audio, images)[0])
    return found


def bridge(thinker, x):
    """Embeddings (B, T, C) -> bridge states (B, T, C)."""
    return thinker(x, bridge_only=True)[1]


def draw(turns, count, rng):
    """`count` talks of 1 to TURNS turns, a list of lists of (T, C)."""
    return [rng.choices(turns, k=rng.randint(1, TURNS)) for _ in range(count)]


def positions(talk):
    """How many a talk (a list of (T, C)) takes."""
    return sum(map(len, talk))


def error(student, teacher, talks, half):
    """Squared distance of the talks' bridge states to those of their turns alone, and the latter's squared length: (B, T) each; and (B, T)
    turns before, -1 for padding."""
    alone = [turn for talk in talks for turn in talk]
    with torch.autocast(alone[0].device.type, torch.bfloat16, enabled=half):
        with torch.no_grad():
            states = bridge(teacher, pad_sequence(alone, batch_first=True))
        together = bridge(student, pad_sequence([torch.cat(talk) for talk in talks], batch_first=True))
    wanted = iter([state[:len(turn)].float() for state, turn in zip(states, alone)])
    wanted = pad_sequence([torch.cat([next(wanted) for _ in talk]) for talk in talks], batch_first=True)
    depth = [torch.cat([torch.full(turn.shape[:1], float(number)) for number, turn in enumerate(talk)]) for talk in talks]
    depth = pad_sequence(depth, batch_first=True, padding_value=-1).to(wanted.device)
    return (together.float() - wanted).square().sum(-1), wanted.square().sum(-1), depth


@torch.no_grad()
def report(student, teacher, turns, half, seed):
    """{turns before: squared distance / squared length} over 64 talks."""
    rng, sums = random.Random(seed), {depth: [0.0, 0.0] for depth in DEPTHS}
    for _ in range(4):
        parts = error(student, teacher, draw(turns, 16, rng), half)
        for depth, total in sums.items():
            for i in (0, 1):
                total[i] += float(parts[i][parts[2] == depth].sum())
    return {depth: round(distance / max(length, 1e-9), 4) for depth, (distance, length) in sums.items()}


def digest(model):
    """Of all its weights: a run that starts from others is another run, whatever their file is called."""
    return hashlib.blake2b(b"".join(p.detach().numpy().tobytes() for p in model.parameters()), digest_size=8).hexdigest()


def train(model, turns, args):
    """Trains model.model's layers up to the bridge; `args` as parse_args gives them."""
    teacher, half = copy.deepcopy(model.model).requires_grad_(False), args.dtype == "bfloat16"
    if args.use_compile:
        compile_blocks((*model.model.layers, *teacher.layers))
    layers = model.model.layers[:model.config.bridge_layer + 1].requires_grad_(True)
    weights = list(layers.parameters())
    optimizers = adamw_and_muon(weights, [p for p in weights if p.ndim == 2], args.learning_rate)
    first, curve, checkpoint = 0, [], args.work / "checkpoint.pt"
    made_with = {name: getattr(args, name) for name in ("turns", "steps", "batch_size", "learning_rate", "seed")}
    made_with |= {"data": [Path(path).name for path in args.data_path], "weights": digest(model)}
    if state := resume(checkpoint, made_with, layers, optimizers):
        first, curve = state["step"], state["curve"]
    print("distance by turns before:", report(model.model, teacher, turns, half, args.seed))
    for step in (bar := tqdm(range(first, args.steps), initial=first, total=args.steps, desc="turns apart", mininterval=5)):
        talks = sorted(draw(turns, args.batch_size, random.Random(f"{args.seed} {step}")), key=positions)
        loss = 0.0
        for part in (talks[i:i + PART] for i in range(0, len(talks), PART)):
            distance, length, depth = error(model.model, teacher, part, half)
            share = sum(map(positions, part)) / sum(map(positions, talks))
            part_loss = share * distance[depth >= 0].sum() / length[depth >= 0].sum()
            part_loss.backward()
            loss += part_loss.item()
        take_step(optimizers, weights, learning_rate(step, args.steps, args.learning_rate, WARMUP))
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if (step + 1) % args.save_interval == 0 or step + 1 == args.steps:
            found = report(model.model, teacher, turns, half, args.seed)
            curve.append({"step": step + 1, "loss": loss, "distance": {str(depth): share for depth, share in found.items()}})
            save_atomic({"made_with": made_with, "weights": layers.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
                         "step": step + 1, "curve": curve}, checkpoint)
            write_jsonl(curve, args.work / "log.jsonl")
    print("distance by turns before:", report(model.model, teacher, turns, half, args.seed))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from_weight", type=Path, required=True, help="weights of the nano model, projectors included")
    parser.add_argument("--out", type=Path, required=True, help="where they go, with the layers that were learnt")
    parser.add_argument("--data_path", nargs="+", default=[f"out/nano/data/{name}" for name in (
        "a2a_train", "more_train", "facts_train", "facts_train", "t2a_sentences", "i2t_train", "mix_train")])
    parser.add_argument("--pack", type=Path, default=Path("model/nano"), help="folder of tokenizer, ear and eyes")
    parser.add_argument("--work", type=Path, default=Path("out/nano/turns"), help="checkpoint and log")
    parser.add_argument("--turns", type=int, default=12_000, help="so many rows are read and kept, embedded")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch_size", type=int, default=16, help="talks")
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if fast_bfloat16("cpu") else "float32")
    parser.add_argument("--save_interval", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--use_compile", type=int, choices=(0, 1), default=0, help="1: torch.compile, after a minute faster on a CPU, too")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    keep_freed_memory()
    model = MiniMindOmni(OmniConfig.preset("nano")).requires_grad_(False)
    load_strict(model, load_weights(args.from_weight))
    turns = read_turns(model, args.data_path, AutoTokenizer.from_pretrained(str(args.pack)), args.pack, args.turns, args.seed)
    train(model, turns, args)
    save_model(model, args.out)


if __name__ == "__main__":
    main()
