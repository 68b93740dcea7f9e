"""From scores to the numbers that a benchmark reports. Each number is declared once, as a `Headline`.

Its value and its bootstrap come from the same place: a headline is a function of sums over clusters, and a resample is
those sums with some clusters taken twice and others not at all (`evals.stats.resample`). So a resample has exactly the
value that `Numbers.aggregate` would give to its items.

Shape letters: A runs, N items, C clusters, S strata, F columns of sums, R resamples, H headlines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, Protocol

import numpy as np

Unit = Literal["item", "worst of cluster"]


class Graded(Protocol):
    """A reply with its score, as a `Prediction` is."""

    @property
    def group(self) -> Mapping[str, str]:
        """What it is reported under."""
        ...

    @property
    def cluster(self) -> str:
        """What it is resampled with; empty: it is alone."""
        ...

    @property
    def score(self) -> float:
        """0..1."""
        ...


@dataclass(frozen=True)
class Headline:
    """A number of a benchmark: the weighted mean, over strata, of the mean of their units.

    A stratum without a unit is left out, and its weight with it. Without a stratum there is no number.
    """

    name: str
    _: KW_ONLY
    by: str = ""
    """The group whose values are the strata; empty: one stratum of all."""
    weights: Mapping[str, float] | None = None
    """Weight by stratum, strata of no weight left out. None: all count the same."""
    together: tuple[str, ...] = ()
    """Strata that are all there or all absent; if only some are, there is no number."""
    unit: Unit = "item"
    over: int = 0
    """What official code divides by, whatever the number of units; 0: by the number of units."""


@dataclass(frozen=True)
class Table:
    """Values by a group: one row for each of its values, or the `rows` that are named."""

    name: str
    _: KW_ONLY
    by: str = ""
    """The group; empty: it is called like the table."""
    unit: Unit = "item"
    over: int = 0
    rows: tuple[Headline, ...] = ()

    def headlines(self, scored: Sequence[Graded]) -> tuple[Headline, ...]:
        """Its rows for these replies, in alphabetical order unless named."""
        if self.rows:
            return self.rows
        by = self.by or self.name
        found = sorted(set(_labels(by, [item.group for item in scored])))
        return tuple(Headline(row, by=by, weights={row: 1}, unit=self.unit, over=self.over) for row in found)


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """The numbers of a run as its benchmark defines them, all in 0..1."""

    n: int
    headline: dict[str, float | None]
    """The first one is the number the benchmark is known by. None: it cannot be formed from what was scored."""
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    """Score by group: `{"category": {"math": 0.5}}`."""
    notes: tuple[str, ...] = ()
    """What is missing or special about these numbers."""


def _nothing(scored: Sequence[Graded]) -> Iterable[str]:
    return ()


@dataclass(frozen=True)
class Numbers:
    """What a benchmark reports. As it stands: the mean over all items, and no tables."""

    headlines: tuple[Headline, ...] = (Headline("accuracy"),)
    """The first one is what the benchmark is known by. The others are left out where they cannot be formed."""
    tables: tuple[Table, ...] = ()
    remarks: Callable[[Sequence[Graded]], Iterable[str]] = _nothing
    """What is missing or special about the numbers of these replies."""

    def aggregate(self, scored: Sequence[Graded]) -> Aggregate:
        """The numbers of one run. Raises ValueError if nothing was scored, or if an item lacks a group."""
        values = Tally(self.headlines, scored).values()[:, 0]
        headline = {h.name: _known(value) for h, value in zip(self.headlines, values, strict=True)}
        first = self.headlines[0].name
        groups = {}
        for table in self.tables:
            rows = table.headlines(scored)
            values = Tally(rows, scored).values()[:, 0]
            groups[table.name] = {
                row.name: float(value) for row, value in zip(rows, values, strict=True) if not np.isnan(value)
            }
        return Aggregate(
            n=len(scored),
            headline={name: value for name, value in headline.items() if name == first or value is not None},
            groups=groups,
            notes=tuple(self.remarks(scored)),
        )


class Tally:
    """Sums and counts of units by cluster, for some headlines and for runs on the same items.

    Groups and clusters are those of `scored`; `score_AN` holds the scores of every run (None: of `scored` alone).
    """

    def __init__(
        self, headlines: Sequence[Headline], scored: Sequence[Graded], score_AN: np.ndarray | None = None
    ) -> None:
        if not scored:
            raise ValueError("aggregate: expected at least one scored reply, got none")
        if score_AN is None:
            score_AN = np.array([[item.score for item in scored]], dtype=np.float64)
        self.headlines = tuple(headlines)
        clusters: dict[object, int] = {}
        cluster_N = [clusters.setdefault(item.cluster or index, len(clusters)) for index, item in enumerate(scored)]
        self.clusters = len(clusters)
        self.runs = len(score_AN)
        groups = [item.group for item in scored]
        found = [_strata(headline, groups) for headline in self.headlines]
        self.strata = [names for names, _ in found]
        blocks = [
            _sums(stratum_N, len(names), np.array(cluster_N), self.clusters, score_AN, headline.unit)
            for headline, (names, stratum_N) in zip(self.headlines, found, strict=True)
        ]
        self.sum_CF = np.concatenate(blocks, axis=1)
        """For each headline its counts by stratum, then for each run its sums by stratum."""

    def block(self, index: int, sum_RF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts [R, S] and sums [R, A, S] of headline `index` in rows of sums."""
        widths = [len(names) * (1 + self.runs) for names in self.strata]
        start = sum(widths[:index])
        both = sum_RF[:, start : start + widths[index]].reshape(len(sum_RF), 1 + self.runs, len(self.strata[index]))
        return both[:, 0], both[:, 1:]

    def units(self, index: int) -> int:
        """How many units headline `index` is made of."""
        return int(self.block(index, self.sum_CF)[0].sum())

    def values(self) -> np.ndarray:
        """Value [H, A] of every headline; NaN: it cannot be formed."""
        return self.resampled(self.sum_CF.sum(axis=0, keepdims=True))[:, :, 0]

    def resampled(self, sum_RF: np.ndarray) -> np.ndarray:
        """Value [H, A, R] of every headline in each row of sums over clusters."""
        return np.stack([self._value(index, sum_RF) for index in range(len(self.headlines))])

    def _value(self, index: int, sum_RF: np.ndarray) -> np.ndarray:
        headline, names = self.headlines[index], self.strata[index]
        count_RS, sum_RAS = self.block(index, sum_RF)
        present_RS = count_RS > 0
        weight_S = np.array([1.0 if headline.weights is None else headline.weights[name] for name in names])
        weight_RS = present_RS * weight_S
        divisor_RS = np.where(present_RS, headline.over or count_RS, 1)
        together_R = present_RS[:, [name in headline.together for name in names]].sum(axis=1)
        torn_R = (together_R > 0) & (together_R < len(headline.together))
        with np.errstate(invalid="ignore"):
            value_RA = (sum_RAS / divisor_RS[:, None] * weight_RS[:, None]).sum(axis=2) / weight_RS.sum(axis=1)[:, None]
        value_RA[torn_R] = np.nan
        return value_RA.T


def _labels(by: str, groups: Sequence[Mapping[str, str]]) -> list[str]:
    for group in groups if by else ():
        if by not in group:
            raise ValueError(f"aggregate: expected every item to have the group {by!r}, got one with {dict(group)}")
    return [group[by] if by else "" for group in groups]


def _strata(headline: Headline, groups: Sequence[Mapping[str, str]]) -> tuple[list[str], np.ndarray]:
    """Strata with weight in alphabetical order, and the place of every item among them (−1: it does not count)."""
    label_N = _labels(headline.by, groups)
    names = sorted(name for name in set(label_N) if headline.weights is None or headline.weights.get(name))
    places = {name: place for place, name in enumerate(names)}
    return names, np.array([places.get(label, -1) for label in label_N])


def _sums(
    stratum_N: np.ndarray, strata: int, cluster_N: np.ndarray, clusters: int, score_AN: np.ndarray, unit: Unit
) -> np.ndarray:
    """Counts and sums [C, F] of one headline."""
    counts_N = stratum_N >= 0
    cell_N = (cluster_N * strata + stratum_N)[counts_N]
    size = clusters * strata
    count_CS: np.ndarray = np.bincount(cell_N, minlength=size).astype(np.float64)
    columns = [count_CS if unit == "item" else (count_CS > 0).astype(np.float64)]
    for score_N in score_AN:
        if unit == "item":
            columns.append(np.bincount(cell_N, weights=score_N[counts_N], minlength=size))
        else:
            worst = np.full(size, np.inf)
            np.minimum.at(worst, cell_N, score_N[counts_N])
            columns.append(np.where(np.isfinite(worst), worst, 0.0))
    return np.concatenate([column.reshape(clusters, strata) for column in columns], axis=1)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
