"""One loader for everybody: whatever a file holds, every policy sees the same upright RGB pixels.

A path is resolved first and must then lie under `root`, so `..`, absolute paths and symlinks that lead out are refused
alike. Nothing is fetched unless `ImagePolicy.allow_hosts` names the host. What a header tells is checked before a pixel
is decoded, and whatever is wrong with a file, the error is an ImageError of one line.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import io
import mmap
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from .errors import DataError, ImageError
from .image_policy import DEFAULT, ImagePolicy

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""Pillow reads some forty more, one of which (EPS) starts another program."""
URI_FORMATS = ("PNG", "JPEG", "WEBP")

NOTES = {
    "turned": "EXIF orientation 2..8: the stored pixels were turned to what a viewer shows",
    "bad EXIF": "the EXIF block or its orientation is damaged: the pixels were taken as they are stored",
    "first frame": "the file holds several frames or pages: the first was taken",
    "transparent": "what is transparent was put on white",
    "16 bit": "16-bit grey was scaled to 8 bits",
    "32 bit": "mode I was taken as 0..65535, mode F as 0..255: the file does not tell its range",
    "CMYK": "converted without its colour profile",
}
"""What is worth knowing about an image that was read all the same."""

MAX_SCANS = 100
"""Passes over the pixels of one JPEG. Progressive files have about ten; each costs time, and 75 bytes."""

_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # not what stands for itself in pixel data, nor restarts
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What the header tells. `size` is (width, height) of the upright image, `mode` and `format` are Pillow's words."""

    size: tuple[int, int]
    mode: str
    format: str
    orientation: int
    """EXIF 1..8: how the stored pixels lie."""
    several: bool
    """More than one frame or page. They are not counted: a stranger's file may hold millions."""
    notes: tuple[str, ...]
    """Those of NOTES that hold."""
    sha256: str | None = None
    """Of the encoded bytes, where asked for."""

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) of the pixels as they are stored."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def load_image(source: bytes | str | Path, root: Path, policy: ImagePolicy = DEFAULT) -> Image.Image:
    """Encoded bytes, a path under `root`, a data URI or an allowed URL, as an upright RGB image.

    Alpha is put on white, of several frames the first is taken, metadata is left behind. Raises ImageError for a
    source that must not be opened, an unreadable or unknown file, or a size out of `policy`.
    """
    with _opened(source, root, policy) as (image, stream):
        orientation, _ = _orientation(image)
        if _format(image) == "JPEG":
            _check_scans(_named(source), stream)
        image.load()
        if image.format != "TIFF":  # which Pillow turns while loading
            image = _turned(image, orientation)
        return _rgb(image, policy.deep)


def inspect_image(
    source: bytes | str | Path, root: Path, policy: ImagePolicy = DEFAULT, *, digest: bool = False
) -> ImageFacts:
    """What `load_image` would find, from the header alone: no pixel is decoded, so damaged pixels are not noticed.

    With `digest` all bytes are read for their sha256. Raises ImageError as `load_image` does.
    """
    with _opened(source, root, policy) as (image, stream):
        orientation, sound = _orientation(image)
        size = image.size
        if image.format == "TIFF":  # Pillow versions differ in whether this size is already the upright one
            tags: Any = image
            size = (tags.tag_v2[256], tags.tag_v2[257])
            size = size[::-1] if orientation >= 5 else size
        elif orientation >= 5:
            size = size[::-1]
        holds = {
            "turned": orientation != 1,
            "bad EXIF": not sound,
            "first frame": (several := _several(image)),
            "transparent": image.has_transparency_data,
            "16 bit": image.mode.startswith("I;16"),
            "32 bit": image.mode in ("I", "F"),
            "CMYK": image.mode == "CMYK",
        }
        facts = ImageFacts(
            size=size,
            mode=image.mode,
            format=_format(image),
            orientation=orientation,
            several=several,
            notes=tuple(note for note in NOTES if holds[note]),
        )
        return dataclasses.replace(facts, sha256=_sha256(stream)) if digest else facts


def image_source(value: Any, where: str) -> bytes | str:
    """The source in a cell of a data file: bytes, text, or how Arrow stores an image (`{"bytes": …, "path": …}`)."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str):
        raise DataError(f"{where}: expected a path or encoded bytes, got {type(value).__name__}")
    return value


@contextmanager
def _opened(source: bytes | str | Path, root: Path, policy: ImagePolicy) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """(the image, its header read and checked against `policy`, its stream). All errors come out as ImageError."""
    name = _named(source)
    try:
        stream, formats = _stream(source, root, policy)
        with stream, warnings.catch_warnings():
            # Our own limits are tighter than what these warn of. By module, not by class: should threads restore
            # each other's filters, nothing but Pillow is quiet.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            image = Image.open(stream, formats=formats)
            _check_size(name, image.size, policy)
            if policy.refuse_animated and _several(image):
                raise ImageError(f"image {name}: expected one frame, got several; refuse_animated is on")
            yield image, stream
    except ImageError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit comes first where it is far exceeded
        raise ImageError(f"image {name}: expected at most {policy.max_pixels:,} pixels, got far more") from None
    except Exception as error:  # Pillow's decoders raise many types; a bad file must never kill a worker
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):  # whose own message shows an address in memory
            reason = "another format, or a damaged header"
        raise ImageError(
            f"image {name}: expected one of {', '.join(FORMATS)}, got an unreadable file ({reason})"
        ) from None


def _check_size(name: str, size: tuple[int, int], policy: ImagePolicy) -> None:
    width, height = size
    if width * height > policy.max_pixels or max(size) > policy.max_side:
        most = f"{policy.max_pixels:,} pixels, {policy.max_side:,} a side"
        raise ImageError(f"image {name}: expected at most {most}, got {width}x{height}")
    if min(size) < policy.min_side:
        raise ImageError(f"image {name}: expected at least {policy.min_side} pixels a side, got {width}x{height}")
    if max(size) > policy.max_ratio * min(size):
        most = f"sides of at most {policy.max_ratio:g} to 1"
        raise ImageError(f"image {name}: expected {most}, got {width}x{height}; crop it")


def _stream(source: bytes | str | Path, root: Path, policy: ImagePolicy) -> tuple[BinaryIO, tuple[str, ...]]:
    """The encoded bytes, and the formats that they may have."""
    if isinstance(source, bytes):
        return io.BytesIO(source), FORMATS
    name = str(source)
    if name[:5].lower() == "data:":
        return io.BytesIO(_decoded(name, policy)), URI_FORMATS
    if "://" in name:
        if not policy.allow_hosts:
            raise ImageError(f"image {_shown(name)}: expected a relative path, got a URL; see allow_hosts")
        from .remote import fetch

        limits: dict[str, Any] = {"max_bytes": policy.max_bytes, "timeout": policy.timeout}
        return io.BytesIO(fetch(name, f"image {_shown(name)}", allow_hosts=policy.allow_hosts, **limits)), FORMATS
    return _open_file(_jailed(name, root, policy.follow_symlinks), name, policy.max_file_bytes), FORMATS


def _decoded(uri: str, policy: ImagePolicy) -> bytes:
    """The bytes of a data URI; their number is checked first."""
    where = f"image {_shown(uri)}"
    if not policy.allow_data_uris:
        raise ImageError(f"{where}: expected a relative path, got a data URI; allow_data_uris is off")
    head, comma, payload = uri.partition(",")
    if not comma or not re.fullmatch(r"data:image/(png|jpe?g|webp)(;[\w.=-]+)*;base64", head, re.IGNORECASE):
        raise ImageError(f"{where}: expected data:image/png, jpeg or webp;base64,…")
    if len(payload) // 4 * 3 > policy.max_bytes:
        raise ImageError(f"{where}: expected at most {policy.max_bytes:,} bytes, got about {len(payload) // 4 * 3:,}")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(f"{where}: expected base64 after the comma, got something else") from None


def _jailed(name: str, root: Path, follow_symlinks: str) -> Path:
    """The file that `name` means, resolved and under `root`."""
    shown = _shown(name)
    if "\0" in name or "\\" in name or re.match(r"[A-Za-z]:", name):
        raise ImageError(f"image {shown}: expected a relative path, got a drive letter, backslash or NUL")
    try:
        if follow_symlinks == "inside":
            root = root.resolve()
            path = (root / name).resolve()
            inside = path.is_relative_to(root)
        else:  # then `..` is taken literally: where the link led is no place to go up from
            lexical = Path(os.path.normpath(root.absolute() / name))
            path, inside = lexical.resolve(), lexical.is_relative_to(os.path.normpath(root.absolute()))
        exists = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name longer than the file system takes
        raise ImageError(f"image {shown}: not a usable path ({type(error).__name__})") from None
    if not inside:
        raise ImageError(f"image {shown}: expected a path inside {root}, got one that leads outside")
    if not exists:
        raise ImageError(f"image {shown}: no such file under {root}")
    return path


def _open_file(path: Path, name: str, max_bytes: int) -> BinaryIO:
    """Raises ImageError for a file that is not plain, is too long, or may not be read."""
    # Whatever took the place of the file since we looked: a pipe does not block, a link is not followed.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        stream = os.fdopen(os.open(path, flags | getattr(os, "O_CLOEXEC", 0)), "rb")
    except OSError as error:
        raise ImageError(f"image {_shown(name)}: expected a readable file ({error.strerror})") from None
    facts = os.fstat(stream.fileno())
    if stat.S_ISREG(facts.st_mode) and facts.st_size <= max_bytes:
        return stream
    stream.close()
    raise ImageError(f"image {_shown(name)}: expected a plain file of at most {max_bytes:,} bytes, got another")


def _check_scans(name: str, stream: BinaryIO) -> None:
    """Raises ImageError for a JPEG that passes over its pixels more than MAX_SCANS times."""
    place, scans, markers = 2, 0, 0  # behind the marker of the start
    with _buffer(stream) as data:
        while marker := _MARKER.search(data, place):
            kind, place, markers = marker[1], marker.end(), markers + 1
            scans += kind == b"\xda"
            if scans > MAX_SCANS or markers > 100 * MAX_SCANS:
                raise ImageError(f"image {name}: expected at most {MAX_SCANS} scans of a JPEG, got more; save it anew")
            if kind == b"\xd9":  # the end; cameras put films behind it
                break
            place += int.from_bytes(data[place : place + 2], "big")  # the segment, by the length it begins with


@contextmanager
def _buffer(stream: BinaryIO) -> Iterator[Any]:
    """All bytes, without a copy."""
    if isinstance(stream, io.BytesIO):
        with stream.getbuffer() as view:
            yield view
    else:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            yield view


def _sha256(stream: BinaryIO) -> str:
    stream.seek(0)
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def _named(source: bytes | str | Path) -> str:
    return "<bytes>" if isinstance(source, bytes) else _shown(str(source))


def _shown(name: str) -> str:
    """`name` for a message: one line, not long, and of a URL neither the query nor the user name (they hold keys)."""
    if "://" in name:
        name = re.sub(r"//[^/]*@", "//…@", name.split("?")[0])
    return repr(name if len(name) <= 200 else name[:60] + "…")


def _format(image: Image.Image) -> str:
    return "JPEG" if image.format == "MPO" else str(image.format)


def _several(image: Image.Image) -> bool:
    if image.format == "MPO":  # a photograph with a preview or a depth map, as telephones take them
        return False
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # a second frame that is damaged is one all the same
        return True


def _orientation(image: Image.Image) -> tuple[int, bool]:
    """(EXIF orientation 1..8, whether it could be read). To be asked before the pixels are loaded."""
    try:
        # Not the PNG class's own method, which decodes the pixels to look for a tag behind them.
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
        if (block := image.info.get("exif")) and block.removeprefix(b"Exif\0\0")[:4] not in (b"II*\0", b"MM\0*"):
            return 1, False  # which Pillow keeps to itself where it asked before us
    except Exception:  # parsers of damaged EXIF raise many types
        return 1, False
    return (value, True) if isinstance(value, int) and 1 <= value <= 8 else (1, False)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    if orientation not in _TURNS:
        return image
    turned = image.transpose(_TURNS[orientation])
    turned.info = image.info  # the transparent colour
    return turned


def _rgb(image: Image.Image, deep: str) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _grey(image, deep)
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(rgba, mask=rgba.getchannel("A"))
    else:
        rgb = image.convert("RGB")
    rgb.info.clear()  # EXIF, GPS and profiles stay out of everything we write
    return rgb


def _grey(image: Image.Image, deep: str) -> Image.Image:
    """16- or 32-bit grey as mode L. (Pillow's own conversion saturates to white.) NaN is black."""
    values = np.asarray(image)
    low, high = 0.0, 255.0 if image.mode == "F" else 65535.0
    if deep == "stretch":
        some = values.ravel()[:: max(1, values.size // 1_000_000)]
        some = some[np.isfinite(some)]
        low, high = np.percentile(some, (0.5, 99.5)) if some.size else (low, high)
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), 256):  # in strips: as floats the whole would take eight times its size
        strip = (values[top : top + 256].astype(np.float64) - low) * (255.0 / max(high - low, 1e-300))
        grey[top : top + 256] = np.nan_to_num(strip.clip(0.0, 255.0), nan=0.0).round()
    if isinstance(key := image.info.get("transparency"), int):
        grey[values == key] = 255
    return Image.fromarray(grey, "L")
