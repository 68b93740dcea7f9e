"""Prompts that ask what an image, an opinion or an answer is worth to a policy. They need no record.

A method names them as views: `degraded` and `masked` change the images, `praised` and `blamed` add a sentence about the
response that follows, and `quoted` shows a text. They differ from the plain prompt in nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from .builders import PrivilegedBlock
from .escape import escape
from .records import Sample

SHRUNK = 0.1
"""Share of each side that is left before an image is enlarged again (VA-OPD, 2605.21924)."""
MASKED = 0.5
"""Share of the squares that are painted over. OPD-V (2608.05131) masks at random; the share is our choice."""
SQUARE = 32
"""Pixels: one image token of Qwen3-VL."""
GREY = (128, 128, 128)

PRAISE = "A grader has read the response that follows and found it correct."
BLAME = "A grader has read the response that follows and found it wrong."


def degraded(sample: Sample) -> PrivilegedBlock:
    """Every image shrunk and enlarged to its own size again: what is large is still there, and as many image tokens."""
    return PrivilegedBlock(replace_images=tuple(_blurred(image) for image in sample.images))


def masked(sample: Sample) -> PrivilegedBlock:
    """Every image with half of its squares painted grey: always the same ones for one sample."""
    return PrivilegedBlock(
        replace_images=tuple(_masked(image, f"{sample.id}/{i}") for i, image in enumerate(sample.images))
    )


def praised(sample: Sample) -> PrivilegedBlock:
    """The sentence PRAISE, whatever the sample."""
    return PrivilegedBlock(parts=(PRAISE,))


def blamed(sample: Sample) -> PrivilegedBlock:
    """The sentence BLAME, whatever the sample."""
    return PrivilegedBlock(parts=(BLAME,))


def quoted(text: str, header: str) -> PrivilegedBlock:
    """`text`, which is data and therefore escaped, under a line that says what it is."""
    return PrivilegedBlock(parts=(f"{header}\n{escape(text)}",))


PROBES: dict[str, Callable[[Sample], PrivilegedBlock]] = {
    "degraded": degraded,
    "masked": masked,
    "praised": praised,
    "blamed": blamed,
}
"""By the name of the view."""


def _blurred(image: Image.Image) -> Image.Image:
    small = (max(1, round(image.width * SHRUNK)), max(1, round(image.height * SHRUNK)))
    return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def _masked(image: Image.Image, key: str) -> Image.Image:
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
    corners = [(x, y) for y in range(0, image.height, SQUARE) for x in range(0, image.width, SQUARE)]
    chosen = np.random.default_rng(seed).permutation(len(corners))[: math.ceil(len(corners) * MASKED)]
    painted = image.copy()
    for x, y in (corners[i] for i in chosen):
        painted.paste(GREY, (x, y, min(x + SQUARE, image.width), min(y + SQUARE, image.height)))
    return painted
