"""Grounding replies of Gemini models: `[{"box_2d": [ymin, xmin, ymax, xmax], "label": ...}]` or `point`, 0..1000.

y comes first. The range is that of Qwen3-VL, so a file read by the wrong one of the two readers gives wrong boxes
without a single error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..geometry import Coords
from ..reader_base import Scope
from ..reader_files import expect, score
from ._replies import Replies, check_rel1000

Y_FIRST = Coords(unit="rel1000", order="yxyx")


@dataclass(frozen=True, kw_only=True)
class Gemini(Replies):
    def coords_of(self, row: dict[str, Any], where: str) -> Coords:
        return Y_FIRST

    def add(self, scope: Scope, item: Any, coords: Coords) -> None:
        box, point = expect(item, dict, "item").get("box_2d"), item.get("point")
        check_rel1000(box)
        check_rel1000(point)
        keypoints = {"1": point} if point is not None else None
        found = score(item.get("score"))
        scope.add(label=item.get("label"), box=box, keypoints=keypoints, coords=coords, score=found)


READER = Gemini
EXAMPLE = {
    "path": "replies.jsonl",
    "images": {"kitchen.png": (640, 480)},
    "files": {
        "replies.jsonl": json.dumps(
            {"image": "kitchen.png", "response": '```json\n[{"box_2d": [100, 100, 200, 150], "label": "cup"}]\n```'}
        )
    },
}
