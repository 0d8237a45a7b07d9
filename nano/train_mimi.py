"""Train the nano codec: transformers' Mimi architecture, small, from nothing but speech; the result loads with MimiModel.from_pretrained.

- The latents get a meaning before any network exists (mimi_targets): log-mel patches, principal components, residual k-means books.
- `learn`: the encoder regresses those latents, the decoder learns to speak from the quantised ones; two independent tasks. A linear
  probe asks the middle of the encoder for the log-mel of every 5 ms, too: with it, it learns as much in half the steps.
- The books never change after the fit: `targets.pt` in the output folder gives a clip's codes at once (mimi_targets.Analyser), so
  the Talker can learn them while the codec's networks are still training. One that is already there is used, not made again.
- `joint`: half of a batch is decoded from the encoder's own codes, so encode -> codes -> decode is what improves, too. No gradient goes
  through the quantizer: passed straight through, it drew the encoder away from its latents (error 2.2 to 3.4 %) and gained nothing.
- `encoder`: the decoder is done, the encoder alone goes on towards the target latents.
- The whole speech stays on the device as int16; crops, resampling to 24 kHz, speaker variants and gain happen there.
- Progress is a share of `--minutes` (a GPU loan) or `--steps` (a fixed recipe); either way a killed run continues where it was.

    python -m nano.train_mimi --speech out/nano/speech --out out/nano/codec --device cuda --minutes 7
    python -m nano.train_mimi --speech out/nano/speech --out out/nano/codec --batch_size 8 --frames 8 --steps 12000
"""
import argparse
import json
import logging
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import EncodecFeatureExtractor, MimiConfig, MimiModel

from model.checkpoint import save_atomic
from model.hardware import keep_freed_memory
from model.optimizers import take_step
from nano.curves import read_curve, write_curve
from nano.mimi_crops import INPUT_RATE, SAMPLE_RATE, draw_crops, read_speech, resampling_kernels
from nano.mimi_losses import mel_banks, stft_loss
from nano.mimi_targets import FRAME_SAMPLES, MAX_HZ, MELS, WINDOW, Analyser, LatentSpace, log_mel_patches, mel_filterbank, \
    quantise, residual_kmeans

NUM_CODEBOOKS = 8
PROBE_HOP = 120  # samples per step of what the encoder's last strided convolution sees: strides 4, 5 and 6 lie before it
CURVE = ("step", "minutes", "phase", "lr", "reconstruction", "latent", "probe")
log = logging.getLogger(__name__)


@dataclass
class Options:
    """Everything that shapes a run; saved in its checkpoint."""
    codes: int = 512  # as PRESETS["nano"]; 1024 judged no better by Griffin-Lim (WER 0.23 and 0.21) and cost the Talker 2 M parameters
    dims: int = 96
    hidden: int = 128
    filters: int = 16
    layers: int = 2
    batch_size: int = 64
    frames: int = 24  # of a crop, 80 ms each
    lr: float = 1.5e-3
    joint_at: float = 0.3  # share of the run at which the decoder starts to hear the encoder's codes
    latent_weight: float = 1.0  # of the encoder's regression
    encoder_at: float = 1.0  # share at which the decoder is done and the encoder goes on alone, at a third of the cost; 1 = never
    fit_frames: int = 60_000  # 80 minutes
    kmeans_rounds: int = 15
    seed: int = 0


def mimi_config(options):
    """MimiConfig of the nano codec.

    transformers insists on at least one quantizer beside the semantic chain, and quantises it from the same latent rather than from
    the chain's residual; so the 8 codebooks are the semantic chain and a ninth, of zeros, is never asked for (the released Mimi has 32
    and speaks 8 too: always encode with num_quantizers=8).
    """
    return MimiConfig(hidden_size=options.hidden, num_filters=options.filters, num_hidden_layers=options.layers,
                      intermediate_size=4 * options.hidden, num_attention_heads=4, num_key_value_heads=4,
                      codebook_size=options.codes, codebook_dim=options.dims, vector_quantization_hidden_dimension=options.dims,
                      num_semantic_quantizers=NUM_CODEBOOKS, num_quantizers=NUM_CODEBOOKS + 1, upsample_groups=options.hidden,
                      sliding_window=32, max_position_embeddings=8000, layer_scale_initial_scale=0.3)


# the model, run without transformers' synchronisations with the device (its paddings are tensors, its masks look at their contents)


def halves(model):
    """Encoder and decoder parts by name; transformers moved them into submodules between 5.17 and 5.23."""
    if hasattr(model.encoder, "encoder_seanet"):
        encoder, decoder = model.encoder, model.decoder
        return dict(seanet_in=encoder.encoder_seanet, transformer_in=encoder.encoder_transformer, downsample=encoder.downsample,
                    upsample=decoder.upsample, transformer_out=decoder.decoder_transformer, seanet_out=decoder.decoder_seanet)
    return dict(seanet_in=model.encoder, transformer_in=model.encoder_transformer, downsample=model.downsample,
                upsample=model.upsample, transformer_out=model.decoder_transformer, seanet_out=model.decoder)


def _run(layer, x):
    """One SEANet layer on x (B, C, T); equals its own forward when T is a multiple of the stride."""
    if hasattr(layer, "block"):
        y = x
        for inner in layer.block:
            y = _run(inner, y)
        return x + y
    if isinstance(getattr(layer, "conv", None), torch.nn.Conv1d):
        conv = layer.conv
        padding = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1 - conv.stride[0]
        return conv(F.pad(x, (padding, 0), mode=layer.pad_mode))
    return layer(x)


def _attend(transformer, x):
    """Mimi's sliding-window transformer on x (B, C, T)."""
    position = torch.arange(x.shape[2], device=x.device)
    age = position[:, None] - position
    seen = (age >= 0) & (age < transformer.config.sliding_window)
    mask = torch.zeros(seen.shape, device=x.device).masked_fill(~seen, torch.finfo(x.dtype).min)[None, None]
    x = x.transpose(1, 2)
    rotary = transformer.rotary_emb(x, position[None])
    for layer in transformer.layers:
        x = layer(x, attention_mask=mask, position_embeddings=rotary)
        x = x[0] if isinstance(x, tuple) else x  # transformers 5.17 gives a tuple
    return x.transpose(1, 2)


def encode_latents(model, wav):
    """wav (B, S), S a multiple of 1920 -> (latents before quantisation (B, D, S // 1920), what the last strided convolution of the
    encoder sees (B, C, S // PROBE_HOP))."""
    parts = halves(model)
    x, seen = wav[:, None], []
    for layer in parts["seanet_in"].layers:
        seen.append(x)
        x = _run(layer, x)
    x = _attend(parts["transformer_in"], x)
    return model.quantizer.semantic_residual_vector_quantizer.input_proj(_run(parts["downsample"], x)), seen[-3]


def decode_latents(model, latents):
    """Quantised latents (B, D, F) -> wav (B, F * 1920)."""
    parts = halves(model)
    x = parts["upsample"](model.quantizer.semantic_residual_vector_quantizer.output_proj(latents))
    x = _attend(parts["transformer_out"], x)
    for layer in parts["seanet_out"].layers:
        x = _run(layer, x)
    return x[:, 0]


def set_books(model, books):
    """Put books (8, C, D) into the model's quantizer; the ninth codebook stays zero."""
    for layer, book in zip(model.quantizer.semantic_residual_vector_quantizer.layers, books):
        layer.codebook.embed_sum.copy_(book)
        layer.codebook.cluster_usage.fill_(1.0)
        layer.codebook._embed = None  # transformers' cached quotient of the two


def save_folder(model, folder):
    """Write a folder in the released format (config.json, model.safetensors in float16, preprocessor_config.json).

    A folder that is there is deleted when the new one is complete; after a kill in between, the finished run's command writes it again.
    config.json says float32, so that from_pretrained widens the weights; `model` is left as it is.
    """
    folder = Path(folder)
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    half = MimiModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(fresh)
    config = json.loads((fresh / "config.json").read_text(encoding="utf-8"))
    (fresh / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    EncodecFeatureExtractor(feature_size=1, sampling_rate=SAMPLE_RATE).save_pretrained(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


# training


class Run:
    """One training run: models, optimisers, average weights and position, all of which its checkpoint restores."""

    def __init__(self, options, speech, device, use_compile=False):
        self.options, self.device = options, torch.device(device)
        compiled = torch.compile if use_compile else (lambda function: function)
        self.encode_latents, self.decode_latents = compiled(encode_latents), compiled(decode_latents)
        self.speech = torch.from_numpy(speech).to(self.device)
        torch.manual_seed(options.seed)  # weight initialisation only; everything after draws from the generators
        self.model = MimiModel(mimi_config(options)).to(self.device)
        with torch.no_grad():
            halves(self.model)["seanet_out"].layers[-1].conv.weight.mul_(0.1)  # else it starts thirty times too loud
        self.average = MimiModel(mimi_config(options)).to(self.device).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.probe = torch.nn.Linear(8 * options.filters, MELS).to(self.device)  # thrown away after the training
        self.parameters = [*(p for name, p in self.model.named_parameters() if "acoustic" not in name), *self.probe.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=options.lr, betas=(0.8, 0.99), weight_decay=1e-3,
                                           fused=self.device.type == "cuda")
        self.cpu_random = torch.Generator().manual_seed(options.seed)
        self.random = torch.Generator(self.device).manual_seed(options.seed)
        self.banks, self.kernels = mel_banks(self.device), resampling_kernels(self.device)
        self.step, self.seconds, self.phase = 0, 0.0, "start"
        self.space = self.books = None

    def crops(self):
        """A batch (B, S) of random crops."""
        return draw_crops(self.speech, self.options.batch_size, self.options.frames * FRAME_SAMPLES, self.random, self.kernels)

    @torch.no_grad()
    def fit(self):
        """Fit the latent space and the books to random crops of the speech."""
        options = self.options
        batches = math.ceil(options.fit_frames / (options.batch_size * options.frames))
        filters = mel_filterbank(MELS, WINDOW, MAX_HZ, self.device)
        patches = torch.cat([log_mel_patches(self.crops(), filters).flatten(0, 1) for _ in range(batches)])
        self.space, kept = LatentSpace.fit(patches, options.dims)
        log.info("%d frames: %d of %d dimensions keep %.4f of the variance", len(patches), options.dims, patches.shape[1], kept)
        latents = (patches - self.space.mean) @ self.space.basis
        books, left = residual_kmeans(latents, NUM_CODEBOOKS, options.codes, options.kmeans_rounds, self.cpu_random)
        self.books = books.half().float()  # as the codec's folder and targets.pt keep them
        self._set_books()
        log.info("variance left after 1..8 books: %s", " ".join(f"{share:.4f}" for share in left))

    @torch.no_grad()
    def start_from(self, folder):
        """Begin with the networks of a codec folder whose books are ours (see use_targets); ValueError when they are not."""
        state = MimiModel.from_pretrained(folder, dtype=torch.float32).state_dict()
        books = torch.stack([state[key] for key in sorted(state) if "semantic" in key and key.endswith("embed_sum")])
        if books.shape != self.books.shape or not torch.allclose(books.to(self.books), self.books, atol=1e-2):
            raise ValueError(f"{folder} has other books than the run's targets.pt: put the targets it was trained with into --out")
        for model in (self.model, self.average):
            model.load_state_dict(state)
        self._set_books()

    def use_targets(self, path):
        """Take the codes of another run's targets.pt, so that what was encoded with them stays valid; ValueError for other sizes."""
        targets = Analyser.load(path, self.device)
        if targets.books.shape != self.books_shape():
            raise ValueError(f"{path} has books {tuple(targets.books.shape)}, the options ask for {self.books_shape()}")
        self.space, self.books = targets.space, targets.books
        self._set_books()

    def books_shape(self):
        return NUM_CODEBOOKS, self.options.codes, self.options.dims

    def _set_books(self):
        for model in (self.model, self.average):
            set_books(model, self.books)

    def losses(self, wav, target):
        """Losses by name; what is trained on what depends on the phase."""
        emitted, middle = self.encode_latents(self.model, wav)
        losses = {"latent": F.mse_loss(emitted, target)}
        if self.phase == "learn":
            with torch.no_grad():
                fine = self.space.fine(wav, PROBE_HOP)
            losses["probe"] = F.mse_loss(self.probe(middle.transpose(1, 2)), fine)
        if self.phase == "encoder":
            return losses
        with torch.no_grad():
            heard, _ = quantise(target, self.books)
        if self.phase != "learn":
            own = len(wav) // 2  # the other half goes on hearing the target codes, which are the ones the Talker speaks
            with torch.no_grad():
                heard = torch.cat((quantise(emitted[:own], self.books)[0], heard[own:]))
        losses["reconstruction"] = stft_loss(self.decode_latents(self.model, heard), wav, self.banks)
        return losses

    def train_step(self, progress):
        """One batch; returns detached scalar losses by name, still on the device."""
        options = self.options
        wav = self.crops()
        with torch.no_grad():
            target = self.space.encode(wav)
        losses = self.losses(wav, target)
        weights = {"reconstruction": 1.0, "latent": options.latent_weight, "probe": 1.0}
        sum(weight * losses[name] for name, weight in weights.items() if name in losses).backward()
        take_step([self.optimizer], self.parameters, learning_rate(progress, options))
        self._update_average()
        self.step += 1
        return {name: value.detach() for name, value in losses.items()}

    @torch.no_grad()
    def _update_average(self):
        decay = min(0.999, self.step / (self.step + 20))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def state(self):
        return {**{name: getattr(self, name).state_dict() for name in ("model", "average", "probe", "optimizer")},
                "options": asdict(self.options), "books": self.books, "space": asdict(self.space), "step": self.step,
                "seconds": self.seconds, "phase": self.phase, "cpu_random": self.cpu_random.get_state(),
                "random": self.random.get_state()}

    def restore(self, state):
        """Continue a saved run; ValueError when it was started with other options."""
        if state["options"] != asdict(self.options):
            changed = sorted({name for name, _ in state["options"].items() ^ asdict(self.options).items()})
            raise ValueError(f"the checkpoint was made with other options ({', '.join(changed)}): use them, or another --out")
        for name in ("model", "average", "probe", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.space = LatentSpace(**{name: value.to(self.device) for name, value in state["space"].items()})
        self.books = state["books"].to(self.device)
        self._set_books()
        self.step, self.seconds, self.phase = state["step"], state["seconds"], state["phase"]
        self.cpu_random.set_state(state["cpu_random"].cpu())
        self.random.set_state(state["random"].cpu())


def phase_at(progress, options):
    """Name of the phase at `progress` (0..1) of the run."""
    if progress < options.joint_at:
        return "learn"
    return "joint" if progress < options.encoder_at else "encoder"


def learning_rate(progress, options):
    """Warm-up and a cosine to a fiftieth; a second, lower cosine where the encoder goes on alone."""
    alone = progress >= options.encoder_at
    part = (progress - options.encoder_at) / (1 - options.encoder_at) if alone else progress / options.encoder_at
    return options.lr * (0.7 if alone else min(1.0, 0.02 + progress / 0.02)) * (0.02 + 0.49 * (1 + math.cos(math.pi * part)))


def train(options, speech, out, device="cpu", steps=None, minutes=None, log_interval=50, save_interval=2000, stop_after=None,
          use_compile=False, start_from=None):
    """Train (or continue) in folder `out`: checkpoint.pt, curve.csv, curve.png and mimi/, the codec. Returns the Run.

    The run's length is `steps` or, for a lent machine, `minutes` of training in all. `stop_after` ends this call after that many
    steps as a kill would, for tests. `start_from` is a codec folder to begin with instead of random networks.
    """
    if (steps is None) == (minutes is None):
        raise ValueError("give either steps or minutes")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    run, checkpoint = Run(options, speech, device, use_compile), out / "checkpoint.pt"
    if checkpoint.exists():
        run.restore(torch.load(checkpoint, map_location=run.device, weights_only=True))
        log.info("continuing %s at step %d", out, run.step)
    elif (out / "targets.pt").exists():
        run.use_targets(out / "targets.pt")
    else:
        run.fit()
    if not (out / "targets.pt").exists():
        save_atomic({"space": asdict(run.space), "books": run.books.half()}, out / "targets.pt")
    if not checkpoint.exists():
        if start_from:
            run.start_from(start_from)
        save_atomic(run.state(), checkpoint)
    rows, last = read_curve(out, run.step), time.perf_counter()
    bar = tqdm(total=steps, initial=run.step, unit="it", desc="codec", mininterval=5)
    first = run.step
    while True:
        progress = run.step / steps if steps else run.seconds / (60 * minutes)
        if progress >= 1 or (stop_after is not None and run.step - first >= stop_after):
            break
        phase = phase_at(progress, options)
        if phase != run.phase:
            log.info("step %d, %.1f min: phase %s", run.step, run.seconds / 60, phase)
            run.phase = phase
        losses = run.train_step(progress)
        bar.update()
        if run.step % log_interval == 0:
            values = {name: float(value) for name, value in losses.items()}
            if not all(math.isfinite(value) for value in values.values()):
                raise FloatingPointError(f"step {run.step}: a loss is not finite: {values}")
            rate = run.optimizer.param_groups[0]["lr"]
            rows.append({"step": run.step, "minutes": run.seconds / 60, "phase": phase, "lr": rate, **values})
            left = "" if steps else f", {minutes - run.seconds / 60:.1f} min left"
            bar.set_postfix_str(f"{phase} " + " ".join(f"{k[:5]} {v:.3f}" for k, v in values.items()) + left)
        now = time.perf_counter()
        if not (use_compile and run.step == first + 1):  # to compile is not to learn
            run.seconds += now - last
        last = now
        if run.step % save_interval == 0:
            save_atomic(run.state(), checkpoint)
            write_curve(out, rows, CURVE, "nano codec")
            last = time.perf_counter()  # nor is to write
    bar.close()
    if stop_after is None or progress >= 1:
        save_atomic(run.state(), checkpoint)
        write_curve(out, rows, CURVE, "nano codec")
        save_folder(run.average, out / "mimi")
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speech", default="out/nano/speech", help="folder of nano.speech's shards")
    parser.add_argument("--out", default="out/nano/codec")
    parser.add_argument("--start_from", help="a codec folder to go on from, its targets.pt being in --out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--books_only", action="store_true", help="stop when targets.pt is there: all that codes need")
    parser.add_argument("--steps", type=int, help="length of the run in steps")
    parser.add_argument("--minutes", type=float, help="length of the run in minutes of training")
    parser.add_argument("--log_interval", type=int, default=50)
    parser.add_argument("--save_interval", type=int, default=1000)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--use_compile", type=int, choices=(0, 1), default=0, help="1: a fifth faster on a CPU, after 2 minutes")
    for option in fields(Options):
        parser.add_argument(f"--{option.name}", type=option.type, default=option.default)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device.startswith("cuda"):
        torch.backends.cudnn.allow_tf32 = True  # convolutions only: nearest codes need exact products
        torch.backends.cudnn.benchmark = True  # every batch has the same shape
    else:
        keep_freed_memory()
    options = Options(**{option.name: getattr(args, option.name) for option in fields(Options)})
    speech = read_speech(args.speech)
    print(f"{len(speech) / INPUT_RATE / 3600:.2f} h of speech on {args.device}")
    run = train(options, speech, args.out, args.device, args.steps, args.minutes, args.log_interval, args.save_interval,
                stop_after=0 if args.books_only else None, use_compile=bool(args.use_compile), start_from=args.start_from)
    if args.books_only:
        return
    memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory" if args.device.startswith("cuda") else ""
    print(f"{run.step} steps in {run.seconds / 60:.1f} min{memory}; the codec is in {args.out}/mimi")


if __name__ == "__main__":
    main()
