"""Evenly spaced frames of a video file, or of a folder that holds its frames as images.

The frames are those of the official VSI-Bench code (thinking-in-space 51e089c): numbers
`np.linspace(0, total - 1, n)`, cut to integers, in the order in which they are shown. Headers are not trusted with the
total: what they say is checked against what is decoded.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .decoded import LoadImage, Video, inside

FOLDER_FPS = 1.0
"""A folder does not tell its rate; its frames count as one a second."""

_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def frame_numbers(total: int, wanted: int) -> list[int]:
    """Numbers of `wanted` evenly spaced frames of `total`, first and last among them. A short video gives each once."""
    if total < 1 or wanted < 1:
        raise ValueError(f"expected at least one frame and one wanted, got {total} and {wanted}")
    if total <= wanted:
        return list(range(total))
    return np.linspace(0, total - 1, wanted).astype(int).tolist()


def read_frames(path: Path, wanted: int, load_image: LoadImage, root: Path) -> Video:
    """`wanted` frames of the file or folder `path`. Raises ValueError with one line if it holds none."""
    if path.is_dir():
        return _of_folder(path, wanted, load_image, root)
    import av

    try:
        return _of_file(path, wanted, path.stat().st_mtime_ns)
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"expected a video that can be decoded, got {error}") from None


def _of_folder(path: Path, wanted: int, load_image: LoadImage, root: Path) -> Video:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _IMAGES)
    if not files:
        raise ValueError(f"expected frames ({', '.join(sorted(_IMAGES))}) in the folder {path}, got none")
    numbers = frame_numbers(len(files), wanted)
    home = root.resolve()
    names = [str(inside(str(files[number]), home).relative_to(home)) for number in numbers]
    frames = tuple(load_image(name, root) for name in names)
    return Video(frames, tuple(number / FOLDER_FPS for number in numbers), FOLDER_FPS)


@lru_cache(maxsize=2)  # decoding takes seconds, and the questions of one scene often follow each other
def _of_file(path: Path, wanted: int, changed: int) -> Video:
    """`changed` is when the file was: another file under the same name is another video."""
    total = _count(path)
    frames, decoded = _decode(path, frame_numbers(total, wanted) if total else [])
    if not decoded:
        raise ValueError("expected a video with frames, got none that can be decoded")
    if decoded != total:  # the header was wrong, or frames are damaged: now the true number is known
        frames, _ = _decode(path, frame_numbers(decoded, wanted))
    images, seconds, rates = zip(*frames, strict=True)
    return Video(images, seconds, rates[0])


def _count(path: Path) -> int:
    """Frames by the header, or by counting packets where it does not say. 0: unknown."""
    with _open(path) as container:
        stream = container.streams.video[0]
        return stream.frames or sum(1 for packet in container.demux(stream) if packet.size)


def _decode(path: Path, numbers: list[int]) -> tuple[list[tuple[Image.Image, float, float]], int]:
    """The frames `numbers` with time and rate, and how many frames there are. All are decoded, few are converted."""
    import av

    wanted, kept, decoded = set(numbers), [], 0
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or stream.guessed_rate or 0) or FOLDER_FPS
        start = None
        try:
            for frame in container.decode(stream):
                start = frame.time if start is None else start
                if decoded in wanted:
                    time = decoded / rate if frame.time is None or start is None else frame.time - start
                    kept.append((frame.to_image(), float(time), rate))
                decoded += 1
        except av.error.InvalidDataError:
            if not decoded:
                raise
    return kept, decoded


def _open(path: Path) -> Any:
    """The container. Raises ValueError if it has no video in it."""
    import av

    container = av.open(str(path))
    if not container.streams.video:
        container.close()
        raise ValueError("expected a video, got a file without a video stream")
    return container
