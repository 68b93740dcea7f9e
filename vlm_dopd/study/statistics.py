"""How far a study's numbers can be trusted: a bootstrap over seeds and questions.

A cell is a table of scores, one row a seed and one column a question. Both are samples: another seed would have trained
another student, another file would have asked other questions. Every resample draws seeds with replacement, then
questions; all arms of a comparison have the same draws, so that a seed is compared with itself and a question with
itself. With one seed it is the bootstrap over questions, which says nothing of other seeds; with three, the interval
is a little too narrow, because a variance of few seeds is underestimated by (S−1)/S.

Shape letters: S seeds, Q questions, P patterns of scores, R resamples. Intervals are 95 %, scores shares in 0..1.
"""

from __future__ import annotations

import numpy as np

from evals.stats import MIN_GAP, RESAMPLES

from ..report.collect import Estimate

TAILS = (0.025, 0.975)


def accuracy(score_SQ: np.ndarray, seed: int = 0) -> Estimate:
    """The mean over seeds and questions."""
    (mean_R,) = resample([score_SQ], seed)
    return _estimate(float(score_SQ.mean()), mean_R)


def difference(first_SQ: np.ndarray, second_SQ: np.ndarray, seed: int = 0) -> Estimate:
    """first − second, paired by question and, unless second has one row that holds for all seeds, by seed."""
    first_R, second_R = resample([first_SQ, second_SQ], seed)
    return _estimate(float(first_SQ.mean() - second_SQ.mean()), first_R - second_R)


def recovery(before_1Q: np.ndarray, after_SQ: np.ndarray, teacher_1Q: np.ndarray, seed: int = 0) -> Estimate:
    """(after − before) / (teacher − before), the ratio formed inside each resample.

    None where the gap is not established: its interval includes 0, or it is under two points.
    """
    before_R, after_R, teacher_R = resample([before_1Q, after_SQ, teacher_1Q], seed)
    gap = float(teacher_1Q.mean() - before_1Q.mean())
    low, high = _percentiles(teacher_R - before_R)
    if low <= 0 <= high or abs(gap) < MIN_GAP:
        return Estimate(value=None, low=None, high=None)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_R = (after_R - before_R) / (teacher_R - before_R)
    found = _estimate(float(after_SQ.mean() - before_1Q.mean()) / gap, ratio_R[~np.isnan(ratio_R)])
    # An infinite end says that a share of the resamples has no gap; JSON has no word for it.
    ends = (end if end is not None and np.isfinite(end) else None for end in (found.low, found.high))
    return Estimate(value=found.value, low=next(ends), high=next(ends))


def resample(arms: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """The mean of every arm [S, Q] in each resample. An arm of one row holds for all seeds, which are then not drawn.

    Questions with equal scores in all arms and seeds are interchangeable: we draw how often each pattern occurs, at the
    cost of a handful of patterns instead of Q questions.
    """
    seeds, questions = max(len(arm) for arm in arms), arms[0].shape[1]
    if any(arm.shape not in ((1, questions), (seeds, questions)) for arm in arms):
        raise ValueError(f"expected arms of one size, or of one row, got {[arm.shape for arm in arms]}")
    if 0 in (seeds, questions):
        raise ValueError(f"expected at least one seed and one question, got {seeds} and {questions}")
    pattern_P, count_P = np.unique(np.concatenate(arms), axis=1, return_counts=True)
    generator = np.random.default_rng(seed)
    question_RP = generator.multinomial(questions, count_P / questions, size=RESAMPLES) / questions
    seed_RS = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    means, row = [], 0
    for arm in arms:
        score_SP = pattern_P[row : row + len(arm)]
        row += len(arm)
        share_RS = seed_RS if len(arm) == seeds else np.ones((RESAMPLES, 1))
        means.append(((share_RS @ score_SP) * question_RP).sum(1))
    return means


def _estimate(value: float, sample_R: np.ndarray) -> Estimate:
    low, high = _percentiles(sample_R)
    return Estimate(value=value, low=low, high=high)


def _percentiles(sample_R: np.ndarray) -> tuple[float, float]:
    # Without interpolation: between a finite and an infinite ratio there is no number.
    low, high = np.quantile(sample_R, TAILS, method="inverted_cdf")
    return float(low), float(high)
