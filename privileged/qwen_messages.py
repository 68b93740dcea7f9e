"""Chat messages as Qwen-VL users keep them: `{"role": "user", "content": [{"type": "image", "image": "a.png"}, …]}`.

The conventions are those of `qwen-vl-utils`: an image is given as `image` or `image_url`, and a part may ask for a size
of its own by `resized_height` and `resized_width`, or by `min_pixels` and `max_pixels`. The images are read by our own
loader: upright, bounded, out of one folder, without network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import DataError
from .image_policy import DEFAULT, ImagePolicy
from .images import image_source, load_image
from .tokens import ImageGeometry

ASKED = ImageGeometry(min_pixels=4 * 32 * 32, max_pixels=16_384 * 32 * 32)
"""What holds where a part names only one limit: the defaults of `qwen-vl-utils` for patches of 16."""
SIZE_KEYS = ("resized_height", "resized_width", "min_pixels", "max_pixels")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one row of messages says. The images are upright RGB, in order."""

    question: str
    images: tuple[Image.Image, ...]
    answer: str | None = None


def read_turn(messages: Any, root: Path, policy: ImagePolicy = DEFAULT) -> Turn:
    """One user turn, its images before its text, and at most one answer of the assistant after it.

    Raises DataError for anything else: a system turn, further turns, images between words and videos have no place in
    a sample and are not left out in silence. An image that asks for a size is resized: coordinates in px that come with
    it must be those of the resized image.
    """
    turns = list(_turns(messages))
    roles = [role for role, _ in turns]
    if roles not in (["user"], ["user", "assistant"]):
        raise DataError(f"messages: expected one user turn and at most one answer, got {', '.join(roles) or 'none'}")
    images: list[Image.Image] = []
    texts: list[str] = []
    for number, part in enumerate(turns[0][1]):
        where = f"messages[0].content[{number}]"
        kind, value = _kind(part, where)
        if kind == "text":
            texts.append(value)
        elif texts:
            raise DataError(f"{where}: expected images before the text, got one after it; say which is which in words")
        else:
            images.append(_resized(load_image(_source(value, where), root, policy), part, where))
    answer = None
    if len(turns) == 2:
        parts = [_kind(part, f"messages[1].content[{i}]") for i, part in enumerate(turns[1][1])]
        if any(kind != "text" for kind, _ in parts):
            raise DataError("messages[1]: expected text as the answer, got an image")
        answer = "".join(value for _, value in parts)
    return Turn(question="".join(texts), images=tuple(images), answer=answer)


def turn_sources(messages: Any) -> list[bytes | str]:
    """The sources of the images that `read_turn` would load, in its order."""
    parts = [part for _, content in _turns(messages) for part in content]
    return [_source(value, "messages") for kind, value in (_kind(p, "messages") for p in parts) if kind == "image"]


def _turns(messages: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(role, content parts) of each message; what is null was filled in by Arrow and is left out."""
    if not isinstance(messages, list):
        raise DataError(f"messages: expected a list, got {type(messages).__name__}")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f"{where}: expected an object with role and content, got {str(message)[:60]!r}")
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
            raise DataError(f"{where}: content: expected text or a list of parts, got {str(content)[:60]!r}")
        yield message["role"], [{k: v for k, v in part.items() if v is not None} for part in content]


def _kind(part: dict[str, Any], where: str) -> tuple[str, Any]:
    """("image", its source) or ("text", the text)."""
    given = [key for key in ("image", "image_url", "text", "video") if key in part]
    if len(given) != 1 or given == ["video"]:
        raise DataError(f"{where}: expected one of image, image_url or text, got {', '.join(given) or 'none'}")
    if given == ["text"]:
        if not isinstance(part["text"], str):
            raise DataError(f"{where}: text: expected a string, got {part['text']!r}"[:200])
        return "text", part["text"]
    return "image", part[given[0]]


def _source(value: Any, where: str) -> bytes | str:
    if isinstance(value, dict) and "url" in value:  # the form of OpenAI's interface
        value = value["url"]
    source = image_source(value, where)
    # Written so in Qwen's README. What is left is a path like any other, and must lie under the root.
    return source.removeprefix("file://") if isinstance(source, str) else source


def _resized(image: Image.Image, part: dict[str, Any], where: str) -> Image.Image:
    """`image` in the size that `part` asks for; as it is if it asks for none: the processor then decides alone."""
    asked = {key: part[key] for key in SIZE_KEYS if key in part}
    for key, value in asked.items():
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
        if not whole or not 1 <= value <= ASKED.max_pixels:
            raise DataError(f"{where}: {key}: expected a number of pixels from 1, got {str(value)[:40]}")
    asked = {key: int(value) for key, value in asked.items()}  # Arrow turns a column with gaps into floats
    if ("resized_height" in asked) != ("resized_width" in asked):
        raise DataError(f"{where}: expected resized_height and resized_width, got one of them")
    if "resized_height" in asked:  # as in qwen-vl-utils, this pair goes before the limits
        size = ASKED.resized(asked["resized_width"], asked["resized_height"])
    elif asked:
        low, high = asked.get("min_pixels", ASKED.min_pixels), asked.get("max_pixels", ASKED.max_pixels)
        if low > high:
            raise DataError(f"{where}: expected min_pixels up to max_pixels, got {low} and {high}")
        size = ImageGeometry(min_pixels=low, max_pixels=high).resized(*image.size)
    else:
        return image
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
