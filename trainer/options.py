"""The trainer's command line, and what follows from it alone: paths, tokenizer, model sizes, the settings that are published."""
import argparse
from importlib import import_module
from pathlib import Path

import torch

from model.config import NUM_CODEBOOKS, PRESETS, OmniConfig
from trainer.trainer_utils import ROOT, check_config

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
OPTIMISATIONS = {  # what --without switches off; none of them changes a loss
    "length_groups": "rows of similar length share a batch",
    "tight_padding": "batches are padded to their longest row, not to --max_seq_len",
    "logits_window": "logits only where the reply's targets are",
    "fused_loss": "one cross-entropy for all codebooks, not eight",
    "fused_adamw": "one kernel for all of AdamW",
    "kept_memory": "on a CPU, memory that is freed stays with the process",
    "grouped_experts": "all experts in one product (mixture of experts)",
}


def parse(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--data_path", nargs="+", default=["../dataset/sft_t2a_mini.parquet"], help="parquet file(s)")
    add("--save_dir", default=str(ROOT / "out"))
    add("--save_weight", default="sft_omni", help="name of what is trained")
    add("--from_weight", default="llm", help="name (looked up in save_dir, then out/) or .pth file to start from; none: from scratch")
    add("--from_resume", type=int, choices=(0, 1), default=0, help="1: continue this run where it was saved, if it was")
    add("--mode", choices=("all", "audio_proj", "vision_proj", "thinker", "talker", "spelling"), default="all", help="what is trained; "
        "thinker: the projectors and the Thinker above the bridge, on the text alone: the Talker, which does not run, goes on hearing what "
        "it knows; talker: neither; spelling: the audio projector, by --spelling alone: the model does not run")
    add("--freeze_backbone", choices=("none", "all", "last1"), default="none",
        help="all: the Thinker is frozen; last1: all of it but its last layer")
    add("--preset", choices=sorted(PRESETS), default="base")
    add("--hidden_size", type=int, help="default: the preset's, as for the next three")
    add("--num_hidden_layers", type=int)
    add("--talker_hidden_size", type=int)
    add("--use_moe", type=int, choices=(0, 1))
    add("--tokenizer_dir", help="default: model/ (model/nano with --preset nano)")
    add("--audio_encoder_dir", default="../model/SenseVoiceSmall")
    add("--vision_dir", default="../model/siglip2-base-p32-256-ve")
    add("--epochs", type=int, default=1)
    add("--max_steps", type=int, help="train for exactly this many steps, whatever --epochs says")
    add("--batch_size", type=int, default=32, help="rows per process")
    add("--max_tokens", type=int, help="instead of --batch_size rows: as many as fill so many positions per process, padding included")
    add("--accumulation_steps", type=int, default=1)
    add("--learning_rate", type=float, default=5e-4)
    add("--optimizer", choices=("adamw", "muon"), default="adamw",
        help="muon: orthogonalised momentum for the matrices of blocks and projectors, AdamW for the rest; fewer steps to the same loss")
    add("--warmup_steps", type=int, default=0)
    add("--grad_clip", type=float, default=1.0)
    add("--max_seq_len", type=int, default=512)
    add("--system_share", type=float, default=0.2, help="share of the conversations without a system prompt that get one; a small "
        "tokenizer makes it longer than the question, and every batch is as long as its longest row")
    add("--question_mix", type=float, nargs=4, metavar="SHARE", help="spoken questions put as sound alone, text alone, sound and text, "
        "text and sound (default: 0.4 0.2 0.2 0.2); 1 0 0 0 for a Thinker that reads them already and has to learn to hear")
    add("--augment_share", type=float, default=1.0, help="share of the spoken questions that are roughened (dataset/augment.py); the rest "
        "is heard as recorded")
    add("--history_dropout", type=float, default=0.0, help="up to this share of a reply's codes is hidden from the Talker: with little "
        "speech to learn from, it reads the text sooner")
    add("--guided_attention", type=float, default=0.0, help="weight of a loss that shows the Talker which word is being said "
        "(trainer/attention_guide.py); for little speech, e.g. 0.5")
    add("--spelling", type=float, default=0.0, help="weight of a loss that has the audio projector write down what is said "
        "(model/spelling.py); for little speech, e.g. 0.3")
    add("--codebook_weights", type=float, nargs=NUM_CODEBOOKS, metavar="W", help="how much each codebook counts in the audio loss "
        "(default: alike); the first ones carry the words, the last ones are mostly noise to a small Talker")
    add("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=sorted(DTYPES), help="autocast; weights stay fp32. Default: bfloat16 on CUDA, float32 on CPU")
    add("--use_compile", type=int, choices=(0, 1), default=0)
    add("--gradient_checkpointing", type=int, choices=(0, 1), default=0, help="1: keep no activations inside the blocks; a third more work")
    add("--without", nargs="*", choices=OPTIMISATIONS, default=[], help="optimisations to switch off, to see what each is worth")
    add("--num_workers", type=int, default=4)
    add("--log_interval", type=int, default=20)
    add("--save_interval", type=int, default=1000)
    add("--keep_last", type=int, default=1, help="resume checkpoints that stay: this one, and older ones named by their step")
    add("--max_bad_steps", type=int, default=50, help="give up after so many steps in a row without a finite loss and gradient")
    add("--eval_interval", type=int, default=0, help="steps between evaluations on --eval_rows rows that are not trained on; 0: none")
    add("--eval_rows", type=int, default=64)
    add("--seed", type=int, default=42)
    add("--use_wandb", action="store_true")
    add("--wandb_project", default="MiniMind-O")
    add("--use_tensorboard", action="store_true")
    args = p.parse_args(argv)
    if args.mode == "talker":
        args.freeze_backbone = "all"  # what follows from a frozen Thinker is decided by this one flag
    for name in ("epochs", "batch_size", "accumulation_steps", "log_interval", "save_interval", "max_seq_len", "keep_last",
                 "max_bad_steps", "eval_rows"):
        if getattr(args, name) < 1:
            p.error(f"--{name} must be at least 1")
    if args.codebook_weights and (min(args.codebook_weights) < 0 or sum(args.codebook_weights) <= 0):
        p.error("--codebook_weights must not be negative, nor all 0")
    if args.mode == "spelling" and not args.spelling:
        p.error("--mode spelling has no other loss: give --spelling a weight, e.g. 1")
    if args.mode in ("thinker", "spelling") and args.guided_attention:
        p.error(f"--guided_attention is the Talker's, which does not run with --mode {args.mode}: leave it out")
    for flag, package in (("use_wandb", "wandb"), ("use_tensorboard", "tensorboardX")):
        if getattr(args, flag):
            try:
                import_module(package)
            except ImportError as error:
                p.error(f"--{flag} needs {package} ({error}): pip install {package}")
    if not 0 <= args.augment_share <= 1:
        p.error("--augment_share is a share: from 0 to 1")
    if args.question_mix and (min(args.question_mix) < 0 or abs(sum(args.question_mix) - 1) > 1e-6):
        p.error("--question_mix must be four shares that sum to 1")
    return args


def input_path(path: str) -> Path:
    """A file or folder to read: relative to here, else to trainer/, where the usual commands are written to be run."""
    here, usual = Path(path), ROOT / "trainer" / path
    return usual if not here.exists() and usual.exists() else here


def load_tokenizer(args: argparse.Namespace):
    """FileNotFoundError names the folder."""
    from transformers import AutoTokenizer
    folder = input_path(args.tokenizer_dir) if args.tokenizer_dir else ROOT / "model" / ("nano" if args.preset == "nano" else "")
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"no tokenizer.json in {folder}; give its folder with --tokenizer_dir")
    return AutoTokenizer.from_pretrained(folder)


def build_config(args: argparse.Namespace, tokenizer) -> OmniConfig:
    """The preset with the sizes given on the command line; the ids of "</think>\\n\\n" are the tokenizer's."""
    given = {name: getattr(args, name) for name in ("hidden_size", "num_hidden_layers", "talker_hidden_size")}
    if args.use_moe is not None:
        given["use_moe"] = bool(args.use_moe)
    think_end_ids = tokenizer("</think>\n\n", add_special_tokens=False)["input_ids"]
    config = OmniConfig.preset(args.preset, think_end_ids=think_end_ids, **{k: v for k, v in given.items() if v is not None})
    check_config(config, tokenizer, args.max_seq_len)
    return config


def shareable(args: argparse.Namespace) -> dict:
    """The settings that made a weight, without this machine's folders: they go into the sidecar that is published with it."""
    folders = ("save_dir", "tokenizer_dir", "audio_encoder_dir", "vision_dir")
    return {**{k: v for k, v in vars(args).items() if k not in folders}, "data_path": [Path(p).name for p in args.data_path]}
