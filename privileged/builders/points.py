"""Labelled points as text, in Qwen3-VL's own form for pointing: the keypoints of regions, or the middle of their box.

A region with keypoints gives one line each (`person: left wrist`), in the order of the record; keypoints that are
not on the image are an error, those not labelled are not in the record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from ..errors import DataError
from ..geometry import REL1000, Point
from ..records import PrivilegedRecord, Sample
from . import Disclosure, PrivilegedBlock
from ._options import check_choice, check_count
from ._placed import STYLES, Placed, one_line, placed
from ._wording import POINTS, footer, header

FOOTER = footer("these notes, points or coordinates")


@dataclass(frozen=True, kw_only=True)
class Points:
    """`style="json"` is the form Qwen3-VL was trained on, `"lines"` the thrifty one."""

    discloses: ClassVar[Disclosure] = "cue"

    style: str = "json"
    max_points: int = 20

    def __post_init__(self) -> None:
        check_choice("points", "style", self.style, STYLES)
        check_count("points", "max_points", self.max_points)

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Raises DataError, with the sample and region, for a box or point that is not on its image."""
        points = [point for place in placed(sample, record) for point in _points(sample, place)]
        shown, many = points[: self.max_points], len(sample.images) > 1
        if not shown:
            return PrivilegedBlock()
        lines: list[str] = []
        audit_text: list[str] = []
        for place, name, point in shown:
            labels = [place.region.label, *([name] if name else [])]
            lines.append(self._line(place, ": ".join(map(one_line, labels)), point, many))
            audit_text += labels
        return PrivilegedBlock(
            parts=("\n".join([header(many, POINTS), *lines, FOOTER]),),
            audit_text=tuple(audit_text),
            left_out=len(points) - len(shown),
        )

    def _line(self, place: Placed, label: str, point: Point, many: bool) -> str:
        xy = [round(value / side * REL1000) for value, side in zip(point, place.size, strict=True)]
        number = place.region.image + 1
        if self.style == "lines":
            return f"- {f'image {number}: ' if many else ''}{label} ({xy[0]},{xy[1]})"
        entry = {"image": number} if many else {}
        return json.dumps(entry | {"point_2d": xy, "label": label}, ensure_ascii=False)


def _points(sample: Sample, place: Placed) -> Iterator[tuple[Placed, str, Point]]:
    """(region, name of the keypoint or nothing, px)"""
    width, height = place.size
    if not place.region.points:
        x0, y0, x1, y1 = place.box
        yield place, "", ((x0 + x1) / 2, (y0 + y1) / 2)
    for name, (x, y) in place.region.points.items():
        if not (0 <= x <= width and 0 <= y <= height):
            raise DataError(
                f"sample {sample.id!r}: region {place.region.id!r}: point {name!r}: expected one on the "
                f"{width}x{height} image, got [{x:g}, {y:g}]"
            )
        yield place, name, (x, y)


BUILDER = Points
EXAMPLE = {
    "question": "Which hand holds the cup?",
    "image_size": (640, 480),
    "privileged": {
        "regions": [
            {
                "id": "r1",
                "label": "person",
                "box": [180, 60, 320, 460],
                "points": {"left wrist": [300, 250], "right wrist": [190, 262]},
            },
            {"id": "r2", "label": "cup", "box": [292, 240, 330, 282]},
        ]
    },
}
