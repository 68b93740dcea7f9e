"""What is written in the image and where: the `text` of regions, in Qwen3-VL's own form for text spotting.

Labels are not shown: in transcriptions they say no more than "word" or "line". Regions without text are left out.
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
class Ocr:
    """`style` as in the builder `boxes`."""

    discloses: ClassVar[Disclosure] = "derivable"

    style: str = "json"
    max_regions: int = 20

    def __post_init__(self) -> None:
        check_choice("ocr", "style", self.style, STYLES)
        check_count("ocr", "max_regions", self.max_regions)

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Raises DataError, with the sample and region, for a box that is not on its image."""
        places = [(place, text) for place in placed(sample, record) if (text := place.region.text)]
        shown, many = places[: self.max_regions], len(sample.images) > 1
        if not shown:
            return PrivilegedBlock()
        lines = [box_line(place, self.style, many, text_content=text) for place, text in shown]
        return PrivilegedBlock(
            parts=("\n".join([header(many, BOXES), *lines, FOOTER]),),
            audit_text=tuple(text for _, text in shown),
            left_out=len(places) - len(shown),
        )


BUILDER = Ocr
EXAMPLE = {
    "question": "When does the shop open?",
    "image_size": (640, 480),
    "privileged": {
        "regions": [
            {"id": "w1", "label": "line", "box": [120, 80, 420, 130], "text": "Öffnungszeiten"},
            {"id": "w2", "label": "line", "box": [120, 150, 380, 195], "text": "Mo-Fr 9.30-18 Uhr"},
        ]
    },
}
