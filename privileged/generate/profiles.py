"""Coordinate conventions of grounding models: how we ask for boxes, and what the four numbers then mean.

Families differ in unit and in order, and a reply does not show which it is: the same range 0..1000 is x first for
Qwen3-VL and y first for Gemini; Qwen2.5-VL counts pixels of the image as resized for it. So the user declares a
profile, and a probe proves it before the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from ..geometry import Coords
from ..reader_files import number, short
from ..readers._replies import check_rel1000

Size = tuple[int, int]
"""Width and height in px."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One convention: `key` names the box in the reply, `words` ask for it."""

    key: str
    unit: str
    order: str
    words: str
    multiple: int = 1
    """Both sides of a sent image are multiples of this."""
    whole: bool = True
    """Coordinates are integers."""

    def coords(self, sent: Size) -> Coords:
        """For an image that was sent with the size `sent`."""
        return Coords(unit=self.unit, order=self.order, resized=sent if self.unit == "resized" else None)

    def check(self, values: Any) -> None:
        """Raises DataError for numbers that prove another convention than this one."""
        if self.unit == "rel1000":
            check_rel1000(values)
        elif self.unit == "rel1":
            for value in values if isinstance(values, list) else ():
                if not 0 <= number(value, "coordinate") <= 1:
                    raise DataError(f"coordinate {short(value)}: expected 0..1; declare another convention")

    def sent_size(self, size: Size, max_side: int) -> Size:
        """The size in which an upright image of `size` is sent: shrunk to `max_side`, never enlarged but to
        multiples. Models of the `resized` unit then have nothing left to resize, so their pixels are ours."""
        scale = min(1.0, max_side / max(size))
        if self.multiple == 1:
            return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        largest = max_side // self.multiple
        across, down = (min(max(2, round(side * scale / self.multiple)), largest) for side in size)
        return across * self.multiple, down * self.multiple


REL1000 = "integers from 0 to 1000, relative to the whole image (0 is its left or top edge, 1000 its right or bottom)"
PIXELS = "integers in pixels of the image, whose size is given"
X_FIRST = "[x1, y1, x2, y2]: left, top, right, bottom; x comes first"

PROFILES = {
    "qwen3": Profile(key="bbox_2d", unit="rel1000", order="xyxy", words=f"{REL1000}, as {X_FIRST}"),
    "gemini": Profile(
        key="box_2d", unit="rel1000", order="yxyx",
        words=f"{REL1000}, as [ymin, xmin, ymax, xmax]: top, left, bottom, right; y comes first",
    ),
    "qwen2_5": Profile(key="bbox_2d", unit="resized", order="xyxy", words=f"{PIXELS}, as {X_FIRST}", multiple=28),
    "px": Profile(key="bbox", unit="resized", order="xyxy", words=f"{PIXELS}, as {X_FIRST}"),
    "rel1": Profile(
        key="bbox", unit="rel1", order="xyxy", whole=False,
        words=f"numbers from 0 to 1 with four decimals, relative to the whole image, as {X_FIRST}",
    ),
}  # fmt: skip
"""What `coords` may be. `px` are pixels of the image as sent."""
