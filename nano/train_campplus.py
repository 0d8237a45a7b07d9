"""Train the nano CAM++: a small speaker encoder that knows voices apart, saved as a FunASR folder for `CAMPPlus.load`.

- Speakers are flite voices changed in pitch (with formants) and fundamental: 63 for training. Other changes of the same voices,
  and the voice kal16 in three sizes, are never trained on; the report is about them.
- Filter banks are computed once into one half-precision tensor; a crop costs a slice. Noise is added to the mel powers. Gain and
  microphone colour need no augmentation: they cancel when the mean over time is subtracted.
- Additive angular margin softmax over the training speakers; cosine distance then tells unseen ones apart too.
- bfloat16 on processors that have it. Interrupted training goes on from its last checkpoint.

    python -m nano.train_campplus --texts out/nano/corpus/train.jsonl --out model/nano/campplus
"""
import argparse
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from model.audio import fbank
from model.checkpoint import load_weights, save_atomic, save_json
from model.encoders import CAMPPlus, _funasr_classes
from model.hardware import fast_bfloat16
from nano.speech import TRAIN_VOICES, synthesise

MODEL_CONF = dict(feat_dim=80, embedding_size=192, growth_rate=6, bn_size=4, init_channels=32, config_str="batchnorm-relu",
                  memory_efficient=False, output_level="segment")
SCALE, MARGIN = 20.0, 0.15  # of the cosine; the angle a speaker's own class is moved away by
CROP_FRAMES = (100, 190)  # 10 ms each; one length per batch
HELD_BACK = 4  # utterances of each training speaker that only the report sees
CHECKPOINT_EVERY = 100  # steps


@dataclass(frozen=True)
class Speaker:
    voice: str
    pitch: float  # > 1: a smaller person, formants and fundamental together
    f0: float = 1.0  # fundamental alone

    @property
    def name(self) -> str:
        return f"{self.voice} pitch {self.pitch} f0 {self.f0}"


def train_speakers() -> list[Speaker]:
    return [Speaker(v, p, f) for v in TRAIN_VOICES for p in (0.82, 0.88, 0.94, 1.0, 1.07, 1.14, 1.22) for f in (0.85, 1.0, 1.18)]


def unseen_speakers() -> list[Speaker]:
    changed = [Speaker(v, p, f) for v in TRAIN_VOICES for p in (0.85, 0.97, 1.1, 1.25) for f in (0.92, 1.08)]
    return changed + [Speaker("kal16", p) for p in (0.85, 1.0, 1.15)]


@dataclass
class Speech:
    """Filter banks of many utterances in one tensor."""
    frames: Tensor  # (F, 80) float16, mean not subtracted
    start: list[int]  # (U + 1,) first frame of each utterance
    speaker: Tensor  # (U,) int64
    names: list[str]

    def utterance(self, index: int) -> Tensor:
        return self.frames[self.start[index]:self.start[index + 1]]


def read_texts(path: str, seed: int) -> list[str]:
    """Distinct sentences of six to sixteen words from a JSON-lines corpus, shuffled."""
    texts = {json.loads(line)["answer"] for line in Path(path).read_text(encoding="utf-8").splitlines()}
    kept = sorted(t for t in texts if 6 <= len(t.split()) <= 16)
    if not kept:
        raise ValueError(f"{path} has no answers of 6 to 16 words; make it with `python -m nano.corpus`")
    return [kept[i] for i in np.random.default_rng(seed).permutation(len(kept))]


def speak(speakers: list[Speaker], texts: list[str], each: int, seed: int, workers: int = 2) -> Speech:
    """`each` utterances of every speaker, all of different sentences as far as there are enough, at rates that vary."""
    rng = np.random.default_rng(seed)
    jobs = [(s, speaker, texts[(s * each + i) % len(texts)], float(rng.uniform(0.9, 1.15)))
            for s, speaker in enumerate(speakers) for i in range(each)]

    def one(job):
        _, speaker, text, rate = job
        wav = synthesise(text, speaker.voice, rate=rate, pitch=speaker.pitch, f0=speaker.f0)
        return torch.from_numpy(fbank(wav.astype(np.float32) / 32768)).half()

    with ThreadPoolExecutor(workers) as pool:  # the work is done by the flite program
        rows = list(pool.map(one, jobs))
    start = np.cumsum([0, *map(len, rows)]).tolist()
    return Speech(torch.cat(rows), start, torch.tensor([job[0] for job in jobs]), [speaker.name for speaker in speakers])


def cached_speech(path: Path, make) -> Speech:
    """`make()`, kept in a file, whose name says all it depends on: synthesis takes minutes."""
    if not path.exists():
        save_atomic(vars(make()), path)
    return Speech(**load_weights(path))


def batch_of(speech: Speech, pool: list[int], size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random crops (B, T, 80) float32 of one random length, augmented, mean subtracted; their speakers (B,)."""
    length = int(torch.randint(*CROP_FRAMES, (), generator=generator))
    picks = [pool[i] for i in torch.randint(len(pool), (size,), generator=generator).tolist()]
    crops = []
    for index in picks:
        whole = speech.utterance(index)
        first = int(torch.randint(max(1, len(whole) - length), (), generator=generator))
        crop = whole[first:first + length]
        crops.append(crop.repeat(-(-length // len(crop)), 1)[:length])  # a short utterance is heard twice
    frames = add_noise(torch.stack(crops).float(), generator)
    return frames - frames.mean(dim=1, keepdim=True), speech.speaker[picks]


def add_noise(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Log-mel (B, T, M) with steady tilted noise at 3 to 40 dB below the speech on three rows of four."""
    B, T, M = frames.shape
    level = frames.exp().mean(dim=(1, 2)).log()[:, None, None]
    below = (3 + 37 * torch.rand(B, 1, 1, generator=generator)) * (np.log(10) / 10)
    tilt = 2 * torch.randn(B, 1, 1, generator=generator) * torch.linspace(-1, 1, M)
    noise = level - below + tilt + 0.4 * torch.randn(B, T, M, generator=generator)
    noisy = torch.rand(B, 1, 1, generator=generator) < 0.75
    return torch.where(noisy, torch.logaddexp(frames, noise), frames)


def margin_loss(vectors: Tensor, centres: Tensor, speaker: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Additive angular margin softmax: vectors (B, 192), centres (N, 192) -> loss, and the share of rows it already gets right."""
    cosine = F.linear(F.normalize(vectors.float()), F.normalize(centres)).clamp(-1 + 1e-6, 1 - 1e-6)
    own = F.one_hot(speaker, len(centres)).bool()
    moved = torch.where(own, torch.cos(torch.acos(cosine) + margin), cosine)
    return F.cross_entropy(SCALE * moved, speaker), (cosine.argmax(dim=1) == speaker).float().mean()


def train(speech: Speech, pool: list[int], args, work: Path):
    """The trained network in eval mode. Writes a checkpoint now and then and starts from it when there is one.

    ValueError when that one was made with other settings or another speech.
    """
    device = torch.device(args.device)
    model_class, = _funasr_classes(("funasr.models.campplus.model", "CAMPPlus"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        model = model_class(**MODEL_CONF).to(device).train()
        centres = torch.nn.Parameter(torch.randn(len(speech.names), MODEL_CONF["embedding_size"]).to(device))
    model.head.to(memory_format=torch.channels_last)  # a third faster on a CPU
    optimizer = torch.optim.AdamW([*model.parameters(), centres], lr=args.learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(args.seed)
    settings = {name: getattr(args, name) for name in ("steps", "batch_size", "learning_rate", "seed")}
    settings["frames"] = len(speech.frames)
    step, checkpoint, seconds = 0, work / "checkpoint.pt", 0.0
    if checkpoint.exists():
        saved = load_weights(checkpoint)
        if saved.get("settings") != settings:
            raise ValueError(f"{checkpoint} was made with {saved.get('settings')}, not {settings}: give the same, or delete it")
        model.load_state_dict(saved["model"])
        centres.data.copy_(saved["centres"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        generator.set_state(saved["generator"])
        step, seconds = saved["step"], saved["seconds"]
        print(f"going on from step {step}")
    began, loss_sum, right_sum = time.time() - seconds, 0.0, 0.0
    while step < args.steps:
        frames, speaker = (t.to(device) for t in batch_of(speech, pool, args.batch_size, generator))
        with torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device)):
            vectors = model(frames)
        loss, right = margin_loss(vectors, centres, speaker, MARGIN * min(1.0, 4 * step / args.steps))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        step, loss_sum, right_sum = step + 1, loss_sum + float(loss.detach()), right_sum + float(right)
        if step % 25 == 0:
            print(f"step {step}/{args.steps}  loss {loss_sum / 25:.3f}  right {right_sum / 25:.3f}  "
                  f"{(time.time() - began) / 60:.1f} min", flush=True)
            loss_sum = right_sum = 0.0
        if step % CHECKPOINT_EVERY == 0:
            save_atomic(dict(model=model.state_dict(), centres=centres.data, optimizer=optimizer.state_dict(), step=step,
                             schedule=schedule.state_dict(), generator=generator.get_state(), settings=settings,
                             seconds=time.time() - began), checkpoint)
    return model.eval().float()


def save_folder(model, folder: Path) -> None:
    """FunASR's files: config.yaml, model.pt (fp16), configuration.json."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.cpu().contiguous() for k, v in model.state_dict().items()}
    save_atomic({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, folder / "model.pt")
    config = dict(model="CAMPPlus", model_conf=MODEL_CONF, frontend="WavFrontend", frontend_conf=dict(fs=16000))
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    save_json({"framework": "pytorch", "task": "speaker-verification",
               "file_path_metas": {"init_param": "model.pt", "config": "config.yaml"}}, folder / "configuration.json")


@torch.no_grad()
def embed(model, speech: Speech, indexes: list[int], seconds: float | None = None) -> Tensor:
    """Unit speaker vectors (U, 192) of whole utterances, or of their first `seconds`."""
    device = next(model.parameters()).device
    rows = []
    for index in indexes:
        frames = speech.utterance(index).float()[:None if seconds is None else int(100 * seconds)]
        rows.append(model((frames - frames.mean(dim=0))[None].to(device))[0].float().cpu())
    return F.normalize(torch.stack(rows))


def equal_error_rate(same: np.ndarray, different: np.ndarray) -> float:
    """Where a threshold rejects as large a share of `same` scores as it accepts of `different` ones."""
    thresholds = np.sort(np.concatenate([same, different]))
    rejected = np.searchsorted(np.sort(same), thresholds, side="left") / len(same)
    accepted = 1 - np.searchsorted(np.sort(different), thresholds, side="left") / len(different)
    best = np.abs(rejected - accepted).argmin()
    return float((rejected[best] + accepted[best]) / 2)


def judge(vectors: Tensor, speaker: Tensor) -> dict:
    """Verification over all pairs of utterances, and how often the nearest other utterance is by the same speaker."""
    cosine = (vectors @ vectors.T).numpy()
    same = (speaker[:, None] == speaker[None]).numpy()
    upper = np.triu(np.ones_like(same), k=1)
    nearest = np.where(np.eye(len(cosine), dtype=bool), -2, cosine).argmax(axis=1)
    return dict(speakers=len(speaker.unique()), utterances=len(speaker),
                eer=round(equal_error_rate(cosine[same & upper], cosine[~same & upper]), 4),
                nearest_right=round(float(same[np.arange(len(same)), nearest].mean()), 4),
                cosine_same=round(float(cosine[same & upper].mean()), 3),
                cosine_different=round(float(cosine[~same & upper].mean()), 3))


def report(model, seen: Speech, held_back: list[int], unseen: Speech) -> dict:
    everything = list(range(len(unseen.speaker)))
    far = [i for i in everything if unseen.names[unseen.speaker[i]].startswith("kal16")]
    plain = [i for i in held_back if "pitch 1.0 f0 1.0" in seen.names[seen.speaker[i]]]
    return {"training speakers, new sentences": judge(embed(model, seen, held_back), seen.speaker[held_back]),
            "the three plain voices, new sentences": judge(embed(model, seen, plain), seen.speaker[plain]),
            "unseen speakers": judge(embed(model, unseen, everything), unseen.speaker),
            "unseen speakers, first 1.5 s": judge(embed(model, unseen, everything, 1.5), unseen.speaker),
            "kal16 in three sizes": judge(embed(model, unseen, far), unseen.speaker[far])}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the nano speaker encoder.")
    parser.add_argument("--texts", default="out/nano/corpus/train.jsonl", help="JSON lines with an `answer` to speak")
    parser.add_argument("--work", default="out/nano/campplus", help="filter banks and checkpoint")
    parser.add_argument("--out", default="model/nano/campplus")
    parser.add_argument("--each", type=int, default=30, help="utterances per training speaker")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.each <= HELD_BACK:
        parser.error(f"--each {args.each} leaves nothing to learn from: the report keeps {HELD_BACK} utterances of each speaker to itself")
    work, texts = Path(args.work), read_texts(args.texts, args.seed)
    key = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]
    seen = cached_speech(work / f"seen_{args.each}_{args.seed}_{key}.pt",
                         lambda: speak(train_speakers(), texts[0::2], args.each, args.seed))
    unseen = cached_speech(work / f"unseen_{args.seed}_{key}.pt",  # other sentences than any training speaker says
                           lambda: speak(unseen_speakers(), texts[1::2], 12, args.seed + 1))
    print(f"{len(seen.names)} speakers, {len(seen.speaker)} utterances, {len(seen.frames) / 6000:.0f} min; "
          f"unseen {len(unseen.names)}, {len(unseen.speaker)}, {len(unseen.frames) / 6000:.0f} min")
    held_back = [i for i in range(len(seen.speaker)) if i % args.each < HELD_BACK]
    pool = [i for i in range(len(seen.speaker)) if i % args.each >= HELD_BACK]
    model = train(seen, pool, args, work)
    save_folder(model, Path(args.out))
    size = (Path(args.out) / "model.pt").stat().st_size / 1e6
    parameters = sum(p.numel() for p in model.parameters())
    figures = report(CAMPPlus.load(args.out, args.device).model, seen, held_back, unseen)
    save_json(dict(figures=figures, parameters=parameters, megabytes=round(size, 2), steps=args.steps), work / "report.json")
    print(f"{parameters / 1e6:.2f} M parameters, {size:.2f} MB in {args.out}")
    for name, figure in figures.items():
        print(f"{name}: {figure}")


if __name__ == "__main__":
    main()
