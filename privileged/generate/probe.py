"""Three drawn images with known boxes, asked for before the run: does the model keep to the declared convention?

The range of numbers cannot tell x first from y first, nor 0..1000 from pixels of a small image, and a whole data set of
wrong boxes raises no error. So nothing is asked of real rows unless the known boxes come back where they are.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw

from ..errors import DataError
from ..geometry import Box, Coords, check_box, iou
from ..reader_files import numbers
from . import prompts
from .asker import Asker, NotAsked
from .endpoint import Lost, Rejected
from .pictures import Picture
from .profiles import PROFILES, Size
from .replies import Unusable, parse_regions
from .request import Request
from .settings import Settings

LEAST = 0.5
"""Mean IoU that the known boxes must have with the replies."""

SCENES: tuple[tuple[Size, str, tuple[Box, ...]], ...] = (
    ((640, 480), "red", ((0.62, 0.10, 0.90, 0.35),)),
    ((900, 360), "green", ((0.05, 0.55, 0.25, 0.95),)),
    ((420, 840), "blue", ((0.55, 0.06, 0.95, 0.24), (0.10, 0.40, 0.40, 0.50))),
)
"""Size, colour and boxes (0..1). With x and y exchanged, none of the boxes touches one of its image."""

OTHERS = {
    "pixels, y first": ("resized", "yxyx"),
    "0..1, y first": ("rel1", "yxyx"),
    "0..1000, [x, y, width, height]": ("rel1000", "xywh"),
    "pixels, [x, y, width, height]": ("resized", "xywh"),
}
"""Conventions that no profile reads; named if they fit best."""


async def run_probe(settings: Settings, asker: Asker) -> str:
    """What was found, in a line. Raises DataError if the known boxes are not where the replies say, with the convention
    that fits best; and if the endpoint gives no replies. NotAsked as `ask`."""
    replies: list[tuple[list[Any], Size, Size, list[Box]]] = []
    problems: list[str] = []
    not_asked: NotAsked | None = None
    for request, size, boxes in probe_requests(settings):
        try:
            items, _ = await asker.ask(request, parse_regions)
        except NotAsked as error:  # a dry run counts all three
            not_asked, items = error, []
        except Unusable as error:
            items = []
            problems.append(str(error))
        except (Lost, Rejected) as error:
            raise DataError(
                f"probe: expected a reply of {settings.model} at {settings.base_url}, got {error}"
            ) from None
        replies.append((items, size, request.pictures[0].size, boxes))
    if not_asked is not None:
        raise not_asked
    fits = {name: _fit(name, replies) for name in (settings.coords, *(PROFILES.keys() - {settings.coords}), *OTHERS)}
    found = fits[settings.coords]
    if found > LEAST:
        return f"probe: known boxes found with a mean IoU of {found:.2f} in the convention {settings.coords!r}"
    best = max(sorted(fits), key=lambda name: fits[name])
    if problems:
        advice = f"{len(problems)} of {len(replies)} replies are not usable ({problems[0]})"
    elif fits[best] <= LEAST:
        advice = (
            f"no other convention fits either (best {best!r} with {fits[best]:.2f}): this model does not place boxes"
        )
    else:
        advice = f"best fits {best!r} with {fits[best]:.2f}" + (f"; set coords={best!r}" if best in PROFILES else "")
    raise DataError(
        f"probe: boxes of {settings.model} read as {settings.coords!r} have a mean IoU of {found:.2f} with the known "
        f"ones, expected above {LEAST}; {advice}"
    )


def probe_requests(settings: Settings) -> list[tuple[Request, Size, list[Box]]]:
    """The requests, with the size of each image as drawn and its boxes in px: the prompt of the run, other pictures."""
    profile = PROFILES[settings.coords]
    requests = []
    for size, colour, shares in SCENES:
        boxes = [Coords(unit="rel1").to_px(share, *size) for share in shares]
        sent = profile.sent_size(size, settings.max_side)
        identity = hashlib.sha256(f"probe {size} {colour} {shares}".encode()).hexdigest()
        question = f"Where is each {colour} rectangle?"
        request = Request(
            prompt=prompts.VERSIONS["boxes"],
            messages=prompts.ask_boxes(question, [sent], profile, settings.max_regions),
            pictures=(Picture(functools.partial(_draw, size, colour, boxes), sent, identity),),
            schema=prompts.schema(prompts.VERSIONS["boxes"], profile, many=False),
            about=f"probe {colour}",
        )
        requests.append((request, size, boxes))
    return requests


def _draw(size: Size, colour: str, boxes: Sequence[Box]) -> Image.Image:
    image = Image.new("RGB", size, "gainsboro")
    for x0, y0, x1, y1 in boxes:
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour)
    return image


def _fit(name: str, replies: Sequence[tuple[list[Any], Size, Size, list[Box]]]) -> float:
    """Mean IoU of all known boxes with the nearest ones of their replies, read in one convention."""
    overlaps = []
    for items, size, sent, known in replies:
        found = [box for item in items if (box := _read(name, item, size, sent)) is not None]
        overlaps += [max((iou(box, other) for other in found), default=0.0) for box in known]
    return sum(overlaps) / len(overlaps)


def _read(name: str, item: Any, size: Size, sent: Size) -> Box | None:
    """The box of one object of a reply, in px of the image as drawn; None for anything that is no box."""
    if not isinstance(item, dict):
        return None
    if name in PROFILES:
        profile = PROFILES[name]
        if profile.multiple > 1:
            sent = profile.sent_size(sent, max(sent))
        coords = profile.coords(sent)
    else:
        unit, order = OTHERS[name]
        coords = Coords(unit=unit, order=order, resized=sent if unit == "resized" else None)
    for value in item.values():  # whatever the model calls it: only its numbers count here
        try:
            x0, y0, x1, y1 = numbers(value, 4, "box")
        except DataError:
            continue
        box = coords.to_px((x0, y0, x1, y1), *size)
        return box if check_box(box, *size) is None else None
    return None
