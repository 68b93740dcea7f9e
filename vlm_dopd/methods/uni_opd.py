"""Uni-OPD (arXiv 2605.03677): the teacher's token scores are made to agree with who was right. Delta from vanilla OPD:

1. A_t = ℓ^T − ℓ^S under PPO's clip; tokens with |A_t| ≥ 10 nats get no loss;
2. ā_i is the mean of A over response i. In a group with right and wrong responses,
   g = mean_right ā − mean_wrong ā (or min_right ā − max_wrong ā) should be δ at least. If it is not, A of every
   token of the right ones rises by (δ − g)/2 and that of the wrong ones falls by it (or one side moves by all of it);
3. such a group is balanced: right and wrong responses count alike, a group with one outcome is left as it is.

The mean is over the tokens of responses, balanced as well; needs rewards, and groups of several responses.
p plays no part: all prompts are plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from . import STUDENT_PLAIN, TEACHER_PLAIN, Component, Method, Role, WindowScores
from ._responses import Responses
from ._shared import POLICY_GRADIENT, clipped, fractions, mean

OPEN = (
    "uni_opd: balance is the majority's weight, not a random draw (the same in expectation); the offline choice of "
    "prompts and the greedy mask are not here; tokens out of the limit stay in the denominator"
)


@dataclass(frozen=True, kw_only=True)
class UniOPD(Method):
    margin: float = 0.4
    """δ, nats a token."""
    gap: Literal["mean", "worst"] = "mean"
    """How g is taken; `worst` compares the lowest right response with the highest wrong one."""
    shift: Literal["both", "right", "wrong"] = "both"
    """Which side moves."""
    balance: bool = True
    limit: float = 10.0
    """|ℓ^S − ℓ^T| from which on a token gets no loss."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    """PPO's clip (the code's setting, as all numbers here)."""
    success: float = 1.0
    needs_reward: ClassVar[bool] = True
    reduction = "sum"

    def __post_init__(self) -> None:
        if not self.margin >= 0:
            raise ValueError(f"margin: expected 0 or more nats, got {self.margin}")
        if not self.limit > 0:
            raise ValueError(f"limit: expected more than 0 nats, got {self.limit}")
        if not (0 <= self.clip_low <= 1 and self.clip_high >= 0):
            raise ValueError(
                f"clip_low and clip_high: expected 0 to 1, and 0 or more, got {self.clip_low}, {self.clip_high}"
            )

    @property
    def roles(self) -> tuple[Role, ...]:
        return (STUDENT_PLAIN, TEACHER_PLAIN)

    @property
    def components(self) -> tuple[Component, ...]:
        return (POLICY_GRADIENT,)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        responses = scores.responses
        gap_N = scores.logp_N[TEACHER_PLAIN] - scores.logp_N[STUDENT_PLAIN]
        # NaN, that of a reference completion too, is neither. A response of no tokens has no mean to compare.
        written_M = responses.length_M > 0
        right_M = (responses.reward_M >= self.success) & written_M
        wrong_M = (responses.reward_M < self.success) & written_M
        count_2M = torch.stack([responses.group_sum_M(side_M.double()) for side_M in (right_M, wrong_M)])
        mixed_M = (count_2M > 0).all(0) & (right_M | wrong_M)
        shift_M = self._shift_M(responses.mean_M(gap_N.double()), right_M, wrong_M, responses).where(mixed_M, 0.0)
        advantage_N = gap_N + shift_M.to(gap_N.dtype)[responses.response_N]
        own_M = count_2M[0].where(right_M, count_2M[1])
        share_M = (count_2M.amin(0) / own_M.clamp(min=1)).where(mixed_M, 1.0)
        share_M = share_M if self.balance else torch.ones_like(share_M)
        part_N = fractions(share_M.to(gap_N.dtype)[responses.response_N])
        within_N = gap_N.abs() < self.limit
        weight_N = clipped(scores, advantage_N, self.clip_low, self.clip_high) * within_N * part_N
        figures = {
            "advantage/mean": mean(advantage_N, part_N),
            "share/mixed": mean(mixed_M.float()),
            "share/shifted": mean((shift_M != 0).float()),
            "share/limited": mean((~within_N).float()),
        }
        return weight_N.unsqueeze(0), figures

    def _shift_M(self, mean_M: Tensor, right_M: Tensor, wrong_M: Tensor, responses: Responses) -> Tensor:
        """What every token of a response is moved by; meant for groups that have both outcomes."""
        if self.gap == "mean":
            right, wrong = (
                responses.group_sum_M(mean_M * side_M) / responses.group_sum_M(side_M.double()).clamp(min=1)
                for side_M in (right_M, wrong_M)
            )
        else:
            right = -_group_max_M(-mean_M, right_M, responses)
            wrong = _group_max_M(mean_M, wrong_M, responses)
        missing_M = (self.margin - (right - wrong)).clamp(min=0)
        up, down = {"both": (0.5, 0.5), "right": (1.0, 0.0), "wrong": (0.0, 1.0)}[self.shift]
        return missing_M * (up * right_M.double() - down * wrong_M.double())


def _group_max_M(value_M: Tensor, side_M: Tensor, responses: Responses) -> Tensor:
    """For every response the maximum over its group's responses of that side; −∞ where there are none."""
    highest_J = torch.full_like(value_M, float("-inf"))  # there are no more groups than responses
    highest_J.scatter_reduce_(0, responses.group_M, value_M.where(side_M, float("-inf")), "amax")
    return highest_J[responses.group_M]


METHOD = UniOPD
