"""ms-swift grounding rows: JSON lines of `messages`, `images` and `objects` = {ref, bbox, bbox_type, image_id}.

`bbox_type` is `real` (px, also if it is missing) or `norm1` (0..1). One `ref` stands for each box, or one for all.
Boxes of two numbers are points. The numbers of `<bbox>` and `<ref-object>` in the messages must match the lists.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import Report
from ..errors import DataError
from ..geometry import Coords
from ..reader_base import Options
from ..reader_files import expect, get, json_rows, short, size, whole
from . import Annotated

TYPES = {"real": Coords(), "norm1": Coords(unit="rel1")}


@dataclass(frozen=True, kw_only=True)
class MsSwift(Options):
    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """The sample id is the row's `id`, or file name and line."""
        yield from self.samples(json_rows(path, self.max_bytes), self._row, report)

    def _row(self, row: Any, where: str, report: Report) -> Annotated | None:
        images = get(row, "images", list, where)
        names = [
            get(i, "path", str, where) if isinstance(i, dict) else expect(i, str, f"{where}: images") for i in images
        ]
        turns: dict[str, str] = {}
        for turn in get(row, "messages", list, where):
            turns.setdefault(get(turn, "role", str, where), get(turn, "content", str, where))
        objects = get(row, "objects", dict, where, {})
        refs, boxes = get(objects, "ref", list, where, []), get(objects, "bbox", list, where, [])
        said = "".join(get(turn, "content", str, where) for turn in row["messages"])
        for mark, values in (("<bbox>", boxes), ("<ref-object>", refs)):
            if said.count(mark) not in (0, len(values)):
                raise DataError(f"{where}: expected {len(values)} {mark}, got {said.count(mark)} in the messages")
        if len(refs) not in (1, len(boxes)):
            raise DataError(f"{where}: objects: expected a ref for each of {len(boxes)} boxes, got {len(refs)}")
        kind = get(objects, "bbox_type", str, where, "real")
        if kind not in TYPES:
            raise DataError(f"{where}: bbox_type: expected {' or '.join(TYPES)}, got {short(kind)}")
        indices = get(objects, "image_id", list, where, [0] * len(boxes))
        declared = size(row.get("width"), row.get("height"), where) if len(names) == 1 else None
        scope = self.scope(report, where, *((name, declared) for name in names))
        if len(indices) != len(boxes):
            raise DataError(f"{where}: image_id: expected one for each of {len(boxes)} boxes, got {len(indices)}")
        for number, (box, index) in enumerate(zip(boxes, indices, strict=True)):
            with scope.entry():
                label = refs[number] if len(refs) == len(boxes) else refs[0]
                place = {"keypoints": {"1": box}} if isinstance(box, list) and len(box) == 2 else {"box": box}
                scope.add(label=label, coords=TYPES[kind], image=whole(index, "image_id"), **place)
        sample_id = str(get(row, "id", (int, str), where, where))
        return scope.finish(sample_id, question=turns.get("user"), answer=turns.get("assistant"))


READER = MsSwift
EXAMPLE = {
    "path": "grounding.jsonl",
    "images": {"kitchen.png": (640, 480)},
    "files": {
        "grounding.jsonl": json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "<image>Find the <ref-object>."},
                    {"role": "assistant", "content": "<bbox>"},
                ],
                "images": ["kitchen.png"],
                "objects": {"ref": ["cup"], "bbox": [[0.1, 0.1, 0.15, 0.2]], "bbox_type": "norm1"},
            }
        )
    },
}
