"""The curve of a training in its folder: curve.csv and curve.png, each replaced as a whole."""
import csv
import io
from pathlib import Path

from model.checkpoint import replace_atomic


def read_curve(folder, step):
    """Rows of the folder's curve.csv up to `step`; later ones belong to work that a kill undid."""
    path = Path(folder) / "curve.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= step]


def write_curve(folder, rows, columns, title):
    """Write `rows`; the columns after "lr" are drawn. Without matplotlib (a lent machine) the CSV has to do."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    replace_atomic(Path(folder) / "curve.csv", lambda file: file.write(text.getvalue().encode()))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for name in columns[columns.index("lr") + 1:]:
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name, "") != ""]
        if points:
            axes.plot(*zip(*points), label=name, linewidth=1)
    axes.set(xlabel="step", yscale="log", title=title)
    if rows:
        axes.legend()
    replace_atomic(Path(folder) / "curve.png", lambda file: figure.savefig(file, format="png", dpi=100))
