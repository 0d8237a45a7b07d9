"""The data card: one HTML page without outside links, made from the manifest alone."""
import base64
import html
import io
from pathlib import Path

from model.checkpoint import replace_atomic

MOST_SPEAKERS = 30  # bars that can still be told apart
STYLE = ("body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse;margin:1em 0}"
         "td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}img{max-width:100%}code{font-size:90%}")


def write_card(manifest: dict, path: Path) -> None:
    """Atomically write the page of a manifest (see manifest.new_manifest)."""
    page = card(manifest).encode()
    replace_atomic(Path(path), lambda file: file.write(page))


def card(manifest: dict) -> str:
    """HTML: totals, plots (durations, tokens, speakers), what was rejected, what it was made with, checksums."""
    totals = {"conversations": manifest["rows"], "hours of speech": f"{manifest['hours']:.2f}", "frames of 8 codes": manifest["frames"],
              "speakers": len(manifest["speakers"]), "languages": ", ".join(manifest["languages"]),
              "spoken questions": manifest["spoken_questions"], "pictures": manifest["pictures"],
              "rows without a spoken answer": manifest["without_answer"],
              "spoken rows without a voice prompt": manifest["without_reference"], "rejected": manifest["rejected"]}
    modules = {name: f"{module['name']} ({module['digest']})" for name, module in manifest["modules"].items()}
    made_with = {**modules, "speech synthesis": manifest["tts"] or "none", **manifest["libraries"], "seed": manifest["seed"]}
    shards = {shard["file"]: f"{shard['rows']} rows, sha256 {shard['sha256']}" for shard in manifest["shards"]}
    sections = [("Totals", _table(totals)), ("Distributions", _image(_plots(manifest))),
                ("Rejected", _table(manifest["rejects"]) if manifest["rejects"] else "<p>Nothing.</p>"),
                ("Gates", _table(manifest["gates"])), ("Made with", _table(made_with)), ("Shards", _table(shards))]
    body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections)
    return (f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Data card</title><style>{STYLE}</style></head>'
            f"<body><h1>Data card</h1>{body}</body></html>\n")


def _table(rows: dict) -> str:
    lines = (f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items())
    return f"<table>{''.join(lines)}</table>"


def _image(png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="histograms of durations, characters and tokens, rows per speaker" src="data:image/png;base64,{data}">'


def _plots(manifest: dict) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")  # no pyplot: it would keep the figure alive
    (durations, speakers), (characters, tokens) = figure.subplots(2, 2)
    counted = "" if manifest["histograms"]["tokens"] else " (not counted)"
    for axes, name, width, label in ((durations, "durations", 1, "seconds of speech"),
                                     (characters, "characters", 10, "characters of the answers"),
                                     (tokens, "tokens", 5, "tokens of the answers" + counted)):
        bins = {int(k): v for k, v in manifest["histograms"][name].items()}
        axes.bar(list(bins), list(bins.values()), width=width, align="edge")
        axes.set(xlabel=label + " a row", ylabel="rows")
    shown = list(manifest["speakers"].items())[:MOST_SPEAKERS]
    speakers.bar([name[:12] for name, _ in shown], [count for _, count in shown])
    speakers.tick_params(axis="x", rotation=90, labelsize=7)
    speakers.set(xlabel=f"speakers ({len(shown)} of {len(manifest['speakers'])})", ylabel="rows")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
