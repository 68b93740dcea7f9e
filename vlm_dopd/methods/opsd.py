"""OPSD, on-policy self-distillation (arXiv 2601.18734). Its delta from vanilla OPD:

1. the target T⁺ is the student as it was before training, which sees p, the reference solution;
2. the divergence is over the full vocabulary, and both sides' logits are divided by 1.1;
3. L = mean_t of it. The source has two versions:
   late (from 18 March 2026)  Σ_v min(T⁺·(log T⁺ − log S), 0.05): the forward KL with each term bounded from above,
                              so that tokens of style cannot rule it; what is cut has no gradient
   early (the first paper)    JS at β = ½, nothing cut

Rows without p have weight 0: the student has nothing to learn from itself on the same prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ..divergences import Divergence, Support
from . import Component, Method, Role, WindowScores
from ._shared import mean

OPEN = "opsd: the paper of DOPD does not say which version it ran; the late one is the default"


@dataclass(frozen=True, kw_only=True)
class OPSD(Method):
    version: Literal["late", "early"] = "late"
    cap: float = 0.05
    """Of a vocabulary term, `late` only (the code's; 0.06 is reported for 8B)."""
    support: Support = "full"
    """`topk`: of the target, both sides renormalised; `sampled`: the policy gradient of KL(S‖T⁺), the same in both
    versions. The source has both as variants."""
    k: int = 50
    """For `topk` (the source's variant)."""
    self_teacher: Literal["initial", "ema", "student"] = "initial"
    """Weights of the target; `ema` and the live `student` are variants of the source."""
    ema_rate: float = 0.001
    """For `ema` (1 − 0.999, the source's)."""
    temperature: float = 1.1
    """That of the source's rollouts too: set `rollout.temperature` to it as well."""
    reduction: Literal["seq_mean", "token_mean"] = "token_mean"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature: expected more than 0, got {self.temperature}")
        if not 0 < self.ema_rate <= 1:
            raise ValueError(f"ema_rate: expected more than 0 and at most 1, got {self.ema_rate}")

    @property
    def target(self) -> Role:
        """The role of T⁺."""
        return Role(self.self_teacher, "privileged")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (self.target,)

    @property
    def components(self) -> tuple[Component, ...]:
        return (Component("OPSD", self.target, self._divergence()),)

    def _divergence(self) -> Divergence:
        if self.support == "sampled":
            return Divergence(kind="rkl", support="sampled")
        early = Divergence(kind="js", support=self.support, closure="renorm", k=self.k, owner="target")
        return early if self.version == "early" else replace(early, kind="fkl", cap=self.cap)

    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        weight_N = scores.has_privilege_N.float()
        return weight_N.unsqueeze(0), {"share/privileged": mean(weight_N)}


METHOD = OPSD
