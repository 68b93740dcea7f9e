"""Close views of the regions as further images, or instead of the image: crop-conditioned teachers.

Each view is captioned `Region 1 (label):`. No coordinates are written: instead of the image they would mean nothing.
With `mode="replace"` the crops of an image take its place; an image without regions stays, named.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from PIL import Image

from ..draw import Pixels, crop_window
from ..geometry import Box, enclosing_box, iou
from ..records import PrivilegedRecord, Sample
from . import Disclosure, PrivilegedBlock
from ._marked import MODES
from ._options import check_choice, check_count, check_fraction
from ._placed import Placed, one_line, placed
from ._wording import footer

ORDERS = ("reading", "area", "score")
HEADER = "Closer views of parts of this image:"
HEADER_MANY = "Closer views of parts of these images:"
HEADER_REPLACE = "Parts of the image:"
HEADER_REPLACE_MANY = "Parts of the images:"
FOOTER = footer("these views or regions")
FOOTER_REPLACE = (
    "Answer the question as if you had seen the whole image; do not mention that you saw parts of it, or regions."
)


@dataclass(frozen=True, kw_only=True)
class Crops:
    """A view costs as much as three boxes of text or more (66 to 90 tokens), hence the low `max_crops`.

    `pad` is a fraction of the box's sides, added on each side; `min_side` is in px. A region joins the first view
    with which its own has an intersection over union of `merge_iou`. `order` decides which come first and which are
    left out: `area` largest first, `score` highest first (regions without one last).
    """

    discloses: ClassVar[Disclosure] = "cue"

    mode: str = "append"
    pad: float = 0.25
    min_side: int = 64
    max_crops: int = 4
    merge_iou: float = 0.5
    order: str = "reading"

    def __post_init__(self) -> None:
        check_choice("crops", "mode", self.mode, MODES)
        check_choice("crops", "order", self.order, ORDERS)
        check_fraction("crops", "pad", self.pad, 0.0, 10.0)
        check_fraction("crops", "merge_iou", self.merge_iou, 0.01, 1.0)
        check_count("crops", "min_side", self.min_side)
        check_count("crops", "max_crops", self.max_crops)

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Raises DataError, with the sample and region, for a box that is not on its image."""
        views, left_out = self._views(placed(sample, record))
        if not views:
            return PrivilegedBlock()
        many, replace = len(sample.images) > 1, self.mode == "replace"
        parts: list[str | Image.Image] = []
        for index, image in enumerate(sample.images):
            own = [view for view in views if view.image == index]
            for view in own:
                parts += [_caption(views.index(view) + 1, view, many), image.crop(self._window(view.box, image.size))]
            if replace and not own:
                parts += [f"Image {index + 1}:", image]
        if replace:
            header, footer = (HEADER_REPLACE_MANY if many else HEADER_REPLACE), FOOTER_REPLACE
        else:
            header, footer = (HEADER_MANY if many else HEADER), FOOTER
        return PrivilegedBlock(
            parts=(header, *parts, footer),
            audit_text=tuple(label for view in views for label in view.labels),
            replace_images=() if replace else None,
            left_out=left_out,
        )

    def _views(self, places: list[Placed]) -> tuple[list[_View], int]:
        """The views to show, image by image, and how many regions are in none."""
        views: list[_View] = []
        left_out = 0
        for place in self._ordered(places):
            window = self._window(place.box, place.size)
            near = [v for v in views if v.image == place.region.image]
            near = [v for v in near if iou(window, self._window(v.box, place.size)) >= self.merge_iou]
            if near:
                near[0].join(place)
            elif len(views) < self.max_crops:
                views.append(_View(image=place.region.image, box=place.box, labels={place.region.label: None}))
            else:
                left_out += 1
        return sorted(views, key=lambda view: view.image), left_out

    def _ordered(self, places: list[Placed]) -> Iterable[Placed]:
        if self.order == "area":
            return sorted(places, key=lambda p: -(p.box[2] - p.box[0]) * (p.box[3] - p.box[1]))
        if self.order == "score":
            return sorted(places, key=lambda p: -p.region.score if p.region.score is not None else float("inf"))
        return places

    def _window(self, box: Box, size: tuple[int, int]) -> Pixels:
        return crop_window(box, size, self.pad, self.min_side)


@dataclass(kw_only=True, eq=False)
class _View:
    """The box (px) that holds the regions of one crop, and their different labels in order."""

    image: int
    box: Box
    labels: dict[str, None] = field(default_factory=dict)

    def join(self, place: Placed) -> None:
        (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = self.box, place.box
        self.box = enclosing_box([(ax0, ay0), (ax1, ay1), (bx0, by0), (bx1, by1)])
        self.labels[place.region.label] = None


def _caption(number: int, view: _View, many: bool) -> str:
    labels = ", ".join(map(one_line, view.labels))
    return f"Region {number} ({labels}){f' of image {view.image + 1}' if many else ''}:"


BUILDER = Crops
EXAMPLE = {
    "question": "What is written on the bottle?",
    "image_size": (640, 480),
    "privileged": {
        "regions": [
            {"id": "r1", "label": "bottle", "box": [220, 255, 260, 345]},
            {"id": "r2", "label": "cup", "box": [492, 300, 530, 342]},
        ]
    },
}
