"""Train the nano Thinker on text alone: our stand-in for the language model (llm_768.pth) that the released recipe starts from.

- A text step costs a quarter of a speech step, so facts, reading, repeating, conversations of several turns (multi_turn.py) and the
  questions about pictures, these told in words (scenes.py), are learnt here before the Talker learns to speak.
- `--above_bridge` goes on from a model that speaks: only what lies above the bridge is trained, so that the Talker hears what it knows.
- Rows of similar length are padded together: a talk is ten times as long as a question, and a step takes a third of the time so.
- Same rows as T2A without codes (model/sequence.py), same weights file format: `llm_<hidden>.pth` holds `model.*` and `lm_head.weight`.
- Resumable: the checkpoint keeps weights, optimizer, step and random state; the end of a run writes the weights file.

    python -m nano.train_llm --steps 1500
"""
import argparse
import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoTokenizer

from model.checkpoint import load_weights, save_atomic, save_json
from model.config import IGNORE, OmniConfig
from model.hardware import keep_freed_memory
from model.model_omni import MiniMindOmni, init_talker_from_thinker
from model.optimizers import adamw_and_muon
from model.sequence import build_training_row, pad_rows, tokenize_turns
from nano import multi_turn
from nano.corpus import NO_FACTS, SEED, facts, read_jsonl, write_jsonl
from nano.scenes import plan

ROOT = Path(__file__).resolve().parents[1]
MAX_LENGTH = 448  # a long talk
WARMUP = 100
PICTURE_QUESTIONS = 20_000
HELD_OUT = 400  # texts of each kind that the curve is measured on
PART = 16  # rows that are padded to one length
SHARES = {"pairs": 0.4, "facts": 0.2, "turns": 0.2, "pictures": 0.2}  # of a batch


def conversations(corpus):
    """What is learnt and what is held out, by kind of text: {kind of SHARES: (train, held-out)}, lists of messages."""
    train, heldout, questions, sentences = (read_jsonl(corpus / f"{part}.jsonl") for part in ("train", "heldout", "questions", "sentences"))
    known, asked = facts(train + questions, random.Random(SEED)), [item for item in heldout if item["kind"] not in NO_FACTS]
    turns = multi_turn.build(train, heldout, random.Random(SEED))
    pictures = plan(PICTURE_QUESTIONS, 2, False, SEED), plan(300, 1, True, SEED)
    return {"pairs": tuple([exchange(item["question"], item["answer"]) for item in part]
                           for part in (train + questions + sentences, heldout)),
            "facts": tuple([exchange(item["question"], item["answer"]) for item in part] for part in (known, asked)),
            "turns": tuple([talk["messages"] for talk in part] for part in turns),
            "pictures": tuple([exchange(f"{item['told']} {item['question']}", item["answer"]) for item in part] for part in pictures)}


def exchange(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def text_row(messages, tokenizer, config, strip_think):
    """(text ids (T,), labels (T,)) of a list of messages; the empty think block removed or kept."""
    prompt, reply = tokenize_turns(tokenizer, messages, strip_think)
    ids, labels, _ = build_training_row(prompt, reply, None, None, False, MAX_LENGTH, config)
    return ids[-1], labels


def draw(talks, count, generator):
    """`count` times (messages, whether the think block is removed): of every kind its share of SHARES, of each half without it."""
    kinds = list(SHARES)
    drawn = torch.multinomial(torch.tensor([SHARES[kind] for kind in kinds]), count, replacement=True, generator=generator).tolist()
    found = []
    for kind in drawn:
        strip, chosen = int(torch.randint(2, (), generator=generator)) == 0, talks[kinds[kind]]
        found.append((chosen[int(torch.randint(len(chosen), (), generator=generator))], strip))
    return found


def text_losses(model, rows, half):
    """Yields the summed cross-entropy over the replies of PART rows each, of similar length; over all rows, divided by the number of their
    labels, that is the mean. The Talker does not run."""
    total = sum(int((labels != IGNORE).sum()) for _, labels in rows)
    rows = sorted(rows, key=lambda row: len(row[0]))
    for part in (rows[i:i + PART] for i in range(0, len(rows), PART)):
        ids, labels = pad_rows([r[0] for r in part], model.config.pad_token_id), pad_rows([r[1] for r in part], IGNORE)
        ids, labels = ids.to(model.lm_head.weight.device), labels.to(model.lm_head.weight.device)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=half):
            hidden, _ = model.model(model.model.embed_tokens(ids))
            logits = model.lm_head(hidden[labels != IGNORE])
        yield F.cross_entropy(logits.float(), labels[labels != IGNORE], reduction="sum") / total


def learning_rate(step, steps, peak, warmup=WARMUP):
    return peak * min(1.0, (step + 1) / warmup) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default=ROOT / "out/nano/corpus", type=Path)
    parser.add_argument("--tokenizer_dir", default=ROOT / "model/nano")
    parser.add_argument("--out", default=ROOT / "out/nano/pack", type=Path, help="folder of the weights file")
    parser.add_argument("--work", default=ROOT / "out/nano/llm", type=Path, help="checkpoint and loss curve")
    parser.add_argument("--from_weight", type=Path, help="weights to go on from; the file written then holds all that this one does")
    parser.add_argument("--above_bridge", type=int, choices=(0, 1), default=0, help="1: train only the layers above the bridge")
    parser.add_argument("--whole", action="store_true", help="write all of a MiniMind-O: new projectors, and a Talker "
                        "that begins as the Thinker's last layers")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--save_interval", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--use_compile", type=int, choices=(0, 1), default=0, help="1: torch.compile, after a minute faster on a CPU, too")
    args = parser.parse_args()

    if args.device == "cpu":
        keep_freed_memory()
    config = OmniConfig.preset("nano")
    tokenizer = AutoTokenizer.from_pretrained(str(args.tokenizer_dir))
    talks = conversations(args.corpus)
    taught = {kind: train for kind, (train, _) in talks.items()}
    unseen = {kind: [text_row(talk, tokenizer, config, False) for talk in heldout[:HELD_OUT]] for kind, (_, heldout) in talks.items()}
    torch.manual_seed(args.seed)
    model = MiniMindOmni(config).to(args.device).train()
    if args.from_weight:
        model.load_state_dict(load_weights(args.from_weight, args.device))
    weights = [*model.model.parameters()]  # lm_head is tied to the embedding
    if args.above_bridge:
        weights = [*model.model.layers[config.bridge_layer + 1:].parameters(), *model.model.norm.parameters()]
    if args.use_compile:
        model.model.compile(dynamic=True)
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    matrices = [p for name, p in model.named_parameters() if p.requires_grad and p.ndim == 2 and ".layers." in name]
    optimizers = adamw_and_muon(weights, matrices, args.learning_rate, betas=(0.9, 0.95))
    draws, first, curve, checkpoint = torch.Generator().manual_seed(args.seed), 0, [], args.work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=args.device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        draws.set_state(state["random"].cpu())
        first, curve = state["step"], state["curve"]
    args.work.mkdir(parents=True, exist_ok=True)

    half, bar = args.dtype == "bfloat16", tqdm(range(first, args.steps), initial=first, total=args.steps, desc="llm")
    for step in bar:
        model.zero_grad()
        train = 0.0
        rows = [text_row(talk, tokenizer, config, strip) for talk, strip in draw(taught, args.batch_size, draws)]
        for loss in text_losses(model, rows, half):
            loss.backward()
            train += loss.item()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.learning_rate)
            optimizer.step()
        if (step + 1) % args.save_interval == 0 or step + 1 == args.steps:
            with torch.no_grad():
                held = {kind: sum(text_losses(model, unseen[kind], half)).item() for kind in unseen}
            bar.set_postfix(train=f"{train:.3f}", **{kind: f"{value:.3f}" for kind, value in held.items()})
            curve.append({"step": step + 1, "train": train, "heldout": held})
            save_atomic({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "random": draws.get_state(),
                         "step": step + 1, "curve": curve}, checkpoint)
            write_jsonl(curve, args.work / "log.jsonl")
    if args.whole:
        init_talker_from_thinker(model)
    keep = {k: v.half() for k, v in model.state_dict().items() if args.from_weight or args.whole or k.startswith(("model.", "lm_head."))}
    target = args.out / f"llm_{config.hidden_size}.pth"
    save_json({"config": config.to_dict()}, target.with_suffix(".json"))
    save_atomic(keep, target)  # last: whoever sees it finds its sizes beside it
    print(f"{target}: {sum(v.numel() for v in keep.values()) / 1e6:.2f} M values")


if __name__ == "__main__":
    main()
