"""Box arithmetic. The canonical box is `xyxy` float pixels, 0-based half-open edges, y down, upright image."""

from __future__ import annotations

import math

Box = tuple[float, float, float, float]
Point = tuple[float, float]

REL1000 = 1000
"""Qwen3-VL grounds in integers 0..1000 of the whole image, x first, independent of any resizing."""


def check_box(box: Box, width: int, height: int) -> str | None:
    """Reason why `box` (px, xyxy) is not a drawable box of a `width` x `height` image, or None if it is one."""
    if not all(math.isfinite(edge) for edge in box):
        return "has an edge that is not a finite number"
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return "is empty or reversed (expected x0 < x1 and y0 < y1)"
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        return f"lies wholly outside the {width}x{height} image"
    return None


def clamp_box(box: Box, width: int, height: int) -> Box:
    """`box` (px, xyxy) cut to the image; the caller has checked that they overlap."""
    x0, y0, x1, y1 = box
    return (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))


def px_to_rel1000(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Pixels -> integers 0..1000, `round(edge / side * 1000)` as in the vendor's fine-tuning tools.

    Plain rounding collapses thin boxes of large images to nothing, so an edge pair that became equal is widened by
    one unit, inwards at the far border.
    """

    def pair(low: float, high: float, side: int) -> tuple[int, int]:
        a = min(max(round(low / side * REL1000), 0), REL1000)
        b = min(max(round(high / side * REL1000), 0), REL1000)
        if a == b:
            a, b = (a, b + 1) if b < REL1000 else (a - 1, b)
        return a, b

    (x0, x1), (y0, y1) = pair(box[0], box[2], width), pair(box[1], box[3], height)
    return x0, y0, x1, y1


def reading_order(boxes: list[Box]) -> list[int]:
    """Indices of `boxes` from top to bottom in lines, left to right within a line.

    A box joins the current line when its vertical centre lies above the lowest bottom edge that the line's first box
    has. Deterministic: ties keep the given order.
    """
    by_top = sorted(range(len(boxes)), key=lambda i: (boxes[i][1], i))
    order: list[int] = []
    while by_top:
        first = boxes[by_top[0]]
        line = [i for i in by_top if (boxes[i][1] + boxes[i][3]) / 2 < first[3]]
        line = line or by_top[:1]
        order += sorted(line, key=lambda i: (boxes[i][0], i))
        by_top = [i for i in by_top if i not in line]
    return order
