"""Set-of-Mark with boxes: the image with a numbered outline around each region, and a legend `1: bottle` as text.

The legend carries labels in any script; what is drawn are numbers only. See `privileged/draw.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..records import PrivilegedRecord, Sample
from . import Disclosure, PrivilegedBlock
from ._marked import MODES, drawn_images
from ._options import check_choice, check_count
from ._placed import Placed, one_line, placed
from ._wording import footer

HEADER = "The same image with numbered marks:"
HEADER_MANY = "Image {number} with numbered marks:"
HEADER_REPLACE = "The numbered marks are no part of what was photographed; they are around:"
FOOTER = footer("these marks, their numbers or colours")


@dataclass(frozen=True, kw_only=True)
class Marks:
    """`mode="append"` shows the image, then its marked copy (twice the image tokens); `"replace"` the copy alone,
    which is the cheapest way to show labelled places (about 6 tokens a region for the legend).
    """

    discloses: ClassVar[Disclosure] = "cue"

    mode: str = "append"
    max_regions: int = 20

    def __post_init__(self) -> None:
        check_choice("marks", "mode", self.mode, MODES)
        check_count("marks", "max_regions", self.max_regions)

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Raises DataError, with the sample and region, for a box that is not on its image."""
        places = placed(sample, record)
        shown = places[: self.max_regions]
        if not shown:
            return PrivilegedBlock()
        drawn = drawn_images(sample, shown, numbered=True)
        audit_text, left_out = tuple(place.region.label for place in shown), len(places) - len(shown)
        legend = "\n".join(_legend(shown))
        if self.mode == "replace":
            images = tuple(drawn.get(index, image) for index, image in enumerate(sample.images))
            parts = ("\n".join([HEADER_REPLACE, legend, FOOTER]),)
            return PrivilegedBlock(parts=parts, audit_text=audit_text, replace_images=images, left_out=left_out)
        text = HEADER if len(sample.images) == 1 else HEADER_MANY
        pictures = [part for index, image in drawn.items() for part in (text.format(number=index + 1), image)]
        return PrivilegedBlock(parts=(*pictures, f"{legend}\n{FOOTER}"), audit_text=audit_text, left_out=left_out)


def _legend(places: list[Placed]) -> list[str]:
    return [f"{number}: {one_line(place.region.label)}" for number, place in enumerate(places, start=1)]


BUILDER = Marks
EXAMPLE = {
    "question": "Which is taller?",
    "image_size": (640, 480),
    "privileged": {
        "regions": [
            {"id": "r1", "label": "Flasche", "box": [220, 255, 260, 345]},
            {"id": "r2", "label": "コップ", "box": [292, 300, 330, 342]},
        ]
    },
}
