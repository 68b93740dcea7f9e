"""GKD, generalised knowledge distillation (arXiv 2306.13649): any mix of responses, any divergence of the family.

Its delta from vanilla OPD: a share λ of the prompts have responses of the student's own, the others reference
completions, by the teacher or of the data (λ = 1 on-policy, λ = 0 supervised distillation); and the divergence, over
the full vocabulary, is one's choice:

    L = mean over responses of the token mean of D(T, S),   D one of KL(T‖S), KL(S‖T) or
    JS_β = β·KL(T‖M) + (1−β)·KL(S‖M),   M = β·T + (1−β)·S

As a control it holds the divergence and changes who writes (2609.35259), or the reverse. One departure: the paper
draws the source anew for a whole batch, here for each prompt. p plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..divergences import Divergence
from . import TEACHER_PLAIN, Component, Method, Role, WindowScores
from ._shared import mean


@dataclass(frozen=True, kw_only=True)
class GKD(Method):
    own_share: float = 1.0
    """λ: 1 is the paper's on-policy GKD, 0.5 its mixed one. Below 1 there must be reference completions."""
    divergence: Literal["fkl", "rkl", "js"] = "js"
    beta: float = 0.5
    """β of JS: near 0 it behaves like KL(T‖S), near 1 like KL(S‖T). The paper tries 0.1, 0.5 and 0.9."""
    reduction: Literal["seq_mean", "token_mean"] = "seq_mean"

    def __post_init__(self) -> None:
        if not 0 <= self.own_share <= 1:
            raise ValueError(f"own_share: expected a share from 0 to 1, got {self.own_share}")
        if self.divergence not in ("fkl", "rkl", "js"):
            raise ValueError(f"divergence: expected one of fkl, rkl, js, got {self.divergence!r}")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (TEACHER_PLAIN,)

    @property
    def components(self) -> tuple[Component, ...]:
        return (Component("GKD", TEACHER_PLAIN, Divergence(kind=self.divergence, support="full", beta=self.beta)),)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        own_M = (~scores.responses.reference_M).float()
        return torch.ones_like(scores.logp_N[TEACHER_PLAIN]).unsqueeze(0), {"share/own": mean(own_M)}


METHOD = GKD
