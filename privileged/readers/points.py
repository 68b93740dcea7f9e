"""Points: rows of `image`, if known `id`, `width`, `height`, and `points` = [{"label", "point": [x, y]}].

An object with several named points has `points` = {name: [x, y]} instead. JSON lines, or a JSON list. `unit` and
`y_first` declare the convention; negative and NaN coordinates mean that a point is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import Dropped, Report
from ..errors import DataError
from ..geometry import Coords
from ..reader_base import Options
from ..reader_files import expect, get, json_rows, numbers, score, size
from . import Annotated

DECLARABLE = ("px", "rel1", "percent", "rel1000")


@dataclass(frozen=True, kw_only=True)
class Points(Options):
    unit: str = "px"
    y_first: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in DECLARABLE:
            raise DataError(f"reader 'points': unit: expected one of {', '.join(DECLARABLE)}, got {self.unit!r}")

    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """The sample id is `id`, or the name of the image without suffix."""
        yield from self.samples(json_rows(path, self.max_bytes), self._row, report)

    def _row(self, row: Any, where: str, report: Report) -> Annotated | None:
        name = get(row, "image", str, where)
        scope = self.scope(report, where, (name, size(row.get("width"), row.get("height"), where)))
        coords = Coords(unit=self.unit, order="yxyx" if self.y_first else "xyxy")
        for item in get(row, "points", list, where):
            with scope.entry():
                named = get(item, "points", dict, "object", {}) or {"1": expect(item, dict, "object").get("point")}
                found = {key: pair for key, value in named.items() if (pair := _labelled(value))}
                if not found:
                    raise Dropped("not a number", "points: expected one that is not missing, got none")
                scope.add(label=item.get("label"), keypoints=found, coords=coords, score=score(item.get("score")))
        return scope.finish(str(get(row, "id", (int, str), where, Path(name).stem)))


def _labelled(value: Any) -> tuple[float, ...] | None:
    """The two numbers, None if they mark a missing point."""
    pair = numbers(value, 2, "point")
    return pair if min(pair) >= 0 and pair == pair else None


READER = Points
EXAMPLE = {
    "path": "points.jsonl",
    "images": {"kitchen.png": (640, 480)},
    "files": {
        "points.jsonl": json.dumps(
            {
                "image": "kitchen.png",
                "points": [
                    {"label": "cup", "point": [80, 68]},
                    {"label": "dog", "points": {"nose": [210, 170], "tail": [-1, -1]}},
                ],
            }
        )
    },
}
