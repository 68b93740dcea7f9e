"""SDPO, self-distillation policy optimisation (arXiv 2601.20802). Its delta from vanilla OPD:

1. the target T⁺ is a moving average of the student (rate 0.05) that sees feedback: another response of the group that
   was right, or p where no other was;
2. L = mean_t sg[min(ρ_t, 2)]·D_t with D over the student's top K and one bin for the tail: JS at β = ½ and K = 100, or
   the reverse KL and K = 20 with a rate of 0.01 (the source's setting for rich feedback);
3. a response without any feedback is masked: it has weight 0 and is not in the mean.

Needs rewards, and groups of several responses; p is optional.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..divergences import Closure, Divergence
from . import STUDENT_PLAIN, Component, Method, Role, WindowScores
from ._shared import fractions, importance, mean

OPEN = (
    "sdpo: how the paper of DOPD fed it hints is not said; read as p in the place of feedback, after siblings that "
    "were right. The source's trust region, a mixture of logits with the initial student, is not here"
)
EMA_SIBLING = Role("ema", "sibling")


@dataclass(frozen=True, kw_only=True)
class SDPO(Method):
    divergence: Literal["js", "rkl", "fkl"] = "js"
    """At β = ½; the source's setting for generalisation, `rkl` for rich feedback."""
    k: int = 100
    """20 for rich feedback."""
    closure: Closure = "tail"
    ema_rate: float = 0.05
    """0.01 in the source's script for rich feedback."""
    ratio_cap: float | None = 2.0
    """Of ρ. None leaves it out, and saves a pass: enough where the engine samples from the very weights that are
    trained."""
    success: float = 1.0
    """Reward from which on a response is shown to its siblings."""
    needs_reward: ClassVar[bool] = True
    reduction = "sum"

    def __post_init__(self) -> None:
        if not 0 < self.ema_rate <= 1:
            raise ValueError(f"ema_rate: expected more than 0 and at most 1, got {self.ema_rate}")
        if self.ratio_cap is not None and not self.ratio_cap > 0:
            raise ValueError(f"ratio_cap: expected more than 0, or none, got {self.ratio_cap}")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (EMA_SIBLING,) if self.ratio_cap is None else (EMA_SIBLING, STUDENT_PLAIN)

    @property
    def components(self) -> tuple[Component, ...]:
        divergence = Divergence(kind=self.divergence, k=self.k, closure=self.closure)
        return (Component("SDPO", EMA_SIBLING, divergence),)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        responses = scores.responses
        right_M = (responses.reward_M >= self.success).float()  # NaN is not right
        sibling_N = (responses.group_sum_M(right_M) > right_M)[responses.response_N]
        kept_N = sibling_N | scores.has_privilege_N
        weight_N = fractions(kept_N.float())
        if self.ratio_cap is not None:
            weight_N = weight_N * importance(scores, self.ratio_cap)
        figures = {"share/sibling": mean(sibling_N.float()), "share/kept": mean(kept_N.float())}
        return weight_N.unsqueeze(0), figures


METHOD = SDPO
