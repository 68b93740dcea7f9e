"""Box arithmetic. The canonical box is `xyxy` float pixels, 0-based half-open edges, y down, upright image."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import DataError

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

    >>> px_to_rel1000((64, 48, 96.5, 88), 640, 480)
    (100, 100, 151, 183)
    >>> px_to_rel1000((100, 0, 100.2, 2000), 4000, 2000)
    (25, 0, 26, 1000)
    """

    def pair(low: float, high: float, side: int) -> tuple[int, int]:
        a = min(max(round(low / side * REL1000), 0), REL1000)
        b = min(max(round(high / side * REL1000), 0), REL1000)
        if a == b:
            a, b = (a, b + 1) if b < REL1000 else (a - 1, b)
        return a, b

    (x0, x1), (y0, y1) = pair(box[0], box[2], width), pair(box[1], box[3], height)
    return x0, y0, x1, y1


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0..1."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    both = wide * high
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def reading_order(boxes: list[Box]) -> list[int]:
    """Indices of `boxes` from top to bottom in lines, left to right within a line.

    A box joins the current line when its vertical centre lies above the lowest bottom edge that the line's first box
    has. Deterministic: ties keep the given order.

    >>> reading_order([(300, 12, 380, 40), (10, 60, 90, 90), (10, 10, 90, 40)])
    [2, 0, 1]
    """
    by_top = deque(sorted(range(len(boxes)), key=lambda i: (boxes[i][1], i)))
    order: list[int] = []
    while by_top:
        bottom = boxes[by_top[0]][3]
        line, rest = [by_top.popleft()], list[int]()
        while by_top and boxes[by_top[0]][1] < bottom:  # what begins below cannot have its centre above
            i = by_top.popleft()
            (line if (boxes[i][1] + boxes[i][3]) / 2 < bottom else rest).append(i)
        by_top.extendleft(reversed(rest))
        order += sorted(line, key=lambda i: (boxes[i][0], i))
    return order


UNITS = {"px": None, "rel1": 1.0, "percent": 100.0, "rel1000": 1000.0, "resized": None}
"""What the whole side of an image is in each unit. `px` and `resized` (pixels of the image as the model saw it, the
convention of Qwen2.5-VL) depend on the image."""
ORDERS = ("xyxy", "yxyx", "xywh", "cxcywh")
SPACES = ("display", "stored")


@dataclass(frozen=True, kw_only=True)
class Coords:
    """The coordinates of a file, as its format or its user declares them: nothing here looks at numbers and guesses.

    `order` `yxyx` also means y before x in points. `space` is `stored` if the file was made on the pixels as they lie
    in the image file, before its EXIF orientation turns them. `resized` is the size that the unit `resized` refers to.

    >>> Coords(order="xywh").to_px((64, 48, 32, 40), 640, 480)
    (64.0, 48.0, 96.0, 88.0)
    >>> Coords(unit="rel1000", order="yxyx").to_px((100, 250, 200, 500), 640, 480)
    (160.0, 48.0, 320.0, 96.0)
    """

    unit: str = "px"
    order: str = "xyxy"
    space: str = "display"
    resized: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, known in (("unit", tuple(UNITS)), ("order", ORDERS), ("space", SPACES)):
            if (value := getattr(self, name)) not in known:
                raise DataError(f"coords: {name}: expected one of {', '.join(known)}, got {value!r}")
        if (self.unit == "resized") != (self.resized is not None):
            raise DataError(f"coords: expected a resized size with the unit 'resized' only, got {self}")

    def to_px(self, values: Box, width: int, height: int) -> Box:
        """Four numbers of this convention as px, xyxy, of the `width` x `height` image (in the same space)."""
        x0, y0, x1, y1 = to_xyxy(values, self.order)
        sx, sy = self._sides(width, height)
        return x0 * width / sx, y0 * height / sy, x1 * width / sx, y1 * height / sy

    def from_px(self, box: Box, width: int, height: int) -> Box:
        """The inverse of `to_px`, not rounded."""
        x0, y0, x1, y1 = box
        sx, sy = self._sides(width, height)
        return from_xyxy((x0 * sx / width, y0 * sy / height, x1 * sx / width, y1 * sy / height), self.order)

    def point_to_px(self, point: Point, width: int, height: int) -> Point:
        """Two numbers of this convention as px (x, y)."""
        x, y = point if self.order != "yxyx" else (point[1], point[0])
        sx, sy = self._sides(width, height)
        return x * width / sx, y * height / sy

    def _sides(self, width: int, height: int) -> tuple[float, float]:
        if self.resized is not None:
            return float(self.resized[0]), float(self.resized[1])
        side = UNITS[self.unit]
        return (float(width), float(height)) if side is None else (side, side)


def to_xyxy(values: Box, order: str) -> Box:
    """Four numbers in one of ORDERS as x0, y0, x1, y1."""
    a, b, c, d = values
    if order == "yxyx":
        return b, a, d, c
    if order == "xywh":
        return a, b, a + c, b + d
    if order == "cxcywh":
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return a, b, c, d


def from_xyxy(box: Box, order: str) -> Box:
    """The inverse of `to_xyxy`."""
    x0, y0, x1, y1 = box
    if order == "yxyx":
        return y0, x0, y1, x1
    if order == "xywh":
        return x0, y0, x1 - x0, y1 - y0
    if order == "cxcywh":
        return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
    return x0, y0, x1, y1


def rotated_polygon(box: Box, degrees: float, pivot: str) -> tuple[Point, ...]:
    """Corners of `box` (px, xyxy) turned clockwise as seen on the screen, from the top left corner on, clockwise.

    `pivot` is `center` (CVAT) or `top_left` (Label Studio). Turn in pixels, never in percent: those of x and y differ.
    """
    x0, y0, x1, y1 = box
    px, py = ((x0 + x1) / 2, (y0 + y1) / 2) if pivot == "center" else (x0, y0)
    quarter, rest = divmod(degrees, 90.0)
    if rest == 0:  # keep right angles exact
        cos, sin = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarter) % 4]
    else:
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    return tuple((px + (x - px) * cos - (y - py) * sin, py + (x - px) * sin + (y - py) * cos) for x, y in corners)


def enclosing_box(points: Iterable[Point]) -> Box:
    """The smallest box that holds all `points` (at least one)."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def polygon_area(points: Sequence[Point]) -> float:
    """Area inside a ring of points, whichever way it runs."""
    ring = zip(points, [*points[1:], *points[:1]], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in ring)) / 2


def clip_polygon(points: tuple[Point, ...], width: int, height: int) -> tuple[Point, ...]:
    """The part of a polygon (px) inside the image; empty if there is none.

    Sutherland and Hodgman, one border after the other: a concave outline that leaves the image twice keeps its two
    parts joined along the border.
    """
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        kept: list[Point] = []
        for a, b in zip(points[-1:] + points[:-1], points, strict=True):
            inside_a, inside_b = sign * (a[axis] - limit) >= 0, sign * (b[axis] - limit) >= 0
            if inside_a != inside_b:
                t = (limit - a[axis]) / (b[axis] - a[axis])
                across = a[1 - axis] + t * (b[1 - axis] - a[1 - axis])
                kept.append((float(limit), across) if axis == 0 else (across, float(limit)))
            if inside_b:
                kept.append(b)
        points = tuple(kept)
    return points


def padded_square_to_px(box: Box, width: int, height: int) -> Box:
    """0..1 of the image centred in a square of its longer side (Visual-CoT's text form) -> px of the image itself."""
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    x0, y0, x1, y1 = box
    return x0 * side - left, y0 * side - top, x1 * side - left, y1 * side - top


def px_to_padded_square(box: Box, width: int, height: int) -> Box:
    """The inverse of `padded_square_to_px`."""
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    x0, y0, x1, y1 = box
    return (x0 + left) / side, (y0 + top) / side, (x1 + left) / side, (y1 + top) / side


def display_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Size of a `width` x `height` stored image once its EXIF `orientation` (1..8) is applied."""
    return (height, width) if orientation >= 5 else (width, height)


def point_to_display(point: Point, width: int, height: int, orientation: int) -> Point:
    """A point of the stored pixels (px of the `width` x `height` file) -> the same spot of the upright image."""
    x, y = point
    return {
        1: (x, y),
        2: (width - x, y),
        3: (width - x, height - y),
        4: (x, height - y),
        5: (y, x),
        6: (height - y, x),
        7: (height - y, width - x),
        8: (y, width - x),
    }[orientation]


def box_to_display(box: Box, width: int, height: int, orientation: int) -> Box:
    """A box of the stored pixels -> the same place of the upright image. A reversed box comes back put in order.

    >>> display_size(640, 480, 6), box_to_display((0, 0, 100, 50), 640, 480, 6)  # 6: to be turned to the right
    ((480, 640), (430, 0, 480, 100))
    """
    x0, y0, x1, y1 = box
    return enclosing_box(point_to_display(corner, width, height, orientation) for corner in ((x0, y0), (x1, y1)))
