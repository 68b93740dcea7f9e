"""Rows of a file -> samples. One question a row:

| column | what it holds |
|---|---|
| `question` | text, required |
| `images` | list of paths (relative to the data file) or of encoded bytes; may be missing or empty |
| `answer` | reference answer, optional: evaluation needs it, distillation does not |
| `privileged` | a privileged record as JSON text, optional; JSON text, because Arrow fills nested rows with nulls |
| `id` | optional; default is the file's name and the row's number |
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
from torch.utils.data import Dataset

from privileged import PrivilegedRecord, Sample, load_image
from privileged.errors import DataError

from .errors import ConfigError

READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}


class SampleDataset(Dataset):
    """The rows of one file as `Sample`s. Images are decoded when a row is asked for, in the worker that asked."""

    def __init__(self, path: str | Path, limit: int | None = None) -> None:
        self.path = Path(path)
        if self.path.suffix not in READERS:
            raise ConfigError(f"{path}: expected a file ending in {', '.join(READERS)}")
        if not self.path.is_file():
            raise ConfigError(f"{path}: no such data file")
        try:
            rows = datasets.load_dataset(READERS[self.path.suffix], data_files=str(self.path), split="train")
        except (datasets.exceptions.DatasetGenerationError, datasets.exceptions.DataFilesNotFoundError) as error:
            raise ConfigError(
                f"{path}: expected {self.path.suffix[1:]} rows, got: {error.__cause__ or error}"
            ) from None
        if "question" not in rows.column_names:
            raise ConfigError(f"{path}: expected a column 'question', got: {', '.join(rows.column_names)}")
        for name, feature in rows.features.items():  # we decode ourselves: upright, bounded, within the folder
            if isinstance(getattr(feature, "feature", feature), datasets.Image):
                undecoded = datasets.Image(decode=False)
                rows = rows.cast_column(name, undecoded if feature is None else _like(feature, undecoded))
        self.rows = rows.select(range(min(limit, len(rows)))) if limit else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """Raises DataError, with file and row number, for a row that is not what the table above says."""
        row = self.rows[index]
        try:
            return self._sample(index, row)
        except DataError as error:
            raise DataError(f"{self.path} row {index}: {error}") from None

    def kind(self, index: int) -> str:
        """The row's `kind` (question type), for figures a type; empty if the file has no such column."""
        return self.rows[index].get("kind") or "" if "kind" in self.rows.column_names else ""

    def _sample(self, index: int, row: dict[str, Any]) -> Sample:
        record = row.get("privileged")
        return Sample(
            id=str(row.get("id") or f"{self.path.stem}-{index}"),
            question=row["question"],
            images=tuple(self._image(source) for source in row.get("images") or ()),
            answer=row.get("answer"),
            privileged=PrivilegedRecord.from_json(record) if record else None,
        )

    def _image(self, source: Any) -> Any:
        if isinstance(source, dict):
            source = source.get("bytes") or source.get("path")
        if not isinstance(source, bytes | str):
            raise DataError(f"images: expected a path or encoded bytes, got {type(source).__name__}")
        return load_image(source, self.path.parent)


def _like(feature: Any, image: datasets.Image) -> Any:
    return image if isinstance(feature, datasets.Image) else datasets.List(image)
