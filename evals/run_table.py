"""The figures of one run (`comparison.measure`) as text: a table for a terminal, in points, with notes below."""

from __future__ import annotations

from .compare_table import plus_minus
from .comparison import Figures
from .printable import printable
from .records import FATES

HEADER = ("benchmark", "n", "score", *FATES[1:])


def run_table(figures: Figures) -> str:
    """One row a headline number, the fates of the replies beside the first of each benchmark."""
    lines, below = [list(HEADER)], []
    for name, its in figures["benchmarks"].items():
        for headline, entry in its["headlines"].items():
            first = headline == its["headline"]
            label = name if headline == "accuracy" else f"{name}, {headline}"
            counts = [f"{its['n']:,}", *(str(its["fates"]["run"][fate]) for fate in FATES[1:])] if first else [""] * 4
            lines.append([printable(label), counts[0], plus_minus(entry["run"]), *counts[1:]])
        below += [printable(f"{name}: {note}") for note in its["notes"]]
        if "judge" in its:
            below.append(printable(f"{name}: {its['judge']}"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    texts = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    texts.insert(1, "-" * max(map(len, texts)))
    if unseen := [name for name, its in figures["benchmarks"].items() if its["reproduced"] == ""]:
        below.append(f"No published number has been reproduced with real weights yet: {printable(', '.join(unseen))}.")
    return "\n".join([*texts, *below])
