"""The image with an outline around each region, and not a word about what is in it: where to look, not what to see.

Drawn at the original resolution; see `privileged/draw.py`. `marks` adds numbers and a legend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..records import PrivilegedRecord, Sample
from . import Disclosure, PrivilegedBlock
from ._marked import MODES, drawn_images
from ._options import check_choice, check_count
from ._placed import placed
from ._wording import footer

HEADER = "The same image with outlines around places to look at:"
HEADER_MANY = "Image {number} with outlines around places to look at:"
HEADER_REPLACE = "The coloured outlines are no part of what was photographed; they are around places to look at."
FOOTER = footer("these outlines or their colours")


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """`mode="append"` shows the image, then its outlined copy (twice the image tokens); `"replace"` the copy alone."""

    discloses: ClassVar[Disclosure] = "cue"

    mode: str = "append"
    max_regions: int = 20

    def __post_init__(self) -> None:
        check_choice("overlay", "mode", self.mode, MODES)
        check_count("overlay", "max_regions", self.max_regions)

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Raises DataError, with the sample and region, for a box that is not on its image."""
        places = placed(sample, record)
        shown = places[: self.max_regions]
        if not shown:
            return PrivilegedBlock()
        drawn, left_out = drawn_images(sample, shown, numbered=False), len(places) - len(shown)
        if self.mode == "replace":
            images = tuple(drawn.get(index, image) for index, image in enumerate(sample.images))
            return PrivilegedBlock(parts=(f"{HEADER_REPLACE} {FOOTER}",), replace_images=images, left_out=left_out)
        text = HEADER if len(sample.images) == 1 else HEADER_MANY
        parts = [part for index, image in drawn.items() for part in (text.format(number=index + 1), image)]
        return PrivilegedBlock(parts=(*parts, FOOTER), left_out=left_out)


BUILDER = Overlay
EXAMPLE = {
    "question": "Is the bottle open?",
    "image_size": (640, 480),
    "privileged": {"regions": [{"id": "r1", "label": "bottle", "box": [220, 255, 260, 345]}]},
}
