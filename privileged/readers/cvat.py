"""CVAT for images 1.1 XML: boxes (turned about their centre), outlines and points in px.

The sample id is the image id, or its name without one. Tracks (video) give one sample a frame: `frame_000007`; what is
outside its frame is skipped.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import Dropped, Report
from ..errors import DataError
from ..geometry import rotated_polygon
from ..reader_base import Options, Scope
from ..reader_files import load_xml, number, size, spelled_points, whole
from . import Annotated

SHAPES = ("box", "polygon", "polyline", "points", "mask", "ellipse")


@dataclass(frozen=True, kw_only=True)
class Cvat(Options):
    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """Images first, then the frames of all tracks together, in their order."""
        root = load_xml(path, self.max_bytes, "annotations")
        images = ((f"{path.name}: image {image.get('name')!r}", image) for image in root.iter("image"))
        yield from self.samples(images, self._image, report)
        frames: dict[int, list[tuple[str | None, ET.Element]]] = defaultdict(list)
        for track in root.iter("track"):
            for shape in (shape for shape in track if shape.tag in SHAPES):
                frames[whole(shape.get("frame"), f"{path.name}: track: frame")].append((track.get("label"), shape))
        declared = size(root.findtext(".//original_size/width"), root.findtext(".//original_size/height"), path.name)
        rows = ((f"{path.name}: frame {frame}", (frame, frames[frame], declared)) for frame in sorted(frames))
        yield from self.samples(rows, self._track_frame, report)

    def _image(self, image: ET.Element, where: str, report: Report) -> Annotated | None:
        name = image.get("name")
        if not name:
            raise DataError(f"{where}: name: expected the file name of an image, got {name!r}")
        scope = self.scope(report, where, (name, size(image.get("width"), image.get("height"), where)))
        for shape in (shape for shape in image if shape.tag in SHAPES):
            with scope.entry():
                _add(scope, shape, shape.get("label"))
        return scope.finish(image.get("id") or name)

    def _track_frame(self, row: Any, where: str, report: Report) -> Annotated | None:
        frame, shapes, declared = row
        name = f"frame_{frame:06d}"
        scope = self.scope(report, where, (self.image_of_stem(name) or name, declared))
        for label, shape in shapes:
            with scope.entry():
                if shape.get("outside") == "1":
                    raise Dropped("skipped", "outside its frame")
                _add(scope, shape, label)
        return scope.finish(name)


def _add(scope: Scope, shape: ET.Element, label: str | None) -> None:
    place: dict[str, Any]
    degrees = number(shape.get("rotation", "0"), "rotation")
    if not math.isfinite(degrees):
        raise Dropped("not a number", f"rotation: expected degrees, got {degrees}")
    if shape.tag == "box":
        x0, y0, x1, y1 = (number(shape.get(key), key) for key in ("xtl", "ytl", "xbr", "ybr"))
        place = {"box": (x0, y0, x1, y1)}
        if degrees % 360:
            place = {"outline": rotated_polygon((x0, y0, x1, y1), degrees, "center")}
    elif shape.tag == "mask":
        left, top, wide, high = (number(shape.get(key), key) for key in ("left", "top", "width", "height"))
        place = {"box": (left, top, left + wide, top + high)}
        scope.note("pixels of a mask left out: its box is kept")
    elif shape.tag == "ellipse":
        x, y, rx, ry = (number(shape.get(key), key) for key in ("cx", "cy", "rx", "ry"))
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        wide, high = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
        place = {"box": (x - wide, y - high, x + wide, y + high)}
    else:
        spots = spelled_points(shape.get("points", ""), "points")
        named = {str(i): spot for i, spot in enumerate(spots, start=1)}
        place = {"outline": spots} if shape.tag == "polygon" else {"keypoints": named}
    attributes = {child.get("name", ""): child.text or "" for child in shape.iter("attribute")}
    if shape.get("occluded") == "1":
        attributes["occluded"] = "1"
    scope.add(label=label, attributes=attributes, **place)


READER = Cvat
EXAMPLE = {
    "path": "annotations.xml",
    "images": {"kitchen.png": (640, 480)},
    "files": {
        "annotations.xml": '<annotations><version>1.1</version><image id="0" name="kitchen.png" width="640" '
        'height="480"><box label="cup" xtl="64" ytl="48" xbr="96.5" ybr="88" occluded="0"></box>'
        '<box label="tray" xtl="200" ytl="150" xbr="300" ybr="200" rotation="30"><attribute name="colour">red'
        "</attribute></box></image></annotations>"
    },
}
