"""Intervals, paired comparisons and gap recovery, against known values, a brute-force bootstrap and their limits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from evals.stats import (
    MIN_GAP,
    RESAMPLES,
    detectable,
    gap_recovery,
    mcnemar,
    null_variance,
    paired_difference,
    percentiles,
    recovery,
    resample,
    wilson,
)

stable = settings(deadline=None, derandomize=True)
bits = st.lists(st.booleans(), min_size=1, max_size=60)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def run(values):
    return {f"item-{i}": float(value) for i, value in enumerate(values)}


def share(correct, n=1000):
    return run([i < correct for i in range(n)])


@stable
@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy_and_holds_the_point(case):
    correct, n = case
    low, high = wilson(correct, n)
    expected = reference.binomtest(correct, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= correct / n <= high <= 1
    assert low < high


@pytest.mark.parametrize(("correct", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_what_is_no_share(correct, n):
    with pytest.raises(ValueError, match="correct"):
        wilson(correct, n)


@stable
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_equals_the_exact_binomial_test(gained, lost):
    expected = reference.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


@stable
@given(bits)
def test_identical_runs_differ_by_exactly_nothing(values):
    result = paired_difference(run(values), run(values))
    assert (result.difference, result.interval, result.p_value) == (0.0, (0.0, 0.0), 1.0)
    assert (result.gained, result.lost) == (0, 0)


@stable
@given(pairs)
def test_a_paired_difference_holds_its_point_and_is_antisymmetric(values):
    before, after = run([b for b, _ in values]), run([a for _, a in values])
    there, back = paired_difference(before, after), paired_difference(after, before)
    low, high = there.interval
    assert -1 <= low <= there.difference + 1e-12
    assert there.difference - 1e-12 <= high <= 1
    assert there.difference == pytest.approx(there.after - there.before)
    assert back.difference == -there.difference
    assert (back.gained, back.lost, back.p_value) == (there.lost, there.gained, there.p_value)


def test_direction_is_after_minus_before():
    result = paired_difference(share(500), share(600))
    assert result.difference == pytest.approx(0.1)
    assert (result.gained, result.lost) == (100, 0)
    assert result.interval[0] > 0
    assert str(result).startswith("+10.0 points [+")


def test_the_bootstrap_draws_items_with_replacement():
    # Drawing patterns of scores must have the law of drawing ids one by one.
    rng = np.random.default_rng(5)
    before, after = rng.random(80) < 0.5, rng.random(80) < 0.6
    ids = rng.integers(0, 80, size=(20_000, 80))
    expected = np.quantile((after.astype(float) - before)[ids].mean(axis=1), (0.025, 0.975))
    assert paired_difference(run(before), run(after)).interval == pytest.approx(expected, abs=0.0126)  # one item


def test_the_pairing_narrows_the_interval():
    # The same accuracies on independent items are much less certain.
    rng = np.random.default_rng(0)
    shuffled = rng.permutation([i < 600 for i in range(1000)])
    width = [
        high - low for low, high in (paired_difference(share(500), a).interval for a in (share(600), run(shuffled)))
    ]
    assert 2 * width[0] < width[1]


def test_seed_decides_the_interval_and_nothing_else_does():
    before, after = share(480), run([i % 3 > 0 for i in range(1000)])
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - that we leave it alone is the point
    first = paired_difference(before, after, seed=1)
    assert first == paired_difference(before, after, seed=1)
    assert first == paired_difference(before, dict(reversed(after.items())), seed=1)
    assert first.interval != paired_difference(before, after, seed=2).interval
    assert (state == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({"a": 1, "b": 0}, {"a": 1}, "'before' that 'after' lacks, e.g. 'b'"),
        ({"a": 1}, {"a": 1, "c": 0}, "'after' that 'before' lacks, e.g. 'c'"),
        ({}, {}, "at least one item"),
    ],
    ids=["missing", "extra", "empty"],
)
def test_runs_of_other_items_are_refused(before, after, named):
    with pytest.raises(ValueError, match=named):
        paired_difference(before, after)


@pytest.mark.parametrize(
    ("before", "after", "teacher", "value"),
    [
        (400, 400, 800, 0.0),
        (400, 600, 800, 0.5),
        (400, 800, 800, 1.0),
        (400, 900, 800, 1.25),
        (400, 300, 800, -0.25),
        (800, 700, 400, 0.25),
    ],
    ids=[
        "nothing learnt",
        "half way",
        "the teacher reached",
        "beyond: not clipped",
        "worse: not clipped",
        "teacher worse",
    ],
)
def test_gap_recovery_of_known_cases(before, after, teacher, value):
    result = gap_recovery(share(before), share(after), share(teacher))
    assert result.value == pytest.approx(value)
    assert result.undefined == ""
    low, high = result.interval
    assert low - 1e-9 <= value <= high + 1e-9
    assert (result.n, result.before, result.after, result.teacher) == (
        1000,
        before / 1000,
        after / 1000,
        teacher / 1000,
    )


def test_the_limits_of_recovery_are_certain():
    # after == before, or == teacher, on every item: the ratio is 0, or 1, in every resample.
    assert gap_recovery(share(400), share(400), share(800)).interval == (0.0, 0.0)
    assert gap_recovery(share(400), share(800), share(800)).interval == (1.0, 1.0)


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [
        (share(500), "includes 0"),
        (run([i % 2 > 0 for i in range(1000)]), "includes 0"),
        (share(515), "under 2 points"),
    ],
    ids=["no gap", "a gap of chance", "a sure but tiny gap"],
)
def test_a_gap_that_is_not_established_has_no_share(teacher, reason):
    result = gap_recovery(share(500), share(600), teacher)
    assert (result.value, result.interval) == (None, None)
    assert reason in result.undefined
    assert MIN_GAP == 0.02


def test_three_runs_must_have_the_same_items():
    with pytest.raises(ValueError, match="'teacher' lacks"):
        gap_recovery(share(4, 10), share(5, 10), share(5, 9))


def test_an_interval_of_recovery_is_never_a_nan():
    # Four items of eight make the gap, so one resample in 256 draws none of them: 0/0 there.
    result = gap_recovery(run([0] * 8), run([1] * 3 + [0] * 5), run([1] * 4 + [0] * 4))
    assert result.value == 0.75
    assert not any(math.isnan(end) for end in result.interval)


def drawn(rows, seed=0):
    return resample(np.array(rows, dtype=float), np.random.default_rng(seed))


def test_a_resample_holds_as_many_clusters_and_the_same_ones_for_every_run():
    rng = np.random.default_rng(1)
    score = rng.integers(0, 11, 300) / 10
    ours = drawn(np.stack([np.ones(300), score, score, 1 - score], axis=1))
    assert ours.shape == (RESAMPLES, 4)
    assert (ours[:, 0] == 300).all()
    assert (ours[:, 1] == ours[:, 2]).all() and (ours == np.round(ours, 9)).all()  # equal runs differ by nothing
    assert ours[:, 1] + ours[:, 3] == pytest.approx(np.full(RESAMPLES, 300))
    assert ours[:, 1].mean() / 300 == pytest.approx(score.mean(), abs=1e-3)
    assert ours[:, 1].std() / 300 == pytest.approx(score.std() / np.sqrt(300), rel=0.03)


def test_many_patterns_are_drawn_in_blocks_by_the_same_law():
    # 1,500 patterns, so that the counts of all resamples are never held at once.
    score = np.linspace(0, 1, 1500)
    ours = drawn(score[:, None])[:, 0] / 1500
    assert len(np.unique(ours)) > 0.9 * RESAMPLES  # no block repeats another
    assert (ours.mean(), ours.std()) == (
        pytest.approx(0.5, abs=5e-4),
        pytest.approx(score.std() / np.sqrt(1500), rel=0.03),
    )


def test_percentiles_leave_out_what_has_no_value():
    assert percentiles(np.array([np.nan, *np.arange(1, 41)])) == (1.0, 39.0)
    assert percentiles(np.array([1.0, np.inf])) == (1.0, np.inf)
    assert np.isnan(percentiles(np.array([np.nan, np.nan]))).all()


def test_intervals_of_clusters_cover_the_truth():
    """95 % intervals of a mean of clustered items hold the truth about 95 times in 100; those of items do not."""
    rng = np.random.default_rng(11)
    held = {"clusters": 0, "items": 0}
    for trial in range(120):
        right = rng.random((60, 8)) < rng.beta(1, 1, 60)[:, None]  # clusters of eight with a rate of their own
        sums = {"clusters": right.sum(axis=1), "items": right.ravel()}
        for unit, sum_C in sums.items():
            low, high = percentiles(drawn(sum_C[:, None], seed=trial)[:, 0] / 480)
            held[unit] += low <= 0.5 <= high
    assert 108 <= held["clusters"] <= 119
    assert held["items"] < 96


@stable
@given(st.integers(1, 300), st.integers(0, 300), st.integers(100, 700))
def test_what_can_be_detected_follows_from_the_share_that_differs(gained, lost, same):
    """(1.96 + 0.84) · √(ψ/n): the same for +30 −0 and +15 −15, which McNemar's test weighs alike."""
    n = gained + lost + same
    change = np.array([1] * gained + [-1] * lost + [0] * same, dtype=float)
    sampled_R = np.array([change.mean() - change.std() / np.sqrt(n), change.mean() + change.std() / np.sqrt(n)])
    variance = null_variance(change.mean(), sampled_R, n)
    assert variance == pytest.approx((gained + lost) / n**2)
    assert detectable(variance) == pytest.approx(2.8016 * np.sqrt((gained + lost) / n) / np.sqrt(n), rel=1e-4)


def test_a_detectable_difference_is_found_four_times_in_five():
    rng = np.random.default_rng(2)
    n, psi = 1500, 0.2
    true = detectable(psi / n)
    chances = [(psi + true) / 2, (psi - true) / 2, 1 - psi]
    found = [mcnemar(gained, lost) < 0.05 for gained, lost, _ in rng.multinomial(n, chances, size=2000).tolist()]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)  # the exact test is a little shy


def test_nothing_that_differs_detects_nothing():
    assert detectable(null_variance(0.0, np.zeros(9), 100)) is None
    assert null_variance(0.0, np.array([np.nan, -0.1, 0.1]), 100) == pytest.approx(0.01)


def test_recovery_without_a_resample_that_has_a_value_is_undefined():
    value, interval, undefined = recovery((0.1, 0.2, 0.9), np.full((3, 5), np.nan))
    assert (value, interval) == (None, None) and "includes 0" in undefined


def test_recovery_of_a_ratio_is_formed_inside_each_resample():
    sampled_AR = np.array([[0.1, 0.2, 0.3], [0.2, 0.4, 0.4], [0.5, 0.6, 0.7]])
    value, interval, _ = recovery((0.2, 0.3, 0.6), sampled_AR)
    assert value == pytest.approx(0.25)
    assert interval == (pytest.approx(0.25), pytest.approx(0.5))
