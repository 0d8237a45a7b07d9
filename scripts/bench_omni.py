"""How fast the engine is on this machine, beside how fast it could be: floors, latencies, and how many can speak at once.

- Floor first: weights and cache a step must read over the bandwidth measured beside it, and its products over the measured matmul
  rate, whichever is slower. No step can be faster.
- Then 1, 2, 4, ... sessions, joining and leaving at staggered times, until a frame takes longer than the 80 ms it lasts.
- Random weights are as fast as trained ones; nothing is said here about quality (see evals/eval_precision.py).
- A table, a PNG and a JSON file in --output_dir; the last line printed is the same JSON.

    python -m scripts.bench_omni --preset nano base --dtype fp32 bf16 int8 --threads 2
    python -m scripts.bench_omni --preset base --dtype int8 --sessions 8 --minutes 10    # does anything grow? exit code 1 if so
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

from engine.chat import pick_device
from engine.engine import Engine
from engine.generate import GenerationParams
from engine.network import Experts
from engine.precision import DTYPES, Matrix, MatrixBank
from engine.session import Request
from engine.stepper import MODES, capture
from evals.metrics import percentiles
from model.checkpoint import save_json
from model.config import FRAME_SAMPLES, NUM_CODEBOOKS, PRESETS, SAMPLE_RATE, OmniConfig
from model.mimi import Mimi
from model.model_omni import MiniMindOmni
from model.refusal import refuse
from scripts.bench_table import table_line

FRAME_MS = 1000 * FRAME_SAMPLES / SAMPLE_RATE
# sizes of the shipped nano codec; the released one has transformers' defaults
NANO_MIMI = dict(hidden_size=128, num_filters=16, num_hidden_layers=2, intermediate_size=512, num_attention_heads=4,
                 num_key_value_heads=4, codebook_size=512, codebook_dim=96, vector_quantization_hidden_dimension=96,
                 num_semantic_quantizers=8, num_quantizers=9, upsample_groups=128, sliding_window=32)
MAX_GROWTH = {"rss_growth": 0.05, "frame_growth": 0.10}  # from the first to the last fifth of a --minutes run
CODEC_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BIG = 2**28  # float32 numbers of the bandwidth test: 1 GiB, which no cache holds
COLUMNS = (("preset", "preset"), ("dtype", "dtype"), ("sessions", "sessions"), ("floor ms", "floor_ms"), ("model ms", "model_ms"),
           ("x floor", "over_floor"), ("Mimi ms", "mimi_ms"), ("frame p50", "frame_ms_p50"), ("p95 ms", "frame_ms_p95"), ("RTF", "rtf"),
           ("TTFT ms", "ttft_ms_p50"), ("TTFA p50", "ttfa_ms_p50"), ("p95 ms", "ttfa_ms_p95"), ("speaking", "speaking"),
           ("frames/s", "frames_per_s"), ("MiB", "memory_mib"))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def wall_times(run, device, repeats: int, warm_ups: int) -> list[float]:
    """Seconds of each `run()` behind the first few."""
    times = []
    for _ in range(warm_ups + repeats):
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return times[warm_ups:]


def best_s(run, device, repeats: int = 5) -> float:
    """Shortest wall time of `run()` in seconds, after one warm-up: for limits, where anything slower was disturbed."""
    return min(wall_times(run, device, repeats, warm_ups=1))


def median_ms(run, device, repeats: int) -> float:
    """Median wall time of `run()` in milliseconds, after two warm-ups: what a caller sees."""
    return 1000 * statistics.median(wall_times(run, device, repeats, warm_ups=2))


@torch.inference_mode()
def read_rates(between, device: torch.device, rounds: int = 5) -> list[float]:
    """Bytes a second of reading 1 GiB, the best of three, before each of so many calls of `between()`.

    On a shared machine the rate moves within seconds: what is compared with it must be measured beside it.
    """
    big, rates = torch.ones(BIG, device=device), []
    for _ in range(rounds):
        rates.append(4 * BIG / best_s(lambda: big.sum(), device, repeats=3))
        between()
    return rates


@torch.inference_mode()
def measure_machine(device: torch.device) -> dict:
    """{"bytes_per_s": sequential reading, "flops": {activation type: large matrix products}}."""
    machine = {"bytes_per_s": statistics.median(read_rates(lambda: None, device)), "flops": {}}
    n = 1024 if device.type == "cpu" else 8192
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2, n, n, device=device).to(dtype)
        machine["flops"][str(dtype)] = 2 * n**3 / best_s(lambda a=a, b=b: a @ b, device)
    return machine


def floor_ms(engine: Engine, machine: dict, sessions: int, length: int) -> float:
    """Milliseconds that a step of `sessions` rows of `length` cached positions takes at least, without the codec."""
    read = products = 0
    for module in engine.network.modules():
        if isinstance(module, (Matrix, MatrixBank)):
            read += module.num_bytes
            products += module.num_weights
        elif isinstance(module, Experts):  # a row reads its own experts only
            share, matrices = module.top_k / len(module.experts), [m for m in module.experts.modules() if isinstance(m, Matrix)]
            read -= (1 - min(1, sessions * share)) * sum(m.num_bytes for m in matrices)
            products -= (1 - share) * sum(m.num_weights for m in matrices)
    read += sessions * length * engine.cache.num_bytes / (engine.slots * engine.max_length)
    flops = 2 * products * sessions / machine["flops"][str(engine.precision.activations)]
    return 1000 * max(read / machine["bytes_per_s"], flops)


def random_model(preset: str, device) -> MiniMindOmni:
    """Random weights that hardly ever say a special code: replies then run to their cap."""
    torch.manual_seed(0)
    model = MiniMindOmni(OmniConfig.preset(preset)).eval()
    with torch.no_grad():
        for head in (model.talker.lm_head.base, *(adapter[-1] for adapter in model.talker.lm_head.adapters)):
            head.weight[:model.config.num_codes] *= 50
            head.weight[model.config.num_codes:] = 0
    return model.to(device)


def random_request(engine: Engine, prompt_tokens: int, steps: int, seed: int) -> Request:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, engine.config.num_codes, (NUM_CODEBOOKS, prompt_tokens), generator=generator)
    text = torch.randint(100, engine.config.vocab_size, (1, prompt_tokens), generator=generator)
    params = GenerationParams(newline_id=10, max_new_tokens=steps)
    return Request(torch.cat([codes, text]), params, torch.randn(engine.config.spk_emb_size, generator=generator), generator=generator)


class Crowd:
    """Keeps `sessions` sessions going: whenever one is over, another joins. Collects the times of what happens, in seconds."""

    def __init__(self, engine: Engine, sessions: int, prompt_tokens: int, steps: int):
        self.engine, self.sessions, self.prompt_tokens, self.steps = engine, sessions, prompt_tokens, steps
        self.joined: dict[int, float] = {}  # slot -> time of its admission
        self.texted: set[int] = set()
        self.sounded: set[int] = set()
        self.count = self.finished = 0
        self.forget()

    def forget(self) -> None:
        """Start the figures anew: after warming up."""
        self.ttft, self.ttfa, self.frames, self.spoken, self.seconds = [], [], [], 0, 0.0

    def join(self) -> None:
        request = random_request(self.engine, self.prompt_tokens, self.steps, self.count)
        self.count += 1
        start = time.perf_counter()
        self.joined[self.engine.admit(request)] = start

    def step(self) -> None:
        start = time.perf_counter()
        frames = self.engine.step()
        now = time.perf_counter()
        self.seconds += now - start
        if frames:
            self.frames.append(now - start)
            self.spoken += len(frames)
        for frame in frames:
            for is_first, known, times in ((True, self.texted, self.ttft), (frame.wav is not None, self.sounded, self.ttfa)):
                if is_first and frame.slot not in known:
                    known.add(frame.slot)
                    times.append(now - self.joined[frame.slot])
            if frame.done:
                self.finished += 1
                self.joined.pop(frame.slot)
                self.texted.discard(frame.slot)
                self.sounded.discard(frame.slot)

    def run(self, replies: int = 0, seconds: float = 0) -> None:
        """Until so many replies are over, or for so long. Sessions join apart, so that they end apart."""
        apart, together = max(self.steps // self.sessions, 1), -(-self.sessions // self.steps)
        end, done, ticks = time.perf_counter() + seconds, self.finished + replies, 0
        while self.finished < done or time.perf_counter() < end:
            if self.count >= self.sessions or ticks % apart == 0:
                for _ in range(min(together, self.engine.num_free)):
                    self.join()
            self.step()
            ticks += 1


def rss_mib() -> float:
    """Memory of this process in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


@torch.inference_mode()
def model_ms(engine: Engine, machine: dict, sessions: int, length: int) -> tuple[float, float]:
    """Median time of a step of `sessions` idle rows without the codec, sampling and the copy to the host included; and its floor.

    Both from the same seconds: steps and readings of the memory take turns.
    """
    times = []

    def steps():
        times.extend(wall_times(lambda: engine.stepper.run(sessions, length, speak=False), engine.device, repeats=10, warm_ups=2))

    rates = read_rates(steps, engine.device)
    return 1000 * statistics.median(times), floor_ms(engine, {**machine, "bytes_per_s": statistics.median(rates)}, sessions, length)


@torch.inference_mode()
def codec_ms(mimi: Mimi, rows: int, repeats: int = 40) -> float:
    """Median time of one frame of `rows` streams; on a GPU as the engine runs it, in a CUDA graph."""
    state = mimi.init_state(rows, max_frames=1)
    codes = torch.zeros(rows, NUM_CODEBOOKS, 1, dtype=torch.long, device=mimi.device)
    active = torch.ones(rows, dtype=torch.bool, device=mimi.device)

    def run():
        return mimi.decode_step(codes, state, active)

    if mimi.device.type == "cuda":
        graph, _ = capture(run)
        run = graph.replay
    return median_ms(run, mimi.device, repeats)


def measure(engine: Engine, machine: dict, sessions: int, args) -> dict:
    """One row of the table."""
    crowd = Crowd(engine, sessions, args.prompt_tokens, args.steps)
    crowd.run(replies=sessions)  # warm-up: from here on all are out of step with one another
    crowd.forget()
    crowd.run(replies=sessions * args.repeats)
    for slot in list(engine.sessions):
        engine.cancel(slot)
    length = args.prompt_tokens + args.steps // 2
    frame = percentiles(1000 * t for t in crowd.frames)
    mimi_ms, (step_ms, floor) = codec_ms(engine.mimi, sessions), model_ms(engine, machine, sessions, length)
    ttft, ttfa = (percentiles(1000 * t for t in times) for times in (crowd.ttft, crowd.ttfa))
    mean_ms = 1000 * statistics.mean(crowd.frames)
    memory = torch.cuda.max_memory_allocated() / 2**20 if engine.device.type == "cuda" else rss_mib()
    return {"sessions": sessions, "floor_ms": floor, "model_ms": step_ms, "over_floor": step_ms / floor,
            "mimi_ms": mimi_ms, "frame_ms_p50": frame["p50"], "frame_ms_p95": frame["p95"], "rtf": mean_ms / FRAME_MS,
            "ttft_ms_p50": ttft["p50"], "ttfa_ms_p50": ttfa["p50"], "ttfa_ms_p95": ttfa["p95"],
            "speaking": crowd.spoken / len(crowd.frames), "frames_per_s": crowd.spoken / crowd.seconds,  # prompts included
            "memory_mib": memory, "replies": len(crowd.ttfa)}


def soak(engine: Engine, sessions: int, args) -> dict:
    """--minutes of joining and leaving: what grew? Compares the last fifth with the first."""
    crowd = Crowd(engine, sessions, args.prompt_tokens, args.steps)
    crowd.run(replies=sessions)
    parts = []
    for _ in range(5):
        crowd.forget()
        crowd.run(seconds=60 * args.minutes / 5)
        parts.append({"rss_mib": rss_mib(), "frame_ms_p50": 1000 * statistics.median(crowd.frames)})
        print(f"  {parts[-1]['rss_mib']:.0f} MiB, {parts[-1]['frame_ms_p50']:.2f} ms per frame of {sessions} sessions", flush=True)
    first, last = parts[0], parts[-1]
    growth = {"rss_growth": last["rss_mib"] / first["rss_mib"] - 1, "frame_growth": last["frame_ms_p50"] / first["frame_ms_p50"] - 1}
    passed = all(growth[name] <= most for name, most in MAX_GROWTH.items())
    print(f"  {'PASS' if passed else 'FAIL'}: " + ", ".join(f"{name} {growth[name]:+.1%} (at most {most:.0%})"
                                                            for name, most in MAX_GROWTH.items()), flush=True)
    return {"minutes": args.minutes, "sessions": sessions, "replies": crowd.finished, "parts": parts, **growth, "passed": passed}


def new_engine(preset: str, dtype: str, slots: int, args) -> Engine:
    device = torch.device(args.device)
    codec = MimiModel(MimiConfig(**NANO_MIMI if preset == "nano" else {})).eval()
    mimi = Mimi(codec, device, CODEC_DTYPES[args.codec_dtype], encoder=False)
    return Engine(random_model(preset, device), mimi, slots=slots, max_length=args.prompt_tokens + args.steps, dtype=dtype, mode=args.mode)


def bench(preset: str, dtype: str, machine: dict, args) -> list[dict]:
    """Rows for 1, 2, 4, ... sessions, up to the first number that is not in real time, or until its share of the time is used."""
    rows, end = [], time.perf_counter() + 60 * args.max_minutes / (len(args.preset) * len(args.dtype))
    for sessions in args.counts or [2**i for i in range(args.sessions.bit_length())]:
        engine = new_engine(preset, dtype, sessions, args)
        rows.append({"preset": preset, "dtype": engine.precision.name, **measure(engine, machine, sessions, args)})
        print(table_line(COLUMNS, rows[-1]), flush=True)
        if rows[-1]["frame_ms_p95"] > FRAME_MS:
            break
        if time.perf_counter() > end:
            print(f"({preset} {dtype}: --max_minutes ended it here, still in real time)", flush=True)
            break
    return rows


def plot(rows: list[dict], path: Path) -> None:
    """Time of a frame and its floor against sessions, one curve per preset and dtype."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for key in dict.fromkeys((r["preset"], r["dtype"]) for r in rows):
        mine = [r for r in rows if (r["preset"], r["dtype"]) == key]
        line, = axes.plot([r["sessions"] for r in mine], [r["frame_ms_p50"] for r in mine], "o-", label=" ".join(key))
        axes.plot([r["sessions"] for r in mine], [r["floor_ms"] for r in mine], ":", color=line.get_color())
    axes.axhline(FRAME_MS, color="black", lw=0.8)
    axes.set(xscale="log", yscale="log", xlabel="sessions", ylabel="ms per 80 ms frame (dotted: floor without codec)",
             title="Real time is below the line")
    ticks = sorted({r["sessions"] for r in rows})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--preset", nargs="+", choices=sorted(PRESETS), default=["nano", "base"])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["auto"])
    parser.add_argument("--sessions", type=int, default=4096, help="most sessions tried")
    parser.add_argument("--counts", type=int, nargs="+", help="only these numbers of sessions")
    parser.add_argument("--prompt_tokens", type=int, default=60)
    parser.add_argument("--steps", type=int, default=40, help="steps of a reply")
    parser.add_argument("--repeats", type=int, default=5, help="replies per session that are measured")
    parser.add_argument("--minutes", type=float, help="instead: keep --sessions sessions going for so long and report what grew")
    parser.add_argument("--max_minutes", type=float, default=10, help="start no larger number of sessions after a pair's share of this")
    parser.add_argument("--codec_dtype", choices=list(CODEC_DTYPES), default="fp32", help="number format of the codec")
    parser.add_argument("--mode", choices=MODES, help="how a step runs (default: graph on CUDA, else eager)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output_dir", default="out/bench")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        device = pick_device(args.device)
    except ValueError as error:
        return refuse(error)
    if args.threads:
        torch.set_num_threads(args.threads)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    result = {"device": name, "settings": vars(args), "rows": [], "soak": []}
    if args.minutes:
        for preset in args.preset:
            for dtype in args.dtype:
                print(f"{preset} {dtype}: {args.sessions} sessions for {args.minutes:g} minutes", flush=True)
                figures = soak(new_engine(preset, dtype, args.sessions, args), args.sessions, args)
                result["soak"].append({"preset": preset, "dtype": dtype, **figures})
    else:
        machine = result["machine"] = measure_machine(device)
        rates = ", ".join(f"{dtype.removeprefix('torch.')} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in machine["flops"].items())
        print(f"{name}: {machine['bytes_per_s'] / 1e9:.1f} GB/s, products {rates}\n\n{table_line(COLUMNS)}", flush=True)
        for preset in args.preset:
            for dtype in args.dtype:
                result["rows"] += bench(preset, dtype, machine, args)
        plot(result["rows"], Path(args.output_dir) / "bench_omni.png")
    save_json(result, Path(args.output_dir) / "bench_omni.json")
    print(json.dumps(result))
    return int(not all(figures["passed"] for figures in result["soak"]))


if __name__ == "__main__":
    sys.exit(main())
