"""The figures of `evals.comparison` as text: one table for a terminal, in points, with notes below."""

from __future__ import annotations

from .comparison import RUNS, Figures
from .printable import printable

HEADER = ("benchmark", "n", "before", "after", "teacher", "after − before", "p", "recovered", "MDE")


def rows(figures: Figures) -> list[list[str]]:
    """Cells of the table in the order of HEADER, in points: one row a benchmark, the macro mean last."""
    found = []
    for name, figure in figures["benchmarks"].items():
        entry = figure["headlines"][figure["headline"]]
        label = f"{name}, {figure['headline']}" if figure["headline"] != "accuracy" else name
        found.append([printable(label), f"{figure['n']:,}", *_cells(entry)])
    if macro := figures["macro"]:
        found.append([f"macro mean of {len(macro['benchmarks'])}", "", *_cells(macro)])
    return found


def table(figures: Figures) -> str:
    """The rows as plain text for a terminal, notes below them."""
    lines = [list(HEADER), *rows(figures)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    texts = ["  ".join([line[0].ljust(widths[0]), *(map(str.rjust, line[1:], widths[1:]))]).rstrip() for line in lines]
    texts.insert(1, "-" * max(map(len, texts)))
    for name, figure in figures["benchmarks"].items():
        undefined = figure["headlines"][figure["headline"]].get("recovery", {}).get("undefined")
        notes = [f"gap recovery undefined: {undefined}"] if undefined else []
        texts += [printable(f"{name}: {note}") for note in notes + figure["notes"]]
    if unseen := [name for name, figure in figures["benchmarks"].items() if figure["reproduced"] == ""]:
        texts.append(f"No published number has been reproduced with real weights yet: {printable(', '.join(unseen))}.")
    return "\n".join([*texts, *map(printable, figures["notes"])])


def _cells(entry: Figures) -> list[str]:
    p_value = entry.get("p_value")
    return [
        *(plus_minus(entry[run]) if run in entry else "" for run in RUNS),
        difference(entry["difference"]),
        "" if p_value is None else chance(p_value),
        recovered(entry["recovery"]) if "recovery" in entry else "",
        points(entry["mde"]),
    ]


def points(value: float | None) -> str:
    """A share in points; "–" where there is none."""
    return "–" if value is None else _written(value, ".1f")


def chance(p_value: float) -> str:
    """A p-value; the smallest are only called small."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def plus_minus(estimate: Figures) -> str:
    """`54.0 ± 2.5`: value and half-width of its interval, in points."""
    if estimate["value"] is None:
        return "–"
    half = "" if estimate["half_width"] is None else f" ± {points(estimate['half_width'])}"
    return f"{points(estimate['value'])}{half}"


def difference(estimate: Figures) -> str:
    """`+1.9 [−0.1, +3.9]`, in points."""
    if estimate["value"] is None:
        return "–"
    value, low, high = (_signed(estimate[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def recovered(estimate: Figures) -> str:
    """`21 % [−1, 44]`, or "undefined"; an end without bound is infinite."""
    if estimate["value"] is None:
        return "undefined"
    low = "−∞" if estimate["low"] is None else _percent(estimate["low"])
    high = "∞" if estimate["high"] is None else _percent(estimate["high"])
    return f"{_percent(estimate['value'])} % [{low}, {high}]"


def _signed(value: float | None) -> str:
    return "–" if value is None else _written(value, "+.1f")


def _percent(value: float) -> str:
    return _written(value, ".0f")


def _written(value: float, form: str) -> str:
    text = format(100 * value, form).replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text.lstrip("+−")
