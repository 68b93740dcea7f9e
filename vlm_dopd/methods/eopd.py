"""EOPD, entropy-aware on-policy distillation (arXiv 2603.07079). Its delta from vanilla OPD:

1. a policy gradient with A_t = sg[ℓ^T − ℓ^S] under PPO's clip, on all tokens;
2. where the teacher is unsure, a term that covers its modes comes on top:
   + α·1[H(T_t) > τ]·Σ_{v ∈ top K of T} T(v)·(log T(v) − log S(v)), with τ = 0.8 nats, α = 1, K = 16.

It is a sum, not a switch. Neither side is renormalised, and both terms are divided by the number of all tokens.
p plays no part: all prompts are plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..divergences import Closure, Divergence
from . import STUDENT_PLAIN, TEACHER_PLAIN, Component, Method, Role, WindowScores
from ._shared import POLICY_GRADIENT, clipped, mean


@dataclass(frozen=True, kw_only=True)
class EOPD(Method):
    alpha: float = 1.0
    """Strength of the second term (the code's, as all numbers here)."""
    threshold: float = 0.8
    """τ, nats of the teacher's entropy."""
    k: int = 16
    """One of the source's configurations has 32."""
    closure: Closure = "raw"
    clip: float = 0.2
    """ε of PPO, on both sides."""
    reduction: Literal["seq_mean", "token_mean"] = "token_mean"

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ValueError(f"alpha: expected 0 or more, got {self.alpha}")
        if not 0 <= self.clip <= 1:
            raise ValueError(f"clip: expected 0 to 1, got {self.clip}")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (STUDENT_PLAIN, TEACHER_PLAIN)

    @property
    def components(self) -> tuple[Component, ...]:
        cover = Divergence(kind="fkl", k=self.k, closure=self.closure, owner="target")
        return (POLICY_GRADIENT, Component("COVER", TEACHER_PLAIN, cover))

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        advantage_N = scores.logp_N[TEACHER_PLAIN] - scores.logp_N[STUDENT_PLAIN]
        unsure_N = (scores.entropy_N[TEACHER_PLAIN] > self.threshold).float()
        weight_RN = torch.stack([clipped(scores, advantage_N, self.clip, self.clip), self.alpha * unsure_N])
        return weight_RN, {"advantage/mean": mean(advantage_N), "share/unsure": mean(unsure_N)}


METHOD = EOPD
