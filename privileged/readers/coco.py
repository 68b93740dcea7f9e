"""COCO instances and keypoints: one JSON file, boxes x, y, width, height in px, 0-based edges.

The sample id is the image id. A polygon in several parts keeps its largest part as outline; a mask in run lengths is
kept in `extra["rle"]`, uncompressed. Groups (`iscrowd`) are dropped unless `keep=("crowd",)`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import Dropped, Report
from ..errors import DataError
from ..geometry import Coords, enclosing_box, from_xyxy, polygon_area
from ..reader_base import Options, Scope
from ..reader_files import get, load_json, numbers, points, score, size
from . import Annotated
from ._rle import mask_box, run_lengths

XYWH = Coords(order="xywh")
Category = tuple[Any, list[Any]]


@dataclass(frozen=True, kw_only=True)
class Coco(Options):
    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """Images without annotations come with an empty record."""
        data = load_json(path, self.max_bytes)
        categories: dict[Any, Category] = {}
        for number, row in enumerate(get(data, "categories", list, path.name, [])):
            where = f"{path.name}: categories[{number}]"
            key = get(row, "id", (int, str), where)
            categories[key] = row.get("name"), get(row, "keypoints", list, where, [])
        images: dict[Any, tuple[str, tuple[int, int] | None]] = {}
        for number, row in enumerate(get(data, "images", list, path.name)):
            where = f"{path.name}: images[{number}]"
            try:
                key, name = get(row, "id", (int, str), where), get(row, "file_name", str, where)
                if key in images:
                    raise DataError(f"{where}: id: expected one of its own, got {key!r} again")
                images[key] = name, size(row.get("width"), row.get("height"), where)
            except DataError as error:
                report.drop_image(error)
        rows: dict[Any, list[Any]] = defaultdict(list)
        for number, row in enumerate(get(data, "annotations", list, path.name, [])):
            where = f"{path.name}: annotations[{number}]"
            try:
                if (key := get(row, "image_id", (int, str), where)) not in images:
                    raise Dropped("annotation without image", f"{where}: image_id {key!r}")
                rows[key].append(row)
            except DataError as error:
                report.drop_object(error)

        def sample(key: Any, where: str, report: Report) -> Annotated | None:
            scope = self.scope(report, where, images[key])
            for row in rows[key]:
                with scope.entry():
                    _add(scope, row, categories)
            return scope.finish(str(key))

        yield from self.samples(((f"{path.name}: image {key}", key) for key in images), sample, report)


def _add(scope: Scope, row: dict[str, Any], categories: dict[Any, Category]) -> None:
    category = get(row, "category_id", (int, str), "annotation")
    if category not in categories:
        raise Dropped("unknown category", f"category_id {category!r}")
    label, names = categories[category]
    width, height = scope.declared()
    box = row.get("bbox") or None
    segmentation = get(row, "segmentation", (list, dict), "annotation", [])
    outline: Any = None
    extra: dict[str, Any] = {}
    if isinstance(segmentation, dict):
        runs = run_lengths(segmentation, width, height)
        extra["rle"] = {"size": [height, width], "counts": runs}
        if box is None and (found := mask_box(runs, height)):
            box = from_xyxy(found, "xywh")
        if scope.turned():
            scope.note("mask of stored pixels left out: the image is turned")
            del extra["rle"]
    elif segmentation:
        rings = [ring for ring in (points(part, "segmentation") for part in segmentation) if len(ring) >= 3]
        outline = max(rings, key=polygon_area, default=None)
        if len(rings) > 1:
            scope.note("outline in several parts: the largest is kept")
        if box is None and rings:
            box = from_xyxy(enclosing_box([point for ring in rings for point in ring]), "xywh")
    if "id" in row:
        extra["annotation_id"] = row["id"]
    scope.add(
        label=label,
        box=box,
        outline=outline,
        keypoints=_keypoints(row, names),
        coords=XYWH,
        crowd=bool(row.get("iscrowd")),
        score=score(row.get("score")),
        extra=extra,
    )


def _keypoints(row: dict[str, Any], names: list[Any]) -> dict[str, Any]:
    """Labelled points by name; v = 0 means not labelled, and its 0, 0 is no place."""
    flat = get(row, "keypoints", list, "annotation", [])
    if len(flat) % 3 or (names and len(flat) not in (0, 3 * len(names))):
        raise DataError(f"keypoints: expected x, y, v of {len(names) or 'some'} points, got {len(flat)} numbers")
    triples = [numbers(flat[i : i + 3], 3, "keypoints") for i in range(0, len(flat), 3)]
    labels = [str(name) for name in names] or [str(i + 1) for i in range(len(triples))]
    return {label: (x, y) for label, (x, y, v) in zip(labels, triples, strict=False) if v > 0}


READER = Coco
EXAMPLE = {
    "path": "instances.json",
    "images": {"kitchen.png": (640, 480)},
    "files": {
        "instances.json": json.dumps(
            {
                "images": [{"id": 7, "file_name": "kitchen.png", "width": 640, "height": 480}],
                "categories": [{"id": 1, "name": "cup"}, {"id": 18, "name": "dog", "keypoints": ["nose", "tail"]}],
                "annotations": [
                    {"id": 1, "image_id": 7, "category_id": 1, "bbox": [64, 48, 32.5, 40]},
                    {"id": 2, "image_id": 7, "category_id": 18, "bbox": [200, 150, 100, 120]}
                    | {"keypoints": [210, 170, 2, 0, 0, 0]},
                ],
            }
        )
    },
}
