"""Vanilla on-policy distillation: the student samples, the teacher on the same plain prompt supervises every token.

Thinking Machines, "On-Policy Distillation" (2025). The paper of DOPD writes it as a per-sequence mean of a token
divergence, "conventionally" the reverse KL, and does not say whether sampled, top-K or full; top-K is our default,
so that it differs from DOPD in nothing but what DOPD adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..divergences import Closure, Divergence, Kind, Support
from . import TEACHER_PLAIN, Component, Method, Role, WindowScores


@dataclass(frozen=True, kw_only=True)
class OPD(Method):
    divergence: Kind = "rkl"
    support: Support = "topk"
    closure: Closure = "tail"
    k: int = 128
    reduction: Literal["seq_mean", "token_mean"] = "seq_mean"

    @property
    def roles(self) -> tuple[Role, ...]:
        return (TEACHER_PLAIN,)

    @property
    def components(self) -> tuple[Component, ...]:
        divergence = Divergence(kind=self.divergence, support=self.support, closure=self.closure, k=self.k)
        return (Component("OPD", TEACHER_PLAIN, divergence),)

    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        return torch.ones_like(scores.logp_N[TEACHER_PLAIN]).unsqueeze(0), {}


METHOD = OPD
