"""The images of a sample with the boxes of its regions drawn on them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ..draw import draw_boxes
from ..records import Sample
from ._placed import Placed

MODES = ("append", "replace")


def drawn_images(sample: Sample, places: Sequence[Placed], numbered: bool) -> dict[int, Image.Image]:
    """index -> copy of the image with its boxes, for images that have any, in their order.

    The number of a region is its place in `places`, from 1, over all images; so is its colour.
    """
    drawn = {}
    for index in sorted({place.region.image for place in places}):
        own = [(number, place.box) for number, place in enumerate(places, start=1) if place.region.image == index]
        numbers, boxes = [number for number, _ in own], [box for _, box in own]
        drawn[index] = draw_boxes(sample.images[index], boxes, numbers, tags=numbered)
    return drawn
