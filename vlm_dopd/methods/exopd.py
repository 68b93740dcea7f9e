"""ExOPD / G-OPD, reward extrapolation (arXiv 2602.12125). Its delta from vanilla OPD:

1. OPD is read as policy optimisation: a reward log T/R and a KL penalty towards a reference R;
2. the reward is scaled by λ, so the student may go past the teacher in the direction in which the teacher left R:
   A_t = sg[λ·(ℓ^T − ℓ^R) − (ℓ^S − ℓ^R)], L = −mean_t min(ρ_t, 5)·A_t. With λ = 1 it is vanilla OPD.

R is the student as it was before training, or what the teacher was before its own ("reward correction").
A has no bound where R gives a token far less than T does; ours is `cap`.
p plays no part: all prompts are plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import STUDENT_PLAIN, TEACHER_PLAIN, Component, Method, Role, WindowScores
from ._shared import POLICY_GRADIENT, importance, mean

OPEN = "exopd: the paper of DOPD does not say which reference its run had; read as the student before training"


@dataclass(frozen=True, kw_only=True)
class ExOPD(Method):
    scale: float = 1.25
    """λ (the paper's extrapolation; DOPD's run has it too)."""
    reference: Literal["initial", "teacher_base"] = "initial"
    """R. The default is the code's; `teacher_base` needs a third model."""
    ratio_cap: float = 5.0
    """Of ρ, against a mismatch of the engine that samples (the code's threshold)."""
    cap: float = 10.0
    """|A| in nats at most. Ours: the source has none, which `.inf` gives back."""
    reduction: Literal["seq_mean", "token_mean"] = "token_mean"

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ValueError(f"scale: expected 0 or more (1 is vanilla OPD), got {self.scale}")
        if not min(self.ratio_cap, self.cap) > 0:
            raise ValueError(f"ratio_cap and cap: expected more than 0, got {self.ratio_cap}, {self.cap}")

    @property
    def anchor(self) -> Role:
        """The role of R, which the reward and the penalty are measured from."""
        return Role(self.reference, "plain")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (STUDENT_PLAIN, TEACHER_PLAIN, self.anchor)

    @property
    def components(self) -> tuple[Component, ...]:
        return (POLICY_GRADIENT,)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        student_N, teacher_N, anchor_N = (scores.logp_N[role] for role in self.roles)
        full_N = self.scale * (teacher_N - anchor_N) - (student_N - anchor_N)
        advantage_N = full_N.clamp(-self.cap, self.cap)
        weight_N = importance(scores, self.ratio_cap) * advantage_N
        figures = {"advantage/mean": mean(advantage_N), "share/capped": mean((full_N != advantage_N).float())}
        return weight_N.unsqueeze(0), figures


METHOD = ExOPD
