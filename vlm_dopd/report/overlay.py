"""One image of a sample as the page shows it: a PNG data URI, and the boxes of the privileged record over it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from privileged import Sample
from privileged.geometry import Box, check_box, clamp_box

SIDE = 288  # px of the longer side; the scenes of the built-in task come out at exactly three times their size

COLUMN, TALLEST = 228, 300  # CSS px of a picture on the page; tags keep their size, so a wider one leaves more room
LETTER, PADDING, LINE, WIDEST = 6.0, 8.0, 13.0, 160.0  # CSS px of a tag, see `.box span` in page.css
CORNERS = ("above", "below", "above end", "below end", "beside", "before")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A labelled box in percent of the picture; `corner` is one of `CORNERS`, where its tag hangs."""

    label: str
    left: float
    top: float
    width: float
    height: float
    corner: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as a PNG data URI, its original size, and the boxes of the privileged record on it.

    `widest` is the CSS px it may take, so that a tall picture does not fill the page.
    """

    uri: str
    width: int
    height: int
    widest: int
    marks: tuple[Mark, ...]


def picture(sample: Sample, index: int) -> Picture:
    """Image `index` of `sample`. Regions that no one could draw (empty, wholly outside) are left out."""
    image = sample.images[index]
    regions = [
        region
        for region in (sample.privileged.regions if sample.privileged else ())
        if region.image == index and check_box(region.box, *image.size) is None
    ]
    boxes = [clamp_box(region.box, *image.size) for region in regions]
    stream = io.BytesIO()
    _sized(image).save(stream, format="PNG", optimize=True)
    return Picture(
        uri="data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii"),
        width=image.width,
        height=image.height,
        widest=widest(image.size),
        marks=marks([region.label for region in regions], boxes, image.size),
    )


def marks(labels: Sequence[str], boxes: Sequence[Box], size: tuple[int, int]) -> tuple[Mark, ...]:
    """Boxes (px of an image of that size) with their labels where they can be read best."""
    corners = _corners(labels, boxes, size)
    return tuple(_mark(label, box, corner, size) for label, box, corner in zip(labels, boxes, corners, strict=True))


def _sized(image: Image.Image) -> Image.Image:
    """Small pictures at `SIDE`, large ones at twice that, for sharp screens and print; in between as they are."""
    longest = max(image.size)
    if SIDE <= longest <= 2 * SIDE:
        return image
    scale = (SIDE if longest < SIDE else 2 * SIDE) / longest
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def widest(size: tuple[int, int]) -> int:
    """CSS px that a picture may take."""
    return max(1, min(SIDE, round(TALLEST * size[0] / size[1])))


def _mark(label: str, box: Box, corner: str, size: tuple[int, int]) -> Mark:
    x0, y0, x1, y1 = box
    width, height = size
    return Mark(
        label=label,
        left=round(100 * x0 / width, 2),
        top=round(100 * y0 / height, 2),
        width=round(100 * (x1 - x0) / width, 2),
        height=round(100 * (y1 - y0) / height, 2),
        corner=corner,
    )


def _corners(labels: Sequence[str], boxes: Sequence[Box], size: tuple[int, int]) -> list[str]:
    """For each box the corner whose tag hides least: of the tags before it, of the other boxes, of itself (by the
    picture's edge). Ties go to the first of `CORNERS`.
    """
    scale = min(COLUMN, widest(size)) / size[0]
    shown = [(x0 * scale, y0 * scale, x1 * scale, y1 * scale) for x0, y0, x1, y1 in boxes]
    frame = (0.0, 0.0, size[0] * scale, size[1] * scale)
    tags: list[Box] = []
    chosen = []
    for index, (label, box) in enumerate(zip(labels, shown, strict=True)):
        others = shown[:index] + shown[index + 1 :]
        candidates = {corner: _tag(label, box, corner) for corner in CORNERS}

        def hidden(corner: str, candidates: dict[str, Box] = candidates, others: list[Box] = others) -> float:
            tag = candidates[corner]
            outside = _overlap(tag, tag) - _overlap(tag, frame)
            # A tag over a tag, or cut by the edge, cannot be read; over a box it only hides a few pixels.
            return 4 * outside + 4 * sum(_overlap(tag, t) for t in tags) + sum(_overlap(tag, o) for o in others)

        chosen.append(min(CORNERS, key=hidden))
        tags.append(candidates[chosen[-1]])
    return chosen


def _tag(label: str, box: Box, corner: str) -> Box:
    x0, y0, x1, y1 = box
    width = min(len(label) * LETTER + PADDING, WIDEST)
    lefts = {"beside": x1, "before": x0 - width, "above end": x1 - width, "below end": x1 - width}
    tops = {"beside": y0, "before": y0, "above": y0 - LINE, "above end": y0 - LINE}
    left, top = lefts.get(corner, x0), tops.get(corner, y1)
    return left, top, left + width, top + LINE


def _overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)
