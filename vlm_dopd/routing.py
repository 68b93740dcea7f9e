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

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


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
    gap: float
    confidence: float


def gaps(logp_student_N: Tensor, logp_teacher_N: Tensor) -> Tensor:
    """A_n in nats, [N]."""
    return (logp_teacher_N - logp_student_N).abs()


def thresholds(logp_student_N: Tensor, logp_teacher_N: Tensor, trim: float = 0.05) -> Thresholds:
    """Statistics over the tokens of a whole window that have p; no tokens give thresholds nothing can reach.

    float64 and summed in sorted order, so that the result does not depend on how the tokens were spread over
    micro-batches and ranks; a mean is kept within its own values, so equal gaps are all high whatever the rounding.
    """
    if logp_student_N.numel() == 0:
        return Thresholds(gap=float("inf"), confidence=float("inf"))
    student_N, teacher_N = logp_student_N.double(), logp_teacher_N.double()
    gap_N = gaps(student_N, teacher_N).sort().values
    kept = gap_N[: gap_N.numel() - int(trim * gap_N.numel())]
    confidence = student_N.exp().sort().values.mean() + teacher_N.exp().sort().values.mean()
    return Thresholds(gap=kept.mean().clamp(kept[0], kept[-1]).item(), confidence=confidence.item())


def route(logp_student_N: Tensor, logp_teacher_N: Tensor, has_privilege_N: Tensor, at: Thresholds) -> Tensor:
    """Regime of every token, [N] int64. The regimes partition the tokens: each has exactly one."""
    student_N, teacher_N = logp_student_N.double(), logp_teacher_N.double()
    high_gap_N = gaps(student_N, teacher_N) >= at.gap
    confident_N = student_N.exp() + teacher_N.exp() >= at.confidence
    teacher_surer_N = teacher_N >= student_N
    high_N = torch.where(teacher_surer_N, Regime.HT, Regime.HS)
    low_N = torch.where(confident_N, Regime.LH, Regime.LL)
    return torch.where(has_privilege_N, torch.where(high_gap_N, high_N, low_N), Regime.NP)
