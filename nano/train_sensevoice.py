"""Train the nano ear: a small SenseVoice encoder (512-d, one vector per 60 ms) with a CTC head that writes down what was said.

- Learns from the spoken questions of nano.build_sets' training sets, each roughened anew every time it is heard (nano/listening.py).
- Held-out sentences are never trained on, and kal16 is never trained on at all: the report's word error rates are on those.
- Progress is a share of `--minutes` (a GPU loan) or `--steps` (a fixed recipe); either way a killed run continues where it was.
- The folder has FunASR's format (config.yaml, model.pt in fp16, am.mvn, bpe.model); the report is measured on it, read back.
- With `--speller`, a MiniMind-O, the ear also learns to be read: that model's audio projector is trained along, to write the same words in
  the Thinker's own tokens (model/spelling.py). A frozen ear need not tell these tokens apart where its own pieces are others.

    python -m nano.train_sensevoice --questions out/nano/data/{a2a,more,multi}_train --batch_size 64 --steps 2000
    python -m nano.train_sensevoice --start_from model/nano/SenseVoiceSmall --questions out/nano/data/a2a_train --minutes 40
    python -m nano.train_sensevoice --start_from model/nano/SenseVoiceSmall --questions out/nano/data/a2a_train --minutes 40 \
        --speller model/nano/sft_omni_256.pth --speller_out out/nano/model/heard_256.pth
"""
import argparse
import io
import json
import logging
import math
import os
import random
import time
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import sentencepiece
import torch
import torch.nn.functional as F
import yaml
from torch import nn
from tqdm import tqdm
from transformers import AutoTokenizer

from dataset.omni_dataset import IMAGE_TAG
from model.audio import read_audio
from model.checkpoint import load_model, load_weights, read_sidecar, save_atomic, save_json, save_model
from model.config import IGNORE
from model.encoders import SenseVoice, _funasr_classes
from model.hardware import fast_bfloat16, keep_freed_memory
from model.optimizers import adamw_and_muon, take_step
from model.sequence import encode_text, pad_rows
from model.spelling import spelling_loss
from nano import listening, multi_turn, scenes
from nano.corpus import SEED, normalise, read_jsonl
from nano.curves import read_curve, write_curve
from nano.hearing_report import report
from nano.speech import RATE, TRAIN_VOICES, UNSEEN_VOICE, Utterance, read_shard, render

FOLDER = "SenseVoiceSmall"  # the released name: what the loader looks for in a pack
FEATURES = 512  # what the audio projector takes
FRONTEND = dict(fs=RATE, window="hamming", n_mels=listening.NUM_MELS, frame_length=25, frame_shift=10, lfr_m=7, lfr_n=6, dither=0.0,
                cmvn_file=None)
NUM_SCENES, NUM_TURNS = 1500, 4000  # sentences about pictures and of conversations
CURVE = ("step", "minutes", "lr", "loss")
log = logging.getLogger(__name__)


@dataclass
class Options:
    """Everything that shapes a run; saved in its checkpoint."""
    pieces: int = 512  # of the vocabulary
    blocks: int = 2
    last_blocks: int = 1  # SenseVoice's tp_encoders, behind a norm of their own
    heads: int = 8
    inner: int = 128  # width of the feed-forward layers
    kernel: int = 11
    clean: float = 0.15  # share of the batches that are not roughened ...
    easy: float = 0.15  # ... and in this first share of the run more of them, so that CTC finds the words at all
    batch_size: int = 128
    lr: float = 1.5e-3
    warmup: float = 0.05  # share of the run
    seed: int = 0


# the speech


def sentences(corpus, num_scenes=NUM_SCENES, num_turns=NUM_TURNS, further=()):
    """(training sentences, held-out questions), lists of str without repetition; no training sentence has a held-out one's words.

    Of the talks only last replies are held out: what is asked in them ("Who am I?") is the same in all of them, and to be understood.
    further: files of the corpus whose questions are training sentences, too.
    """
    rng = random.Random(SEED)
    train, heldout = read_jsonl(Path(corpus) / "train.jsonl"), read_jsonl(Path(corpus) / "heldout.jsonl")
    asked = {normalise(item["question"]): item["question"] for item in heldout}
    kept_apart = set(asked) | {normalise(item["answer"]) for item in heldout}
    turns, _ = multi_turn.build(train, heldout, rng)
    found = [item[key] for item in train for key in ("question", "answer")]
    found += [item["question"] for name in further for item in read_jsonl(Path(corpus) / name)]
    found += rng.sample([text for item in turns for text in multi_turn.user_turns(item)], num_turns)  # many are questions of the corpus
    picture_rng = np.random.default_rng(SEED)
    for _ in range(num_scenes):
        asked_about = scenes.questions(scenes.draw_scene(picture_rng), picture_rng)
        found += [question for question, _, _ in asked_about]
    unique = {normalise(text): text for text in found}
    questions = list(asked.values())
    rng.shuffle(questions)
    return [text for key, text in unique.items() if key not in kept_apart], questions


def read_questions(folders):
    """Yield (Utterance, (S,) int16) of every spoken question in the training sets that nano.build_sets made. It names no voice."""
    for path in (path for folder in folders for path in sorted(Path(folder).glob("*.parquet"))):
        for row in pq.read_table(path, columns=["conversations", "question_audios"]).to_pylist():
            asked = [turn["content"] for turn in json.loads(row["conversations"]) if turn["role"] == "user"]
            for text, sound in zip(asked, row["question_audios"]):
                if sound:
                    yield Utterance(text.replace(IMAGE_TAG, "").strip(), ""), (read_audio(sound, RATE) * 32767).astype(np.int16)


class Speech:
    """(Utterance, (S,) int16) pairs on a device: samples (N,) int16, starts and counts (U,) in order of length, and their texts."""

    def __init__(self, pairs, device):
        found = sorted(pairs, key=lambda pair: len(pair[1]))
        counts = [len(wav) for _, wav in found]
        self.utterances = [utterance for utterance, _ in found]
        self.counts = torch.tensor(counts, device=device)
        self.starts = torch.tensor(np.cumsum([0, *counts[:-1]]), device=device)
        self.samples = torch.from_numpy(np.concatenate([wav for _, wav in found])).to(device)

    def __len__(self):
        return len(self.utterances)

    def batch(self, rows, silence=None):
        """wav (B, S) and lens (B,) of utterances `rows`; silence (B, 2): samples put before and after each."""
        device = self.samples.device
        rows = torch.as_tensor(rows, device=device)
        silence = torch.zeros(len(rows), 2, dtype=torch.int64, device=device) if silence is None else silence
        lens = self.counts[rows] + silence.sum(1)
        return listening.gather(self.samples, self.starts[rows], self.counts[rows], silence[:, 0], listening.pad_lengths(lens)), lens

    def draw(self, size, generator):
        """Indices of `size` utterances of similar length, drawn with a CPU generator."""
        window = max(size, len(self) // 12)
        first = int(torch.randint(size - window, len(self) - size + 1, (), generator=generator))
        low, high = max(first, 0), min(first + window, len(self))
        return torch.randint(low, high, (size,), generator=generator)


def train_tokenizer(texts, pieces):
    """A sentencepiece model of lower-case words: its serialised bytes. Id 0, its <unk>, is the CTC blank."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sorted({normalise(text) for text in texts})), model_writer=model,
                                             model_type="bpe", vocab_size=pieces, hard_vocab_limit=False, character_coverage=1.0,
                                             normalization_rule_name="identity", num_threads=1, minloglevel=2)
    return model.getvalue()


# the model


class Ear(nn.Module):
    """The encoder with its CTC layer and normalisation; state names are FunASR's. With speller, weights of a MiniMind-O, its projector."""

    def __init__(self, options, vocabulary, speller=None):
        super().__init__()
        encoder_class, = _funasr_classes(("funasr.models.sense_voice.model", "SenseVoiceEncoderSmall"))
        self.encoder = encoder_class(input_size=listening.NUM_MELS * listening.LFR_STACK, **encoder_conf(options))
        self.ctc = nn.ModuleDict({"ctc_lo": nn.Linear(FEATURES, vocabulary)})
        self.register_buffer("shift", torch.zeros(listening.NUM_MELS * listening.LFR_STACK))
        self.register_buffer("scale", torch.ones(listening.NUM_MELS * listening.LFR_STACK))
        if speller:
            thinker = load_model(speller)
            self.projector, self.blank = thinker.audio_proj, thinker.config.audio_ids[0]
            self.register_buffer("embeddings", thinker.model.embed_tokens.weight.detach(), persistent=False)

    def features(self, stacked, lens):
        """(B, L, 560), lens (B,) -> (B, L, 512): what the Thinker's projector gets."""
        return self.encoder((stacked + self.shift) * self.scale, lens)[0]

    def forward(self, stacked, lens):
        """(B, L, 560), lens (B,) -> log-probabilities (B, L, V) float32."""
        return self.scores(self.features(stacked, lens))

    def scores(self, features):
        """(B, L, 512) -> log-probabilities (B, L, V) float32."""
        return self.ctc["ctc_lo"](features).float().log_softmax(-1)


def encoder_conf(options):
    return dict(output_size=FEATURES, attention_heads=options.heads, linear_units=options.inner, num_blocks=options.blocks,
                tp_blocks=options.last_blocks, dropout_rate=0.0, positional_dropout_rate=0.0, attention_dropout_rate=0.0,
                input_layer="pe", pos_enc_class="SinusoidalPositionEncoder", normalize_before=True, kernel_size=options.kernel,
                sanm_shfit=0, selfattention_layer_type="sanm")


def save_folder(ear, options, tokenizer, folder):
    """Write the released format: config.yaml, am.mvn, bpe.model (`tokenizer`, bytes), configuration.json, and last model.pt in fp16."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(encoder="SenseVoiceEncoderSmall", encoder_conf=encoder_conf(options), model="SenseVoiceSmall",
                  model_conf=dict(length_normalized_loss=True, sos=1, eos=2, ignore_id=-1), tokenizer="SentencepiecesTokenizer",
                  tokenizer_conf=dict(bpemodel=None, unk_symbol="<unk>", split_with_space=True), frontend="WavFrontend",
                  frontend_conf=FRONTEND)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    (folder / "bpe.model").write_bytes(tokenizer)
    lines = ["<Nnet>"]
    for name, values in (("AddShift", ear.shift), ("Rescale", ear.scale)):
        numbers = " ".join(f"{value:.6g}" for value in values.tolist())
        lines += [f"<{name}> {len(values)} {len(values)}", f"<LearnRateCoef> 0 [ {numbers} ]"]
    (folder / "am.mvn").write_text("\n".join([*lines, "</Nnet>"]) + "\n", encoding="utf-8")
    save_json({"framework": "pytorch", "file_path_metas": {"init_param": "model.pt", "config": "config.yaml", "tokenizer_conf": {
        "bpemodel": "bpe.model"}, "frontend_conf": {"cmvn_file": "am.mvn"}}}, folder / "configuration.json")
    state = {k: v.detach().half().cpu().clone() for k, v in ear.state_dict().items() if k.startswith(("encoder.", "ctc."))}
    state["embed.weight"] = torch.zeros(16, len(ear.shift), dtype=torch.float16)  # the released model's queries; ours is not asked
    save_atomic(state, folder / "model.pt")


def save_speller(ear, weights, path):
    """The MiniMind-O at `weights` with the projector that was trained along, as weights of its own at `path`."""
    model = load_model(weights)
    model.audio_proj.load_state_dict(ear.projector.state_dict())
    save_model(model, path, {k: v for k, v in (read_sidecar(weights) or {}).items() if k != "config"})


def load_ear(ear, folder):
    """Undo of save_folder, for the weights and the normalisation. RuntimeError when they are of another shape."""
    saved = SenseVoice.load(folder)
    ear.encoder.load_state_dict(saved.encoder.state_dict())
    ear.ctc["ctc_lo"].load_state_dict(dict(zip(("weight", "bias"), saved.head)))
    for buffer, values in zip((ear.shift, ear.scale), saved.frontend.cmvn):
        buffer.copy_(values)


# training


class Run:
    """What a run is made of and how far it is; all of it survives in `state.pt`."""

    def __init__(self, options, tokenizer, device, start_from=None, speller=None):
        torch.manual_seed(options.seed)  # initial weights
        self.options, self.device, self.tokenizer = options, device, tokenizer
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
        self.model = Ear(options, self.pieces.vocab_size(), speller).to(device)
        if start_from:
            load_ear(self.model, start_from)
        self.average = Ear(options, self.pieces.vocab_size(), speller).to(device).requires_grad_(False).eval()
        self.average.load_state_dict(self.model.state_dict())
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and n.startswith(("encoder.", "projector."))]
        self.adamw, self.muon = adamw_and_muon(self.model.parameters(), matrices, options.lr, betas=(0.9, 0.98))
        self.generator = torch.Generator(device).manual_seed(options.seed)
        self.draws = torch.Generator().manual_seed(options.seed)
        self.roughen = listening.Roughen(listening.HearingOptions(), self.generator)
        self.filters = listening.mel_filters(device)
        self.step, self.seconds = 0, 0.0

    def hear(self, speech, rows, clean=False):
        """Stacked filter banks of utterances `rows`, roughened unless `clean`: (B, L, 560), lens (B,)."""
        silence = (self.roughen.uniform(0, self.roughen.options.silence_seconds, len(rows), 2) * RATE).long()
        wav, lens = speech.batch(rows, silence)
        if not clean:
            wav, lens = self.roughen.wave(wav, lens)
        frames, lens = listening.fbank(wav, lens, self.filters)
        return listening.stack(frames if clean else self.roughen.frames(frames, lens), lens)

    @torch.no_grad()
    def normalise(self, speech, batches=30):
        """Set shift and scale from roughened speech, as it will be heard."""
        rows = []
        for _ in range(batches):
            stacked, lens = self.hear(speech, speech.draw(min(self.options.batch_size, 64), self.draws))
            rows.append(stacked[torch.arange(stacked.shape[1], device=self.device) < lens[:, None]])
        rows = torch.cat(rows)
        for ear in (self.model, self.average):
            ear.shift.copy_(-rows.mean(0))
            ear.scale.copy_(1 / rows.std(0).clamp(min=1e-3))

    def save(self, path):
        save_atomic({"options": asdict(self.options), "tokenizer": torch.frombuffer(bytearray(self.tokenizer), dtype=torch.uint8),
                     **{name: getattr(self, name).state_dict() for name in ("model", "average", "muon", "adamw")}, "step": self.step,
                     "seconds": self.seconds, "generator": self.generator.get_state(), "draws": self.draws.get_state()}, path)

    def restore(self, path):
        """Continue from `path`. ValueError when it belongs to a run with other options or another vocabulary."""
        state = load_weights(path, self.device)
        if state["options"] != asdict(self.options) or state["tokenizer"].cpu().numpy().tobytes() != self.tokenizer:
            raise ValueError(f"{path} was made with other sentences or with {state['options']}: give the same, or another --work")
        for name in ("model", "average", "muon", "adamw"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]
        self.generator.set_state(state["generator"].cpu())
        self.draws.set_state(state["draws"].cpu())


def learning_rate(options, progress):
    """Linear warm-up, then a cosine to a fiftieth."""
    return options.lr * min(max(progress, 1e-4) / options.warmup, 0.02 + 0.49 * (1 + math.cos(math.pi * min(progress, 1.0))))


def train_step(run, speech, labels, progress, words=None):
    """One optimizer step on a drawn batch; returns the CTC loss per piece as a tensor, so that nobody has to wait for it.

    words: what each utterance says in the Thinker's tokens, for a run with a speller; its loss is then added to the one that is returned.
    """
    options = run.options
    rows = speech.draw(options.batch_size, run.draws)
    clean = float(torch.rand((), generator=run.draws)) < max(options.clean, 1 - progress / options.easy)
    stacked, lens = run.hear(speech, rows, clean)
    targets = [labels[row] for row in rows.tolist()]
    sizes = torch.tensor([len(target) for target in targets])
    with torch.autocast(run.device.split(":")[0], torch.bfloat16, enabled=fast_bfloat16(run.device)):
        features = run.model.features(stacked, lens)
        scores = run.model.scores(features)
        vectors = run.model.projector(features) if words else None
    targets = torch.tensor([piece for target in targets for piece in target], device=run.device)
    loss = F.ctc_loss(scores.float().transpose(0, 1), targets, lens, sizes.to(run.device), blank=0, reduction="sum", zero_infinity=True)
    loss = loss / int(sizes.sum())
    if words:
        spoken = pad_rows([words[row] for row in rows.tolist()], IGNORE).to(run.device)
        loss = loss + spelling_loss(vectors, lens, spoken, run.model.embeddings, run.model.blank)
    loss.backward()
    take_step((run.muon, run.adamw), run.model.parameters(), learning_rate(options, progress))
    run.step += 1
    with torch.no_grad():
        torch._foreach_lerp_(list(run.average.parameters()), list(run.model.parameters()), 1 - min(0.999, run.step / (run.step + 20)))
    return loss.detach()


def train(options, speech, tokenizer, work, device, steps=None, minutes=None, log_interval=50, save_interval=30, stop_after=None,
          start_from=None, speller=None, thinker_tokenizer=None):
    """Train until `steps` or `minutes` of training are done; continues from `work`/state.pt. Returns the Run.

    `start_from`: folder of an ear with this tokenizer, whose weights the run begins with. `speller`: weights of a MiniMind-O: its projector
    is trained along, `thinker_tokenizer` what it reads by. `stop_after` ends this call after that many steps, as a kill would, for tests.
    """
    if (steps is None) == (minutes is None):
        raise ValueError("give either --steps or --minutes")
    work = Path(work)
    run, state = Run(options, tokenizer, device, start_from, speller), work / "state.pt"
    if state.exists():
        run.restore(state)
        log.info("continuing at step %d after %.1f min", run.step, run.seconds / 60)
    elif not start_from:
        run.normalise(speech)
    labels = [run.pieces.encode(normalise(utterance.text)) for utterance in speech.utterances]
    words = speller and [torch.tensor(encode_text(thinker_tokenizer, utterance.text)) for utterance in speech.utterances]
    curve, first = read_curve(work, run.step), run.step

    def progress():
        return run.step / steps if steps else run.seconds / (60 * minutes)
    run.model.train()
    last = saved = time.monotonic()
    bar = tqdm(desc="ear", unit="step", initial=run.step, total=steps, mininterval=5)
    while progress() < 1:
        loss = train_step(run, speech, labels, progress(), words)
        bar.update()
        run.seconds += time.monotonic() - last
        last = time.monotonic()
        if run.step % log_interval == 0:
            if not math.isfinite(loss):
                raise FloatingPointError(f"step {run.step}: the loss is {loss.item()}")
            rate = run.adamw.param_groups[0]["lr"]
            curve.append(dict(step=run.step, minutes=round(run.seconds / 60, 3), lr=round(rate, 6), loss=round(loss.item(), 4)))
            log.info("step %d (%.0f %%)  loss per piece %.4f", run.step, 100 * progress(), loss)
        if stop_after and run.step - first >= stop_after:
            return run
        if progress() >= 1 or last - saved > save_interval:
            run.save(state)
            write_curve(work, curve, CURVE, "nano ear: CTC loss per piece in nats")
            saved = last = time.monotonic()  # writing is not training
    bar.close()
    return run


# the command


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="out/nano/corpus")
    parser.add_argument("--speech", default="out/nano/speech_heard", help="held-out clips of the report; what is missing is rendered")
    parser.add_argument("--out", default=f"model/nano/{FOLDER}")
    parser.add_argument("--work", default="out/nano/sensevoice", help="checkpoint, curve and report")
    parser.add_argument("--start_from", help="go on from the ear in this folder, whose vocabulary stays")
    parser.add_argument("--questions", nargs="+", required=True, help="training sets of nano.build_sets, to learn from what is asked")
    parser.add_argument("--speller", help="weights of a MiniMind-O: its audio projector learns along, so its Thinker can read this ear")
    parser.add_argument("--speller_out", help="where these weights go with the projector that was learnt")
    parser.add_argument("--tokenizer_dir", default="model/nano", help="the Thinker's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="length of the run in steps")
    parser.add_argument("--minutes", type=float, help="length of the run in minutes of training")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count(), 16), help="processes that synthesise")
    parser.add_argument("--threads", type=int, help="CPU threads of the training itself")
    parser.add_argument("--clips", type=int, default=400, help="held-out clips for each figure of the report")
    for option in fields(Options):
        parser.add_argument(f"--{option.name}", type=option.type, default=option.default)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cpu":
        keep_freed_memory()
    options = Options(**{option.name: getattr(args, option.name) for option in fields(Options)})
    if bool(args.speller) != bool(args.speller_out):
        parser.error("--speller and --speller_out go together: the model whose projector is trained, and where it then goes")
    texts, questions = sentences(args.corpus)
    clips = [Utterance(text, voice) for text in questions[:args.clips] for voice in (*TRAIN_VOICES, UNSEEN_VOICE)]
    heldout = render(clips, args.speech, args.workers)
    tokenizer = (Path(args.start_from) / "bpe.model").read_bytes() if args.start_from else train_tokenizer(texts, options.pieces)
    speech = Speech(read_questions(args.questions), args.device)
    print(f"{len(speech)} utterances, {len(speech.samples) / RATE / 3600:.1f} h of speech on {args.device}")
    run = train(options, speech, tokenizer, args.work, args.device, args.steps, args.minutes, start_from=args.start_from,
                speller=args.speller, thinker_tokenizer=AutoTokenizer.from_pretrained(args.tokenizer_dir) if args.speller else None)
    save_folder(run.average, options, run.tokenizer, args.out)
    if args.speller:
        save_speller(run.average, args.speller, args.speller_out)
    found = report(args.out, Speech(chain.from_iterable(map(read_shard, heldout)), "cpu"), args.device, args.clips)
    parameters = sum(p.numel() for p in run.average.parameters())
    save_json(found | {"steps": run.step, "minutes": run.seconds / 60, "parameters": parameters, "options": asdict(options)},
              Path(args.work) / "report.json")
    for condition, rate in found["wer"].items():
        print(f"  {condition:36} WER {rate:.3f}")
    size = sum(file.stat().st_size for file in Path(args.out).iterdir()) / 1e6
    print(f"{run.step} steps in {run.seconds / 60:.1f} min, {parameters / 1e6:.2f} M parameters, {size:.1f} MB in {args.out}")


if __name__ == "__main__":
    main()
