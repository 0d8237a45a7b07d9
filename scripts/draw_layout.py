"""Draw a training row as it is: the nine streams of one parquet row, coloured by what each position holds, as an SVG.

- The row is built by the very dataset code that training uses, without random choices; nothing is drawn from memory of the rules.
- What a cell is follows from its id and from whether it is a target (a label). Every cell's id or token is in its tooltip.
- Longer rows are wrapped into bands of --columns positions; long runs of audio or image pads are shortened.

    python -m scripts.draw_layout --data ../shared/golden/layout.parquet --row 0 --tokenizer model --out docs/sequence.svg
"""
import argparse
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dataset.omni_dataset import BadRow, OmniDataset, OmniSample, Variants  # noqa: E402
from engine.chat import load_tokenizer  # noqa: E402
from model.config import IGNORE, NUM_CODEBOOKS, NUM_STREAMS, OmniConfig  # noqa: E402
from model.encoders import sensevoice_frames  # noqa: E402
from model.refusal import refuse  # noqa: E402

KINDS = {  # what a cell can be -> (fill, words of the legend)
    "pad": ("#f1f3f5", "pad"),
    "prompt": ("#d0ebff", "text of the prompt"),
    "audio": ("#ffd8a8", "place of an audio feature"),
    "image": ("#eebefa", "place of an image feature"),
    "reply": ("#74c0fc", "text of the reply (target)"),
    "speaker": ("#ffa8a8", "speaker token"),
    "reference": ("#ffec99", "reference codes (voice prompt)"),
    "code": ("#8ce99a", "speech codes of the reply (target)"),
    "stop": ("#e8590c", "stop token (target)"),
}
CELL, TEXT_HEIGHT, CODE_HEIGHT, LEFT, TOP, GAP = 29, 78, 22, 92, 34, 26  # pixels
MAX_TOKEN = 12  # characters of a token that fit into its cell
RUN = 6  # of a longer run of feature places, so many are drawn at each end


@dataclass
class Column:
    """One position: its index, the kinds of its nine cells, what is written in them, and their tooltips. index None: left out."""
    index: int | None
    kinds: list[str]
    words: list[str]
    tips: list[str]


def columns_of(sample: OmniSample, tokenizer) -> list[Column]:
    """The positions of a training row; a cell is a target where the label of the position before it says so."""
    config, columns = sample.config, []
    for t in range(sample.input_ids.shape[1]):
        kinds, words, tips = [], [], []
        for stream in range(NUM_STREAMS):
            token = int(sample.input_ids[stream, t])
            labels = sample.text_labels if stream == NUM_CODEBOOKS else sample.audio_labels[stream]
            target = t > 0 and int(labels[t - 1]) != IGNORE
            kind = text_kind(token, target, config) if stream == NUM_CODEBOOKS else code_kind(token, target, config)
            word = tokenizer.decode([token]) if stream == NUM_CODEBOOKS else str(token)
            kinds.append(kind)
            words.append({"pad": "", "speaker": "spk", "stop": "stop"}.get(kind, word))
            tips.append(f"position {t}, {'text' if stream == NUM_CODEBOOKS else f'codebook {stream}'}: {token} {word!r}, {KINDS[kind][1]}")
        columns.append(Column(t, kinds, words, tips))
    return columns


def text_kind(token: int, target: bool, config: OmniConfig) -> str:
    if target:
        return "reply"
    named = {**dict.fromkeys(config.audio_ids, "audio"), **dict.fromkeys(config.image_ids, "image"), config.pad_token_id: "pad"}
    return named.get(token, "prompt")


def code_kind(token: int, target: bool, config: OmniConfig) -> str:
    named = {config.audio_pad_token: "pad", config.audio_spk_token: "speaker", config.audio_stop_token: "stop"}
    return named.get(token, "code" if target else "reference")


def shorten(columns: list[Column]) -> list[Column]:
    """Without the middle of long runs of feature places where nothing else happens; one blank column stands for it."""
    kept, run = [], []
    for column in [*columns, None]:
        kind = column.kinds[-1] if column else None
        if run and (kind != run[0].kinds[-1] or column.kinds[:-1] != run[0].kinds[:-1]):
            if len(run) > 2 * RUN + 1:
                run[RUN:-RUN] = [Column(None, ["pad"] * NUM_STREAMS, [""] * NUM_CODEBOOKS + [f"... {len(run) - 2 * RUN} more"],
                                        ["left out"] * NUM_STREAMS)]
            kept, run = kept + run, []
        if column and kind in ("audio", "image"):
            run.append(column)
        elif column:
            kept.append(column)
    return kept


def draw(columns: list[Column], start: int, per_band: int) -> str:
    """The SVG. start: the first position of the reply, marked by a line."""
    bands = [columns[i:i + per_band] for i in range(0, len(columns), per_band)]
    band_height = TOP + NUM_CODEBOOKS * CODE_HEIGHT + TEXT_HEIGHT + GAP
    width = LEFT + CELL * min(per_band, len(columns)) + 12
    used = [kind for kind in KINDS if any(kind in column.kinds for column in columns)]
    per_line = max(1, width // 270)
    height = band_height * len(bands) + 22 * -(-len(used) // per_line) + 8
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
             'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="10">', '<rect width="100%" height="100%" fill="#fff"/>']
    for i, band in enumerate(bands):
        parts += draw_band(band, i * band_height, start)
    for i, kind in enumerate(used):
        x, y = 10 + i % per_line * 270, band_height * len(bands) + i // per_line * 22
        fill, words = KINDS[kind]
        parts.append(f'<rect x="{x}" y="{y}" width="14" height="14" fill="{fill}" stroke="#868e96"/>'
                     f'<text x="{x + 20}" y="{y + 11}" font-size="11">{words}</text>')
    return "\n".join([*parts, "</svg>\n"])


def draw_band(band: list[Column], top: int, start: int) -> list[str]:
    names = [*(f"codebook {i}" for i in range(NUM_CODEBOOKS)), "text"]
    tops = [top + TOP + i * CODE_HEIGHT for i in range(NUM_STREAMS)]
    heights = [CODE_HEIGHT] * NUM_CODEBOOKS + [TEXT_HEIGHT]
    parts = [f'<text x="{LEFT - 8}" y="{y + h / 2 + 4}" text-anchor="end" font-size="11">{name}</text>'
             for name, y, h in zip(names, tops, heights)]
    for i, column in enumerate(band):
        x = LEFT + i * CELL
        if column.index is not None and (column.index % 5 == 0 or column.index == start):
            parts.append(f'<text x="{x + CELL / 2}" y="{top + TOP - 6}" text-anchor="middle" fill="#868e96">{column.index}</text>')
        for kind, word, tip, y, h in zip(column.kinds, column.words, column.tips, tops, heights):
            parts.append(f'<g><title>{escape(tip)}</title><rect x="{x}" y="{y}" width="{CELL}" height="{h}" fill="{KINDS[kind][0]}" '
                         f'stroke="#fff"/>{cell_text(word, x, y, h)}</g>')
        if column.index == start:
            parts.append(f'<path d="M{x} {top + 14}V{tops[-1] + TEXT_HEIGHT}" stroke="#c92a2a" stroke-width="2"/>'
                         f'<text x="{x + 4}" y="{top + 13}" fill="#c92a2a" font-size="11">A = {start}: the reply starts</text>')
    return parts


def cell_text(word: str, x: int, y: int, height: int) -> str:
    """Codes lie, text stands: tokens are longer than a cell is wide."""
    if height == CODE_HEIGHT:
        return f'<text x="{x + CELL / 2}" y="{y + 15}" text-anchor="middle">{escape(word)}</text>' if word else ""
    shown = word.replace("\n", "\u23ce").replace(" ", "\u2423")  # a line break and a blank one can see
    shown = shown if len(shown) <= MAX_TOKEN else shown[:MAX_TOKEN - 1] + "\u2026"
    middle = x + CELL / 2 + 4
    return f'<text transform="translate({middle} {y + height - 4}) rotate(-90)">{escape(shown)}</text>' if shown else ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a parquet file of training data")
    parser.add_argument("--row", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "model", help="folder of the tokenizer (default: model/)")
    parser.add_argument("--preset", default="base", help="the model whose ids the data has: nano, base or moe")
    parser.add_argument("--max_length", type=int, default=512, help="cut the row to so many positions")
    parser.add_argument("--columns", type=int, default=48, help="positions side by side")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "sequence.svg", help="default: out/sequence.svg")
    args = parser.parse_args(argv)
    try:
        if args.columns < 1:
            raise ValueError("--columns must be at least 1")
        tokenizer = load_tokenizer(args.tokenizer)
        config = OmniConfig.preset(args.preset)
        dataset = OmniDataset(args.data, tokenizer, config, args.max_length, Variants.fixed(), audio_frames=sensevoice_frames)
        if not 0 <= args.row < len(dataset):
            raise ValueError(f"--row {args.row}: {args.data} has rows 0 to {len(dataset) - 1}")
        sample = dataset[args.row]
        if isinstance(sample, BadRow):
            raise ValueError(f"row {args.row} of {sample.file} is broken: {sample.reason}")
    except (ValueError, OSError) as error:
        return refuse(error)
    targets = (sample.text_labels != IGNORE).nonzero()
    start = int(targets[0]) + 1 if len(targets) else -1  # labels stand one position before what they name
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(draw(shorten(columns_of(sample, tokenizer)), start, args.columns), encoding="utf-8")
    print(f"{args.out}: {sample.input_ids.shape[1]} positions, the reply starts at {start}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
