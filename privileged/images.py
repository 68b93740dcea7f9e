"""One loader for everybody: whatever a file holds, every policy sees the same upright RGB pixels.

Nothing here touches the network. Paths are resolved first and must then lie under `root`, so `..`, absolute paths and
symlinks that lead out are refused alike.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 50_000_000
MAX_SIDE = 20_000


def load_image(source: bytes | str | Path, root: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Encoded bytes, or a path under `root`, as an upright RGB image (alpha on white, first frame, no metadata).

    Raises ImageError for a path out of `root`, an unreadable or unknown file, or one above `max_pixels`.
    """
    name = "<bytes>" if isinstance(source, bytes) else repr(str(source))
    stream = io.BytesIO(source) if isinstance(source, bytes) else _jailed(str(source), root).open("rb")
    try:
        with stream, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit below is tighter
            image = Image.open(stream, formats=FORMATS)
            width, height = image.size
            if width * height > max_pixels or max(width, height) > MAX_SIDE:
                raise ImageError(
                    f"image {name}: expected at most {max_pixels:,} pixels, {MAX_SIDE:,} a side, got {width}x{height}"
                )
            image.load()
            return _upright_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many types; a bad file must never kill a worker
        raise ImageError(
            f"image {name}: expected one of {', '.join(FORMATS)}, got an unreadable file ({error})"
        ) from None


def _jailed(name: str, root: Path) -> Path:
    if "\0" in name or "\\" in name or "://" in name:
        raise ImageError(f"image {name!r}: expected a relative path, got a URL, backslash or NUL")
    try:
        root = root.resolve()
        path = (root / name).resolve()
        exists = path.is_file()
    except (OSError, RuntimeError) as error:  # a loop of links, a name longer than the file system takes
        raise ImageError(f"image {name[:200]!r}: not a usable path ({error.__class__.__name__})") from None
    if not path.is_relative_to(root):
        raise ImageError(f"image {name!r}: expected a path inside {root}, got one that leads outside")
    if not exists:
        raise ImageError(f"image {name!r}: no such file under {root}")
    return path


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion of 16-bit grey saturates to white.
        grey = np.asarray(image).astype(np.float64) / 257.0
        image = Image.fromarray(grey.clip(0, 255).round().astype(np.uint8), "L")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    rgb = image.convert("RGB")
    rgb.info.clear()  # EXIF, GPS and profiles stay out of everything we write
    return rgb
