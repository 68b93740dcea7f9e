"""RefCOCO, RefCOCO+, RefCOCOg: a folder of `refs.json` and COCO's `instances.json`.

The original `refs(unc).p` is a pickle, which can run code: export it to JSON where you trust it. One sample a
reference: the object it means, with the first expression as caption and all of them in `extra["expressions"]`. The
sample id is the `ref_id`.
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
from ..reader_files import expect, get, load_json, read_bytes, size
from . import Annotated

XYWH = Coords(order="xywh")
ID = (int, str)


@dataclass(frozen=True, kw_only=True)
class RefCoco(Options):
    split: str = ""
    """Only references of this split (`train`, `val`, `testA`, `testB`, `test`); all if empty."""

    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """`path` is the folder that holds `refs.json` and `instances.json`."""
        if not path.is_dir():
            read_bytes(path, self.max_bytes)  # names a pickle as what it is
            raise DataError(f"{path.name}: expected the folder that holds refs.json and instances.json, got a file")
        data = load_json(path / "instances.json", self.max_bytes)
        tables: dict[str, dict[Any, Any]] = {}
        for name in ("images", "annotations", "categories"):
            rows = get(data, name, list, "instances.json")
            tables[name] = {get(row, "id", ID, f"instances.json: {name}[{i}]"): row for i, row in enumerate(rows)}
        refs = load_json(path / "refs.json", self.max_bytes, list)
        wanted = ((f"refs.json[{i}]", ref) for i, ref in enumerate(refs) if not self.split or self._in_split(ref))

        def sample(ref: Any, where: str, report: Report) -> Annotated | None:
            return self._reference(ref, tables, where, report)

        yield from self.samples(wanted, sample, report)

    def _in_split(self, ref: Any) -> bool:
        return isinstance(ref, dict) and ref.get("split") == self.split

    def _reference(self, ref: Any, tables: dict[str, Any], where: str, report: Report) -> Annotated | None:
        image = tables["images"].get(get(ref, "image_id", ID, where))
        if image is None:
            raise Dropped("annotation without image", f"{where}: image_id {ref['image_id']!r}")
        declared = size(image.get("width"), image.get("height"), where)
        scope = self.scope(report, where, (get(image, "file_name", str, where), declared))
        sentences = [expect(s, dict, f"{where}: sentences") for s in get(ref, "sentences", list, where)]
        expressions = [get(s, "raw" if "raw" in s else "sent", str, where) for s in sentences]
        with scope.entry():
            annotation = tables["annotations"].get(get(ref, "ann_id", ID, "reference"))
            if annotation is None:
                raise DataError(f"ann_id {ref['ann_id']!r}: expected one of instances.json")
            category = tables["categories"].get(get(annotation, "category_id", ID, "annotation"))
            if category is None:
                raise Dropped("unknown category", f"category_id {annotation['category_id']!r}")
            scope.add(
                label=category.get("name"),
                box=annotation.get("bbox"),
                coords=XYWH,
                caption=expressions[0] if expressions else None,
                extra={"expressions": expressions},
            )
        return scope.finish(str(get(ref, "ref_id", ID, where)))


READER = RefCoco
EXAMPLE = {
    "path": "refcoco",
    "images": {"COCO_train2014_000000000007.jpg": (640, 480)},
    "files": {
        "refcoco/refs.json": json.dumps(
            [
                {"ref_id": 5, "ann_id": 1, "image_id": 7, "category_id": 1, "split": "train"}
                | {"sentences": [{"raw": "the red cup", "sent": "the red cup"}]}
            ]
        ),
        "refcoco/instances.json": json.dumps(
            {
                "images": [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "width": 640, "height": 480}],
                "categories": [{"id": 1, "name": "cup"}],
                "annotations": [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [64, 48, 32, 40]}],
            }
        ),
    },
}
