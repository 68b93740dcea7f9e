"""Previews -> one self-contained HTML page. All text of a data set is escaped; what cannot be seen is made visible."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from .preview import CONTROL, ROLES, VISION, Picture, Preview

GRADES = {
    "none": "nothing",
    "cue": "where to look, not what to answer",
    "derivable": "facts from which the answer may follow",
    "answer": "the answer itself",
    "": "the builder does not say",
}
VIEWS = ("plain view", "privileged view", "privileged view")
ORIGINS = {"sample": "of the sample", "p": "a part of p", "replaced": "shown instead of the sample’s"}

LOSSLESS = 1_500_000
"""Pictures of more pixels are shown as JPEG, else the page of one phone photograph would be 30 MB."""
SMALLEST, TALLEST = 240, 480
"""CSS px: small pictures are shown at least so wide, tall ones at most so high."""

_JOINERS = "\u200c\u200d"
_HIDDEN = ("Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn")
_WORDS = re.compile(rf"({CONTROL.pattern})")


class Run(NamedTuple):
    """A stretch of text to show in one way: `text`, `token` (a control token), `newline`, or `hidden` (a name)."""

    kind: str
    text: str


def runs(text: str) -> list[Run]:
    """`text` with control tokens and line ends apart, and with a name for every character that no one can see.

    Joiners stay as they are between letters of the scripts (and the emoji) that need them.
    """
    found: list[Run] = []
    for number, part in enumerate(_WORDS.split(text)):
        if number % 2:
            found.append(Run("token", part))
            continue
        plain = ""
        for place, c in enumerate(part):
            if c != "\t" and not _invisible(part, place):
                plain += c
                continue
            found += [Run("text", plain)] if plain else []
            found.append(Run("newline", c) if c == "\n" else Run("hidden", f"U+{ord(c):04X}"))
            plain = ""
        found += [Run("text", plain)] if plain else []
    return found


def _invisible(text: str, place: int) -> bool:
    c = text[place]
    if c in _JOINERS:
        beside = text[max(place - 1, 0)], text[min(place + 1, len(text) - 1)]
        return any(b.isascii() or b in _JOINERS for b in beside)
    return unicodedata.category(c) in _HIDDEN


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One of the page's pictures. It is in the page once, however often it is shown."""

    name: str
    uri: str
    width: int
    height: int

    @property
    def widest(self) -> int:
        """CSS px that it may take."""
        return max(16, min(max(self.width, SMALLEST), round(TALLEST * self.width / self.height)))


class _Store:
    """Pictures by their content."""

    def __init__(self) -> None:
        self.pictures: dict[str, Stored] = {}

    def __call__(self, picture: Picture) -> Stored:
        image = picture.image
        key = hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()
        if key not in self.pictures:
            name = f"picture-{len(self.pictures) + 1}"
            self.pictures[key] = Stored(name=name, uri=_data_uri(image), width=image.width, height=image.height)
        return self.pictures[key]


def write_page(previews: Sequence[Preview], path: Path) -> Path:
    """Write the page of `previews`; the same previews give the same bytes."""
    environment = Environment(
        loader=PackageLoader(__package__ or "vlm_dopd.annotate", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["runs"] = runs
    store = _Store()
    page = environment.get_template("preview.html.jinja").render(
        previews=previews,
        roles=ROLES,
        views=VIEWS,
        grades=GRADES,
        origins=ORIGINS,
        vision=VISION,
        store=store,
        lossless=LOSSLESS,
    )
    # A label can hold half a surrogate pair, which no file can.
    path.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    return path


def _data_uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    if image.width * image.height <= LOSSLESS:
        image.save(stream, format="PNG", optimize=True)
    else:
        image.convert("RGB").save(stream, format="JPEG", quality=92, subsampling=0)
    kind = "png" if image.width * image.height <= LOSSLESS else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(stream.getvalue()).decode("ascii")
