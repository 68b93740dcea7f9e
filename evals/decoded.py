"""What media become, who decodes them, and where their files may lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SHOWN = 80
"""Characters of a name in a message."""

LoadImage = Callable[[bytes | str, Path], Image.Image]
"""Encoded bytes or a path under the folder, and that folder, to an RGB image; raises ValueError."""


@dataclass(frozen=True)
class Video:
    """Frames taken from a video, with their times."""

    frames: tuple[Image.Image, ...]
    seconds: tuple[float, ...]
    """The time of each frame from the start of the video."""
    fps: float
    """Frames a second of the video itself, not of `frames`."""

    def __post_init__(self) -> None:
        if not self.frames or len(self.frames) != len(self.seconds):
            raise ValueError(f"video: expected frames with a time each, got {len(self.frames)}, {len(self.seconds)}")


def inside(name: str, root: Path) -> Path:
    """The path that `name` means under `root`. Raises ValueError if it leads elsewhere; it need not exist."""
    shown = repr(name if len(name) <= SHOWN else name[: SHOWN // 2] + "…")
    try:
        path = (root / name).resolve()
        within = path.is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, NUL, a name that is too long
        raise ValueError(f"path {shown}: not a usable path ({type(error).__name__})") from None
    if not within:
        raise ValueError(f"path {shown}: expected one inside {root}, got one that leads outside")
    return path
