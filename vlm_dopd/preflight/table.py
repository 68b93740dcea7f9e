"""The ladder on a terminal, in a log without colours, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from .finding import Rung
from .ladder import summary

STYLES = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "SKIP": "dim"}


def show(rungs: Iterable[Rung], console: Any) -> list[Rung]:
    """Prints each rung when it is found, and the verdict; returns them all."""
    found = []
    for rung in rungs:
        found.append(rung)
        console.print(_lines(rung))
    verdict = "do not train yet" if any(r.finding.status == "FAIL" for r in found) else "nothing speaks against it"
    console.print(f"{summary(found)} in {sum(r.seconds for r in found):.0f} s: {verdict}", highlight=False)
    return found


def write_json(rungs: Iterable[Rung], file: Path) -> None:
    """An object with the list of rungs, each with its finding's fields."""
    rows = []
    for rung in rungs:
        row = asdict(rung)
        rows.append({**row.pop("finding"), **row, "seconds": round(rung.seconds, 3)})
    file.write_text(json.dumps({"rungs": rows}, indent=1) + "\n", encoding="utf-8")


def _lines(rung: Rung) -> Table:
    """A grid of its own for each, so that it can be printed at once; its columns stand below each other's."""
    finding = rung.finding
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=2, justify="right")
    grid.add_column(width=4)
    grid.add_column(width=20)
    grid.add_column()
    expected = f" [dim](expected {escape(finding.expected)})[/]" if finding.expected else ""
    status = f"[{STYLES[finding.status]}]{finding.status}[/]"
    grid.add_row(str(rung.number), status, rung.name, escape(finding.figure) + expected)
    if finding.fix:
        grid.add_row("", "", "", escape(f"→ {finding.fix}"))
    for line in finding.shown:
        grid.add_row("", "", "", f"[dim]│ {escape(line)}[/]")
    return grid
