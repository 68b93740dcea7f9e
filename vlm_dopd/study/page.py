"""The numbers of a study -> `study.json`, `study.md` and `study.html`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from ..report.page import duration, number, percent, points
from .charts import LEGEND, draw_group
from .collect import collect
from .plan import Study


def write_study(study: Study) -> Path:
    """Write the three files from whatever is finished; returns the page. The same cells give the same bytes."""
    figures = collect(study)
    charts = [
        draw_group(
            index,
            {name: figures["cells"][name].get("curves", {}) for name in [group["baseline"], *group["differences"]]},
            group["baseline"],
        )
        for index, group in enumerate(figures["groups"])
    ]
    page = (
        _environment()
        .get_template("study.html.jinja")
        .render(study=figures, charts=charts, legend=LEGEND, **_facts(figures))
    )
    study.folder.mkdir(parents=True, exist_ok=True)
    _write(study.folder / "study.json", json.dumps(figures, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    _write(study.folder / "study.md", markdown(figures))
    _write(study.folder / "study.html", page)
    return study.folder / "study.html"


def markdown(figures: dict[str, Any]) -> str:
    """The main tables, one a group."""
    lines = [f"# {_plain(figures['title'])}", "", _seeds(figures), ""]
    rows = [[r["name"], percent(r["accuracy"]), interval(r, 100)] for r in figures["references"]]
    lines += _table(["not trained here", "correct", "95 % interval"], rows)
    for group in figures["groups"]:
        lines += ["", f"## {_plain(group['name'])}", "", *([_plain(group["note"]), ""] if group["note"] else [])]
        head = ["cell", "correct", "95 % interval", f"minus {group['baseline']}", "95 % interval", "gap recovered"]
        head += ["passes", "seconds", *group["paper"]]
        rows = [
            [*_cells(name, figures["cells"][name], difference, name == group["baseline"])]
            + [f"{column[name]:g}" if name in column else "" for column in group["paper"].values()]
            for name, difference in group["differences"].items()
        ]
        lines += _table(head, rows)
    return "\n".join(lines) + "\n"


def _cells(name: str, cell: dict[str, Any], difference: dict[str, Any] | None, baseline: bool) -> list[str]:
    if "accuracy" not in cell:
        return [name, next(iter(cell["failed"].values()), "not run yet"), *[""] * 6]
    against = [points(difference["value"]), signed(difference)] if difference else ["baseline" if baseline else "–", ""]
    recovered = percent(cell["gap_recovery"]["value"], 0) if "gap_recovery" in cell else "–"
    seconds = cell["cost"]["seconds"]
    passes = f"{cell['passes']['scored']} + {cell['passes']['trained']}"
    cost = "–" if seconds is None else f"{seconds:.0f}"
    return [
        name,
        percent(cell["accuracy"]["value"]),
        interval(cell["accuracy"], 100),
        *against,
        recovered,
        passes,
        cost,
    ]


def interval(estimate: dict[str, Any], scale: float = 1) -> str:
    """`53.2 – 61.0`; a dash where an end is unknown."""
    low, high = (None if estimate[end] is None else number(scale * estimate[end]) for end in ("low", "high"))
    return f"{low or '–'} – {high or '–'}"


def signed(estimate: dict[str, Any]) -> str:
    """`−1.0 to +3.5`"""
    return f"{points(estimate['low'])} to {points(estimate['high'])}"


def _seeds(figures: dict[str, Any]) -> str:
    runs = figures["runs"]
    state = "" if runs["all"] == runs["done"] else f" {runs['done']} of {runs['all']} runs are done."
    return (
        f"{len(figures['cells'])} cells, seeds {', '.join(map(str, figures['seeds']))}. Differences are in points, "
        f"paired by seed and question; intervals are of a bootstrap over both.{state}"
    )


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(_plain, head)) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(map(_plain, row)) + " |" for row in rows]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one cell of a table."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\|`*_[]" else c for c in text)


def _facts(figures: dict[str, Any]) -> dict[str, Any]:
    """What the template asks of the figures, and cannot say itself."""
    cells = figures["cells"]
    shown = [d for group in figures["groups"] for d in group["differences"].values() if d]
    return {
        "widest": max([5.0, *(abs(difference[end]) for difference in shown for end in ("low", "high"))]),
        "comparisons": len(shown),
        "finished": [name for name, cell in cells.items() if "accuracy" in cell],
        "partly": [name for name, cell in cells.items() if 0 < len(cell["seeds"]) < len(figures["seeds"])],
        "several": [name for name, cell in cells.items() if "stages" in cell],
        "selected": [name for name, cell in cells.items() if "transfer" in cell],
    }


def _environment() -> Environment:
    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader(__package__ or "vlm_dopd.study", "."), PackageLoader("vlm_dopd.report", ".")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent, "points": points, "number": number, "duration": duration, "interval": interval,
        "signed": signed,
    }  # fmt: skip
    return environment


def _write(path: Path, text: str) -> None:
    # A name can hold half a surrogate pair, which no file can.
    path.write_text(text, encoding="utf-8", errors="replace", newline="\n")
