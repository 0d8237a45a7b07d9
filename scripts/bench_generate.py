"""What speaking costs: prefill, one step of all nine streams, one Mimi frame, and the real-time factor, on random weights.

- Random weights are as fast as trained ones; nothing is said here about quality.
- Each figure is the median over --repeats; a frame of speech lasts 80 ms, so step + Mimi below 80 ms is real time.

    python -m scripts.bench_generate --preset nano base --threads 1
"""
import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import MimiConfig, MimiModel

from model.config import FRAME_SAMPLES, NUM_CODEBOOKS, NUM_STREAMS, PRESETS, SAMPLE_RATE, OmniConfig
from model.mimi import Mimi
from model.model_omni import MiniMindOmni

# sizes of the shipped nano codec; the released one has transformers' defaults
NANO_MIMI = dict(hidden_size=128, num_filters=16, num_hidden_layers=2, intermediate_size=512, num_attention_heads=4,
                 num_key_value_heads=4, codebook_size=512, codebook_dim=96, vector_quantization_hidden_dimension=96,
                 num_semantic_quantizers=8, num_quantizers=9, upsample_groups=128, sliding_window=32)


def median_ms(run, repeats, device):
    """Median wall time of `run()` in milliseconds, after one warm-up."""
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


@torch.inference_mode()
def measure(preset, prompt_tokens, steps, repeats, device, dtype):
    """Figures of one preset: {name: value}, times in milliseconds."""
    config = OmniConfig.preset(preset)
    model = MiniMindOmni(config).to(device, dtype).eval()
    prompt = torch.randint(0, config.num_codes, (1, NUM_STREAMS, prompt_tokens), device=device)
    column = torch.randint(0, config.num_codes, (1, NUM_STREAMS, 1), device=device)
    cache = model.new_cache(1, prompt_tokens + steps)

    def prefill():
        cache.reset()
        model(prompt, cache=cache, last_only=True)

    def speak():
        prefill()
        for _ in range(steps):
            model(column, cache=cache, last_only=True)

    prefill_ms = median_ms(prefill, repeats, device)
    step_ms = (median_ms(speak, repeats, device) - prefill_ms) / steps
    mimi = Mimi(MimiModel(MimiConfig(**NANO_MIMI if preset == "nano" else {})).eval().to(device))
    state, codes = mimi.init_state(1), torch.zeros(1, NUM_CODEBOOKS, 1, dtype=torch.long, device=device)
    mimi_ms = median_ms(lambda: mimi.decode_step(codes, state), max(repeats, 10), device)
    frame_ms = 1000 * FRAME_SAMPLES / SAMPLE_RATE
    # the first frame is complete after 9 steps: the text token, then codebooks 0-7 one step apart
    return {"preset": preset, "parameters_M": round(sum(p.numel() for p in model.parameters()) / 1e6, 1), "prefill_ms": prefill_ms,
            "step_ms": step_ms, "mimi_ms": mimi_ms, "rtf": (step_ms + mimi_ms) / frame_ms,
            "first_audio_ms": prefill_ms + 8 * step_ms + mimi_ms}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", nargs="+", choices=sorted(PRESETS), default=["nano", "base"])
    parser.add_argument("--prompt_tokens", type=int, default=60)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"{'preset':8}{'M params':>10}{'prefill ms':>12}{'step ms':>10}{'Mimi ms':>10}{'RTF':>8}{'first audio ms':>16}")
    rows = []
    for preset in args.preset:
        row = measure(preset, args.prompt_tokens, args.steps, args.repeats, args.device, getattr(torch, args.dtype))
        rows.append(row)
        print(f"{preset:8}{row['parameters_M']:10.1f}{row['prefill_ms']:12.1f}{row['step_ms']:10.2f}{row['mimi_ms']:10.2f}"
              f"{row['rtf']:8.3f}{row['first_audio_ms']:16.1f}")
    print(json.dumps({"device": args.device, "dtype": args.dtype, "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
