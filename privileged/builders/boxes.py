"""Labelled boxes as text: what the paper gives Qwen3-VL (labels and quadruple coordinates).

Coordinates are the model family's own: integers 0..1000 of the whole image, `[x1, y1, x2, y2]`. Boxes appear in
reading order, whatever order the annotator used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..records import PrivilegedRecord, Sample
from . import Disclosure, PrivilegedBlock
from ._options import check_choice, check_count
from ._placed import STYLES, box_line, placed
from ._wording import BOXES, FOOTER, header

HEADER, HEADER_MANY = header(False, BOXES), header(True, BOXES)


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """`style="json"` is the form Qwen3-VL was trained on (34 tokens a box), `"lines"` the thrifty one (20)."""

    discloses: ClassVar[Disclosure] = "cue"

    style: str = "json"
    max_regions: int = 20

    def __post_init__(self) -> None:
        check_choice("boxes", "style", self.style, STYLES)
        check_count("boxes", "max_regions", self.max_regions)

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Raises DataError, with the sample and region, for a box that is not on its image."""
        places = placed(sample, record)
        shown, many = places[: self.max_regions], len(sample.images) > 1
        if not shown:
            return PrivilegedBlock()
        lines = [box_line(place, self.style, many, label=place.region.label) for place in shown]
        return PrivilegedBlock(
            parts=("\n".join([HEADER_MANY if many else HEADER, *lines, FOOTER]),),
            audit_text=tuple(place.region.label for place in shown),
            left_out=len(places) - len(shown),
        )


BUILDER = Boxes
EXAMPLE = {
    "question": "What number is blue?",
    "image_size": (96, 96),
    "privileged": {
        "regions": [
            {"id": "r1", "label": "red 7", "box": [4, 6, 26, 30]},
            {"id": "r2", "label": "blue 3", "box": [40, 38, 60, 62]},
        ]
    },
}
