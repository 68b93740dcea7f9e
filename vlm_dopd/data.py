"""The rows of a file as a data set of samples for a data loader. What a row holds: `privileged/rows.py`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch.utils.data import Dataset

from privileged import Region, Sample
from privileged.errors import DataError
from privileged.image_policy import DEFAULT, ImagePolicy
from privileged.rows import read_rows, to_sample

from .errors import ConfigError, closest


class SampleDataset(Dataset):
    """The rows of one file as `Sample`s. Images are decoded when a row is asked for, in the worker that asked.

    `kinds` leaves the rows of other kinds out. `shuffle_p` is a control: every sample has the record of another one.
    Raises ConfigError for a file that is missing, of another format, or holds no rows with questions.
    """

    def __init__(
        self,
        path: str | Path,
        limit: int | None = None,
        policy: ImagePolicy = DEFAULT,
        kinds: Sequence[str] | None = None,
        shuffle_p: bool = False,
    ) -> None:
        self.path, self.policy = Path(path), policy
        try:
            self.rows = read_rows(self.path)
        except DataError as error:
            raise ConfigError(str(error)) from None
        self.places: Sequence[int] = range(len(self.rows)) if kinds is None else self._of(kinds)
        self.places = self.places[:limit]
        self.lender = _derangement(len(self.places)) if shuffle_p else None
        """Whose record the sample has, by index; None: its own."""

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        """Raises DataError, with file and row number, for a row that is not as it should be."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        own = self._sample(index)
        return own if self.lender is None else _borrowed(own, self._sample(self.lender[index]))

    def kind(self, index: int) -> str:
        """The row's `kind`; empty if it has none."""
        return self.rows[self.places[index]].get("kind") or ""

    def _sample(self, index: int) -> Sample:
        place = self.places[index]
        try:
            return to_sample(self.rows[place], f"{self.path.stem}-{place}", self.path.parent, self.policy)
        except DataError as error:
            raise DataError(f"{self.path} row {place}: {error}") from None

    def _of(self, kinds: Sequence[str]) -> list[int]:
        by_place = [row.get("kind") or "" for row in self.rows]
        if absent := [kind for kind in kinds if kind not in by_place]:
            raise ConfigError(f"{self.path}: expected rows of kind {absent[0]!r}; {closest(absent[0], set(by_place))}")
        return [place for place, kind in enumerate(by_place) if kind in kinds]


def _derangement(count: int) -> list[int]:
    """Another one for everyone, nobody twice: the next in a circle of random order, the same at every call."""
    if count < 2:
        raise ConfigError(f"shuffle_p: expected at least two rows to exchange records, got {count}")
    circle = random.Random(0).sample(range(count), count)
    follower = dict(zip(circle, [*circle[1:], circle[0]], strict=True))
    return [follower[index] for index in range(count)]


def _borrowed(own: Sample, other: Sample) -> Sample:
    """`own` with the p of `other`: at the same relative places of its images, without those of images it lacks."""
    record = other.privileged
    if record is not None:
        regions = [_moved(r, own, other) for r in record.regions if r.image < min(len(own.images), len(other.images))]
        record = replace(record, sample_id=own.id, regions=tuple(regions), images=())
    return replace(own, privileged=record, privileged_images=other.privileged_images)


def _moved(region: Region, own: Sample, other: Sample) -> Region:
    (width, height), (old_width, old_height) = own.images[region.image].size, other.images[region.image].size
    x, y = width / old_width, height / old_height
    x0, y0, x1, y1 = region.box
    return replace(
        region,
        box=(x0 * x, y0 * y, x1 * x, y1 * y),
        polygon=region.polygon and tuple((px * x, py * y) for px, py in region.polygon),
        points={name: (px * x, py * y) for name, (px, py) in region.points.items()},
    )
