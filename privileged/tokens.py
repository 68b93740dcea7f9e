"""How many tokens a prompt has, before a pixel is made: the arithmetic of Qwen3-VL's own processor.

An image is resized so that both sides are multiples of `patch * merge` and its area lies between two limits, and then
costs one token for each square of that side. The released configuration has 64 to 16,384 tokens an image; 16,384 are
more than most budgets, so a `max_pixels` of one's own (the processor's `size["longest_edge"]`) is usual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import DataError
from .views import View

IMAGE_TOKEN = "<|image_pad|>"
MARKERS = 2
"""`<|vision_start|>` and `<|vision_end|>` around the pads of each image; the chat template writes them."""
MAX_RATIO = 200
"""Of the longer side to the shorter one: beyond it the processor refuses."""


@dataclass(frozen=True, kw_only=True)
class ImageGeometry:
    """The processor's numbers. `min_pixels` and `max_pixels` are areas after resizing, in px.

    >>> ImageGeometry().tokens(1024, 1024), ImageGeometry().resized(100, 60)
    (1024, (352, 224))
    """

    patch: int = 16
    merge: int = 2
    min_pixels: int = 65_536
    max_pixels: int = 16_777_216

    def __post_init__(self) -> None:
        for name in ("patch", "merge", "min_pixels", "max_pixels"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DataError(f"image geometry: {name}: expected a whole number from 1, got {value!r}")
        if self.min_pixels > self.max_pixels:
            raise DataError(
                f"image geometry: expected min_pixels up to max_pixels, got {self.min_pixels} and {self.max_pixels}"
            )

    @classmethod
    def from_processor(cls, processor: Any) -> ImageGeometry:
        """The geometry of a processor, of its image processor, or of the JSON object of either's configuration file."""
        source = _field(processor, "image_processor")
        source = processor if source is None else source
        size = _field(source, "size")
        older = source if isinstance(source, Mapping) else {}  # files of before `size`; they override it
        numbers = {
            "patch": _field(source, "patch_size"),
            "merge": _field(source, "merge_size"),
            "min_pixels": older.get("min_pixels") or _field(size, "shortest_edge"),  # areas, whatever their names say
            "max_pixels": older.get("max_pixels") or _field(size, "longest_edge"),
        }
        if missing := [name for name, value in numbers.items() if value is None]:
            raise DataError(
                f"image geometry: expected a Qwen3-VL processor with patch_size, merge_size and size, "
                f"got {type(processor).__name__} without {missing[0]}"
            )
        return cls(**numbers)

    @property
    def factor(self) -> int:
        """The side in px of the square that is one token."""
        return self.patch * self.merge

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in px of the image as the model sees it.

        Raises DataError for a side below 1 or a ratio of sides above 200.
        """
        low, high = min(width, height), max(width, height)
        if low < 1 or high / low > MAX_RATIO:
            raise DataError(f"image of {width}x{height}: expected sides from 1 px, at most {MAX_RATIO} to 1; crop it")
        factor = self.factor
        # Python's round() goes to the even neighbour, and so does the processor's.
        wide, tall = round(width / factor) * factor, round(height / factor) * factor
        if wide * tall > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            wide = max(factor, math.floor(width / shrink / factor) * factor)
            tall = max(factor, math.floor(height / shrink / factor) * factor)
        elif wide * tall < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            wide, tall = math.ceil(width * grow / factor) * factor, math.ceil(height * grow / factor) * factor
        return wide, tall

    def tokens(self, width: int, height: int) -> int:
        """Pads of an image of that size in px; with the MARKERS around them it costs two more."""
        wide, tall = self.resized(width, height)
        return (wide // self.factor) * (tall // self.factor)


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """The length of one prompt."""

    text: int
    """Everything but the pads: words, control tokens, MARKERS."""
    images: tuple[int, ...] = ()
    """Pads of each image."""

    @property
    def total(self) -> int:
        """What counts against `max_prompt_tokens`."""
        return self.text + sum(self.images)


def count_tokens(
    view: View,
    geometry: ImageGeometry,
    render: Callable[[View], str],
    count_text: Callable[[str], int],
    image_token: str = IMAGE_TOKEN,
) -> TokenCount:
    """Exactly as many tokens as the processor makes of `view`; the images need only sizes.

    `render` writes the chat template with one `image_token` an image, `count_text` is the length of a text in the
    tokenizer's ids, special tokens read as such, none added. Raises DataError if the template shows another number of
    images than the view has, which the processor would not notice.
    """
    return count_rendered(render(view), (image.size for image in view.images), geometry, count_text, image_token)


def count_rendered(
    text: str,
    sizes: Iterable[tuple[int, int]],
    geometry: ImageGeometry,
    count_text: Callable[[str], int],
    image_token: str = IMAGE_TOKEN,
) -> TokenCount:
    """`count_tokens` for a prompt already rendered, with images of these (width, height) in px."""
    pads = tuple(geometry.tokens(width, height) for width, height in sizes)
    if (shown := text.count(image_token)) != len(pads):
        raise DataError(f"prompt: expected one {image_token} for each of {len(pads)} images, got {shown}")
    return TokenCount(text=count_text(text) - len(pads), images=pads)


def _field(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
