"""GQA scene graphs: one JSON object, image id -> objects with attributes and relations. Boxes x, y, w, h in px.

The sample id is the image id, region ids are the object ids. Answers of GQA are often an attribute or a relation: let
the leak audit see a record before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import Report
from ..geometry import Coords
from ..reader_base import Options
from ..reader_files import expect, get, load_json, size
from . import Annotated

XYWH = Coords(order="xywh")


@dataclass(frozen=True, kw_only=True)
class Gqa(Options):
    suffix: str = ".jpg"
    """The file holds no image names: they are the image id and this suffix."""

    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """`path` is one JSON file of scene graphs."""
        scenes = load_json(path, self.max_bytes)
        rows = ((f"{path.name}: image {key}", (key, scene)) for key, scene in scenes.items())
        yield from self.samples(rows, self._scene, report)

    def _scene(self, row: Any, where: str, report: Report) -> Annotated | None:
        key, scene = row
        declared = size(get(scene, "width", int, where, None), get(scene, "height", int, where, None), where)
        scope = self.scope(report, where, (key + self.suffix, declared))
        relations = []
        for name, item in get(scene, "objects", dict, where, {}).items():
            with scope.entry():
                box = [get(item, edge, (int, float), "object") for edge in ("x", "y", "w", "h")]
                attributes = [expect(word, str, "attributes") for word in get(item, "attributes", list, "object", [])]
                links = [
                    (name, get(link, "name", str, "relation"), str(get(link, "object", (str, int), "relation")))
                    for link in get(item, "relations", list, "object", [])
                ]
                named = {"attributes": attributes} if attributes else {}
                scope.add(label=item.get("name"), box=box, coords=XYWH, id=name, attributes=named)
                relations += links
        return scope.finish(key, relations=tuple(relations))


READER = Gqa
EXAMPLE = {
    "path": "sceneGraphs.json",
    "images": {"2407890.jpg": (640, 480)},
    "files": {
        "sceneGraphs.json": json.dumps(
            {
                "2407890": {
                    "width": 640,
                    "height": 480,
                    "objects": {
                        "271881": {"name": "cup", "x": 64, "y": 48, "w": 32, "h": 40, "attributes": ["red"]}
                        | {"relations": [{"name": "on", "object": "271882"}]},
                        "271882": {"name": "table", "x": 20, "y": 80, "w": 600, "h": 300, "relations": []},
                    },
                }
            }
        )
    },
}
