"""Labelled outlines as text: for things that a box describes badly (roads, cables, things behind one another).

Coordinates are integers 0..1000 of the whole image. An outline with more than `max_vertices` vertices loses, one
after the other, those that change its area least. A region without an outline is written with its box.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..geometry import REL1000, Point
from ..records import PrivilegedRecord, Sample
from . import Disclosure, PrivilegedBlock
from ._options import check_count
from ._placed import Placed, box_line, one_line, placed
from ._wording import footer, header

COORDINATES = "boxes [x1, y1, x2, y2], outlines [[x, y], ...]"
FOOTER = footer("these notes, outlines or coordinates")


@dataclass(frozen=True, kw_only=True)
class Polygons:
    """A vertex costs about ten tokens."""

    discloses: ClassVar[Disclosure] = "cue"

    max_regions: int = 20
    max_vertices: int = 12

    def __post_init__(self) -> None:
        check_count("polygons", "max_regions", self.max_regions)
        check_count("polygons", "max_vertices", self.max_vertices, low=3)

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Raises DataError, with the sample and region, for a box that is not on its image."""
        places = placed(sample, record)
        shown, many = places[: self.max_regions], len(sample.images) > 1
        if not shown:
            return PrivilegedBlock()
        lines = [self._line(place, many) for place in shown]
        return PrivilegedBlock(
            parts=("\n".join([header(many, COORDINATES), *lines, FOOTER]),),
            audit_text=tuple(place.region.label for place in shown),
            left_out=len(places) - len(shown),
        )

    def _line(self, place: Placed, many: bool) -> str:
        outline = outline_rel1000(place.region.polygon or (), place.size, self.max_vertices)
        if len(outline) < 3:
            return box_line(place, "json", many, label=place.region.label)
        entry = {"image": place.region.image + 1} if many else {}
        return json.dumps(entry | {"polygon_2d": outline, "label": one_line(place.region.label)}, ensure_ascii=False)


def outline_rel1000(polygon: tuple[Point, ...], size: tuple[int, int], max_vertices: int) -> list[list[int]]:
    """`polygon` (px) as at most `max_vertices` different integer points 0..1000, in its order.

    Vertices beyond the border move onto it. Fewer than three points come back if rounding leaves no more.
    """
    scaled = np.asarray(polygon, dtype=float).reshape(-1, 2) / size * REL1000
    points = scaled.round().clip(0, REL1000).astype(int)
    points = points[np.any(points != np.roll(points, 1, axis=0), axis=1)] if len(points) > 1 else points
    while len(points) > max_vertices:
        before, after = np.roll(points, 1, axis=0) - points, np.roll(points, -1, axis=0) - points
        triangle = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0])
        points = np.delete(points, int(triangle.argmin()), axis=0)
    return points.tolist()


BUILDER = Polygons
EXAMPLE = {
    "question": "Which way does the road turn?",
    "image_size": (640, 480),
    "privileged": {
        "regions": [
            {
                "id": "r1",
                "label": "road",
                "box": [100, 200, 420, 480],
                "polygon": [[100, 480], [260, 260], [400, 200], [420, 230], [330, 290], [300, 480]],
            },
            {"id": "r2", "label": "sign", "box": [450, 120, 500, 190]},
        ]
    },
}
