"""IW-OPD (arXiv 2606.22600): vanilla OPD that trusts the teacher less the further the response has drifted from it.

Its delta from vanilla OPD, a policy gradient −sg[A]·log S(y) of the sampled token, is a weight by position:

    a_t = ℓ^T − ℓ^{S_old},   ω_t = 1 + γ·(1 − Σ_{j<t}|a_j| / Σ_j |a_j|),   A_t = ω_t·a_t

ω falls from 1 + γ at the first token towards 1 at the last, in steps as large as the disagreement there. S_old is the
policy that sampled: what the engine says it was, else the live student. p plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import STUDENT_PLAIN, TEACHER_PLAIN, Component, Method, Role, WindowScores
from ._responses import Responses
from ._shared import POLICY_GRADIENT, clipped, mean


@dataclass(frozen=True, kw_only=True)
class IWOPD(Method):
    gamma: float = 0.5
    """γ; 0 is vanilla OPD as a policy gradient."""
    clip: float = 0.2
    """ε of PPO, on both sides (table 6 of the paper)."""
    reduction: Literal["seq_mean", "token_mean"] = "token_mean"

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"gamma: expected 0 or more, got {self.gamma}")
        if not 0 <= self.clip <= 1:
            raise ValueError(f"clip: expected 0 to 1, got {self.clip}")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (STUDENT_PLAIN, TEACHER_PLAIN)

    @property
    def components(self) -> tuple[Component, ...]:
        return (POLICY_GRADIENT,)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        live_N, rollout_N = scores.logp_N[STUDENT_PLAIN], scores.responses.rollout_logp_N
        advantage_N = scores.logp_N[TEACHER_PLAIN] - torch.where(rollout_N.isnan(), live_N, rollout_N)
        trust_N = 1 + self.gamma * (1 - drift(advantage_N.abs(), scores.responses))
        figures = {"advantage/mean": mean(advantage_N), "trust/mean": mean(trust_N)}
        return clipped(scores, trust_N * advantage_N, self.clip, self.clip).float().unsqueeze(0), figures


def drift(gap_N: Tensor, responses: Responses) -> Tensor:
    """Share of its response's gaps that lies before a token, [N]: 0 at the first; 0 throughout where there are none.

    One row a response, so that no response's sum depends on those before it in the window.
    """
    row_N, column_N = responses.response_N, responses.position_N
    longest = int(responses.length_M.max()) if responses.group_M.numel() else 0
    gap_ML = gap_N.new_zeros(responses.group_M.numel(), longest, dtype=torch.float64)
    gap_ML[row_N, column_N] = gap_N.double()
    before_ML = gap_ML.cumsum(-1) - gap_ML
    total_M1 = gap_ML.sum(-1, keepdim=True)
    return (before_ML / total_M1.clamp(min=1e-12))[row_N, column_N].to(gap_N.dtype)


METHOD = IWOPD
