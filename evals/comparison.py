"""Before, after and teacher on the same questions: every number with what can be said for it, as JSON.

`compare_runs` takes a run as its predictions by benchmark and returns plain figures; `evals.compare_table` and
`evals.compare_page` only print them. Numbers of different protocols are never subtracted. All values are shares in
0..1, all intervals 95 %, and what cannot be formed is None with the reason beside it.

Shape letters as in `evals.aggregate`: A runs (before, after, teacher), H headlines, R resamples.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .aggregate import Numbers, Table, Tally
from .benchmarks import find
from .records import Prediction, count_fates
from .stats import POWER, RESAMPLES, detectable, mcnemar, null_variance, percentiles, recovery, resample

Run = Mapping[str, Sequence[Prediction]]
Figures = dict[str, Any]

RUNS = ("before", "after", "teacher")
FEW = 20
"""Below this many clusters a percentile interval is noticeably too narrow."""
METHOD = (
    f"Intervals are 95 % percentile intervals of a cluster bootstrap with {RESAMPLES:,} resamples; all runs are "
    "measured on the same resampled clusters.",
    "p is McNemar's exact test, where a number is a plain mean of 0/1 scores of units that are each a cluster of "
    "their own.",
    "Recovered is (after − before) / (teacher − before), formed inside each resample and never clipped; undefined "
    "where the interval of teacher − before includes 0 or that lead is under 2 points.",
    f"MDE is the smallest true difference that such a comparison finds with {POWER:.0%} power at the 5 % level: "
    "(1.96 + 0.84) · √(ψ/n) for 0/1 scores of single items, ψ being the share of items that differ between before and "
    "after; in general √(ψ/n) is the bootstrap deviation of the difference, taken around 0.",
    "Macro numbers give every benchmark the same weight; benchmarks are resampled independently.",
)

_UNFORMED = "the number cannot be formed"


@dataclass(frozen=True)
class _Known:
    """What is said of a benchmark besides its predictions."""

    title: str
    numbers: Numbers
    count: int = 0
    reproduced: str | None = None


@dataclass(frozen=True, eq=False)
class _Number:
    """A headline of all runs, drawn again."""

    value_A: np.ndarray
    value_AR: np.ndarray
    variance: float | None
    """See `stats.null_variance`; None for a single run and where there is no value."""

    @property
    def formed(self) -> bool:
        """Whether it has a value."""
        return not np.isnan(self.value_A).any()


def measure(run: Run, seed: int = 0) -> Figures:
    """The figures of one run, in the form of `compare_runs` with "run" in place of before, after and teacher."""
    return {
        "runs": {"run": _who(run)},
        "seed": seed,
        "resamples": RESAMPLES,
        "method": list(METHOD[:1]),
        "benchmarks": {name: _benchmark(name, {"run": rows}, seed)[0] for name, rows in run.items()},
    }


def compare_runs(before: Run, after: Run, teacher: Run | None = None, seed: int = 0) -> Figures:
    """The figures of `after` against `before`, with gap recovery where there is a `teacher`. Plain JSON.

    A benchmark that only one of before and after has is named in `notes`, as is one that the teacher lacks. Raises
    ValueError with one line if nothing is in common, and if protocols, ids, questions or answers of a benchmark differ
    between the runs.
    """
    common = [name for name in before if name in after]
    if not common:
        raise ValueError(
            "compare: expected a benchmark that both runs have, "
            f"got {_listed(before)} in 'before' and {_listed(after)} in 'after'"
        )
    notes = [f"{name}: only in {run}, left out" for run, name in _alone(before, after)]
    benchmarks, numbers = {}, {}
    for name in common:
        runs = {"before": before[name], "after": after[name]}
        if teacher is not None and name in teacher:
            runs["teacher"] = teacher[name]
        benchmarks[name], numbers[name] = _benchmark(name, runs, seed)
    has_teacher = teacher is not None and any(name in teacher for name in common)
    if teacher is not None:
        notes += [f"{name}: no replies of the teacher" for name in common if name not in teacher]
        notes += [f"{name}: only in teacher, left out" for name in teacher if name not in common]
    count = 3 if has_teacher else 2
    everywhere = {name: number for name, number in numbers.items() if number.formed and len(number.value_A) == count}
    return {
        "runs": {run: _who(rows) for run, rows in zip(RUNS, (before, after, teacher), strict=True) if rows is not None},
        "seed": seed,
        "resamples": RESAMPLES,
        "method": list(METHOD),
        "benchmarks": benchmarks,
        "macro": _macro(everywhere) if len(everywhere) > 1 else None,
        "notes": notes,
    }


def _alone(before: Run, after: Run) -> list[tuple[str, str]]:
    only = [("before", name) for name in before if name not in after]
    return only + [("after", name) for name in after if name not in before]


def _listed(names: Run) -> str:
    return ", ".join(names) or "none"


def _who(run: Run) -> str:
    return ", ".join(dict.fromkeys(row.run for rows in run.values() for row in rows if row.run))


def _known(protocol: str, rows: Sequence[Prediction]) -> _Known:
    name, _, rest = protocol.partition(":")
    if name != "held-out" and not rest.startswith("lm-eval:"):
        benchmark = find(name)
        return _Known(benchmark.title, benchmark.numbers, benchmark.count, benchmark.reproduced)
    # Not of ours, so there is no number of ours to reproduce: plain accuracy, by whatever groups all rows have.
    tables = tuple(Table(group) for group in rows[0].group if all(group in row.group for row in rows))
    return _Known("Held-out questions" if name == "held-out" else name, Numbers(tables=tables))


def _benchmark(name: str, runs: Mapping[str, Sequence[Prediction]], seed: int) -> tuple[Figures, _Number]:
    """The figures of a benchmark, and the number it enters the macro mean with."""
    protocol = _protocol(name, runs)
    items, score_AN = _aligned(name, runs)
    known = _known(protocol, items)
    try:
        tally = Tally(known.numbers.headlines, items, score_AN)
        tables = {table.name: _table(table, items, score_AN, tuple(runs)) for table in known.numbers.tables}
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    # Of the name, so that one benchmark more leaves the others as they are.
    generator = np.random.default_rng([seed, zlib.crc32(name.encode(errors="backslashreplace"))])
    value_HAR = tally.resampled(resample(tally.sum_CF, generator))
    numbers = [_number(value_A, value_AR, tally) for value_A, value_AR in zip(tally.values(), value_HAR, strict=True)]
    formed = [index for index, number in enumerate(numbers) if number.formed]
    first = formed[0] if formed else 0
    figures = {
        "title": known.title,
        "protocol": protocol,
        "reproduced": known.reproduced,
        "n": len(items),
        "clusters": tally.clusters,
        "headline": known.numbers.headlines[first].name,
        "headlines": {
            tally.headlines[index].name: {
                "units": tally.units(index),
                **_entry(tuple(runs), number),
                **(_p_value(tally, index, number) if len(runs) > 1 else {}),
            }
            for index, number in enumerate(numbers)
            if index == 0 or number.formed
        },
        "groups": tables,
        "fates": {run: dict(count_fates(rows)) for run, rows in runs.items()},
        "notes": _notes(known, items, runs, tally, numbers[first]),
    }
    if len(runs) > 1:
        change_N = _gain(score_AN)
        figures |= {"gained": int((change_N > 0).sum()), "lost": int((change_N < 0).sum())}
    return figures, numbers[first]


def _number(value_A: np.ndarray, value_AR: np.ndarray, tally: Tally) -> _Number:
    paired = len(value_A) > 1 and not np.isnan(value_A).any()
    variance = null_variance(_gain(value_A), _gain(value_AR), tally.clusters) if paired else None
    return _Number(value_A, value_AR, variance)


def _gain(value_A: np.ndarray) -> Any:
    return value_A[1] - value_A[0]


def _protocol(name: str, runs: Mapping[str, Sequence[Prediction]]) -> str:
    """The one protocol of all rows."""
    seen: dict[str, str] = {}
    for run, rows in runs.items():
        if not rows:
            raise ValueError(f"{name}: expected at least one reply in {run!r}, got none")
        for row in rows:
            seen.setdefault(row.protocol, run)
    if len(seen) > 1:
        (first, where), (other, there) = list(seen.items())[:2]
        raise ValueError(
            f"{name}: expected one protocol, got {first!r} in {where!r} and {other!r} in {there!r}: "
            "ask both again in one way, or rescore one of them"
        )
    return next(iter(seen))


def _aligned(name: str, runs: Mapping[str, Sequence[Prediction]]) -> tuple[list[Prediction], np.ndarray]:
    """One prediction for each item, and the scores [A, N] of all runs; several samples of an item are averaged."""
    sampled: list[dict[str, list[Prediction]]] = []
    for rows in runs.values():
        by_id: dict[str, list[Prediction]] = {}
        for row in rows:
            by_id.setdefault(row.id, []).append(row)
        sampled.append(by_id)
    base, *others = runs
    for run, by_id in zip(others, sampled[1:], strict=True):
        for one, other, has, lacks in ((sampled[0], by_id, base, run), (by_id, sampled[0], run, base)):
            if missing := [key for key in one if key not in other]:
                raise ValueError(
                    f"{name}: expected the same ids in both runs, got {len(missing)} in {has!r} that {lacks!r} lacks, "
                    f"e.g. {', '.join(map(repr, missing[:3]))}"
                )
    for key, (first, *_) in sampled[0].items():
        if any(row.digest != first.digest for by_id in sampled for row in by_id[key]):
            raise ValueError(f"{name}: item {key!r} was not the same question and answer in all runs")
    scores = [[math.fsum(row.score for row in by_id[key]) / len(by_id[key]) for key in sampled[0]] for by_id in sampled]
    return [rows[0] for rows in sampled[0].values()], np.array(scores)


def _entry(runs: Sequence[str], number: _Number) -> Figures:
    """Values, difference, lead and recovery of a number, with intervals."""
    value_A, value_AR = number.value_A, number.value_AR
    entry: Figures = {run: _estimate(value_A[index], value_AR[index]) for index, run in enumerate(runs)}
    if len(runs) > 1:
        entry["difference"] = _estimate(_gain(value_A), _gain(value_AR))
        entry["mde"] = detectable(number.variance) if number.variance is not None else None
    if len(runs) > 2:
        entry["lead"] = _estimate(value_A[2] - value_A[0], value_AR[2] - value_AR[0])
        entry["recovery"] = _recovery(number)
    return entry


def _estimate(value: float, sampled_R: np.ndarray) -> Figures:
    low, high = percentiles(sampled_R)
    return {
        "value": _finite(value),
        "low": _finite(low),
        "high": _finite(high),
        "half_width": _finite((high - low) / 2),
    }


def _recovery(number: _Number) -> Figures:
    """An end of the interval that is None is infinite: too many resamples have no lead at all."""
    if not number.formed:
        return {"value": None, "low": None, "high": None, "undefined": _UNFORMED}
    b, a, t = map(float, number.value_A)
    value, interval, undefined = recovery((b, a, t), number.value_AR)
    low, high = interval or (math.nan, math.nan)
    return {"value": value, "low": _finite(low), "high": _finite(high), "undefined": undefined}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _p_value(tally: Tally, index: int, number: _Number) -> Figures:
    """McNemar's p-value of after against before, or why it does not apply."""
    count_CS, sum_CAS = tally.block(index, tally.sum_CF)
    reason = ""
    if not number.formed:
        reason = _UNFORMED
    elif count_CS.shape[1] != 1:
        reason = "a mean of several means"
    elif (count_CS > 1).any():
        reason = "items of one cluster are not independent"
    elif not np.isin(sum_CAS[:, :2], (0, 1)).all():
        reason = "not all scores are 0 or 1"
    if reason:
        return {"p_value": None, "p_undefined": reason}
    change_C = _gain(sum_CAS[:, :, 0].T)
    return {"p_value": mcnemar(int((change_C > 0).sum()), int((change_C < 0).sum())), "p_undefined": ""}


def _table(table: Table, items: Sequence[Prediction], score_AN: np.ndarray, runs: Sequence[str]) -> Figures:
    """Rows of a group with their number of units and the value of each run."""
    rows = table.headlines(items)
    tally = Tally(rows, items, score_AN)
    return {
        row.name: {"n": tally.units(index), **dict(zip(runs, map(float, value_A), strict=True))}
        for index, (row, value_A) in enumerate(zip(rows, tally.values(), strict=True))
        if not np.isnan(value_A).any()
    }


def _notes(
    known: _Known,
    items: Sequence[Prediction],
    runs: Mapping[str, Sequence[Prediction]],
    tally: Tally,
    number: _Number,
) -> list[str]:
    notes = list(known.numbers.remarks(items))
    if len(items) < known.count:
        notes.append(f"{len(items):,} of {known.count:,} questions")
    for run, rows in runs.items():
        if len(rows) > len(items):
            notes.append(f"{run}: {len(rows):,} replies to {len(items):,} questions, averaged by question")
    if tally.clusters < FEW:
        notes.append(f"{tally.clusters} clusters: with fewer than {FEW}, intervals are too narrow")
    for run, value_R in zip(runs, number.value_AR, strict=True):
        if np.ptp(value_R) == 0:
            notes.append(f"{run}: all scores are equal, so the bootstrap sees no uncertainty")
    return notes


def _macro(numbers: Mapping[str, _Number]) -> Figures:
    """Means over benchmarks. They were resampled independently, so resamples are paired as they come."""
    found = list(numbers.values())
    mean = _Number(
        np.mean([number.value_A for number in found], axis=0),
        np.mean([number.value_AR for number in found], axis=0),
        sum(number.variance or 0.0 for number in found) / len(found) ** 2,
    )
    return {"benchmarks": list(numbers), **_entry(RUNS[: len(mean.value_A)], mean)}
