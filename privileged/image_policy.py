"""What may be opened as an image: one set of options for everybody who loads, inspects or fetches one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from .errors import DataError

_HOST = r"(?!.*0x[0-9a-f]*(?::|$))(?:[a-z0-9_-]+\.)*(?=[0-9-]*[a-z])[a-z0-9-]+(?::[0-9]{1,5})?"
"""A name in lower case, whose last part is no number in whatever spelling, and perhaps a port."""


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """What may be opened. The defaults are for files of strangers. Sizes are in px of one image."""

    max_pixels: int = 50_000_000
    max_side: int = 20_000
    min_side: int = 8
    max_ratio: float = 100.0
    """Of the longer side to the shorter one; Qwen3-VL itself refuses 200."""
    max_file_bytes: int = 1 << 30
    """Of a local file: some decoders read all of it before they look."""
    follow_symlinks: Literal["inside", "any"] = "inside"
    """`any`: links under the root may lead out of it (names may not)."""
    allow_hosts: tuple[str, ...] = ()
    """`images.example.org` or `host:port`: https URLs of exactly these are fetched. Empty: no network."""
    allow_data_uris: bool = True
    max_bytes: int = 32 << 20
    """Of a fetched file, and of what a data URI decodes to."""
    timeout: float = 20.0
    """Seconds for all of one fetch."""
    refuse_animated: bool = False
    """Files with several frames or pages; otherwise the first is taken."""
    deep: Literal["full", "stretch"] = "full"
    """More than 8 bits of grey: `full` maps the whole range of 16 bits, `stretch` the percentiles 0.5 and 99.5."""

    def __post_init__(self) -> None:
        # Pillow itself refuses twice its own limit, whatever we allow.
        highest = {"max_pixels": 2 * (Image.MAX_IMAGE_PIXELS or 1 << 40)}
        for name in ("max_pixels", "max_side", "min_side", "max_file_bytes", "max_bytes"):
            value, high = getattr(self, name), highest.get(name, 1 << 50)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
                raise DataError(f"images: {name}: expected a whole number from 1 to {high:,}, got {value!r}")
        for name, low in (("max_ratio", 1.0), ("timeout", 0.001)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value < float("inf"):
                raise DataError(f"images: {name}: expected a number from {low:g}, got {value!r}")
        for name, words in (("follow_symlinks", ("inside", "any")), ("deep", ("full", "stretch"))):
            if getattr(self, name) not in words:
                raise DataError(f"images: {name}: expected {' or '.join(words)}, got {getattr(self, name)!r}")
        for name in ("allow_data_uris", "refuse_animated"):
            if not isinstance(getattr(self, name), bool):
                raise DataError(f"images: {name}: expected true or false, got {getattr(self, name)!r}")
        if isinstance(self.allow_hosts, str):
            raise DataError(f"images: allow_hosts: expected a list of host names, got {self.allow_hosts!r}")
        object.__setattr__(self, "allow_hosts", tuple(self.allow_hosts))
        for host in self.allow_hosts:  # a name with a letter in its last part: addresses are never on the list
            if not isinstance(host, str) or not re.fullmatch(_HOST, host):
                raise DataError(f"images: allow_hosts: expected a host name in lower case, got {host!r}")


DEFAULT = ImagePolicy()
