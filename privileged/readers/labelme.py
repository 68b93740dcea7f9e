"""LabelMe JSON: a file an image. Corners of a rectangle come in any order; a circle is its centre and a rim point.

The image is taken by the last part of `imagePath`, which may hold another machine's folders; `imageData` (a copy of
the pixels, not always the same ones) is not looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import Report
from ..errors import DataError
from ..reader_base import Options, Scope
from ..reader_files import get, load_json, points, score, size
from . import Annotated

OUTLINES = ("polygon", "rotation", "oriented_rectangle")


@dataclass(frozen=True, kw_only=True)
class LabelMe(Options):
    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """The sample id is the name of the JSON file."""
        yield from self.documents(path, (".json",), self._document, report)

    def _document(self, path: Path, sample_id: str, report: Report) -> Annotated | None:
        data = load_json(path, self.max_bytes)
        name = get(data, "imagePath", str, path.name).replace("\\", "/").rpartition("/")[2]
        declared = size(data.get("imageWidth"), data.get("imageHeight"), path.name)
        scope = self.scope(report, path.name, (name, declared))
        for shape in get(data, "shapes", list, path.name):
            with scope.entry():
                _add(scope, shape)
        return scope.finish(sample_id)


def _add(scope: Scope, shape: Any) -> None:
    kind = get(shape, "shape_type", str, "shape", "polygon")
    spots = points(get(shape, "points", list, "shape"), "points")
    place: dict[str, Any]
    if kind == "rectangle" and len(spots) == 2:
        place = {"box": (*spots[0], *spots[1]), "any_order": True}
    elif kind == "circle" and len(spots) == 2:
        (x, y), rim = spots
        radius = math.hypot(rim[0] - x, rim[1] - y)
        place = {"box": (x - radius, y - radius, x + radius, y + radius)}
    elif (kind in OUTLINES and len(spots) >= 3) or (kind == "rectangle" and len(spots) == 4):
        place = {"outline": spots}
    elif kind in ("line", "linestrip", "point", "points") and spots:
        place = {"keypoints": {str(i): spot for i, spot in enumerate(spots, start=1)}}
    elif kind == "mask" and len(spots) == 2:
        place = {"box": (*spots[0], *spots[1]), "any_order": True}
        scope.note("pixels of a mask left out: its box is kept")
    else:
        raise DataError(f"shape_type {kind!r} with {len(spots)} points: expected a shape of LabelMe")
    flags = get(shape, "flags", dict, "shape", {})
    attributes = {str(key): value for key, value in flags.items() if value}
    if shape.get("group_id") is not None:
        attributes["group_id"] = shape["group_id"]
    scope.add(label=shape.get("label"), attributes=attributes, score=score(shape.get("score")), **place)


READER = LabelMe
EXAMPLE = {
    "path": "kitchen.json",
    "images": {"kitchen.png": (640, 480)},
    "files": {
        "kitchen.json": json.dumps(
            {
                "imagePath": "..\\photos\\kitchen.png",
                "imageWidth": 640,
                "imageHeight": 480,
                "shapes": [
                    {"label": "cup", "shape_type": "rectangle", "points": [[96.5, 88], [64, 48]]},
                    {"label": "dog", "shape_type": "polygon", "points": [[200, 150], [300, 150], [250, 270]]},
                ],
            }
        )
    },
}
