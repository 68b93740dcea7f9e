"""REOPOLD, relaxed on-policy distillation (arXiv 2603.11137). Its delta from vanilla OPD:

1. R_t = sg[ℓ^T − ℓ^S] is the reward of a policy gradient, and the punishment has a floor:
   R̂ = max(R, log(λ/(1 − λ))), −1.386 nats at λ = 0.2;
2. exploration, the first half of training: only tokens with R ≥ floor; refinement, after it: only the tokens whose
   student entropy is among the window's highest share β, with R̂;
3. L = −Σ M·ρ·R̂ / Σ M over the tokens M.

Special tokens are measured against the entropy threshold of the others and set none.
p plays no part: all prompts are plain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import STUDENT_PLAIN, TEACHER_PLAIN, Component, Method, Role, WindowScores
from ._shared import POLICY_GRADIENT, fractions, importance, mean, top_share

OPEN = (
    "reopold: no code is out; the floor is read as log(λ/(1 − λ)) (one source prints log(λ)/(1 − λ)), the switch is "
    "put at half of training, β at 0.5 of the 0.2 to 0.5 in use"
)


@dataclass(frozen=True, kw_only=True)
class REOPOLD(Method):
    mixture: float = 0.2
    """λ (about the paper's)."""
    share: float = 0.5
    """β of refinement."""
    switch: float = 0.5
    """Share of the training steps that explore."""
    ratio_cap: float = 2.0
    """Of ρ, against a mismatch of the engine that samples. Ours."""
    reduction = "sum"

    def __post_init__(self) -> None:
        if not 0 < self.mixture <= 0.5:
            raise ValueError(f"mixture: expected more than 0 and at most 0.5, a floor of 0, got {self.mixture}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected more than 0 and at most 1, got {self.share}")
        if not 0 <= self.switch <= 1:
            raise ValueError(f"switch: expected 0 to 1, got {self.switch}")
        if not self.ratio_cap > 0:
            raise ValueError(f"ratio_cap: expected more than 0, got {self.ratio_cap}")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (STUDENT_PLAIN, TEACHER_PLAIN)

    @property
    def components(self) -> tuple[Component, ...]:
        return (POLICY_GRADIENT,)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        reward_N = scores.logp_N[TEACHER_PLAIN] - scores.logp_N[STUDENT_PLAIN]
        floor = math.log(self.mixture / (1 - self.mixture))
        if scores.progress < self.switch:
            kept_N = (reward_N >= floor).to(reward_N.dtype)
        else:
            kept_N = top_share(scores.entropy_N[STUDENT_PLAIN], self.share, scores.ordinary_N)
        advantage_N = reward_N.clamp(min=floor)
        weight_N = importance(scores, self.ratio_cap) * advantage_N * fractions(kept_N)
        figures = {
            "share/kept": mean(kept_N),
            "share/floor": mean((reward_N < floor).float()),
            "advantage/mean": mean(advantage_N, kept_N),
        }
        return weight_N.unsqueeze(0), figures


METHOD = REOPOLD
