"""Arithmetic that several methods share. Shape letters: N response tokens of the window, M responses.

Nothing here depends on the order of the tokens: ties share what is left of a budget, sums that decide anything are in
float64. `counted_N` says which tokens set a threshold; the others are measured against it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..divergences import MAX_RATIO, Divergence
from ..routing import quantile
from . import STUDENT_PLAIN, Component, WindowScores
from ._responses import Responses

POLICY_GRADIENT = Component("PG", None, Divergence(kind="nll", support="sampled"))
"""−sg[A]·log S(y), with A for the weight, which may be below 0. Pushes a token up where A is above 0."""


def log_ratio(scores: WindowScores) -> Tensor:
    """log ρ = log S(y) − log S_old(y), [N]: the live student against the policy that sampled.

    0 where the engine says nothing: it sampled from the very same weights. Needs the role STUDENT_PLAIN.
    """
    return (scores.logp_N[STUDENT_PLAIN] - scores.responses.rollout_logp_N).nan_to_num(nan=0.0)


def importance(scores: WindowScores, cap: float) -> Tensor:
    """min(ρ, cap), [N]."""
    return log_ratio(scores).clamp(max=math.log(cap)).exp()


def clipped(scores: WindowScores, advantage_N: Tensor, low: float, high: float) -> Tensor:
    """Weight of −log S(y) whose gradient is that of PPO's −min(ρ·A, clip(ρ, 1 − low, 1 + high)·A), [N].

    It is ρ·A, and 0 where the clip has no slope. PPO has no bound for A < 0; MAX_RATIO is one.
    """
    ratio_N = importance(scores, MAX_RATIO)
    flat_N = torch.where(advantage_N > 0, ratio_N > 1 + high, ratio_N < 1 - low)
    return (ratio_N * advantage_N).where(~flat_N, 0.0)


def min_max(value_N: Tensor, counted_N: Tensor) -> Tensor:
    """To 0..1 between the extremes of the counted tokens, [N]; 0 where these are equal, or none."""
    return quantile_scaled(value_N, counted_N, 0.0, 1.0)


def quantile_scaled(value_N: Tensor, counted_N: Tensor, low: float = 0.05, high: float = 0.95) -> Tensor:
    """clip((z − Q_low) / (Q_high − Q_low), 0, 1), quantiles over the counted tokens, [N]; 0 if equal or none."""
    bottom, top = (quantile(value_N[counted_N], level) for level in (low, high))
    if not top > bottom:
        return torch.zeros_like(value_N)
    return ((value_N - bottom) / (top - bottom)).clamp(0, 1)


def top_share(score_N: Tensor, share: float, counted_N: Tensor, segment_N: Tensor | None = None) -> Tensor:
    """Share of every token that is kept, [N]: 1 for the ⌈share · n⌉ highest of the n counted ones, one at least.

    Tokens that tie at the border share what is left of the budget, so the order of tokens decides nothing. Tokens that
    are not counted are kept from the same score on. With `segment_N` (0, 1, …) each segment has a budget of its own.
    Nothing counted: everything is kept.

    >>> top_share(torch.tensor([3.0, 1.0, 1.0, 0.0]), 0.5, torch.tensor([True] * 4)).tolist()
    [1.0, 0.5, 0.5, 0.0]
    """
    segment_N = torch.zeros_like(counted_N, dtype=torch.long) if segment_N is None else segment_N
    count = int(segment_N.max()) + 1 if segment_N.numel() else 0
    inside_n, score_n = segment_N[counted_N], score_N[counted_N]
    size = inside_n.bincount(minlength=count)
    # A little less before the ceiling: 0.07 · 100 is 7.000000000000001.
    budget = (size.double() * share * (1 - 1e-12)).ceil().clamp(min=1).long()
    order_n = score_n.argsort(descending=True)
    order_n = order_n[inside_n[order_n].argsort(stable=True)]
    last = (size.cumsum(0) - size + budget - 1).clamp(max=max(score_n.numel() - 1, 0))
    border = torch.full((count,), -math.inf, dtype=score_N.dtype, device=score_N.device)
    if score_n.numel():
        border = score_n[order_n][last].where(size > 0, -math.inf)
    above = torch.zeros_like(size).index_add_(0, inside_n, (score_n > border[inside_n]).long())
    tied = torch.zeros_like(size).index_add_(0, inside_n, (score_n == border[inside_n]).long())
    part = ((budget - above) / tied.clamp(min=1)).where(size > 0, 1.0)
    at_border_N = torch.where(score_N == border[segment_N], part[segment_N], 0.0)
    return torch.where(score_N > border[segment_N], 1.0, at_border_N)


def fractions(kept_N: Tensor) -> Tensor:
    """Weights of a mean over the kept tokens, [N], for the reduction `sum`; 0 if there are none."""
    return kept_N / kept_N.sum(dtype=torch.float64).clamp(min=1e-12).to(kept_N.dtype)


def mean(value_N: Tensor, weight_N: Tensor | None = None) -> float:
    """Figure for the log; 0.0 over nothing."""
    weight_N = torch.ones_like(value_N) if weight_N is None else weight_N
    return ((value_N * weight_N).sum() / weight_N.sum().clamp(min=1e-12)).item()


def group_z_score(value_M: Tensor, responses: Responses) -> Tensor:
    """(value − mean) / standard deviation, [M], over the student's own responses of each group; 0 where all are equal.

    Population deviation: a group of one has a value as well. Reference completions get 0.
    """
    own_M = (~responses.reference_M).double()
    count_M = responses.group_sum_M(own_M).clamp(min=1)
    centred_M = (value_M - responses.group_sum_M(value_M * own_M) / count_M) * own_M
    spread_M = (responses.group_sum_M(centred_M.square()) / count_M).sqrt()
    return (centred_M / spread_M.clamp(min=1e-6)).to(value_M.dtype)
