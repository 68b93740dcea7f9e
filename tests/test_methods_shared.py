"""The arithmetic that methods share: importance ratios, scales, and the choice of a share of the tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.method_case import sampled_with, scores_of
from tests.windows import responses_of
from vlm_dopd.methods._shared import (
    clipped,
    fractions,
    group_z_score,
    importance,
    mean,
    min_max,
    quantile_scaled,
    top_share,
)


def test_importance_is_bounded_and_one_where_the_engine_is_silent():
    """exp(−1 + 2) = e under a cap of 2, exp(−1 + 0.5), and 1 for NaN; −∞ from either side stays finite."""
    scores = sampled_with(scores_of([-1.0, -1.0, -1.0, -1.0, -math.inf]), [-2.0, -0.5, math.nan, -math.inf, -1.0])
    assert importance(scores, 2.0).tolist() == pytest.approx([2.0, math.exp(-0.5), 1.0, 2.0, 0.0])
    assert importance(scores, 5.0)[0].item() == pytest.approx(math.e)


@pytest.mark.parametrize(
    ("advantage", "ratio", "weight"),
    [
        (2.0, 1.25, 2.5),  # within
        (2.0, 1.35, 0.0),  # has risen enough
        (2.0, 0.5, 1.0),  # has fallen, should rise: no bound
        (-2.0, 0.85, -1.7),  # within
        (-2.0, 0.75, 0.0),  # has fallen enough
        (-2.0, 1.5, -3.0),  # has risen, should fall: no bound
        (-2.0, 50.0, -20.0),  # but MAX_RATIO
        (0.0, 0.1, 0.0),
    ],
)
def test_clipped_is_the_slope_of_ppo(advantage, ratio, weight):
    """ε = 0.2 below and 0.3 above."""
    scores = sampled_with(scores_of([0.0]), [-math.log(ratio)])
    assert clipped(scores, torch.tensor([advantage]), 0.2, 0.3).tolist() == pytest.approx([weight])


def test_scaling_is_by_the_counted_values():
    """Counted 0..20: 5 % and 95 % are 1 and 19; an outlier that does not count is clipped and moves nobody."""
    value_N = torch.tensor([*range(21), 1000.0, -1000.0])
    counted_N = value_N.abs() < 900
    expected = [min(max((v - 1) / 18, 0), 1) for v in range(21)] + [1, 0]
    assert quantile_scaled(value_N, counted_N).tolist() == pytest.approx(expected)
    assert min_max(value_N, counted_N).tolist() == pytest.approx([v / 20 for v in range(21)] + [1, 0])


@pytest.mark.parametrize("scale", [min_max, quantile_scaled])
def test_scaling_of_equal_values_or_of_none_is_zero(scale):
    """No division by zero: what cannot be told apart selects nothing."""
    value_N = torch.tensor([3.0, 3.0, 7.0])
    assert scale(value_N, torch.tensor([True, True, False])).tolist() == [0, 0, 0]
    assert scale(value_N, torch.zeros(3, dtype=torch.bool)).tolist() == [0, 0, 0]
    assert scale(value_N[:0], torch.zeros(0, dtype=torch.bool)).tolist() == []


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        (0.2, [0, 1, 0, 0, 0]),
        (0.21, [0.5, 1, 0.5, 0, 0]),  # two of three: the tie shares one place
        (0.6, [1, 1, 1, 0, 0]),
        (1.0, [1, 1, 1, 1, 1]),
        (0.0, [0, 1, 0, 0, 0]),  # one at least
    ],
)
def test_top_share_keeps_its_budget_and_splits_ties(share, kept):
    """Scores 5, 9, 5, 1, 2; a sixth token that does not count is kept where it reaches the border."""
    score_N, counted_N = torch.tensor([5.0, 9, 5, 1, 2]), torch.ones(5, dtype=torch.bool)
    assert top_share(score_N, share, counted_N).tolist() == kept
    above_N = torch.cat([score_N, torch.tensor([100.0])])
    assert top_share(above_N, share, torch.tensor([True] * 5 + [False])).tolist() == [*kept, 1]


def test_top_share_rounds_the_budget_and_not_the_binary_fraction():
    """0.28 · 25 is 7.000000000000001 in floating point: seven are kept, not eight."""
    assert top_share(torch.arange(25.0), 0.28, torch.ones(25, dtype=torch.bool)).sum() == 7


def test_top_share_by_segment():
    """Half of each segment; in the third nothing counts, so all is kept."""
    kept_N = top_share(
        torch.tensor([1.0, 2, 3, 4, 9, 8, 0, 0]),
        0.5,
        torch.tensor([True] * 6 + [False] * 2),
        torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]),
    )
    assert kept_N.tolist() == [0, 0, 1, 1, 1, 0, 1, 1]
    assert top_share(torch.zeros(0), 0.5, torch.zeros(0, dtype=torch.bool)).tolist() == []


@given(
    tokens=st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 2)), min_size=1, max_size=40),
    percent=st.integers(1, 100),
    seed=st.integers(0, 99),
)
def test_top_share_spends_each_budget_exactly_in_any_order(tokens, percent, seed):
    """Ties, segments without tokens, tokens that do not count: Σ over the counted is ⌈share · n⌉ to the letter."""
    score, counted, segment = map(list, zip(*tokens, strict=True))
    score_N, counted_N, segment_N = torch.tensor(score).float(), torch.tensor(counted), torch.tensor(segment)
    kept_N = top_share(score_N, percent / 100, counted_N, segment_N)
    for j in set(segment):
        inside_N = counted_N & (segment_N == j)
        budget = -(-percent * int(inside_N.sum()) // 100)  # in whole numbers
        assert kept_N[inside_N].sum().item() == pytest.approx(budget, abs=1e-4)
        for low, high in ((a, b) for a in range(5) for b in range(a)):
            pair = [kept_N[(segment_N == j) & (score_N == s)] for s in (low, high)]
            assert all(lower <= upper for upper in pair[0] for lower in pair[1])
    order_N = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    moved_N = top_share(score_N[order_N], percent / 100, counted_N[order_N], segment_N[order_N])
    assert torch.equal(moved_N, kept_N[order_N])


def test_means_over_nothing_are_zero():
    """And over something they are means."""
    assert fractions(torch.tensor([1.0, 0.5, 0.0])).tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert fractions(torch.tensor([0.25, 0.0, 0.25])).tolist() == [0.5, 0, 0.5]
    assert fractions(torch.zeros(2)).tolist() == [0, 0] and fractions(torch.zeros(0)).tolist() == []
    assert mean(torch.tensor([1.0, 4.0]), torch.tensor([3.0, 1.0])) == pytest.approx(1.75)
    assert mean(torch.zeros(0)) == 0 and mean(torch.ones(2), torch.zeros(2)) == 0


def test_group_z_score_leaves_references_out():
    """Of 1, 3 the mean is 2 and the deviation 1; the reference's 99 counts for nothing; equal values give 0."""
    responses = responses_of([[1, 1, 1], [1, 1, 1], [1, 1]], references=True)
    found_M = group_z_score(torch.tensor([1.0, 3, 99, 5, 5, 99, 7, 99]), responses)
    assert found_M.tolist() == pytest.approx([-1, 1, 0, 0, 0, 0, 0, 0])
