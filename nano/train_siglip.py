"""Train the nano vision encoder: a small SiglipVisionModel (256x256, patch 32, 64 tokens) that sees the scenes of nano/scenes.py.

- Two tasks, both heads thrown away afterwards: a patch says what covers it (kind, color, size, whether a thing's center is in it), and
  a little reader answers the scenes' own questions word by word from the 64 tokens, which is what the Thinker will have to do.
- Pictures are painted by worker processes as they are needed, batch i from (seed, i); noise, gain and tint are added on the device.
- Progress is a share of `--minutes` (a GPU loan) or `--steps` (a fixed recipe); either way a killed run continues where it was.
- The folder has the released format (config.json, model.safetensors in fp16, preprocessor_config.json); the report is measured on it,
  read back, with scenes that no training has shown.

    python -m nano.train_siglip --device cuda --minutes 4
    python -m nano.train_siglip --batch_size 64 --minutes 40 --workers 1   # two CPU cores
"""
import argparse
import logging
import math
import os
import re
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import SiglipVisionConfig, SiglipVisionModel

from model.checkpoint import load_weights, save_atomic, save_json
from model.hardware import fast_bfloat16, keep_freed_memory
from model.optimizers import adamw_and_muon, take_step
from nano.scenes import COLORS, GRID, KINDS, PATCH, QUESTION_KINDS, QUESTION_WORDS, SCENE_WORDS, SIZE, draw, draw_scene, questions

FOLDER = "siglip2-base-p32-256-ve"  # the released name: what the loader looks for in a pack
WORDS = ["<pad>", "<end>", ".", ",", "?", *SCENE_WORDS, *QUESTION_WORDS]
WORD_IDS = {word: i for i, word in enumerate(WORDS)}
PAD, END = 0, 1
MAX_WORDS = 40  # of a question and its answer
TARGETS = {"kind": len(KINDS) + 1, "color": len(COLORS) + 1, "size": 3, "center": 2}  # classes of a patch, 0 = nothing there
READER_WIDTH = 256
IGNORE = -100
log = logging.getLogger(__name__)


@dataclass
class Options:
    """Everything that shapes a run; saved in its checkpoint."""
    hidden: int = 256
    intermediate: int = 768
    layers: int = 5
    heads: int = 8
    batch_size: int = 256
    questions: int = 4  # of each picture
    lr: float = 1e-3
    warmup: float = 0.04  # share of the run
    patch_weight: float = 0.5
    seed: int = 0


def vision_config(options):
    """SiglipVisionConfig of the nano encoder; its attention-pooling head, which nobody reads, is left out."""
    return SiglipVisionConfig(hidden_size=options.hidden, intermediate_size=options.intermediate, num_hidden_layers=options.layers,
                              num_attention_heads=options.heads, image_size=SIZE, patch_size=PATCH, vision_use_head=False)


# data


def word_ids(text):
    return [WORD_IDS[word] for word in re.findall(r"[a-z]+|[.,?]", text.lower())]


def patch_targets(scene, boxes):
    """What covers each patch: {name: (64,) int64} with the classes of TARGETS.

    A patch belongs to the thing that covers most of it, if that is a fifth or more, and a thing's center patch always to that thing.
    """
    edges = np.arange(GRID) * PATCH
    covered = np.zeros((len(boxes), GRID, GRID), np.float32)
    for i, (x, y, half) in enumerate(boxes):
        inner = half * 0.85  # few things fill the corners of their box
        across = np.clip(np.minimum(edges + PATCH, x + inner) - np.maximum(edges, x - inner), 0, None)
        down = np.clip(np.minimum(edges + PATCH, y + inner) - np.maximum(edges, y - inner), 0, None)
        covered[i] = down[:, None] * across[None] / PATCH ** 2
    owner = np.where(covered.max(0) >= 0.2, covered.argmax(0) + 1, 0)  # 1 + thing
    center = np.zeros((GRID, GRID), np.int64)
    for i, (x, y, _) in enumerate(boxes):
        owner[int(y // PATCH), int(x // PATCH)] = i + 1
        center[int(y // PATCH), int(x // PATCH)] = 1
    classes = {"kind": [list(KINDS).index(thing.kind) + 1 for thing in scene.things],
               "color": [list(COLORS).index(thing.color) + 1 for thing in scene.things],
               "size": [1 + thing.big for thing in scene.things]}
    targets = {key: np.array([0, *values])[owner].reshape(-1) for key, values in classes.items()}
    return targets | {"center": center.reshape(-1)}


def make_batch(rng, batch_size, num_questions, heldout=False):
    """A batch of numpy arrays: image (B, 256, 256, 3) uint8, TARGETS (B, 64), ids and labels (B, Q, MAX_WORDS), asked (B, Q).

    ids are question and answer; labels are the answer's words and END where the reader has to say them, aligned with its output.
    `num_questions` of each picture are asked, of different kinds; `asked` are indices of QUESTION_KINDS.
    """
    batch = {"image": np.empty((batch_size, SIZE, SIZE, 3), np.uint8), "asked": np.empty((batch_size, num_questions), np.int64),
             "ids": np.full((batch_size, num_questions, MAX_WORDS), PAD), "labels": np.full((batch_size, num_questions, MAX_WORDS), IGNORE)}
    batch |= {key: np.empty((batch_size, GRID * GRID), np.int64) for key in TARGETS}
    for row in range(batch_size):
        scene = draw_scene(rng, heldout)
        image, boxes = draw(scene, rng)
        batch["image"][row] = np.asarray(image)
        for key, values in patch_targets(scene, boxes).items():
            batch[key][row] = values
        found = questions(scene, rng)
        for i, choice in enumerate(rng.permutation(len(found))[:num_questions]):
            question, answer, kind = found[choice]
            asked, said = word_ids(question), word_ids(answer) + [END]
            batch["ids"][row, i, :len(asked) + len(said)] = asked + said
            batch["labels"][row, i, len(asked) - 1:len(asked) - 1 + len(said)] = said
            batch["asked"][row, i] = QUESTION_KINDS.index(kind)
    return batch


def as_tensors(batch, device="cpu"):
    return {key: torch.from_numpy(values).to(device) for key, values in batch.items()}


class Batches(Dataset):
    """Batch i of a run as tensors, the same whichever worker makes it."""

    def __init__(self, options):
        self.options = options

    def __getitem__(self, index):
        rng = np.random.default_rng((self.options.seed, index))
        return as_tensors(make_batch(rng, self.options.batch_size, self.options.questions))


def to_pixels(image, generator=None):
    """image (B, H, W, 3) uint8 -> pixels (B, 3, H, W) float32 in [-1, 1], as the processor does; a generator adds noise, gain and tint."""
    pixels = image.permute(0, 3, 1, 2).float() / 127.5 - 1
    if generator is None:
        return pixels

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(len(image), *shape, generator=generator, device=image.device)
    pixels = (pixels + 1) * uniform(0.85, 1.1, 1, 1, 1) * uniform(0.95, 1.05, 3, 1, 1) - 1
    noise = torch.randn(pixels.shape, generator=generator, device=image.device)
    return (pixels + noise * uniform(0, 0.08, 1, 1, 1)).clamp(-1, 1)


# the heads


class Heads(nn.Module):
    """Both tasks on the encoder's tokens."""

    def __init__(self, hidden):
        super().__init__()
        self.patch = nn.Linear(hidden, sum(TARGETS.values()))
        self.memory = nn.Linear(hidden, READER_WIDTH)
        self.words = nn.Embedding(len(WORDS), READER_WIDTH)
        self.places = nn.Embedding(MAX_WORDS, READER_WIDTH)
        layer = nn.TransformerDecoderLayer(READER_WIDTH, 8, 2 * READER_WIDTH, dropout=0.0, activation="gelu",
                                           batch_first=True, norm_first=True)
        self.reader = nn.TransformerDecoder(layer, 2, nn.LayerNorm(READER_WIDTH))
        for embedding in (self.words, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def patches(self, tokens):
        """tokens (B, 64, C) -> {target: logits (B, 64, classes)}."""
        return dict(zip(TARGETS, self.patch(tokens).split(list(TARGETS.values()), -1)))

    def read(self, tokens, ids):
        """tokens (B, 64, C), ids (B, Q, W) -> logits of the next word (B, Q, W, words)."""
        rows, asked, width = ids.shape
        memory = self.memory(tokens).repeat_interleave(asked, 0)
        x = (self.words(ids) + self.places.weight[:width]).view(rows * asked, width, -1)
        mask = torch.ones(width, width, dtype=torch.bool, device=ids.device).triu(1)
        x = self.reader(x, memory, tgt_mask=mask)
        return F.linear(x, self.words.weight).view(rows, asked, width, -1)


def losses(tokens, heads, batch):
    """(patch loss, word loss), each a mean cross-entropy; things are few, so patches that hold one weigh three times as much."""
    patch = 0.0
    weight = 1.0 + 2.0 * (batch["kind"] > 0)
    for key, logits in heads.patches(tokens).items():
        each = F.cross_entropy(logits.float().flatten(0, 1), batch[key].flatten(), reduction="none")
        patch = patch + (each * weight.flatten()).sum() / weight.sum()
    words = heads.read(tokens, batch["ids"]).float()
    return patch, F.cross_entropy(words.flatten(0, 2), batch["labels"].flatten(), ignore_index=IGNORE)


def shorten(batch):
    """Drop the word columns that are padding in every row."""
    width = int((batch["ids"] != PAD).any(0).any(0).sum())
    return batch | {key: batch[key][..., :width] for key in ("ids", "labels")}


# training


class Run:
    """What a run is made of and how far it is; all of it survives in `state.pt`."""

    def __init__(self, options, device, use_compile=False):
        torch.manual_seed(options.seed)  # initial weights
        self.options, self.device = options, device
        self.model = SiglipVisionModel(vision_config(options)).to(device)
        self.heads = Heads(options.hidden).to(device)
        self.parameters = [*self.model.parameters(), *self.heads.parameters()]
        if use_compile:
            self.model.compile()
            self.heads.reader.compile(dynamic=True)  # questions differ in length
        blocks = [*self.model.named_parameters(), *self.heads.named_parameters()]
        matrices = [p for name, p in blocks if p.ndim == 2 and ".layers." in name]
        self.adamw, self.muon = adamw_and_muon(self.parameters, matrices, options.lr, betas=(0.9, 0.98))
        self.step, self.seconds = 0, 0.0

    def save(self, path):
        save_atomic({"options": asdict(self.options), "model": self.model.state_dict(), "heads": self.heads.state_dict(),
                     "adamw": self.adamw.state_dict(), "muon": self.muon.state_dict(), "step": self.step, "seconds": self.seconds}, path)

    def restore(self, path):
        """Continue from `path`. ValueError when it belongs to a run with other options."""
        state = load_weights(path, self.device)
        if state["options"] != asdict(self.options):
            raise ValueError(f"{path} was made with {state['options']}: give the same options, or another --work")
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.adamw.load_state_dict(state["adamw"])
        self.muon.load_state_dict(state["muon"])
        self.step, self.seconds = state["step"], state["seconds"]


def learning_rate(options, progress):
    """Linear warm-up, then a cosine to a twentieth."""
    return options.lr * min(progress / options.warmup, 0.05 + 0.475 * (1 + math.cos(math.pi * min(progress, 1.0))))


def train_step(run, batch, progress):
    """One optimizer step; returns (patch loss, word loss) as tensors, so that nobody has to wait for them."""
    generator = torch.Generator(run.device).manual_seed(run.options.seed * 1_000_003 + run.step)
    with torch.autocast(run.device.split(":")[0], torch.bfloat16, enabled=fast_bfloat16(run.device)):
        tokens = run.model(to_pixels(batch["image"], generator)).last_hidden_state
        patch, words = losses(tokens, run.heads, batch)
    (run.options.patch_weight * patch + words).backward()
    take_step((run.adamw, run.muon), run.parameters, learning_rate(run.options, progress))
    return patch.detach(), words.detach()


def train(options, work, device, steps, minutes, workers, log_interval=50, save_interval=30, use_compile=False):
    """Train until `steps` or `minutes` of training are done; continues from `work`/state.pt. Returns the Run."""
    if (steps is None) == (minutes is None):
        raise ValueError("give either --steps or --minutes")
    run = Run(options, device, use_compile)
    state = Path(work) / "state.pt"
    if state.exists():
        run.restore(state)
        log.info("continuing at step %d after %.1f min", run.step, run.seconds / 60)

    def progress():
        return run.step / steps if steps else run.seconds / (60 * minutes)
    if progress() >= 1:
        return run
    indexes = range(run.step, steps or sys.maxsize)
    loader = DataLoader(Batches(options), batch_size=None, sampler=indexes, num_workers=workers, pin_memory=device.startswith("cuda"),
                        prefetch_factor=2 if workers else None)
    run.model.train()
    last = saved = time.monotonic()
    for batch in tqdm(loader, desc="vision", unit="step", initial=run.step, total=steps or math.inf, mininterval=5):
        batch = {key: values.to(device, non_blocking=True) for key, values in shorten(batch).items()}
        patch, words = train_step(run, batch, progress())
        run.step += 1
        if run.step % log_interval == 0:
            log.info("step %d (%.0f %%)  patch loss %.4f  word loss %.4f", run.step, 100 * progress(), patch, words)
        now = time.monotonic()
        run.seconds += now - last
        last = now
        if progress() >= 1 or now - saved > save_interval:
            run.save(state)
            saved = last = time.monotonic()  # writing is not training
        if progress() >= 1:
            break
    return run


# the folder and what it is worth


def save_folder(model, folder):
    """Write `model` in the released format, fp16, weights last; the released files carry the keys with "vision_model." in front."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict() | {"architectures": ["SiglipVisionModel"], "dtype": "float16"}
    save_json({key: value for key, value in config.items() if not key.startswith("_")}, folder / "config.json")
    save_json({"image_processor_type": "SiglipImageProcessor", "do_resize": True, "size": {"height": SIZE, "width": SIZE}, "resample": 3,
               "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
               "do_convert_rgb": True}, folder / "preprocessor_config.json")
    state = {f"vision_model.{key.removeprefix('vision_model.')}": value.detach().half().cpu().contiguous()
             for key, value in model.state_dict().items()}
    temporary = folder / f".model.{os.getpid()}.tmp"
    save_file(state, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)  # safetensors makes it private
    os.replace(temporary, folder / "model.safetensors")


@torch.inference_mode()
def probe(model, heads, device, pictures=1024, seed=1):
    """Held-out scenes: {"center": {kind, color, size accuracies at the patch with a thing's center, found, false}, "answers": {kind: share
    of exactly right answers}, ...}. The reader is right when each next word is, which is when greedy reading gives the whole answer."""
    model.eval()
    right, asked = Counter(), Counter()
    rng = np.random.default_rng((seed, 0xE7A1))
    for start in range(0, pictures, 128):
        batch = make_batch(rng, min(128, pictures - start), len(QUESTION_KINDS), heldout=True)
        missing = (batch["ids"] == PAD).all(-1)
        batch = as_tensors(batch, device)
        tokens = model(to_pixels(batch["image"])).last_hidden_state
        said = heads.read(tokens, batch["ids"]).argmax(-1)
        exact = ((said == batch["labels"]) | (batch["labels"] == IGNORE)).all(-1).cpu().numpy()
        for kind, good, skip in zip(batch["asked"].cpu().numpy().ravel(), exact.ravel(), missing.ravel()):
            if not skip:
                asked[QUESTION_KINDS[kind]] += 1
                right[QUESTION_KINDS[kind]] += int(good)
        patches = {key: logits.argmax(-1) for key, logits in heads.patches(tokens).items()}
        center = batch["center"] == 1
        asked["center"] += int(center.sum())
        right["found"] += int(patches["center"][center].sum())
        right["false"] += int(patches["center"][~center].sum())
        for key in ("kind", "color", "size"):
            right["patch " + key] += int((patches[key] == batch[key])[center].sum())
    counts = {key: right["patch " + key] / asked["center"] for key in ("kind", "color", "size")}
    counts |= {"found": right["found"] / asked["center"], "false": right["false"] / asked["center"]}
    answers = {kind: right[kind] / asked[kind] for kind in QUESTION_KINDS}
    total = sum(asked[kind] for kind in QUESTION_KINDS)
    return {"pictures": pictures, "questions": total, "center": counts, "answers": answers,
            "all answers": sum(right[kind] for kind in QUESTION_KINDS) / total}


def print_report(report):
    print(f"{report['pictures']} held-out pictures, {report['questions']} questions")
    print("patch of a thing's center: " + ", ".join(f"{key} {value:.3f}" for key, value in report["center"].items()))
    for kind, share in report["answers"].items():
        print(f"  {kind:12} {share:.3f}")
    print(f"  {'all':12} {report['all answers']:.3f} exactly right")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=f"model/nano/{FOLDER}")
    parser.add_argument("--work", default="out/nano/siglip", help="checkpoint and report")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="length of the run in steps")
    parser.add_argument("--minutes", type=float, help="length of the run in minutes of training")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count(), 16), help="processes that paint pictures")
    parser.add_argument("--threads", type=int, help="CPU threads of the training itself")
    parser.add_argument("--pictures", type=int, default=1024, help="held-out pictures of the report")
    parser.add_argument("--use_compile", type=int, choices=(0, 1), default=0, help="1: torch.compile, after a minute faster on a CPU, too")
    for option in fields(Options):
        parser.add_argument(f"--{option.name}", type=option.type, default=option.default)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cpu":
        keep_freed_memory()
    options = Options(**{option.name: getattr(args, option.name) for option in fields(Options)})
    run = train(options, args.work, args.device, args.steps, args.minutes, args.workers, use_compile=bool(args.use_compile))
    save_folder(run.model, args.out)
    written = SiglipVisionModel.from_pretrained(args.out, dtype=torch.float32).to(args.device)
    report = probe(written, run.heads, args.device, args.pictures)
    parameters = sum(p.numel() for p in written.parameters())
    report |= {"steps": run.step, "minutes": run.seconds / 60, "parameters": parameters, "options": asdict(options)}
    save_json(report, Path(args.work) / "report.json")
    print_report(report)
    size = sum(file.stat().st_size for file in Path(args.out).iterdir()) / 1e6
    print(f"{run.step} steps in {run.seconds / 60:.1f} min, {parameters / 1e6:.2f} M parameters, {size:.1f} MB in {args.out}")


if __name__ == "__main__":
    main()
