"""Labelled boxes as text: what the paper gives Qwen3-VL (labels and quadruple coordinates).

Coordinates are the model family's own: integers 0..1000 of the whole image, `[x1, y1, x2, y2]`. Boxes appear in
reading order, whatever order the annotator used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..errors import DataError
from ..escape import escape
from ..geometry import check_box, clamp_box, px_to_rel1000, reading_order
from ..records import PrivilegedRecord, Region, Sample
from . import PrivilegedBlock

# The wording is ours (the paper's prompts are pictures). It does not call the notes true, and it asks the policy not
# to cite them, because the deployed student cannot.
HEADER = "Visual notes for this image (coordinates are relative, 0-1000, [x1, y1, x2, y2]):"
HEADER_MANY = "Visual notes for these images (coordinates are relative to each image, 0-1000, [x1, y1, x2, y2]):"
FOOTER = (
    "Use them to look at the right places. Answer the question as if you had only seen the image; "
    "do not mention these notes, boxes or coordinates."
)


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """`style="json"` is the form Qwen3-VL was trained on (34 tokens a box), `"lines"` the thrifty one (20)."""

    style: str = "json"
    max_regions: int = 20

    def __post_init__(self) -> None:
        if self.style not in ("json", "lines"):
            raise DataError(f"builder 'boxes': style: expected 'json' or 'lines', got {self.style!r}")
        if not isinstance(self.max_regions, int) or self.max_regions < 1:
            raise DataError(f"builder 'boxes': max_regions: expected a number from 1, got {self.max_regions!r}")

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Raises DataError, with the sample and region, for a box that is not on its image."""
        lines, labels = [], []
        for index, image in enumerate(sample.images):
            regions = [r for r in record.regions if r.image == index]
            for region in regions:
                if problem := check_box(region.box, *image.size):
                    raise DataError(f"sample {sample.id!r}: region {region.id!r}: box {list(region.box)} {problem}")
            for i in reading_order([r.box for r in regions]):
                box = px_to_rel1000(clamp_box(regions[i].box, *image.size), *image.size)
                lines.append(self._line(regions[i], list(box), len(sample.images) > 1))
                labels.append(regions[i].label)
        if missing := [r for r in record.regions if r.image >= len(sample.images)]:
            raise DataError(
                f"sample {sample.id!r}: region {missing[0].id!r}: expected image < {len(sample.images)}, "
                f"got {missing[0].image}"
            )
        if not lines:
            return PrivilegedBlock()
        header = HEADER if len(sample.images) == 1 else HEADER_MANY
        text = "\n".join([header, *lines[: self.max_regions], FOOTER])
        return PrivilegedBlock(parts=(text,), audit_text=tuple(labels[: self.max_regions]))

    def _line(self, region: Region, box: list[int], name_image: bool) -> str:
        label = " ".join(escape(region.label).split())  # one region, one line
        if self.style == "lines":
            return f"- {f'image {region.image + 1}: ' if name_image else ''}{label} ({','.join(map(str, box))})"
        entry = {"image": region.image + 1} if name_image else {}
        return json.dumps(entry | {"bbox_2d": box, "label": label}, ensure_ascii=False)


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
