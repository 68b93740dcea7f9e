"""What happens to every object of an annotation file. Nothing is left out without a count and a reason.

Each object gets exactly one fate: `kept`, `clamped` (kept, cut to its image) or `dropped:<reason>` with one of REASONS.
Each image or sample likewise gets `kept` or `dropped:<reason>`. What is merely worth knowing is a `note`.
"""

from __future__ import annotations

import bisect
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .errors import DataError
from .geometry import Box, check_box, iou

MIN_AREA_PX = 4.0
MIN_AREA_SHARE = 1e-5
MAX_AREA_SHARE = 0.95
SAME_IOU = 0.98
MAX_LABEL = 80
EXAMPLES = 3
"""So many places of each fate are remembered word by word."""

REASONS = {
    "malformed": "a field is missing or of the wrong type",
    "not a number": "a coordinate is NaN or infinite",
    "reversed": "x1 < x0 or y1 < y0 in a format that fixes the order of corners",
    "empty": "no width or no height",
    "outside": "no part of it lies on the image",
    "tiny": f"less than {MIN_AREA_PX:g} square pixels or {MIN_AREA_SHARE:g} of the image",
    "whole image": f"more than {MAX_AREA_SHARE:.0%} of the image: says nothing about where to look",
    "duplicate": f"same label and IoU above {SAME_IOU} with an earlier object",
    "empty label": "no label, or only whitespace",
    "long label": f"a label of more than {MAX_LABEL} characters is a sentence",
    "unknown category": "the file does not define its category id",
    "crowd": "a box around a group that is labelled as one object",
    "annotation without image": "the file does not list the image it belongs to",
    "no image size": "neither the file nor an image under image_root tells the size",
    "image not found": "no readable image of that name under image_root",
    "size mismatch": "the annotation was made for an image of another size",
    "size swapped": "width and height are exchanged: made on stored pixels? declare space='stored'",
    "same id": "an earlier sample has this id",
    "skipped": "the format itself marks it as not valid (cancelled, outside the frame, turned in the editor)",
}
KEEPABLE = ("tiny", "whole image", "duplicate", "long label", "crowd")
"""Reasons that the user may overrule (`keep=`): these objects can still be drawn."""


class Dropped(DataError):
    """Raised by a reader for an object or image whose fate is `dropped:<reason>`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        assert reason in REASONS
        self.reason = reason


@dataclass(kw_only=True)
class Report:
    """Counts of all fates, and the first places where each happened. Sums of reports of the parts of a data set hold
    for the whole."""

    objects: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop_object(self, error: DataError) -> None:
        """Count one object that `error` stopped: by its reason if it has one, else as malformed."""
        self._count(self.objects, f"dropped:{getattr(error, 'reason', 'malformed')}", str(error))

    def lose(self, regions: Iterable[Any], error: DataError) -> None:
        """Count regions that were kept, or clamped, as dropped after all: their sample is not used."""
        for region in regions:
            self.objects["clamped" if "clipped" in region.extra else "kept"] -= 1
            self.drop_object(error)
        self.objects = +self.objects

    def drop_image(self, error: DataError) -> None:
        """Count one image or sample that `error` stopped."""
        self._count(self.images, f"dropped:{getattr(error, 'reason', 'malformed')}", str(error))

    def note(self, what: str, where: str) -> None:
        """Count something worth knowing that changes no fate."""
        self._count(self.notes, what, where)

    def merge(self, other: Report) -> None:
        """Add the counts of another part of the same data set."""
        for name in ("objects", "images", "notes"):
            getattr(self, name).update(getattr(other, name))
        for fate, places in other.examples.items():
            self.examples[fate] = (self.examples.get(fate, []) + places)[:EXAMPLES]

    def take(self) -> Report:
        """All counts so far as a report of their own; this one starts again from nothing."""
        taken = Report(objects=self.objects, images=self.images, notes=self.notes, examples=self.examples)
        self.objects, self.images, self.notes, self.examples = Counter(), Counter(), Counter(), {}
        return taken

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back."""
        return json.dumps({name: getattr(self, name) for name in ("images", "objects", "notes", "examples")})

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote."""
        row = json.loads(text)
        counts = {name: Counter(row[name]) for name in ("images", "objects", "notes")}
        return cls(**counts, examples=row["examples"])

    def lines(self) -> list[str]:
        """The report for people: a line a fate, its first places below it."""
        lines = []
        for name in ("images", "objects", "notes"):
            counts: Counter[str] = getattr(self, name)
            lines.append(f"{name}: {counts.total()}")
            for fate, number in sorted(counts.items()):
                reason = REASONS.get(fate.removeprefix("dropped:"), "")
                lines.append(f"  {fate}: {number}" + (f" ({reason})" if reason else ""))
                lines += [f"    {place}" for place in self.examples.get(fate, [])]
        return lines

    def _count(self, counts: Counter[str], fate: str, place: str) -> None:
        counts[fate] += 1
        places = self.examples.setdefault(fate, [])
        if len(places) < EXAMPLES:
            places.append(place)


def check_label(label: Any) -> str:
    """`label` without outer whitespace. Raises Dropped for one that is empty or None; DataError for another type."""
    if label is None or (isinstance(label, str) and not label.strip()):
        raise Dropped("empty label", f"label: expected a name, got {label!r}")
    if not isinstance(label, str):
        raise DataError(f"label: expected a string, got {label!r}")
    return label.strip()


def check_placement(box: Box, width: int, height: int) -> None:
    """Raises Dropped if `box` (px, xyxy) cannot be drawn on the `width` x `height` image."""
    if (problem := check_box(box, width, height)) is None:
        return
    x0, y0, x1, y1 = box
    if not all(map(math.isfinite, box)):
        reason = "not a number"
    elif x1 < x0 or y1 < y0:
        reason = "reversed"
    elif x1 == x0 or y1 == y0:
        reason = "empty"
    else:
        reason = "outside"
    raise Dropped(reason, f"box {list(box)} {problem}")


def doubts(label: str, box: Box, width: int, height: int) -> list[str]:
    """Those of KEEPABLE that hold for one drawable, clamped box, in the order of REASONS."""
    area, whole = (box[2] - box[0]) * (box[3] - box[1]), width * height
    found = ["tiny"] if area < MIN_AREA_PX or area < MIN_AREA_SHARE * whole else []
    found += ["whole image"] if area > MAX_AREA_SHARE * whole else []
    return found + (["long label"] if len(label) > MAX_LABEL else [])


class Duplicates:
    """Remembers the boxes of one image; finds one that covers the same place under the same label."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[float, Box]]] = {}

    def add(self, label: str, box: Box) -> bool:
        """True if `box` has an IoU above SAME_IOU with an earlier one; otherwise it is remembered.

        Such boxes differ by less than 2.1 % of a side in x0 and in y0, so only neighbours in x0 + y0 are compared:
        10,000 boxes of one label cost little more than sorting them.
        """
        seen = self._seen.setdefault(label, [])
        key = box[0] + box[1]
        reach = 0.021 * (box[2] - box[0] + box[3] - box[1])
        place = bisect.bisect_left(seen, key - reach, key=lambda entry: entry[0])
        while place < len(seen) and seen[place][0] <= key + reach:
            if iou(box, seen[place][1]) > SAME_IOU:
                return True
            place += 1
        bisect.insort(seen, (key, box))
        return False
