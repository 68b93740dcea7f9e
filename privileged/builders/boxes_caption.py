"""Labelled boxes, each with a sentence about it: the "box + caption" row of the paper's table of annotations.

The sentence is the region's caption; a region without one is written with its label alone. Captions of the whole
image (notes of kind `caption`) are the builder `caption`; `compose` joins the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..records import PrivilegedRecord, Sample
from . import Disclosure, PrivilegedBlock
from ._options import check_choice, check_count
from ._placed import STYLES, box_line, placed
from ._wording import BOXES, FOOTER, header


@dataclass(frozen=True, kw_only=True)
class BoxesCaption:
    """`style` as in the builder `boxes`."""

    discloses: ClassVar[Disclosure] = "derivable"

    style: str = "json"
    max_regions: int = 20

    def __post_init__(self) -> None:
        check_choice("boxes_caption", "style", self.style, STYLES)
        check_count("boxes_caption", "max_regions", self.max_regions)

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Raises DataError, with the sample and region, for a box that is not on its image."""
        places = placed(sample, record)
        shown, many = places[: self.max_regions], len(sample.images) > 1
        if not shown:
            return PrivilegedBlock()
        lines: list[str] = []
        audit_text: list[str] = []
        for place in shown:
            fields = {"label": place.region.label}
            if place.region.caption:
                fields["caption"] = place.region.caption
            lines.append(box_line(place, self.style, many, **fields))
            audit_text += fields.values()
        return PrivilegedBlock(
            parts=("\n".join([header(many, BOXES), *lines, FOOTER]),),
            audit_text=tuple(audit_text),
            left_out=len(places) - len(shown),
        )


BUILDER = BoxesCaption
EXAMPLE = {
    "question": "What is on the table?",
    "image_size": (640, 480),
    "privileged": {
        "regions": [
            {"id": "r1", "label": "bottle", "box": [220, 255, 260, 345], "caption": "A bottle with a blue cap."},
            {"id": "r2", "label": "table", "box": [40, 300, 600, 470]},
        ]
    },
}
