"""Visual-CoT: a question, its answer, and the boxes of the evidence, in one of three forms that `form` declares.

`meta`: JSON lines with `bboxs`, each box in px. `union`: the chat JSON's `image###[x0, y0, x1, y1]`, px of one box
around all. `square`: the chat JSON's text `[0.542, 0.686, ...]`, 0..1 of the image centred in a square of its longer
side; read as 0..1 of the image itself it would be shifted on every image that is not square.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import Report
from ..errors import DataError
from ..geometry import padded_square_to_px
from ..reader_base import Options
from ..reader_files import expect, get, json_rows, numbers, parse_json, short, size
from . import Annotated

FORMS = ("meta", "union", "square")
REQUEST = re.compile(r" Please (?:think step by step and )?provide the bounding box coordinate of the region .*", re.S)


@dataclass(frozen=True, kw_only=True)
class VisualCot(Options):
    form: str = "meta"
    label: str = "evidence"
    """The boxes have no names of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise DataError(f"reader 'visual_cot': form: expected one of {', '.join(FORMS)}, got {self.form!r}")

    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """The sample id is `question_id`, or file name and line where there is none."""
        make = self._meta if self.form == "meta" else self._chat
        yield from self.samples(json_rows(path, self.max_bytes), make, report)

    def _meta(self, row: Any, where: str, report: Report) -> Annotated | None:
        question, answer = get(row, "question", str, where), get(row, "answer", str, where)
        declared = size(row.get("width"), row.get("height"), where)
        scope = self.scope(report, where, (get(row, "image", str, where), declared))
        for box in get(row, "bboxs", list, where):
            with scope.entry():
                scope.add(label=self.label, box=box)
        sample_id = str(get(row, "question_id", (int, str), where, where))
        return scope.finish(sample_id, question=question, answer=answer)

    def _chat(self, row: Any, where: str, report: Report) -> Annotated | None:
        names = get(row, "image", list, where)
        name, marked, union = expect(names[-1] if names else None, str, f"{where}: image").partition("###")
        turns = [get(turn, "value", str, where) for turn in get(row, "conversations", list, where)]
        if len(turns) < 4 or not marked:
            raise DataError(f"{where}: expected four turns and an image with ###, got {len(turns)} and {short(name)}")
        scope = self.scope(report, where, (name, size(row.get("width"), row.get("height"), where)))
        with scope.entry():
            if self.form == "union":
                scope.add(label=self.label, box=parse_json(union, "###"))
            else:
                x0, y0, x1, y1 = numbers(parse_json(turns[1], "conversations[1]"), 4, "conversations[1]")
                scope.add(label=self.label, box=padded_square_to_px((x0, y0, x1, y1), *scope.declared()))
        question = REQUEST.sub("", turns[0].removeprefix("<image>\n"))
        sample_id = str(get(row, "question_id", (int, str), where, where))
        return scope.finish(sample_id, question=question, answer=turns[-1])


READER = VisualCot
EXAMPLE = {
    "path": "meta.jsonl",
    "images": {"kitchen.png": (640, 480)},
    "files": {
        "meta.jsonl": json.dumps(
            {"question": "What is on the table?", "answer": "A cup.", "image": "kitchen.png", "width": 640}
            | {"height": 480, "bboxs": [[64, 48, 96, 88]], "dataset": "gqa", "split": "train"}
        )
    },
}
