"""Image -> image: labelled boxes drawn on it, and the window of a crop. The input is never changed.

Outlines lie around their box, so that the pixels of the object stay visible; at the border of the image, where there
is no room, they move inwards. Tags hold numbers only: Pillow's own font has no letters beyond Latin, and a legend in
the prompt can spell any label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

from PIL import Image, ImageDraw, ImageFont

from .errors import DataError
from .geometry import Box, check_box

Pixels = tuple[int, int, int, int]
"""A box of whole pixels, xyxy, half-open."""

PALETTE = (
    (226, 1, 52), (0, 141, 249), (255, 195, 59), (0, 159, 129), (132, 0, 205), (255, 110, 58),
    (0, 252, 207), (159, 1, 98), (255, 178, 253), (0, 194, 249), (164, 1, 34), (255, 90, 175),
)  # fmt: skip
"""Twelve colours that people with any colour blindness tell apart (M. Krzywinski's palette), strong ones first."""

MAX_ASPECT = 100
"""Crops are grown until they are no longer than this many times their width. Qwen3-VL's processors refuse 200."""

Size = tuple[int, int]
"""Width and height."""


def line_width(size: Size) -> int:
    """Of an outline, in px: visible after the processor has shrunk a large image."""
    return max(2, round(min(size) / 200))


def pixel_box(box: Box, size: Size) -> Pixels:
    """The whole pixels that `box` touches. Raises DataError for a box that is not on the image."""
    if problem := check_box(box, *size):
        raise DataError(f"box {list(box)} {problem}")
    return (
        max(math.floor(box[0]), 0),
        max(math.floor(box[1]), 0),
        min(math.ceil(box[2]), size[0]),
        min(math.ceil(box[3]), size[1]),
    )


def frame_box(box: Box, size: Size) -> Pixels:
    """The outer edge of the outline of `box`: one line width around its pixels, cut to the image."""
    x0, y0, x1, y1 = pixel_box(box, size)
    width = line_width(size)
    return max(x0 - width, 0), max(y0 - width, 0), min(x1 + width, size[0]), min(y1 + width, size[1])


def draw_boxes(image: Image.Image, boxes: Sequence[Box], numbers: Sequence[int], tags: bool = True) -> Image.Image:
    """A copy of `image` (RGB) with an outline around each of `boxes` (px), in the colour of its number, from 1.

    With `tags`, the number is written beside it. Large boxes are drawn first, tags last, so that nothing small is
    covered. Raises DataError for a box that is not on the image.
    """
    drawn = image.convert("RGB")  # a copy, also of an RGB image
    canvas = ImageDraw.Draw(drawn)
    colours = [PALETTE[(n - 1) % len(PALETTE)] for n in numbers]
    frames = [frame_box(box, image.size) for box in boxes]
    for i in sorted(range(len(boxes)), key=lambda i: (-_area(frames[i]), i)):
        _outline(canvas, frames[i], line_width(image.size), colours[i])
    if tags:
        for tag, number, colour in zip(tag_boxes(boxes, numbers, image.size), numbers, colours, strict=True):
            _tag(canvas, tag, str(number), colour, _font(image.size))
    return drawn


def tag_boxes(boxes: Sequence[Box], numbers: Sequence[int], size: Size) -> list[Pixels]:
    """Where the tag of each box lies: on top of its outline, or wherever along the outline it hides least.

    Tags of small boxes are placed first, because they have the fewest places to go.
    """
    font = _font(size)
    places = [frame_box(box, size) for box in boxes]
    tags: dict[int, Pixels] = {}
    for i in sorted(range(len(boxes)), key=lambda i: (_area(places[i]), i)):
        taken = list(tags.values())
        # The far larger ones can lose a tag's worth of pixels.
        near = [place for place in places if _area(place) <= 4 * _area(places[i])]

        def hidden(tag: Pixels, taken: list[Pixels] = taken, near: list[Pixels] = near) -> int:
            # A tag over a tag cannot be read; over a box it hides a part of what is in it.
            return 100 * sum(_overlap(tag, other) for other in taken) + sum(_overlap(tag, place) for place in near)

        tags[i] = min(_tag_candidates(places[i], _tag_size(str(numbers[i]), font), size), key=hidden)
    return [tags[i] for i in range(len(boxes))]


def crop_window(box: Box, size: Size, pad: float, min_side: int) -> Pixels:
    """The part of the image to cut out for `box`: `pad` of its sides more on each side, at least `min_side` px wide
    and high, no longer than MAX_ASPECT times its width, as far as the image reaches.

    It always holds the whole box, and lies within the image. Raises DataError for a box that is not on the image.
    """
    x0, y0, x1, y1 = pixel_box(box, size)
    across, down = math.ceil(pad * (x1 - x0)), math.ceil(pad * (y1 - y0))
    left, right = _grown(x0 - across, x1 + across, min_side, size[0])
    top, bottom = _grown(y0 - down, y1 + down, min_side, size[1])
    left, right = _grown(left, right, math.ceil((bottom - top) / MAX_ASPECT), size[0])
    top, bottom = _grown(top, bottom, math.ceil((right - left) / MAX_ASPECT), size[1])
    return left, top, right, bottom


def _grown(low: int, high: int, least: int, side: int) -> tuple[int, int]:
    """`low..high` cut to `0..side`, then grown about its middle to at least `least`, moved inwards at a border."""
    low, high = max(low, 0), min(high, side)
    length = min(max(high - low, least), side)
    low = min(max(low - (length - (high - low)) // 2, 0), side - length)
    return low, low + length


def _outline(canvas: ImageDraw.ImageDraw, frame: Pixels, width: int, colour: tuple[int, int, int]) -> None:
    x0, y0, x1, y1 = frame[0], frame[1], frame[2] - 1, frame[3] - 1  # Pillow's corners are inclusive
    across, down = min(width, x1 - x0 + 1) - 1, min(width, y1 - y0 + 1) - 1
    for bar in (
        (x0, y0, x1, y0 + down),
        (x0, y1 - down, x1, y1),
        (x0, y0, x0 + across, y1),
        (x1 - across, y0, x1, y1),
    ):
        canvas.rectangle(bar, fill=colour)


def _tag(
    canvas: ImageDraw.ImageDraw, tag: Pixels, text: str, colour: tuple[int, int, int], font: ImageFont.FreeTypeFont
) -> None:
    red, green, blue = colour
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
    canvas.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=colour)
    canvas.text(((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2), text, fill=ink, font=font, anchor="mm")


def _font(size: Size) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=max(11, round(min(size) / 30)))
    assert isinstance(font, ImageFont.FreeTypeFont)  # it is, wherever Pillow comes from a wheel
    return font


def _tag_size(text: str, font: ImageFont.FreeTypeFont) -> Size:
    left, top, right, bottom = font.getbbox(text, anchor="mm")
    return math.ceil(right - left) + 4, math.ceil(bottom - top) + 4


def _tag_candidates(frame: Pixels, tag: Size, size: Size) -> list[Pixels]:
    """Where a tag may lie, best first: above the frame, inside below its top edge, beside it, under it."""
    x0, y0, x1, y1 = frame
    width, height = tag
    columns = [x0, x1 - width, (x0 + x1 - width) // 2]
    rows = [y0, y1 - height, (y0 + y1 - height) // 2]
    corners = [
        *product(columns, [y0 - height]),
        *product(columns, [y0]),
        *product([x0 - width, x1], rows),
        *product(columns, [y1, y1 - height]),
    ]
    inside = [(x, y) for x, y in corners if x >= 0 and y >= 0 and x + width <= size[0] and y + height <= size[1]]
    # A box that fills a small image leaves no room: then the tag is moved in, at worst cut by the far border.
    moved = [(max(min(x, size[0] - width), 0), max(min(y, size[1] - height), 0)) for x, y in corners]
    return [(x, y, x + width, y + height) for x, y in inside or moved]


def _area(box: Pixels) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Pixels, b: Pixels) -> int:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
