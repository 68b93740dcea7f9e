"""Vanilla on-policy distillation: the student samples, the teacher on the same plain prompt supervises every token.

Thinking Machines, "On-Policy Distillation" (2025). The paper of DOPD (arXiv 2606.30626) writes it as a per-sequence
mean of a token divergence D(S, T); top-K is our default, so that it differs from DOPD in nothing but what DOPD adds.

Settings of the paper's studies, each alone:

    teacher_view, student_view   p to the teacher, to the student, to both (Figure 3, the privilege illusion). A
                                 student with p has it in its rollouts and in the pass with gradient
    drop                         no loss on a share of the tokens (Figure 4); they still count in |y|. The gap is
                                 DOPD's, abs(log T⁺(y) − log S⁺(y)): rows without p have none and drop nothing
    teacher_view: privileged     with divergence × support: uniform distillation (Table 7)

Rows without p are vanilla in all of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..divergences import Closure, Divergence, Kind, Owner, Support
from ..routing import gaps
from . import STUDENT_PRIVILEGED, TEACHER_PRIVILEGED, Component, Method, Role, WindowScores
from ._ablations import draws
from ._shared import mean, top_share

OPEN = (
    "the paper does not say whether its vanilla OPD is sampled, top-K or full (support), nor whether the tokens that "
    "Figure 4 drops count in |y|; here they do"
)


@dataclass(frozen=True, kw_only=True)
class OPD(Method):
    divergence: Kind = "rkl"
    support: Support = "topk"
    closure: Closure = "tail"
    k: int = 128
    owner: Owner = "student"
    teacher_view: Literal["plain", "privileged"] = "plain"
    student_view: Literal["plain", "privileged"] = "plain"
    drop: Literal["none", "random", "lowest_gap", "highest_gap"] = "none"
    drop_share: float = 0.2
    """Of the tokens (Figure 4)."""
    seed: int = 0
    """Of `drop: random`."""
    reduction: Literal["seq_mean", "token_mean"] = "seq_mean"

    def __post_init__(self) -> None:
        if not 0 < self.drop_share < 1:
            raise ValueError(f"drop_share: expected a share above 0 and below 1, got {self.drop_share}")

    @property
    def rollout_view(self) -> Literal["plain", "privileged"]:  # type: ignore[override]
        """Who is trained with p writes with p: the rollout has the view of the loss."""
        return self.student_view

    @property
    def roles(self) -> tuple[Role, ...]:
        gap_roles = (STUDENT_PRIVILEGED, TEACHER_PRIVILEGED) if self.drop in ("lowest_gap", "highest_gap") else ()
        return tuple(dict.fromkeys((self._teacher, *gap_roles)))

    @property
    def components(self) -> tuple[Component, ...]:
        divergence = Divergence(
            kind=self.divergence, support=self.support, closure=self.closure, k=self.k, owner=self.owner
        )
        return (Component("OPD", self._teacher, divergence, self.student_view),)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        kept_N = torch.ones_like(scores.logp_N[self._teacher])
        if self.drop == "none":
            return kept_N.unsqueeze(0), {}
        pool_N = torch.ones_like(scores.ordinary_N)
        if self.drop == "random":
            dearness_N = draws(scores, self.seed)[0]
        else:
            pool_N = scores.has_privilege_N
            gap_N = gaps(scores.logp_N[STUDENT_PRIVILEGED].double(), scores.logp_N[TEACHER_PRIVILEGED].double())
            dearness_N = gap_N if self.drop == "lowest_gap" else -gap_N
        chosen_N = top_share(dearness_N, 1 - self.drop_share, pool_N & scores.ordinary_N)
        kept_N = torch.where(pool_N, chosen_N.to(kept_N.dtype), kept_N)
        return kept_N.unsqueeze(0), {"share/kept": mean(kept_N)}

    @property
    def _teacher(self) -> Role:
        return Role("teacher", self.teacher_view)


METHOD = OPD
