"""Draw the architecture as an SVG: what is frozen, what is trained, and what flows between them in one step of 80 ms.

- Sizes are those of the config (released dense model by default); nothing is typed in that the config knows.
- The picture in the README is made by this, and a test compares them.

    python -m scripts.draw_architecture --out docs/architecture.svg
"""
import argparse
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from model.config import NUM_CODEBOOKS, PRESETS, SAMPLE_RATE, OmniConfig  # noqa: E402

WIDTH, HEIGHT = 980, 470
FROZEN, TRAINED, DATA = "#e9ecef", "#d0ebff", "#fff3bf"  # what a box is
LINE_HEIGHT = 18


@dataclass(frozen=True)
class Box:
    """x, y: its upper left corner; lines: its words, the first one bold."""
    x: int
    y: int
    width: int
    height: int
    fill: str
    lines: tuple[str, ...]

    def svg(self) -> str:
        top = self.y + self.height / 2 - LINE_HEIGHT * (len(self.lines) - 1) / 2 + 5
        weights = ("bold", *["normal"] * (len(self.lines) - 1))
        texts = [f'<text x="{self.x + self.width / 2:g}" y="{top + i * LINE_HEIGHT:g}" text-anchor="middle" font-weight="{weight}">'
                 f'{escape(line)}</text>' for i, (line, weight) in enumerate(zip(self.lines, weights))]
        return (f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="8" fill="{self.fill}" stroke="#495057"/>'
                + "".join(texts))


def arrow(points: tuple[tuple[int, int], ...], label: str = "", at: tuple[int, int] = (0, 0)) -> str:
    """A line through `points` with a head at its end, and a word beside it."""
    path = "M" + " L".join(f"{x} {y}" for x, y in points)
    word = f'<text x="{at[0]}" y="{at[1]}" font-size="12" fill="#495057">{escape(label)}</text>' if label else ""
    return f'<path d="{path}" fill="none" stroke="#495057" stroke-width="1.6" marker-end="url(#head)"/>{word}'


def draw(config: OmniConfig) -> str:
    """The SVG's text."""
    kind = f", {config.num_experts} experts" if config.use_moe else ""
    boxes = (
        Box(20, 20, 170, 56, DATA, ("picture", "256 x 256")),
        Box(220, 20, 170, 56, FROZEN, ("SigLIP2", f"{config.image_token_len} x {config.image_hidden_size}")),
        Box(420, 20, 150, 56, TRAINED, ("vision_proj", f"{config.image_hidden_size} → {config.hidden_size}")),
        Box(20, 100, 170, 56, DATA, ("speech heard", "16 kHz")),
        Box(220, 100, 170, 56, FROZEN, ("SenseVoice", f"60 ms x {config.audio_hidden_size}")),
        Box(420, 100, 150, 56, TRAINED, ("audio_proj", f"{config.audio_hidden_size} → {config.hidden_size}")),
        Box(20, 180, 170, 56, DATA, ("text", f"{config.vocab_size} ids")),
        Box(640, 60, 150, 176, TRAINED, ("Thinker", f"{config.num_hidden_layers} layers x {config.hidden_size}",
                                         f"{config.num_attention_heads} heads, {config.num_key_value_heads} kv{kind}")),
        Box(840, 100, 120, 56, DATA, ("text token", "one per step")),
        Box(640, 300, 150, 120, TRAINED, ("Talker", f"{config.num_talker_hidden_layers} layers x {config.talker_hidden_size}",
                                          f"{NUM_CODEBOOKS} codebooks at once")),
        Box(840, 300, 120, 56, FROZEN, ("Mimi decoder", f"{SAMPLE_RATE // 1000} kHz")),
        Box(840, 400, 120, 50, DATA, ("speech", "80 ms per step")),
        Box(20, 290, 170, 56, DATA, ("clip of a voice", "1 to 30 s")),
        Box(220, 270, 170, 46, FROZEN, ("CAM++", f"speaker vector, {config.spk_emb_size}")),
        Box(220, 336, 170, 46, FROZEN, ("Mimi encoder", "voice prompt")),
        Box(420, 380, 150, 56, TRAINED, ("code embedding", f"{config.audio_vocab_size} ids x {NUM_CODEBOOKS}")),
    )
    arrows = (
        arrow(((190, 48), (220, 48))), arrow(((390, 48), (420, 48))), arrow(((570, 48), (605, 48), (605, 90), (640, 90))),
        arrow(((190, 128), (220, 128))), arrow(((390, 128), (420, 128))), arrow(((570, 128), (640, 128))),
        arrow(((190, 208), (640, 208)), "tokens; pads where features go in", (300, 202)),
        arrow(((790, 128), (840, 128))),
        arrow(((900, 100), (900, 40), (715, 40), (715, 60)), "fed back", (740, 34)),
        arrow(((715, 236), (715, 300)), f"bridge: leaves layer {config.bridge_layer + 1}", (724, 272)),
        arrow(((790, 328), (840, 328)), f"{NUM_CODEBOOKS} codes", (792, 320)), arrow(((900, 356), (900, 400))),
        arrow(((190, 310), (220, 293))), arrow(((190, 326), (220, 359))),
        arrow(((390, 293), (495, 293), (495, 380))), arrow(((390, 359), (460, 359), (460, 380))),
        arrow(((570, 408), (640, 408))),
        arrow(((815, 328), (815, 445), (495, 445), (495, 436)), "codes spoken so far, one step later", (580, 460)),
    )
    legend = "".join(f'<rect x="{20 + 120 * i}" y="440" width="16" height="16" rx="3" fill="{fill}" stroke="#495057"/>'
                     f'<text x="{42 + 120 * i}" y="453">{word}</text>' for i, (fill, word) in enumerate(
                         ((FROZEN, "frozen"), (TRAINED, "trained"), (DATA, "data"))))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="system-ui, sans-serif" font-size="14"><title>MiniMind-O: Thinker and Talker</title>'
            '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto"><path d="M0 0 L8 4 L0 8 z" '
            f'fill="#495057"/></marker></defs><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
            + "".join((*arrows, *(box.svg() for box in boxes), legend)) + "</svg>\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="base")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "architecture.svg", help="default: out/architecture.svg")
    args = parser.parse_args(argv)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(draw(OmniConfig.preset(args.preset)), encoding="utf-8")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
