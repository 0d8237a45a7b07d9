"""Results as files: JSON with every sample, Markdown, a chart, and one HTML page with the speech to listen to, side by side.

- The page is a single file: sounds are MP3 and pictures PNG inside it. It shows the first samples asked, not chosen ones.
- Published figures stand beside ours wherever they are of the same kind.
"""
import base64
import io
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from evals.results import Figure, Row, Table
from evals.samples import Sample
from model.checkpoint import save_json
from model.config import SAMPLE_RATE

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.8em 0}td,th{border-bottom:1px solid #ddd;padding:.3em .8em;text-align:left}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(270px,1fr));gap:14px}
.card{border:1px solid #ddd;border-radius:8px;padding:10px}
.card img,.card audio{width:100%}.note,.skip{color:#666}.skip{border-left:3px solid #e8a33d;padding-left:.6em}small{color:#666}"""
INTERVALS = "In brackets: 95 % intervals (bootstrap over items)."
SPECTRUM_WINDOW, SPECTRUM_HOP, LOUDEST_DB, QUIETEST_DB = 512, 128, 0, -80


@dataclass
class Settings:
    """How the results were made: the command's settings and the machine, for the JSON and the head of the page."""
    title: str
    command: str
    values: dict


def published_text(row: Row) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in row.published.items())


def table_cells(table: Table) -> list[list[str]]:
    """Header and rows as text."""
    with_published = any(row.published for row in table.rows)
    head = ["", "n", *table.columns, *["published"] * with_published]
    return [head, *([row.group, str(row.n), *(str(row.figures.get(name, "")) for name in table.columns),
                     *[published_text(row)] * with_published] for row in table.rows)]


def markdown(settings: Settings, tables: list[Table]) -> str:
    lines = [f"# {settings.title}", "", f"`{settings.command}`", "", ", ".join(f"{k} {v}" for k, v in settings.values.items()), "",
             INTERVALS, ""]
    for table in tables:
        lines += [f"## {table.title}", ""]
        if table.skipped:
            lines += [f"Skipped: {table.skipped}", ""]
            continue
        head, *rows = [" | ".join(cell.replace("|", "/") for cell in cells) for cells in table_cells(table)]
        lines += [table.note, "", f"| {head} |", "|---" * (2 + len(table.columns) + any(row.published for row in table.rows)) + "|",
                  *(f"| {row} |" for row in rows), ""]
    return "\n".join(lines)


def chart(tables: list[Table], path: Path) -> None:
    """Every figure with its interval, and the published ones as crosses, as a PNG. Nothing when there is no such figure."""
    from matplotlib.figure import Figure as Canvas

    drawn = [table for table in tables if table.rows and all(isinstance(f, Figure) for f in table.rows[0].figures.values())]
    if not drawn:
        return
    heights = [max(len(table.rows), 2) for table in drawn]
    canvas = Canvas(figsize=(10, 1.2 * len(drawn) + 0.5 * sum(heights)), layout="constrained")
    for axes, table in zip(np.atleast_1d(canvas.subplots(len(drawn), 1, height_ratios=heights)), drawn):
        names = [name for name in table.columns if any(isinstance(row.figures.get(name), Figure) for row in table.rows)]
        for i, name in enumerate(names):
            y = np.arange(len(table.rows)) + 0.6 * (i - (len(names) - 1) / 2) / len(names)
            points = [(y[j], row.figures[name]) for j, row in enumerate(table.rows) if isinstance(row.figures.get(name), Figure)]
            values = [figure.value for _, figure in points]
            low, high = ([abs(getattr(figure, end) - figure.value) for _, figure in points] for end in ("low", "high"))
            bars = axes.errorbar(values, [place for place, _ in points], xerr=[low, high], fmt="o", capsize=3, label=name)
            known = [(row.published[name], y[j]) for j, row in enumerate(table.rows) if name in row.published]
            if known:
                axes.plot(*zip(*known), "x", color=bars[0].get_color(), label=f"{name}, published")
        axes.set_yticks(range(len(table.rows)), [row.group for row in table.rows])
        axes.invert_yaxis()
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
        axes.set_title(table.title, loc="left", fontsize=10)
        axes.legend(fontsize=8)
        axes.grid(axis="x", alpha=0.3)
    canvas.savefig(path, dpi=110)


def picture(wav: np.ndarray) -> bytes:
    """Waveform over spectrogram (0-12 kHz, 80 dB) of (S,) at 24 kHz, as a PNG."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(4, 2.2), layout="constrained")
    top, bottom = canvas.subplots(2, 1, height_ratios=(1, 2), sharex=True)
    seconds = np.arange(len(wav)) / SAMPLE_RATE
    top.plot(seconds, wav, linewidth=0.4)
    top.set_ylim(-1, 1)
    top.set_yticks([])
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wav, (0, SPECTRUM_WINDOW)), SPECTRUM_WINDOW)[::SPECTRUM_HOP]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(SPECTRUM_WINDOW), axis=1)).T
    level = 20 * np.log10(spectrum / max(spectrum.max(), 1e-9) + 1e-9)
    bottom.imshow(level, origin="lower", aspect="auto", vmin=QUIETEST_DB, vmax=LOUDEST_DB, cmap="magma",
                  extent=(0, len(wav) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000))
    bottom.set_ylabel("kHz", fontsize=7)
    bottom.tick_params(labelsize=6)
    file = io.BytesIO()
    canvas.savefig(file, dpi=90)
    return file.getvalue()


def mp3(wav: np.ndarray) -> bytes:
    """(S,) at 24 kHz as MP3, which every browser plays."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(wav, -1, 1), SAMPLE_RATE, format="MP3")
    return file.getvalue()


def card(sample: Sample) -> str:
    """One sample to look at and listen to."""
    lines = [f"<small>{escape(sample.name)} · voice {escape(sample.voice)}</small>"]
    if sample.question:
        lines.append(f"<div>&gt; {escape(sample.question)}</div><div><b>{escape(sample.text)}</b></div>")
        lines.append(f"<div><small>heard: {escape(sample.heard)}</small></div>")
    if len(sample.wav):
        sound, image = (base64.b64encode(data).decode() for data in (mp3(sample.wav), picture(sample.wav)))
        lines.append(f'<audio controls preload="none" src="data:audio/mpeg;base64,{sound}"></audio>'
                     f'<img alt="waveform and spectrogram" src="data:image/png;base64,{image}">')
    else:
        lines.append("<div>(silent)</div>")
    return f'<div class="card">{"".join(lines)}</div>'


def page(settings: Settings, tables: list[Table], limit: int, chart_png: bytes | None) -> str:
    """The HTML page; at most `limit` samples per heading of a table."""
    parts = [f"<h1>{escape(settings.title)}</h1><p><code>{escape(settings.command)}</code><br>",
             escape(", ".join(f"{k} {v}" for k, v in settings.values.items())), f"</p><p>{INTERVALS}</p>"]
    if chart_png:
        parts.append(f'<img alt="all figures" style="max-width:100%" src="data:image/png;base64,{base64.b64encode(chart_png).decode()}">')
    for table in tables:
        parts.append(f"<h2>{escape(table.title)}</h2>")
        if table.skipped:
            parts.append(f'<p class="skip">Skipped: {escape(table.skipped)}</p>')
            continue
        head, *rows = table_cells(table)
        parts += [f'<p class="note">{escape(table.note)}</p><table><tr>', *(f"<th>{escape(cell)}</th>" for cell in head), "</tr>"]
        parts += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
        parts.append("</table>")
        for heading, samples in table.clips:
            parts += [f"<h3>{escape(heading)}</h3>", '<div class="cards">', *map(card, samples[:limit]), "</div>"]
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(settings.title)}</title><style>{STYLE}</style>'
            f'<body>{"".join(parts)}</body></html>')


def write(settings: Settings, tables: list[Table], folder: Path, limit: int) -> list[Path]:
    """results.json, results.md, figures.png and index.html in `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("results.json", "results.md", "figures.png", "index.html")]
    paths[2].unlink(missing_ok=True)  # of an earlier run with figures
    save_json({"title": settings.title, "command": settings.command, "settings": settings.values,
               "tables": [table.to_dict() for table in tables]}, paths[0])
    paths[1].write_text(markdown(settings, tables), encoding="utf-8")
    chart(tables, paths[2])
    paths[3].write_text(page(settings, tables, limit, paths[2].read_bytes() if paths[2].is_file() else None), encoding="utf-8")
    return [path for path in paths if path.is_file()]
