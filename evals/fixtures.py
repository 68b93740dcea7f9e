"""A tiny synthetic data set for each benchmark, in its exact schema and file layout, so that every path runs offline.

What is in them: `fixture_rows`. A benchmark without rows of its own there has those of its EXAMPLE.
"""

from __future__ import annotations

import atexit
import base64
import csv
import functools
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from .benchmarks import Benchmark, find
from .fixture_rows import SCENES, Row, picture, rows

Form = Literal["parquet", "jsonl", "tsv"]


@functools.cache
def folder(name: str) -> Path:
    """A folder that holds the fixture as the hub would; it goes with the process."""
    made = Path(tempfile.mkdtemp(prefix="fixture-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return write_fixture(name, made)


def write_fixture(name: str, folder: Path, form: Form = "parquet") -> Path:
    """Writes the fixture of benchmark `name` into `folder`, and returns it.

    Images are bytes in parquet, files beside a JSONL, base64 in a TSV: as each form usually has them.
    """
    benchmark = find(name)
    for source, those in rows(name).items():
        stem = f"{source.split}-00000-of-00001" if form == "parquet" else source.split
        home = folder / (source.config or ("data" if form == "parquet" else ""))
        home.mkdir(parents=True, exist_ok=True)
        path = home / f"{stem}.{form}"
        if form == "parquet":
            _write_parquet(path, those, benchmark)
        elif form == "jsonl":
            lines = (json.dumps(_by_path(row, f"{source.name}-{i}", folder)) for i, row in enumerate(those))
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        else:
            _write_tsv(path, those)
    if benchmark.needs_video:
        for number, (dataset, scene) in enumerate(SCENES):
            (folder / dataset).mkdir(exist_ok=True)
            write_video(folder / dataset / f"{scene}.mp4", number)
    return folder


def write_video(path: Path, number: int, seconds: float = 2.0, fps: Fraction | int = 12) -> None:
    """A film of drawing `number` moving to the right, H.264 with B-frames."""
    import av

    with av.open(str(path), "w") as container:
        # One thread, so that the same film has the same bytes.
        stream: Any = container.add_stream("libx264", rate=fps, options={"bf": "2", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        still = np.asarray(picture(number))
        for i in range(round(seconds * fps)):
            frame = av.VideoFrame.from_ndarray(np.roll(still, 3 * i, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def png(image: Image.Image) -> bytes:
    """`image` as PNG: the same bytes in every form."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _write_parquet(path: Path, those: list[Row], benchmark: Benchmark) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {}
    for name in _names(those):
        cells = [row.get(name) for row in those]
        # By the schema and not by the cells, which may all be null.
        is_image = benchmark.columns.get(name, "").startswith("image") and not any(isinstance(c, str) for c in cells)
        cells = [{"bytes": png(c), "path": None} if isinstance(c, Image.Image) else c for c in cells]
        empty = pa.list_(pa.string()) if name == "options" else pa.string()
        kind = image if is_image else empty if all(c is None or c == [] for c in cells) else None
        columns[name] = pa.array(cells, kind)
    pq.write_table(pa.table(columns), path)


def _by_path(row: Mapping[str, Any], stem: str, folder: Path) -> Row:
    """The row with its images as paths of files that are written into `folder`."""
    kept = {}
    for name, value in row.items():
        if isinstance(value, Image.Image):
            path = folder / "images" / f"{stem.replace('/', '-')}-{name}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(png(value))
            value = path.relative_to(folder).as_posix()
        kept[name] = value
    return kept


def _write_tsv(path: Path, those: list[Row]) -> None:
    def text(value: Any) -> str:
        if isinstance(value, Image.Image):
            return base64.b64encode(png(value)).decode()
        return "" if value is None else str(value)

    names = _names(those)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(names)
        writer.writerows([text(row.get(name)) for name in names] for row in those)


def _names(those: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in those for name in row))
