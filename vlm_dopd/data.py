"""Rows of a file -> samples. One question a row:

| column | what it holds |
|---|---|
| `question` | text, required |
| `images` | list of paths (relative to the data file) or of encoded bytes; may be missing or empty |
| `answer` | reference answer, optional: evaluation needs it, distillation does not |
| `privileged` | a privileged record as JSON text, optional; JSON text, because Arrow fills nested rows with nulls |
| `kind` | type of question, optional: figures are given by it |
| `id` | optional; default is the file's name and the row's number |
"""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from torch.utils.data import Dataset

from privileged import PrivilegedRecord, Sample, load_image
from privileged.errors import DataError

from .errors import ConfigError

Rows = Sequence[dict[str, Any]]


class SampleDataset(Dataset):
    """The rows of one file as `Sample`s. Images are decoded when a row is asked for, in the worker that asked.

    Raises ConfigError for a file that is missing, of another format, or holds no rows with questions.
    """

    def __init__(self, path: str | Path, limit: int | None = None) -> None:
        self.path = Path(path)
        if self.path.suffix not in READERS:
            raise ConfigError(f"{path}: expected a file ending in {', '.join(READERS)}")
        if not self.path.is_file():
            raise ConfigError(f"{path}: no such data file")
        rows = READERS[self.path.suffix](self.path)
        if not len(rows):
            raise ConfigError(f"{path}: expected rows, got an empty file")
        if "question" not in rows[0]:
            raise ConfigError(f"{path}: expected a column 'question', got: {', '.join(rows[0])}")
        self.rows = rows
        self.length = len(rows) if limit is None else min(limit, len(rows))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Raises DataError, with file and row number, for a row that is not what the table above says."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        row = self.rows[index]
        try:
            return self._sample(index, row)
        except DataError as error:
            raise DataError(f"{self.path} row {index}: {error}") from None

    def kind(self, index: int) -> str:
        """The row's `kind`; empty if it has none."""
        return self.rows[index].get("kind") or ""

    def _sample(self, index: int, row: dict[str, Any]) -> Sample:
        images = [] if row.get("images") is None else row["images"]
        if not isinstance(images, list):
            raise DataError(f"images: expected a list of paths or encoded bytes, got one {type(images).__name__}")
        record = row.get("privileged")
        return Sample(
            id=_text("id", row.get("id")) or f"{self.path.stem}-{index}",
            question=row["question"],
            images=tuple(self._image(source) for source in images),
            answer=_text("answer", row.get("answer")),
            privileged=PrivilegedRecord.from_json(record) if record else None,
        )

    def _image(self, source: Any) -> Any:
        if isinstance(source, dict):  # how Arrow stores an image: bytes, or the path it came from
            source = source.get("bytes") or source.get("path")
        if not isinstance(source, bytes | str):
            raise DataError(f"images: expected a path or encoded bytes, got {type(source).__name__}")
        return load_image(source, self.path.parent)


def _text(name: str, value: Any) -> str | None:
    """Ids and answers are text; files often hold them as numbers."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{name}: expected text or a number, got {type(value).__name__}")


def _read_parquet(path: Path) -> Rows:
    try:
        rows = datasets.load_dataset("parquet", data_files=glob.escape(str(path)), split="train")
    except Exception as error:  # of pyarrow, pandas, datasets: a bad file fails in many ways
        raise ConfigError(f"{path}: expected parquet rows, got: {_cause(error)}") from None
    for name, feature in rows.features.items():  # we decode ourselves: upright, bounded, within the folder
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            rows = rows.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return rows


def _read_jsonl(path: Path) -> Rows:
    """Not through Arrow, which would read the answer "2020-01-01" as a date and fill absent keys with nulls."""
    rows = []
    # Bytes, not str.splitlines(): JSON does not escape U+2028.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            rows.append(_object(line, f"{path} line {number}"))
    return rows


def _read_json(path: Path) -> Rows:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: expected json, got: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: expected a list of objects, got {str(rows)[:60]!r}")
    return rows


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: expected jsonl, an object a line, got: {error}") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: expected jsonl, an object a line, got {str(row)[:60]!r}")
    return row


def _cause(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__


READERS = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".json": _read_json}
