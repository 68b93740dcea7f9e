"""Images on their way out: upright RGB, shrunk, encoded anew without metadata. And embedded ones written to files."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError
from ..images import FORMATS
from ..rows import image_sources
from .profiles import Size

QUALITY = 95
FOLDER = "images"
"""Where embedded images are written, beside the output, by the digest of their bytes."""
COLUMNS = ("image", "images", "teacher_images", "bbox_images")


@dataclass(frozen=True)
class Picture:
    """One image of a request. `identity` stands for it in digests: how it came about, not the bytes of an encoder,
    which change with its version."""

    make: Callable[[], Image.Image] = field(repr=False)
    """The RGB pixels; called only if the image is sent."""
    size: Size
    """As it is sent."""
    identity: str

    def data_uri(self) -> str:
        """JPEG without metadata. Nothing of the original file but its pixels leaves this machine."""
        image = self.make()
        sent = image if image.size == self.size else image.resize(self.size, Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        sent.save(stream, "JPEG", quality=QUALITY, subsampling=0)
        return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def source_digests(row: dict[str, Any], root: Path) -> list[tuple[str, str]]:
    """(path as written, sha256 of the encoded bytes) of each image of a row that has been read as a sample.

    The path of an embedded one is where `unpack` puts it.
    """
    found = []
    for source in image_sources(row):
        path, data = _split(source)
        if data is None:
            found.append((path, hashlib.sha256((root / path).read_bytes()).hexdigest()))
        else:
            found.append((_name(data), hashlib.sha256(data).hexdigest()))
    return found


def unpack(row: dict[str, Any], root: Path) -> dict[str, Any]:
    """`row` for a file of JSON lines in the folder `root`: embedded images become paths of files, written there.

    The bytes are written as they are, under the name of their digest, so a second run finds them there.
    """
    row = dict(row)
    for column in COLUMNS:
        value = row.get(column)
        if isinstance(value, list):
            row[column] = [_unpacked(source, root) for source in value]
        elif value is not None:
            row[column] = _unpacked(value, root)
    return row


def _unpacked(source: Any, root: Path) -> Any:
    try:
        path, data = _split(source)
    except DataError:
        return source  # no image at all; the fate of the row says so
    if data is None:
        return path
    target = root / _name(data)
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Other shards, and other threads of this run, may write the same image at the same time.
        with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".part", delete=False) as part:
            part.write(data)
        os.chmod(part.name, 0o644)
        os.replace(part.name, target)
    return _name(data)


def _split(source: Any) -> tuple[str, bytes | None]:
    """Path, or encoded bytes, of one image as rows hold it."""
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes):
        return "", source
    if isinstance(source, str):
        return source, None
    raise DataError(f"images: expected a path or encoded bytes, got {type(source).__name__}")


def _name(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            suffix = (image.format or "bin").lower()
    except Exception:  # Pillow's parsers raise many types; the bytes are kept all the same
        suffix = "bin"
    return f"{FOLDER}/{hashlib.sha256(data).hexdigest()[:32]}.{suffix}"
