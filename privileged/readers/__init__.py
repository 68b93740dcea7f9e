"""Readers: one file an annotation format. `get_reader("coco", image_root="photos")` imports `readers/coco.py`.

A reader file has two names: `READER`, a frozen dataclass whose fields are the options, and `EXAMPLE`, a small data set
of that format to show it with. Outside the tree the same file is found through the entry-point group
`vlm_dopd.readers`. Readers never guess a coordinate convention: the format fixes it or an option declares it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from PIL import Image

from ..checks import Report
from ..plugins import Plugins
from ..records import ImageRef, PrivilegedRecord

ENTRY_POINTS = "vlm_dopd.readers"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotated:
    """What an annotation file says about one sample. Question and answer are there if the format holds them."""

    record: PrivilegedRecord
    question: str | None = None
    answer: str | None = None

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The images of the record, in order."""
        return self.record.images


class Reader(Protocol):
    """Yields every sample of the file or folder `path` and counts in `report` what became of everything.

    Raises DataError for a file that is not of the format at all; a bad object or image in a good file is counted.
    """

    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """One `Annotated` a sample, in the order of the file, or of the names in a folder."""
        ...


_PLUGINS = Plugins(kind="reader", package=__name__, path=__path__, group=ENTRY_POINTS)


def available() -> list[str]:
    """Names of all readers, those of other packages included."""
    return _PLUGINS.available()


def find(name: str) -> ModuleType:
    """The module of reader `name`. Raises DataError with the close matches if there is none."""
    return _PLUGINS.find(name)


def get_reader(name: str, **options: Any) -> Reader:
    """Reader `name` with its options. Raises DataError if the name or an option is unknown.

    >>> get_reader("points", unit="rel1000").unit
    'rel1000'
    >>> get_reader("points", unit="mm")
    Traceback (most recent call last):
    privileged.errors.DataError: reader 'points': unit: expected one of px, rel1, percent, rel1000, got 'mm'
    """
    return _PLUGINS.get(name, options)


def write_example(name: str, folder: Path) -> tuple[Reader, Path]:
    """Write the EXAMPLE of reader `name` into `folder`: the reader with the example's options, and what to read.

    EXAMPLE holds `files` (name -> text, or rows for a Parquet file), `path` (what to read), `images` (name -> size;
    grey ones are made under `images/`) and `options`. `image_root` is set for an example that has images.

    >>> import tempfile
    >>> reader, path = write_example("coco", Path(tempfile.mkdtemp()))
    >>> for sample in reader.read(path, report := Report()):
    ...     print([(region.label, region.box) for region in sample.record.regions])
    [('cup', (64.0, 48.0, 96.5, 88.0)), ('dog', (200.0, 150.0, 300.0, 270.0))]
    >>> report.objects
    Counter({'kept': 2})
    """
    example = find(name).EXAMPLE
    for file, content in example["files"].items():
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            target.write_text(content, encoding="utf-8")
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(content), target)
    options = dict(example.get("options", {}))
    for file, size in example.get("images", {}).items():
        options["image_root"] = str(folder / "images")
        target = folder / "images" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "grey").save(target)
    return get_reader(name, **options), folder / example["path"]
