"""Tables of the benchmarks, printed line by line as the rows are measured."""


def table_line(columns: tuple[tuple[str, str], ...], row: dict | None = None) -> str:
    """A row as a line of a Markdown table, numbers to three figures, nothing for a None; the table's head without a row.

    columns: (title, key of row).
    """
    if row is None:
        return "| " + " | ".join(title for title, _ in columns) + " |\n" + "|---" * len(columns) + "|"
    cells = ["" if row[name] is None else row[name] for _, name in columns]
    return "| " + " | ".join(str(c) if not isinstance(c, float) else f"{c:.3g}" if c < 100 else f"{c:.0f}" for c in cells) + " |"
