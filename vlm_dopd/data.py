"""The rows of a file as a data set of samples for a data loader. What a row holds: `privileged/rows.py`."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import Dataset

from privileged import Sample
from privileged.errors import DataError
from privileged.image_policy import DEFAULT, ImagePolicy
from privileged.rows import read_rows, to_sample

from .errors import ConfigError


class SampleDataset(Dataset):
    """The rows of one file as `Sample`s. Images are decoded when a row is asked for, in the worker that asked.

    Raises ConfigError for a file that is missing, of another format, or holds no rows with questions.
    """

    def __init__(self, path: str | Path, limit: int | None = None, policy: ImagePolicy = DEFAULT) -> None:
        self.path, self.policy = Path(path), policy
        try:
            self.rows = read_rows(self.path)
        except DataError as error:
            raise ConfigError(str(error)) from None
        self.length = len(self.rows) if limit is None else min(limit, len(self.rows))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Raises DataError, with file and row number, for a row that is not as it should be."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        try:
            return to_sample(self.rows[index], f"{self.path.stem}-{index}", self.path.parent, self.policy)
        except DataError as error:
            raise DataError(f"{self.path} row {index}: {error}") from None

    def kind(self, index: int) -> str:
        """The row's `kind`; empty if it has none."""
        return self.rows[index].get("kind") or ""
