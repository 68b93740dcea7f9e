"""Images and videos of questions, decoded when they are needed, so that no run holds the pixels of a whole data set.

How an image is decoded is the caller's: this package has no image loader of its own. A path is resolved first and must
then lie under the data set's folder. Whatever is wrong with a file, the error is a ValueError of one line that names
the question and the file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from .decoded import SHOWN, LoadImage, Video, inside
from .questions import Media
from .video import read_frames

# How encoded images begin: PNG, JPEG, GIF, WEBP (and other RIFF), BMP, TIFF in both byte orders.
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class Lazy:
    """An image or a video that is not yet decoded. `digest` and `load` raise ValueError with one line."""

    media: Media
    root: Path
    """The folder that paths are relative to and must not leave."""
    load_image: LoadImage
    frames: int | None = None
    """How many frames to take of a video."""
    where: str = ""
    """The question it belongs to, for messages."""

    @property
    def kind(self) -> Literal["image", "video"]:
        """What `load` gives."""
        return self.media.kind

    @cached_property
    def digest(self) -> str:
        """Names the content: sha256 of an image's encoded bytes, whatever file form they came in.

        A PIL image counts by its pixels, a video by its path and size: hashing gigabytes would take minutes.
        """
        try:
            return (self._video_digest if self.kind == "video" else self._image_digest)()
        except (ValueError, OSError) as error:
            raise self._error(error) from None

    def load(self) -> Image.Image | Video:
        """The decoded image in RGB, or the frames of the video."""
        try:
            if self.kind == "video":
                if self.frames is None:
                    raise ValueError("expected a protocol that says how many frames to take, got none")
                return read_frames(self._video_path(), self.frames, self.load_image, self.root)
            content = encoded(self.media.ref)
            if isinstance(content, Image.Image):
                return content.convert("RGB")
            if isinstance(content, str):
                self._file(content)
            return self.load_image(content, self.root)
        except (ValueError, OSError) as error:
            raise self._error(error) from None

    def _image_digest(self) -> str:
        content = encoded(self.media.ref)
        if isinstance(content, Image.Image):
            digest = hashlib.sha256(f"{content.mode} {content.size}".encode())
            digest.update(content.tobytes())
            return digest.hexdigest()
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest()
        with self._file(content).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _file(self, name: str) -> Path:
        path = inside(name, self.root)
        if not path.is_file():
            raise ValueError(f"no such file under {self.root}")
        return path

    def _video_path(self) -> Path:
        """The file; or where there is none, the folder of the same name that holds its frames as images."""
        name = self.media.ref
        if not isinstance(name, str):
            raise ValueError(f"expected the path of a video, got {type(name).__name__}")
        folder = name.removesuffix(Path(name).suffix)
        for path in (inside(name, self.root), inside(folder, self.root)):
            if path.exists():
                return path
        raise ValueError(f"no such video under {self.root}, nor a folder of its frames")

    def _video_digest(self) -> str:
        path = self._video_path()
        if path.is_dir():
            told = [(file.name, file.stat().st_size) for file in sorted(path.iterdir())]
        else:
            told = [(self.media.ref, path.stat().st_size)]
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def _error(self, error: Exception) -> ValueError:
        where = f"{self.where}: " if self.where else ""
        said = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        return ValueError(f"{where}{self.kind} {self.media.number} ({self._named()}): {said}")

    def _named(self) -> str:
        """What the media is called where it comes from."""
        ref = self.media.ref
        if isinstance(ref, Mapping):
            ref = getattr(ref, "place", "") or ref.get("path") or "bytes of a cell"
        if not isinstance(ref, str):
            return type(ref).__name__
        return ref if len(ref) <= SHOWN else ref[: SHOWN // 2] + "…"


def lazy(media: Media, root: Path, load_image: LoadImage, frames: int | None = None, where: str = "") -> Lazy:
    """`media` with all that decoding it takes; nothing is opened yet."""
    return Lazy(media, root, load_image, frames, where)


def encoded(ref: Any) -> Image.Image | bytes | str:
    """What a reference to an image holds: a PIL image as it is, the encoded bytes, or the text of a path.

    A hub cell has bytes or a path. Text is a data URI, the base64 of an image, as TSV files hold it, or else a path.
    """
    if isinstance(ref, Mapping):
        ref = ref.get("bytes") or ref.get("path")
    if isinstance(ref, Image.Image | bytes):
        return ref
    if not isinstance(ref, str) or not ref:
        raise ValueError(f"expected an image, its bytes or its path, got {type(ref).__name__}")
    if ref[:5].lower() == "data:":
        return _decoded(ref.partition(",")[2]) or b""
    # Base64 of a JPEG starts as an absolute path does, "/9j/"; no image file's name is long and has no full stop.
    content = _decoded(ref) if len(ref) >= 64 and "." not in ref[:4096] else None
    return content if content is not None and content.startswith(_SIGNATURES) else ref


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
