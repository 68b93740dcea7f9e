"""Two runs of the same questions, and the teacher's: a table, and a page that shows what has flipped."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

import evals
from evals import suite
from evals.compare_page import write_page
from evals.compare_table import table
from evals.comparison import compare_runs
from privileged import get_builder
from privileged.images import load_image

from .data import SampleDataset
from .evaluation import items

logger = logging.getLogger(__name__)

THUMBNAIL = 480
"""Pixels of the longer side of a picture on the page."""


def write_comparison(
    before: Path, after: Path, teacher: Path | None, data: Path | None, out: Path, seed: int = 0
) -> str:
    """`compare.html` and `compare.json` in `out`, from run folders or files of answers; returns the table.

    Pictures come from the data of the runs, as far as they are still there, and from the held-out file `data`.
    """
    runs = {
        "before": suite.read_run(before),
        "after": suite.read_run(after),
        "teacher": None if teacher is None else suite.read_run(teacher),
    }
    figures = compare_runs(runs["before"], runs["after"], runs["teacher"], seed)  # type: ignore[arg-type]
    shown = suite.pictures(after, load_image) if after.is_dir() else {}
    if data is not None:
        shown |= {item.id: item for item in items(SampleDataset(data), get_builder("none"), "plain")}
    out.mkdir(parents=True, exist_ok=True)
    write_page(
        figures, {name: run for name, run in runs.items() if run is not None}, out / "compare.html", _drawer(shown)
    )
    text = json.dumps(figures, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    (out / "compare.json").write_text(text, encoding="utf-8", errors="replace")
    return table(figures)


def _drawer(shown: dict[str, evals.Item]) -> Callable[[evals.Prediction], list[bytes]]:
    def draw(prediction: evals.Prediction) -> list[bytes]:
        if prediction.id not in shown:
            return []
        try:
            item = shown[prediction.id].loaded()
        except ValueError as error:
            logger.warning("no picture: %s", error)
            return []
        films: Any = item.videos
        images: list[Any] = [*item.images, *(frame for film in films for frame in _few(film.frames))]
        return [_jpeg(image) for image in images]

    return draw


def _few(frames: tuple[Image.Image, ...], count: int = 4) -> list[Image.Image]:
    """Of a video, a few frames tell what it is."""
    return list(frames[:: max(1, len(frames) // count)][:count])


def _jpeg(image: Image.Image) -> bytes:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()
