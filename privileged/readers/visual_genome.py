"""Visual Genome: a folder of `objects.json` and, where there are, `image_data.json` (sizes), `attributes.json`,
`relationships.json` and `region_descriptions.json`. Boxes x, y and w, h (or width, height) in px.

The sample id is the image id, region ids are object ids; region descriptions are captioned regions named `region`.
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
from ..reader_base import Options, Scope
from ..reader_files import get, load_json, number, size
from . import Annotated

XYWH = Coords(order="xywh")
ID = (int, str)


@dataclass(frozen=True, kw_only=True)
class VisualGenome(Options):
    suffix: str = ".jpg"
    """Image names are the image id and this suffix."""

    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """`path` is the folder of `objects.json`; the other files join it where they are there."""
        if not path.is_dir():
            raise DataError(f"{path.name}: expected the folder that holds objects.json, got something else")
        rows = self._by_image(path / "objects.json", report)
        more = {
            name: self._by_image(path / f"{name}.json", report) if (path / f"{name}.json").exists() else {}
            for name in ("image_data", "attributes", "relationships", "region_descriptions")
        }

        def sample(key: str, where: str, report: Report) -> Annotated | None:
            return self._image(
                key, rows[key], {name: found.get(key, {}) for name, found in more.items()}, where, report
            )

        yield from self.samples(((f"objects.json: image {key}", key) for key in rows), sample, report)

    def _by_image(self, path: Path, report: Report) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for number_, row in enumerate(load_json(path, self.max_bytes, list)):
            try:
                key = "image_id" if isinstance(row, dict) and "image_id" in row else "id"
                found[str(get(row, key, ID, f"{path.name}[{number_}]"))] = row
            except DataError as error:
                report.drop_image(error)
        return found

    def _image(self, key: str, row: Any, more: dict[str, Any], where: str, report: Report) -> Annotated | None:
        sizes = more["image_data"]
        scope = self.scope(report, where, (key + self.suffix, size(sizes.get("width"), sizes.get("height"), where)))
        attributes = {
            str(item.get("object_id")): [word for word in item["attributes"] if isinstance(word, str)]
            for item in get(more["attributes"], "attributes", list, where, [])
            if isinstance(item, dict) and isinstance(item.get("attributes"), list)
        }
        for item in get(row, "objects", list, where):
            with scope.entry():
                name = str(get(item, "object_id", ID, "object"))
                words = attributes.get(name)
                _add(scope, item, _name(item), name, {"attributes": words} if words else {})
        for item in get(more["region_descriptions"], "regions", list, where, []):
            with scope.entry():
                caption = get(item, "phrase", str, "region")
                _add(scope, item, "region", f"region-{get(item, 'region_id', ID, 'region')}", {}, caption)
        relations = []
        for item in get(more["relationships"], "relationships", list, where, []):
            ends = [str(get(get(item, end, dict, where), "object_id", ID, where)) for end in ("subject", "object")]
            relations.append((ends[0], get(item, "predicate", str, where), ends[1]))
        return scope.finish(key, relations=tuple(relations))


def _name(item: dict[str, Any]) -> Any:
    """`names` is a list in the released files, `name` a string in older ones."""
    names = item.get("names")
    return names[0] if isinstance(names, list) and names else item.get("name")


def _add(scope: Scope, item: Any, label: Any, id: str, attributes: dict[str, Any], caption: str | None = None) -> None:
    wide, high = item.get("w", item.get("width")), item.get("h", item.get("height"))
    box = [number(edge, "box") for edge in (item.get("x"), item.get("y"), wide, high)]
    scope.add(label=label, box=box, coords=XYWH, id=id, attributes=attributes, caption=caption)


READER = VisualGenome
EXAMPLE = {
    "path": "vg",
    "images": {"61512.jpg": (640, 480)},
    "files": {
        "vg/image_data.json": json.dumps([{"image_id": 61512, "width": 640, "height": 480}]),
        "vg/objects.json": json.dumps(
            [
                {
                    "image_id": 61512,
                    "objects": [
                        {"object_id": 1, "names": ["cup"], "x": 64, "y": 48, "w": 32, "h": 40},
                        {"object_id": 2, "names": ["table"], "x": 20, "y": 80, "w": 600, "h": 300},
                    ],
                }
            ]
        ),
        "vg/relationships.json": json.dumps(
            [
                {
                    "image_id": 61512,
                    "relationships": [{"predicate": "on", "subject": {"object_id": 1}, "object": {"object_id": 2}}],
                }
            ]
        ),
    },
}
