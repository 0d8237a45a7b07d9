"""What a number format costs in quality: how often each agrees with float32 on the next token and the next codes.

- Greedy replies in float32 to a pack's held-out questions, until --frames frames of speech. Every format is then shown the very
  same columns and asked for the next one: one slip does not count again in what follows it.
- Only choices that were used count: text up to its end, codes of speech. "whole frames": all 8 codes right. "free running": how long
  a greedy reply of its own stays the float32 one.
- What that does to speech is for `python -m evals.eval_nano --dtype ...` to say. Last line is JSON.

    python -m evals.eval_precision --pack model/nano --dtype bf16 int8
"""
import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402  (the root has to be importable first)
from torch import Tensor  # noqa: E402

from engine.chat import find_weights, load_tokenizer, pick_device  # noqa: E402
from engine.engine import Engine  # noqa: E402
from engine.generate import GenerationParams  # noqa: E402
from engine.network import Place  # noqa: E402
from engine.precision import DTYPES  # noqa: E402
from engine.session import Request  # noqa: E402
from engine.voices import load_voices, pick_voice  # noqa: E402
from evals.command import exit_code, pack_parser  # noqa: E402
from evals.eval_nano import HELDOUT, read_questions  # noqa: E402
from model.checkpoint import load_model  # noqa: E402
from model.config import NUM_CODEBOOKS, NUM_STREAMS, OmniConfig  # noqa: E402
from model.sequence import build_prompt, encode_text, render_chat, undelay  # noqa: E402

MAX_STEPS = 256  # of one reply


def reply(engine: Engine, request: Request) -> tuple[Tensor, int]:
    """Every column (9, n) of prompt and greedy reply, and the number of whole frames in it."""
    slot = engine.admit(request)
    session, frames = engine.sessions[slot], 0
    while engine.busy:
        frames += sum(frame.codes is not None for frame in engine.step())
    columns = torch.tensor(session.columns, dtype=torch.long).view(-1, NUM_STREAMS).T
    return torch.cat([request.prompt_ids, columns], dim=1), frames


@torch.inference_mode()
def choices(engine: Engine, columns: Tensor, spk_emb: Tensor | None, start: int) -> tuple[Tensor, Tensor]:
    """What a greedy step would say after each of columns (9, n) from `start` on: text ids (n - start,), codes (n - start, 8)."""
    network, columns = engine.network, columns.to(engine.device)[None]
    length, rows = columns.shape[2], torch.zeros(1, dtype=torch.long, device=engine.device)
    reach = torch.arange(length, device=engine.device)
    place = Place(engine.cache, rows, slice(0, 1), reach[None], reach)
    thought, bridge = network.think(network.embed_text(columns[:, NUM_CODEBOOKS]), place)
    known = torch.tensor([spk_emb is not None], device=engine.device)
    vector = network.embed_speaker((torch.zeros(engine.config.spk_emb_size) if spk_emb is None else spk_emb).to(engine.device))
    spoken = network.talk(columns[:, :NUM_CODEBOOKS], bridge, vector[None], known, place)
    return network.text_logits(thought[0, start:]).argmax(-1), network.code_logits(spoken[0, start:]).argmax(-1)


def used(columns: Tensor, config: OmniConfig) -> tuple[Tensor, Tensor]:
    """Which choices of a reply's columns (9, n) it consists of: texts (n,) until <|im_end|>, and codes (8, n), not those before a
    codebook's first or after its last."""
    ends = (columns[NUM_CODEBOOKS] == config.eos_token_id).long()
    return ends.cumsum(0) <= ends, columns[:NUM_CODEBOOKS] < config.num_codes


def compare(exact: Engine, other: Engine, replies: list[tuple[Request, Tensor]]) -> dict:
    """Shares of equal choices over all replies, and the free-running figure."""
    equal = {"text": [], "codes": [], "whole_frames": []}
    kept = total = 0
    for request, columns in replies:
        start = request.prompt_ids.shape[1] - 1
        (text, codes), (other_text, other_codes) = (choices(e, columns[:, :-1], request.spk_emb, start) for e in (exact, other))
        text_used, codes_used = used(columns[:, start + 1:].to(codes.device), exact.config)
        same = (codes == other_codes).T
        equal["text"].append((text == other_text)[text_used])
        equal["codes"].append(same[codes_used])
        # the first codebook speaks from the second column on
        equal["whole_frames"].append(undelay(same[:, 1:]).all(0)[undelay(codes_used[:, 1:]).all(0)])
        own, _ = reply(other, request)
        shared = min(own.shape[1], columns.shape[1])
        different = (own[:, :shared] != columns[:, :shared]).any(0).nonzero()
        kept += (int(different[0]) if len(different) else shared) - start - 1
        total += columns.shape[1] - start - 1
    shares = {name: round(torch.cat(values).float().mean().item(), 4) for name, values in equal.items()}
    return {**shares, "free_running": round(kept / total, 4)}


def build_parser() -> argparse.ArgumentParser:
    parser = pack_parser(__doc__.splitlines()[0])
    parser.add_argument("--heldout", help=f"questions as JSON lines (default: <pack>/{HELDOUT})")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bf16", "int8"])
    parser.add_argument("--frames", type=int, default=200, help="frames of float32 speech to compare on")
    return parser


def run(args) -> None:
    device, pack = pick_device(args.device), Path(args.pack)
    tokenizer = load_tokenizer(pack)
    model = load_model(find_weights(Path(args.save_dir or pack), args.weight), device=device)
    voice = pick_voice(load_voices(pack / "voices.pt", model.config), None)
    params = GenerationParams(newline_id=encode_text(tokenizer, "\n")[-1], max_new_tokens=MAX_STEPS, temperature=0)
    exact = Engine(model, slots=1, max_length=1024, dtype="fp32")
    replies, frames = [], 0
    for item in read_questions(Path(args.heldout or pack / HELDOUT), args.frames, args.seed):
        if frames >= args.frames:
            break
        ids = encode_text(tokenizer, render_chat(tokenizer, [{"role": "user", "content": item["question"]}], generation=True))
        request = Request(build_prompt(ids, voice.ref_codes, voice.spk_emb is not None, model.config), params, voice.spk_emb)
        columns, spoken = reply(exact, request)
        replies.append((request, columns))
        frames += spoken
    if not frames:
        raise ValueError("no reply had a frame of speech: nothing to compare")
    figures = {name: compare(exact, Engine(model, slots=1, max_length=1024, dtype=name), replies) for name in args.dtype}
    print(f"against fp32 on {frames} frames of {len(replies)} replies\n")
    print("| dtype | text | codes | whole frames | free running |\n|---|---|---|---|---|")
    for name, f in figures.items():
        print(f"| {name} | {f['text']:.1%} | {f['codes']:.1%} | {f['whole_frames']:.1%} | {f['free_running']:.1%} |")
    print(json.dumps({"frames": frames, "replies": len(replies), "figures": figures}))


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
