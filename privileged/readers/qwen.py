"""Grounding replies of Qwen-VL models: `[{"bbox_2d": [x1, y1, x2, y2], "label": ...}]` or `point_2d`.

The same keys hold two conventions, so `profile` must be declared: `qwen3` is 0..1000 of the whole image; `qwen2_5` is
pixels of the image as resized for the model, whose size is given by `resized` or by `resized_width` and
`resized_height` of a row. Numbers up to 1000 prove neither.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from ..geometry import Coords
from ..reader_base import Scope
from ..reader_files import expect, score, size
from ._replies import Replies, check_rel1000

PROFILES = ("qwen3", "qwen2_5")


@dataclass(frozen=True, kw_only=True)
class Qwen(Replies):
    profile: str = ""
    resized: tuple[int, int] | None = None
    """(width, height) of all images as the model saw them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.profile not in PROFILES:
            raise DataError(f"reader 'qwen': profile: expected one of {', '.join(PROFILES)}, got {self.profile!r}")
        if self.resized is not None:
            if not isinstance(self.resized, tuple | list) or len(self.resized) != 2:
                raise DataError(f"reader 'qwen': resized: expected (width, height), got {self.resized!r}")
            object.__setattr__(self, "resized", size(*self.resized, "reader 'qwen': resized"))

    def coords_of(self, row: dict[str, Any], where: str) -> Coords:
        """Raises DataError if the size after resizing is needed and not known."""
        if self.profile == "qwen3":
            return Coords(unit="rel1000")
        resized = size(row.get("resized_width"), row.get("resized_height"), f"{where}: resized") or self.resized
        if resized is None:
            raise DataError(f"{where}: profile 'qwen2_5': expected resized_width and resized_height, got neither")
        return Coords(unit="resized", resized=resized)

    def add(self, scope: Scope, item: Any, coords: Coords) -> None:
        box, point = expect(item, dict, "item").get("bbox_2d"), item.get("point_2d")
        if self.profile == "qwen3":
            check_rel1000(box)
            check_rel1000(point)
        keypoints = {"1": point} if point is not None else None
        found = score(item.get("score"))
        scope.add(label=item.get("label"), box=box, keypoints=keypoints, coords=coords, score=found)


READER = Qwen
EXAMPLE = {
    "path": "replies.jsonl",
    "images": {"kitchen.png": (640, 480)},
    "options": {"profile": "qwen3"},
    "files": {
        "replies.jsonl": json.dumps(
            {
                "image": "kitchen.png",
                "response": 'Here they are:\n```json\n[{"bbox_2d": [100, 100, 150, 200], "label": "cup"},\n'
                '{"point_2d": [500, 500], "label": "dog"}]\n```',
            }
        )
    },
}
