"""Train the nano Thinker on text alone: our stand-in for the language model (llm_768.pth) that the released recipe starts from.

- A text step costs a quarter of a speech step, so facts, reading, repeating, conversations of several turns (multi_turn.py) and the
  questions about pictures, these told in words (scenes.py), are learnt here before the Talker learns to speak.
- Rows of similar length are padded together: a talk is ten times as long as a question, and a step takes a third of the time so.
- Same rows as T2A without codes (model/sequence.py), same weights file format: `llm_<hidden>.pth` holds all of a MiniMind-O, with new
  projectors and a Talker that begins as the Thinker's last layers.
- Resumable: the checkpoint keeps weights, optimizers, step and random state; the end of a run writes the weights file.

    python -m nano.train_llm --steps 1500
"""
import argparse
import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoTokenizer

from model.checkpoint import load_weights, save_atomic, save_model
from model.config import IGNORE, OmniConfig
from model.hardware import fast_bfloat16, keep_freed_memory
from model.model_minimind import compile_blocks
from model.model_omni import MiniMindOmni, init_talker_from_thinker
from model.optimizers import adamw_and_muon, take_step
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


def resume(path, made_with, module, optimizers, device="cpu"):
    """Loads what a run with the same arguments, `made_with`, saved at `path`, and returns it; None where nothing is."""
    if not path.exists():
        return None
    state = load_weights(path, device)
    if state.get("made_with") != made_with:
        raise ValueError(f"{path} was made with {state.get('made_with', 'unknown arguments')}, not with {made_with}: "
                         "give the same, or another --work")
    module.load_state_dict(state["weights"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state


def train(model, talks, tokenizer, args):
    """Trains the Thinker of `model` on `talks`, as conversations gives them; `args` as parse_args gives them."""
    taught = {kind: learnt for kind, (learnt, _) in talks.items()}
    unseen = {kind: [text_row(talk, tokenizer, model.config, False) for talk in heldout[:HELD_OUT]] for kind, (_, heldout) in talks.items()}
    if args.use_compile:
        compile_blocks(model.model.layers)
    weights = list(model.model.parameters())  # lm_head is tied to the embedding
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    optimizers = adamw_and_muon(weights, matrices, args.learning_rate, betas=(0.9, 0.95))
    draws, first, curve, checkpoint = torch.Generator().manual_seed(args.seed), 0, [], args.work / "checkpoint.pt"
    made_with = {name: getattr(args, name) for name in ("steps", "batch_size", "learning_rate", "seed")}
    if state := resume(checkpoint, made_with, model, optimizers, args.device):
        draws.set_state(state["random"].cpu())
        first, curve = state["step"], state["curve"]

    half, bar = args.dtype == "bfloat16", tqdm(range(first, args.steps), initial=first, total=args.steps, desc="llm")
    for step in bar:
        loss = 0.0
        rows = [text_row(talk, tokenizer, model.config, strip) for talk, strip in draw(taught, args.batch_size, draws)]
        for part_loss in text_losses(model, rows, half):
            part_loss.backward()
            loss += part_loss.item()
        take_step(optimizers, weights, learning_rate(step, args.steps, args.learning_rate))
        if (step + 1) % args.save_interval == 0 or step + 1 == args.steps:
            with torch.no_grad():
                held = {kind: sum(text_losses(model, unseen[kind], half)).item() for kind in unseen}
            bar.set_postfix(train=f"{loss:.3f}", **{kind: f"{value:.3f}" for kind, value in held.items()})
            curve.append({"step": step + 1, "train": loss, "heldout": held})
            save_atomic({"made_with": made_with, "weights": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
                         "random": draws.get_state(), "step": step + 1, "curve": curve}, checkpoint)
            write_jsonl(curve, args.work / "log.jsonl")


def parse_args(argv=None):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default=ROOT / "out/nano/corpus", type=Path)
    parser.add_argument("--tokenizer_dir", default=ROOT / "model/nano")
    parser.add_argument("--out", default=ROOT / "out/nano/pack", type=Path, help="folder of the weights file")
    parser.add_argument("--work", default=ROOT / "out/nano/llm", type=Path, help="checkpoint and loss curve")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--device", default=device)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if fast_bfloat16(device) else "float32")
    parser.add_argument("--save_interval", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--use_compile", type=int, choices=(0, 1), default=0, help="1: torch.compile, after a minute faster on a CPU, too")
    return parser.parse_args(argv)


def make_model(args):
    torch.manual_seed(args.seed)
    return MiniMindOmni(OmniConfig.preset("nano")).to(args.device).train()


def main(argv=None):
    args = parse_args(argv)
    if args.device == "cpu":
        keep_freed_memory()
    model, tokenizer = make_model(args), AutoTokenizer.from_pretrained(str(args.tokenizer_dir))
    train(model, conversations(args.corpus), tokenizer, args)
    init_talker_from_thinker(model)
    target = args.out / f"llm_{model.config.hidden_size}.pth"
    save_model(model, target)
    print(f"{target}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M values")


if __name__ == "__main__":
    main()
