"""Does the model speak in the voice it was asked for? Held-out questions answered in every voice, judged by speaker encoders.

- A voice's reference is its own voice prompt, decoded by the pack's codec, so no other recording is needed.
- Per encoder and voice: how often the nearest reference among all voices is the requested one, and the mean cosine to it.
- `--encoders resemblyzer` is independent of everything we train; `campplus` is what the model was conditioned on. Last line is JSON.

    python -m evals.eval_voices --pack model/nano --n 12
"""
import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402  (the root has to be importable first)
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from engine.chat import Chat, find_weights, listen, pick_device  # noqa: E402
from engine.voices import Voice  # noqa: E402
from evals.command import exit_code, pack_parser  # noqa: E402
from evals.eval_nano import HELDOUT, read_questions  # noqa: E402
from evals.speakers import load_speaker_encoder  # noqa: E402
from model.audio import resample  # noqa: E402
from model.checkpoint import save_json  # noqa: E402
from model.config import INPUT_RATE, SAMPLE_RATE  # noqa: E402

SHORTEST_S = 0.5  # of speech that can be judged


def speak(chat: Chat, n: int, seed: int, temperature: float | None) -> dict[str, list[np.ndarray]]:
    """{voice: n replies (S,) float32 at 16 kHz}; every voice answers the same questions, a silent reply is an empty array."""
    items = read_questions(chat.folder / HELDOUT, n, seed)
    params = chat.settings(max_new_tokens=256, temperature=temperature)
    spoken = {name: [] for name in chat.voices}
    for name, voice in chat.voices.items():
        for i, item in enumerate(tqdm(items, desc=name, mininterval=5)):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
            messages = [{"role": "user", "content": item["question"]}]
            answer = listen(lambda: chat.reply(messages, params, voice, generator=generator), params)
            spoken[name].append(resample(answer.wav, SAMPLE_RATE, INPUT_RATE))
    return spoken


def similarities(encoder, references: dict[str, np.ndarray], spoken: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """{voice: cosines (n, references) of its clips, at 16 kHz, to each reference, in order}; clips too short to judge are left out."""
    known = np.stack([encoder.embed(wav) for wav in references.values()])
    scores = {}
    for name, wavs in spoken.items():
        long = [known @ encoder.embed(wav) for wav in wavs if len(wav) >= SHORTEST_S * INPUT_RATE]
        scores[name] = np.stack(long) if long else np.zeros((0, len(known)))
    return scores


def judge(encoder, references: dict[str, np.ndarray], spoken: dict[str, list[np.ndarray]]) -> dict[str, dict]:
    """{voice: {"n", "right": share whose nearest reference is the voice itself, "cosine": mean to it}}; too short speech is wrong."""
    figures, names = {}, list(references)
    for name, scores in similarities(encoder, references, spoken).items():
        own, n = names.index(name), len(spoken[name])
        figures[name] = {"n": n, "right": round(float((scores.argmax(1) == own).sum() / n), 4),
                         "cosine": round(float(scores[:, own].mean()), 4) if len(scores) else None}
    return figures


def decode_references(chat: Chat, voices: dict[str, Voice]) -> dict[str, np.ndarray]:
    """{voice: its voice prompt as (S,) float32 at 16 kHz}."""
    return {name: resample(chat.mimi.decode(voice.ref_codes[None].to(chat.device))[0].float().cpu().numpy(), SAMPLE_RATE, INPUT_RATE)
            for name, voice in voices.items()}


def table(figures: dict[str, dict[str, dict]]) -> str:
    """The summary as Markdown, a row per voice."""
    encoders = list(figures)
    lines = ["| voice | " + " | ".join(f"{e}: nearest is right | {e}: mean cosine" for e in encoders) + " |",
             "|---" * (1 + 2 * len(encoders)) + "|"]
    for voice in figures[encoders[0]]:
        cells = [f"{figures[e][voice]['right']:.0%} | {figures[e][voice]['cosine']}" for e in encoders]
        lines.append(f"| {voice} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = pack_parser(__doc__.splitlines()[0])
    parser.add_argument("--encoders", nargs="+", default=["resemblyzer", "campplus"])
    parser.add_argument("--n", type=int, default=12, help="questions per voice")
    parser.add_argument("--temperature", type=float, help="default: the pack's")
    parser.add_argument("--output", default="out/eval_voices.json")
    return parser


def run(args) -> None:
    encoders = {name: load_speaker_encoder(name, Path(args.pack)) for name in args.encoders}
    chat = Chat.load(args.pack, find_weights(Path(args.save_dir or args.pack), args.weight), device=pick_device(args.device))
    chat.use_few_threads()
    references, spoken = decode_references(chat, chat.voices), speak(chat, args.n, args.seed, args.temperature)
    figures = {name: judge(encoder, references, spoken) for name, encoder in encoders.items()}
    print(table(figures))
    save_json({"settings": vars(args), "figures": figures}, args.output)
    print(json.dumps(figures))


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
