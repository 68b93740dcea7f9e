"""A sheet of random rows for people: does p say what the picture shows, and no more? For any spreadsheet."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from privileged import Sample, build_views
from privileged.builders import Builder

ROWS = 50
"""Enough to tell a share of bad rows of 2 % from one of 10 %."""
QUESTIONS = ("p is true (y/n)", "p is enough (y/n)", "p gives the answer away (y/n)", "remark")


def write_sheet(path: Path, samples: Sequence[Sample], builder: Builder, placement: str) -> None:
    """One row a sample: what it is, the text of p, and empty cells for what a person thinks of it."""
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # the mark tells spreadsheets that it is UTF-8
        writer = csv.writer(file)
        writer.writerow(["id", "question", "answer", "p", *QUESTIONS])
        for sample in samples:
            views = build_views(sample, builder, placement)
            plain = [part for message in views.plain.messages for part in message["content"]]
            added = [
                p for m in views.privileged.messages for p in m["content"] if p["type"] == "text" and p not in plain
            ]
            cells = [sample.id, sample.question, sample.answer or "", "\n".join(part["text"].strip() for part in added)]
            writer.writerow([*map(_harmless, cells), *[""] * len(QUESTIONS)])


def _harmless(text: str) -> str:
    """A cell that a spreadsheet does not run as a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
