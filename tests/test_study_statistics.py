"""The bootstrap over seeds and questions.

What is locked: 1) it is that of a loop which draws seeds and questions one by one; 2) its limits: one seed is the
bootstrap over questions, equal seeds add no width, equal arms have no difference, a constant shift no width; 3) an
interval widens where seeds disagree, and pairing narrows that of a difference; 4) covers what it should.
"""

import math

import numpy as np
import pytest

import evals
from vlm_dopd.study import statistics
from vlm_dopd.study.statistics import accuracy, difference, recovery, resample


def scores(shape, share, seed):
    return (np.random.default_rng(seed).random(shape) < share).astype(float)


def brute_force(first_SQ, second_SQ, draws, seed):
    """Ends of the interval of first − second, by the definition."""
    generator, means = np.random.default_rng(seed), []
    seeds, questions = first_SQ.shape
    for _ in range(draws):
        total = 0.0
        chosen = generator.integers(questions, size=questions)
        for s in generator.integers(seeds, size=seeds):
            total += sum(first_SQ[s, q] - second_SQ[s if len(second_SQ) > 1 else 0, q] for q in chosen)
        means.append(total / (seeds * questions))
    return np.quantile(means, (0.025, 0.975)), np.std(means)


@pytest.mark.parametrize("rows", [3, 1])
def test_it_is_the_bootstrap_by_its_definition(rows):
    """The same ends as drawing one by one, for a baseline of as many seeds and for one of a single row."""
    first, second = scores((3, 20), 0.8, 1), scores((rows, 20), 0.5, 2)
    first[2] = 0  # a seed that went wrong
    found = difference(first, second)
    (low, high), spread = brute_force(first, second, 4000, 3)
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.25 * spread)


def test_one_seed_is_the_bootstrap_over_questions():
    """That of `evals`, with the same questions in both arms."""
    first, second = scores((1, 200), 0.7, 1), scores((1, 200), 0.6, 2)
    found = difference(first, second)
    one, other = ({str(q): x for q, x in enumerate(row[0])} for row in (second, first))
    known = evals.paired_difference(one, other)
    assert found.value == pytest.approx(known.difference)
    assert (found.low, found.high) == pytest.approx(known.interval, abs=0.011)


def test_equal_seeds_add_no_width_and_different_ones_do():
    """Three copies of a seed are that seed; three seeds of other levels are more than their questions."""
    row = scores((1, 300), 0.6, 1)
    one, copies = accuracy(row), accuracy(np.repeat(row, 3, axis=0))
    assert (copies.low, copies.high) == pytest.approx((one.low, one.high), abs=0.01)
    apart = accuracy(np.concatenate([scores((1, 300), share, 2) for share in (0.3, 0.6, 0.9)]))
    assert apart.high - apart.low > 2 * (one.high - one.low)


def test_equal_arms_do_not_differ_and_a_constant_shift_has_no_width():
    """Whatever is drawn: both arms have the same seeds and the same questions."""
    table = scores((3, 50), 0.5, 1)
    same = difference(table, table)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    shifted = difference(table + 0.25, table)
    assert (shifted.value, shifted.low, shifted.high) == pytest.approx((0.25, 0.25, 0.25))


def test_pairing_by_seed_counts():
    """An arm that follows the baseline's seeds up and down differs less than one that does not."""
    levels = np.repeat([[0.2], [0.5], [0.8]], 100, axis=1)
    follows, against = levels + 0.1, levels[::-1] + 0.1
    narrow, wide = difference(follows, levels), difference(against, levels)
    assert narrow.high - narrow.low < 1e-9 < 0.3 < wide.high - wide.low


def test_the_interval_covers(monkeypatch):
    """Of studies with seeds and questions drawn anew, about 95 in 100 hold the truth; fewer with few seeds."""
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    truth, found = 0.5, {2: 0, 8: 0}
    for seeds in found:
        for trial in range(100):
            generator = np.random.default_rng([seeds, trial])
            level_SQ = truth + 0.1 * generator.standard_normal((seeds, 1)) + 0.1 * generator.standard_normal((1, 60))
            table = (generator.random((seeds, 60)) < level_SQ).astype(float)
            its = accuracy(table)
            found[seeds] += its.low <= truth <= its.high
    assert 85 <= found[8] <= 99
    assert 50 <= found[2] <= found[8]


def test_gap_recovery():
    """0 where nothing was learnt, 1 at the teacher's level, None without a gap; its ends are never infinite."""
    before, teacher = scores((1, 400), 0.3, 1), scores((1, 400), 0.9, 2)
    assert recovery(before, before.repeat(3, axis=0), teacher).value == 0
    all_of_it = recovery(before, teacher.repeat(3, axis=0), teacher)
    assert (all_of_it.value, all_of_it.low, all_of_it.high) == pytest.approx((1, 1, 1))
    half = recovery(before, np.concatenate([before, teacher]), teacher)
    assert half.value == pytest.approx(0.5)
    assert half.low <= 0.01 and half.high >= 0.99  # one seed learnt nothing, the other everything
    for gone in (before, scores((1, 400), 0.31, 3)):
        assert recovery(before, teacher, gone).value is None
    nothing, barely = np.zeros((1, 1000)), np.zeros((1, 1000))
    barely[0, :15] = 1  # a gap of 1.5 points, and no doubt about it
    assert recovery(nothing, barely, barely).value is None
    few = recovery(np.array([[0.0, 0, 0, 1]]), np.array([[0.0, 0, 1, 0]]), np.array([[1.0, 1, 1, 1]]))
    assert few.high is None or math.isfinite(few.high)


def test_arms_that_do_not_match_are_refused():
    """Other questions, another number of seeds, or nothing at all."""
    for arms in ([np.ones((3, 4)), np.ones((3, 5))], [np.ones((3, 4)), np.ones((2, 4))]):
        with pytest.raises(ValueError, match="expected arms of one size"):
            resample(arms, 0)
    with pytest.raises(ValueError, match="at least one seed and one question, got 2 and 0"):
        resample([np.ones((2, 0))], 0)
