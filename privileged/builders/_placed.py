"""The regions of a record on the images of its sample: checked, clamped, in reading order, and written as one line."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..errors import DataError
from ..escape import escape
from ..geometry import Box, check_box, clamp_box, px_to_rel1000, reading_order
from ..records import PrivilegedRecord, Region, Sample

STYLES = ("json", "lines")
"""`json` is the form Qwen3-VL was trained on (34 tokens a box), `lines` the thrifty one (20)."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A region and what is left of its box (px) within its image of `size` (width, height)."""

    region: Region
    box: Box
    size: tuple[int, int]

    @property
    def rel1000(self) -> list[int]:
        """The box in Qwen3-VL's own coordinates: integers 0..1000 of the whole image, x1, y1, x2, y2."""
        return list(px_to_rel1000(self.box, *self.size))


def placed(sample: Sample, record: PrivilegedRecord) -> list[Placed]:
    """All regions of `record`: image by image, in reading order within one, whatever order the annotator used.

    Raises DataError, with the sample and region, for a box that is not on its image.
    """
    by_image: list[list[Region]] = [[] for _ in sample.images]
    for region in record.regions:
        where = f"sample {sample.id!r}: region {region.id!r}"
        if region.image >= len(sample.images):
            raise DataError(f"{where}: expected image < {len(sample.images)}, got {region.image}")
        if problem := check_box(region.box, *sample.images[region.image].size):
            raise DataError(f"{where}: box {list(region.box)} {problem}")
        by_image[region.image].append(region)
    return [
        Placed(region=regions[i], box=clamp_box(regions[i].box, *image.size), size=image.size)
        for image, regions in zip(sample.images, by_image, strict=True)
        for i in reading_order([region.box for region in regions])
    ]


def one_line(text: str) -> str:
    """`text`, escaped, without line breaks: one region is one line, whatever its label holds."""
    return " ".join(escape(text).split())


def box_line(place: Placed, style: str, many: bool, **fields: str) -> str:
    """One region in one of STYLES with its text `fields`; with `many` images, the image is named, from 1."""
    texts = {name: one_line(text) for name, text in fields.items()}
    number = place.region.image + 1
    if style == "json":
        entry = {"image": number} if many else {}
        return json.dumps(entry | {"bbox_2d": place.rel1000} | texts, ensure_ascii=False)
    first, *rest = texts.values()
    box = ",".join(map(str, place.rel1000))
    return f"- {f'image {number}: ' if many else ''}{': '.join([f'{first} ({box})', *rest])}"
