"""Cal-OPD (arXiv 2609.21619): vanilla OPD that leaves alone what the teacher itself would change its mind about.

Its delta from vanilla OPD: the teacher is asked twice more, told that the response is right (T⁺) and that it is wrong
(T⁻). How far these move it is a band around its opinion, and only what the student is outside of it is learned:

    Δ± = ℓ^{T±} − ℓ^T,   d↓ = max(0, −Δ⁺, −Δ⁻),   d↑ = max(0, Δ⁺, Δ⁻)
    [lo, hi] = [ℓ^T − λ·d↓, ℓ^T + λ·d↑],   A = max(lo − ℓ^S, 0) − max(ℓ^S − hi, 0)
    L = mean over the tokens of responses with any A ≠ 0 of −sg[A]·log S(y)

p plays no part. Partly specified (no code of the authors): that the mean is over tokens, that the skipped responses
leave it, the sentences of the two views and ε are readings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import STUDENT_PLAIN, TEACHER_PLAIN, Component, Method, Role, WindowScores
from ._shared import POLICY_GRADIENT, clipped, fractions, mean

PRAISED, BLAMED = Role("teacher", "praised"), Role("teacher", "blamed")
OPEN = "cal_opd: known from a recipe only; the reduction, ε and the wording of the feedback are readings"


@dataclass(frozen=True, kw_only=True)
class CalOPD(Method):
    width: float = 5.0
    """λ: the band is so many times as wide as the teacher moved; 0 is vanilla OPD as a policy gradient."""
    clip: float = 0.2
    """ε of PPO, on both sides: verl's default, in which the paper's runs were made."""
    reduction = "sum"

    def __post_init__(self) -> None:
        if not self.width >= 0:
            raise ValueError(f"width: expected 0 or more, got {self.width}")
        if not 0 <= self.clip <= 1:
            raise ValueError(f"clip: expected 0 to 1, got {self.clip}")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (STUDENT_PLAIN, TEACHER_PLAIN, PRAISED, BLAMED)

    @property
    def components(self) -> tuple[Component, ...]:
        return (POLICY_GRADIENT,)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        advantage_N = self._advantage(scores)
        responses, outside_N = scores.responses, (advantage_N != 0).float()
        kept_N = (responses.sum_M(outside_N) > 0).float()[responses.response_N]
        weight_N = clipped(scores, advantage_N, self.clip, self.clip) * fractions(kept_N)
        figures = {
            "advantage/mean": mean(advantage_N, kept_N),
            "share/kept": mean(kept_N),
            "share/outside": mean(outside_N),
        }
        return weight_N.float().unsqueeze(0), figures

    def _advantage(self, scores: WindowScores) -> Tensor:
        student_N, teacher_N = scores.logp_N[STUDENT_PLAIN], scores.logp_N[TEACHER_PLAIN]
        praised_N, blamed_N = scores.logp_N[PRAISED] - teacher_N, scores.logp_N[BLAMED] - teacher_N
        low_N = teacher_N - self.width * (-praised_N).maximum(-blamed_N).relu()
        high_N = teacher_N + self.width * praised_N.maximum(blamed_N).relu()
        return (low_N - student_N).relu() - (student_N - high_N).relu()


METHOD = CalOPD
