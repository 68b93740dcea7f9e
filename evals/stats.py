"""How far a number can be trusted. All intervals are 95 %; all differences are later − earlier, in shares (0..1).

What is drawn again in the bootstrap is a cluster: the items that share a seed question, a scene or a source, since they
are right and wrong together. `resample` draws sums over clusters, and whatever is a function of such sums (see
`evals.aggregate`) has its interval. The functions that take scores by item id are those where every item is a cluster.

Runs are compared on identical ids only: the same question, asked twice, varies much less than two samples of questions
do, and a pairing that silently drops items compares something else.

Shape letters: A runs, C clusters, P patterns, F columns of sums, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Scores = Mapping[str, float]
Interval = tuple[float, float]

RESAMPLES = 10_000
MIN_GAP = 0.02
"""A gap to the teacher below two points is not a gap one can recover a share of."""

POWER = 0.8
"""With which a real difference of the size `detectable` would be found at the 5 % level."""

_TAILS = (0.025, 0.975)
_BLOCK = 2**22
"""Counts held at once while resampling: 32 MiB of them."""


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """after − before on the same items: positive means that `after` is better."""

    n: int
    before: float
    after: float
    difference: float
    interval: Interval
    gained: int
    """Items whose score rose from before to after."""
    lost: int
    """Items whose score fell."""
    p_value: float
    """Exact two-sided McNemar test of gained against lost."""

    def __str__(self) -> str:
        low, high = (100 * end for end in self.interval)
        return (
            f"{100 * self.difference:+.1f} points [{low:+.1f}, {high:+.1f}] of n={self.n} "
            f"({self.before:.1%} to {self.after:.1%}, +{self.gained} −{self.lost}, p={self.p_value:.2g})"
        )


@dataclass(frozen=True, kw_only=True)
class GapRecovery:
    """(after − before) / (teacher − before): 0 = nothing learnt, 1 = as good as the teacher. Never clipped."""

    n: int
    before: float
    after: float
    teacher: float
    value: float | None
    """None where the gap itself is not established; `undefined` then says why."""
    interval: Interval | None
    undefined: str = ""


def wilson(correct: int, n: int) -> Interval:
    """Wilson score interval of the share correct/n. It holds at 0 and n too, where the usual one has no width.

    (p + z²/2n ± z·sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n), z = 1.96. Raises ValueError unless 0 ≤ correct ≤ n and n ≥ 1.

    >>> [round(end, 3) for end in wilson(18, 20)]
    [0.699, 0.972]
    """
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"expected 0 <= correct <= n and n >= 1, got {correct} of {n}")
    z = NormalDist().inv_cdf(_TAILS[1])
    share = correct / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the borders the formula gives exactly 0 and 1, but only without rounding.
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == n else (centre + half) / scale
    return low, high


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value that `gained` and `lost` differ by chance: 2·P(X ≤ min), X ~ Binomial(gained+lost, ½).

    >>> mcnemar(gained=8, lost=1)
    0.0390625
    """
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_difference(before: Scores, after: Scores, seed: int = 0) -> PairedDifference:
    """after − before with its paired bootstrap percentile interval and McNemar's p-value.

    Raises ValueError, naming ids, unless both runs have the same ones.

    >>> before = {"q1": 0, "q2": 0, "q3": 1, "q4": 1, "q5": 0}
    >>> print(paired_difference(before, before | {"q1": 1, "q2": 1}))
    +40.0 points [+0.0, +80.0] of n=5 (40.0% to 80.0%, +2 −0, p=0.5)
    """
    scores = _align(before=before, after=after)
    b, a = scores
    sampled_b, sampled_a = _means(scores, seed)
    gained, lost = int((a > b).sum()), int((a < b).sum())
    return PairedDifference(
        n=len(b),
        before=float(b.mean()),
        after=float(a.mean()),
        difference=float((a - b).mean()),
        interval=percentiles(sampled_a - sampled_b),
        gained=gained,
        lost=lost,
        p_value=mcnemar(gained, lost),
    )


def gap_recovery(before: Scores, after: Scores, teacher: Scores, seed: int = 0) -> GapRecovery:
    """The share of the way from `before` to `teacher` that `after` has gone, with its bootstrap percentile interval.

    Raises ValueError, naming ids, unless all three runs have the same ones.
    """
    scores = _align(before=before, after=after, teacher=teacher)
    b, a, t = (float(row.mean()) for row in scores)
    value, interval, undefined = recovery((b, a, t), _means(scores, seed))
    return GapRecovery(
        n=scores.shape[1], before=b, after=a, teacher=t, value=value, interval=interval, undefined=undefined
    )


def recovery(values: tuple[float, float, float], sampled_AR: np.ndarray) -> tuple[float | None, Interval | None, str]:
    """(after − before) / (teacher − before), its interval, and why it is undefined, from before, after and teacher.

    The ratio is formed inside each resample, from the same resampled clusters for the three runs. It is undefined
    (None) where the interval of teacher − before includes 0, or where that difference is under two points. An end of
    the interval can be infinite: then a share of the resamples has no gap at all.
    """
    before, after, teacher = values
    sampled_b, sampled_a, sampled_t = sampled_AR
    low, high = percentiles(sampled_t - sampled_b)
    if not (low > 0 or high < 0):
        return None, None, f"the interval of teacher − before includes 0: [{low:.3f}, {high:.3f}]"
    if abs(teacher - before) < MIN_GAP:
        lead = f"{100 * (teacher - before):.1f}"
        return None, None, f"teacher − before is under {100 * MIN_GAP:.0f} points: {lead}"
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (sampled_a - sampled_b) / (sampled_t - sampled_b)
    return (after - before) / (teacher - before), percentiles(ratios), ""  # 0/0 says nothing; x/0 stays infinite


def null_variance(difference: float, sampled_R: np.ndarray, clusters: int) -> float:
    """Variance that a paired difference would have if there were none, with as much changing between the runs.

    The bootstrap variance is taken around the observed difference; difference² / clusters puts it around 0. For 0/1
    scores of single items this is ψ/n, with ψ the share of items that differ, as in McNemar's test.
    """
    return float(np.nanvar(sampled_R)) + difference**2 / clusters


def detectable(variance: float) -> float | None:
    """The smallest true difference that such a comparison finds: 80 % power, 5 % level, two-sided.

    (z(0.975) + z(0.8)) · √variance = 2.80 · √(ψ/n) for 0/1 scores of single items. None where nothing differs between
    the runs: then there is nothing to estimate it from.
    """
    z = NormalDist().inv_cdf
    return (z(_TAILS[1]) + z(POWER)) * math.sqrt(variance) if variance > 0 else None


def resample(sum_CF: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Sums [R, F] over clusters drawn with replacement, from their rows [C, F].

    Clusters with equal rows are interchangeable, so we draw how often each pattern of rows occurs. The law is that of
    drawing clusters, at the cost of a handful of patterns where scores are 0 or 1.

    >>> right_and_asked_CF = np.array([[3, 3], [0, 2], [1, 2], [2, 2]])  # of each scene: 6 of 9 in all
    >>> sampled_RF = resample(right_and_asked_CF, np.random.default_rng(0))
    >>> sampled_RF.shape
    (10000, 2)
    >>> [round(end, 2) for end in percentiles(sampled_RF[:, 0] / sampled_RF[:, 1])]
    [0.25, 1.0]
    """
    clusters = len(sum_CF)
    pattern_PF, count_P = np.unique(sum_CF, axis=0, return_counts=True)
    sampled_RF = np.empty((RESAMPLES, sum_CF.shape[1]))
    step = max(1, _BLOCK // len(pattern_PF))
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        drawn_RP = generator.multinomial(clusters, count_P / clusters, size=rows)
        sampled_RF[start : start + rows] = drawn_RP @ pattern_PF
    # Sums of equal scores are then equal, in whatever order they were added.
    return np.round(sampled_RF, 9)


def percentiles(sampled_R: np.ndarray) -> Interval:
    """95 % percentile interval; NaN, where a resample has no value, is left out. NaN twice if none has one."""
    known = sampled_R[~np.isnan(sampled_R)]
    if not known.size:
        return math.nan, math.nan
    # Without interpolation: between a finite and an infinite ratio there is no number.
    low, high = np.quantile(known, _TAILS, method="inverted_cdf")
    return float(low), float(high)


def _align(**runs: Scores) -> np.ndarray:
    """Scores [run, item] of runs with the same ids, items in the first run's order."""
    (first_name, first), *others = runs.items()
    for name, run in others:
        for one, another, where, absent in (
            (first, run, first_name, name),
            (run, first, name, first_name),
        ):
            if missing := [key for key in one if key not in another]:
                raise ValueError(
                    f"paired statistics: expected the same ids in both runs, got {len(missing)} in {where!r} that "
                    f"{absent!r} lacks, e.g. {', '.join(map(repr, missing[:3]))}"
                )
    if not first:
        raise ValueError("paired statistics: expected at least one item, got none")
    return np.array([[run[key] for key in first] for run in runs.values()], dtype=np.float64)


def _means(scores: np.ndarray, seed: int) -> np.ndarray:
    """Means [run, resample] of `scores` [run, item] over items drawn with replacement, the same items for each run."""
    return resample(scores.T, np.random.default_rng(seed)).T / scores.shape[1]
