"""Gap routing: which regime a sampled token belongs to (DOPD, section 3; METHODS.md c.1 and c.2).

| paper | here | meaning |
|---|---|---|
| log q_S | logp_student_N | sampled token under the privileged student (live weights, no gradient) |
| log q_T | logp_teacher_N | sampled token under the privileged teacher |
| A_n | gap_N | abs(log q_T − log q_S): large where p alone does not close the distance, so the rest is ability |
| Ā | Thresholds.gap | mean gap after the largest 5 % are dropped |
| q̄_S + q̄_T | Thresholds.confidence | mean of q_S plus mean of q_T, nothing dropped |

The paper's sentence on Ā ("remove the top 5 % outliers, normalise within the batch, average") is read as: drop, then
average, and compare raw gaps. Normalising both sides changes nothing, normalising one side makes no sense. The
batch is the whole window, so a token's regime does not depend on micro-batches or ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

SMALLEST = 1e-300
"""In place of a gap of 0, whose logarithm is not finite."""


class Regime(IntEnum):
    """Low or high gap; then by confidence (High, Low), or by who is surer of the token (Teacher, Student)."""

    LH = 0
    LL = 1
    HT = 2
    HS = 3
    NP = 4
    """No privilege: the row has no p, so there is no gap to read. It gets the vanilla on-policy loss."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Ā in nats, and q̄_S + q̄_T, which is a sum of two probabilities: 0..2."""

    gap: float
    confidence: float


def gaps(logp_student_N: Tensor, logp_teacher_N: Tensor) -> Tensor:
    """A_n in nats, [N]."""
    return (logp_teacher_N - logp_student_N).abs()


def thresholds(
    logp_student_N: Tensor,
    logp_teacher_N: Tensor,
    trim: float = 0.05,
    *,
    gap_N: Tensor | None = None,
    trim_all: bool = False,
    winsor: bool = False,
    response_N: Tensor | None = None,
) -> Thresholds:
    """Statistics over the tokens of a whole window that have p; no tokens give thresholds nothing can reach.

    The other readings of the sentence: `trim_all` trims q_S and q_T as well, `winsor` lowers the largest to the largest
    that is left instead of dropping them, `response_N` averages each response first and then the responses.
    `gap_N` is another gap than `gaps`. A mean is kept within its own values, so equal gaps are all high whatever the
    rounding.
    """
    if logp_student_N.numel() == 0:
        return Thresholds(gap=float("inf"), confidence=float("inf"))
    student_N, teacher_N = logp_student_N.double(), logp_teacher_N.double()
    gap_N = gaps(student_N, teacher_N) if gap_N is None else gap_N.double()
    gap, low, high = _mean(gap_N, trim, winsor, response_N)
    trim_q = trim if trim_all else 0.0
    confidence = sum(_mean(q_N, trim_q, winsor, response_N)[0] for q_N in (student_N.exp(), teacher_N.exp()))
    return Thresholds(gap=min(max(gap, low), high), confidence=confidence)


def _mean(value_N: Tensor, trim: float, winsor: bool, response_N: Tensor | None) -> tuple[float, float, float]:
    """Trimmed mean, and the smallest and largest value in it.

    float64 and summed in sorted order, so that the result does not depend on how the tokens were spread over
    micro-batches and ranks.
    """
    sorted_N, order_N = value_N.sort()
    kept = sorted_N.numel() - int(trim * sorted_N.numel())
    low, high = sorted_N[0], sorted_N[kept - 1]
    if winsor:
        sorted_N = sorted_N.clamp(max=high)
    elif response_N is None:
        sorted_N = sorted_N[:kept]
    else:  # which of equal values is dropped would depend on their order, and so would a response's mean
        sorted_N = sorted_N[sorted_N <= high]
    if response_N is not None:
        _, number_N = response_N[order_N][: sorted_N.numel()].unique(return_inverse=True)
        count_M = number_N.bincount()
        sorted_N = (sorted_N.new_zeros(count_M.numel()).index_add_(0, number_N, sorted_N) / count_M).sort().values
    return sorted_N.mean().item(), low.item(), high.item()


def quantile(value_N: Tensor, level: float) -> float:
    """The value below which the share `level` of the values lies, between two of them in proportion; NaN for none.

    By hand: torch.quantile refuses more than 2²⁴ values.

    >>> quantile(torch.tensor([10.0, 0.0, 1.0, 2.0]), 0.5)
    1.5
    """
    if value_N.numel() == 0:
        return float("nan")
    sorted_N = value_N.double().sort().values
    place = level * (sorted_N.numel() - 1)
    below, above = sorted_N[math.floor(place)].item(), sorted_N[math.ceil(place)].item()
    return below + (above - below) * (place - math.floor(place))


def route(
    logp_student_N: Tensor,
    logp_teacher_N: Tensor,
    has_privilege_N: Tensor,
    at: Thresholds,
    gap_N: Tensor | None = None,
) -> Tensor:
    """Regime of every token, [N] int64. The regimes partition the tokens: each has exactly one.

    >>> q_S, q_T = torch.tensor([0.8, 0.1, 0.1, 0.9]), torch.tensor([0.9, 0.12, 0.9, 0.1])
    >>> at = thresholds(q_S.log(), q_T.log())
    >>> f"{at.gap:.3f} nats, {at.confidence:.2f}"
    '1.174 nats, 0.98'
    >>> [Regime(number).name for number in route(q_S.log(), q_T.log(), q_S > 0, at).tolist()]
    ['LH', 'LL', 'HT', 'HS']
    """
    student_N, teacher_N = logp_student_N.double(), logp_teacher_N.double()
    gap_N = gaps(student_N, teacher_N) if gap_N is None else gap_N.double()
    high_gap_N = gap_N >= at.gap
    confident_N = student_N.exp() + teacher_N.exp() >= at.confidence
    teacher_surer_N = teacher_N >= student_N
    high_N = torch.where(teacher_surer_N, Regime.HT, Regime.HS)
    low_N = torch.where(confident_N, Regime.LH, Regime.LL)
    return torch.where(has_privilege_N, torch.where(high_gap_N, high_N, low_N), Regime.NP)


def soft_route(
    logp_student_N: Tensor,
    logp_teacher_N: Tensor,
    has_privilege_N: Tensor,
    at: Thresholds,
    softness: float,
    gap_N: Tensor | None = None,
) -> Tensor:
    """Share of every regime in every token, [R, N] float64; each column sums to 1.

    Each ≥ of `route` becomes σ(difference of logarithms / softness), in nats for all three: log A − log Ā,
    log q_T − log q_S and log(q_S + q_T) − log(q̄_S + q̄_T). softness → 0 is `route`, but for exact ties.
    """
    student_N, teacher_N = logp_student_N.double(), logp_teacher_N.double()
    gap_N = gaps(student_N, teacher_N) if gap_N is None else gap_N.double()

    def above(log_value_N: Tensor, threshold: float) -> Tensor:
        return ((log_value_N - math.log(max(threshold, SMALLEST))) / softness).sigmoid()

    high_N = above(gap_N.clamp(min=SMALLEST).log(), at.gap)
    confident_N = above(torch.logaddexp(student_N, teacher_N), at.confidence)
    teacher_N = ((teacher_N - student_N) / softness).sigmoid()
    share_RN = torch.stack(
        [
            (1 - high_N) * confident_N,
            (1 - high_N) * (1 - confident_N),
            high_N * teacher_N,
            high_N * (1 - teacher_N),
            torch.zeros_like(high_N),
        ]
    )
    none_R1 = torch.eye(len(Regime), dtype=share_RN.dtype, device=share_RN.device)[:, Regime.NP :]
    return share_RN.where(has_privilege_N, none_R1)
