"""Label Studio JSON export: a list of tasks, places in percent of each side, turned about the top left corner.

One annotation of a task is read: that of `annotator` (the `completed_by` id), or the first that was not cancelled.
`predictions=True` reads what a model proposed instead. The image is taken by the last part of its path or URL.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import Dropped, Report
from ..errors import DataError
from ..geometry import Coords, rotated_polygon
from ..reader_base import Options, Scope
from ..reader_files import get, json_rows, number, score, size
from . import Annotated

PERCENT = Coords(unit="percent", order="xywh")
LABELS = ("rectanglelabels", "polygonlabels", "keypointlabels", "ellipselabels", "brushlabels", "labels")
PLACES = ("x", "points", "rle")


@dataclass(frozen=True, kw_only=True)
class LabelStudio(Options):
    annotator: str = ""
    predictions: bool = False
    image_key: str = "image"
    """The key of a task's `data` that holds the image."""

    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """The sample id is the task id."""
        yield from self.samples(json_rows(path, self.max_bytes), self._task, report)

    def _task(self, task: Any, where: str, report: Report) -> Annotated | None:
        source = get(get(task, "data", dict, where), self.image_key, str, where)
        name = re.split(r"[/=\\]", source.split("?d=")[-1].split("?")[0])[-1]
        merged = _merged(self._results(task, where, report), where)
        placed = [result for result in merged.values() if any(key in result["value"] for key in PLACES)]
        sizes = {size(r.get("original_width"), r.get("original_height"), where) for r in placed} - {None}
        if len(sizes) > 1:
            raise DataError(f"{where}: original_width, original_height: expected one size of the image, got {sizes}")
        scope = self.scope(report, where, (name, next(iter(sizes), None)))
        ids: dict[str, str] = {}
        for result in placed:
            with scope.entry():
                ids[result["id"]] = f"r{scope.objects}"
                _add(scope, result)
        relations = [r for r in merged.values() if r.get("type") == "relation"]
        triples = [
            (ids.get(str(r.get("from_id")), ""), _first(r, "labels") or "related to", ids.get(str(r.get("to_id")), ""))
            for r in relations
        ]
        return scope.finish(str(get(task, "id", (int, str), where)), relations=tuple(triples))

    def _results(self, task: Any, where: str, report: Report) -> list[Any]:
        kind = "predictions" if self.predictions else "annotations"
        found = get(task, kind, list, where, [])
        found = [a for a in found if not get(a, "was_cancelled", bool, where, False)]
        if self.annotator:
            found = [a for a in found if str(_annotator(a)) == self.annotator]
        if not found and get(task, kind, list, where, []):
            raise Dropped("skipped", f"{where}: expected one of {kind} that counts, got cancelled or other ones only")
        if len(found) > 1:
            report.note("several annotations of a task: the first is read", where)
        return get(found[0], "result", list, where) if found else []


def _annotator(annotation: dict[str, Any]) -> Any:
    who = annotation.get("completed_by")
    return who.get("id") if isinstance(who, dict) else who


def _merged(results: list[Any], where: str) -> dict[str, Any]:
    """Results by id: what belongs to one place (its box, its label, its text) comes as results of the same id."""
    merged: dict[str, Any] = {}
    for number_, result in enumerate(results):
        key = get(result, "id", (str, int), where, f"#{number_}")
        value = get(result, "value", dict, where, {})
        before = merged.get(str(key), {"value": {}})
        merged[str(key)] = {**before, **result, "id": str(key), "value": {**before["value"], **value}}
    return merged


def _first(row: dict[str, Any], key: str) -> str | None:
    values = row.get(key)
    return values[0] if isinstance(values, list) and values and isinstance(values[0], str) else None


def _add(scope: Scope, result: dict[str, Any]) -> None:
    value = result["value"]
    if result.get("image_rotation"):
        raise Dropped("skipped", f"image_rotation {result['image_rotation']!r}: expected 0; turn the image itself")
    label = next((value[key] for key in LABELS if value.get(key)), [None])
    if not isinstance(label, list) or not label:
        raise DataError(f"labels: expected a list, got {label!r}")
    if len(label) > 1:
        scope.note("several labels: the first is kept")
    text = value.get("text")
    text = "\n".join(map(str, text)) if isinstance(text, list) else text
    confidence = score(value.get("score", result.get("score")))
    scope.add(label=label[0], text=text, score=confidence, **_place(scope, value))


def _place(scope: Scope, value: dict[str, Any]) -> dict[str, Any]:
    """The place in the arguments of `Scope.add`."""
    width, height = scope.declared()
    degrees = number(value.get("rotation") or 0, "rotation")
    if not math.isfinite(degrees):
        raise Dropped("not a number", f"rotation: expected degrees, got {degrees}")
    if "points" in value:
        return {"outline": get(value, "points", list, "value"), "coords": PERCENT}
    if "rle" in value:
        raise DataError("brush: expected a box, an outline or a point, got painted pixels")
    x, y = number(value.get("x"), "x"), number(value.get("y"), "y")
    if "radiusX" in value:
        rx = number(value["radiusX"], "radiusX") / 100 * width
        ry = number(value.get("radiusY"), "radiusY") / 100 * height
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        wide, high = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
        cx, cy = x / 100 * width, y / 100 * height
        return {"box": (cx - wide, cy - high, cx + wide, cy + high)}
    if "height" not in value:  # a keypoint; its width is that of the dot
        return {"keypoints": {"1": (x, y)}, "coords": PERCENT}
    box = (x, y, number(value.get("width"), "width"), number(value["height"], "height"))
    if degrees % 360:
        return {"outline": rotated_polygon(PERCENT.to_px(box, width, height), degrees, "top_left")}
    return {"box": box, "coords": PERCENT}


READER = LabelStudio
EXAMPLE = {
    "path": "export.json",
    "images": {"kitchen.png": (640, 480)},
    "files": {
        "export.json": json.dumps(
            [
                {
                    "id": 12,
                    "data": {"image": "/data/upload/1/kitchen.png"},
                    "annotations": [
                        {
                            "completed_by": 1,
                            "was_cancelled": False,
                            "result": [
                                {
                                    "id": "a1",
                                    "type": "rectanglelabels",
                                    "original_width": 640,
                                    "original_height": 480,
                                    "image_rotation": 0,
                                    "value": {"x": 10, "y": 10, "width": 5, "height": 10, "rotation": 0}
                                    | {"rectanglelabels": ["cup"]},
                                }
                            ],
                        }
                    ],
                }
            ]
        )
    },
}
