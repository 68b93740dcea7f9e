"""OPCD, on-policy context distillation (arXiv 2602.12275). Its delta from vanilla OPD:

1. the target T⁺ sees p and the student does not; T⁺ is the student as it was before training, or a larger teacher;
2. the loss is L = mean_t Σ_{v ∈ top K of S} S(v)·[log S(v) − log T⁺(v)], K = 256, with the rest of the vocabulary
   dropped: nothing is renormalised and there is no bin for the tail.

That closure has a gradient where S = T⁺ already (`raw` in `divergences.py`). It is the published setting and so the
default; `tail` and `raw_sg` are without the flaw.

Rows without p: nothing is learned from what the student was before on the same prompt, so they get weight 0; a larger
teacher gives them the vanilla OPD loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..divergences import Closure, Divergence
from . import Component, Method, Role, WindowScores
from ._shared import mean


@dataclass(frozen=True, kw_only=True)
class OPCD(Method):
    teacher: Literal["initial", "teacher"] = "initial"
    """Weights of the target: the frozen initial student (the paper's main setting) or the larger model."""
    k: int = 256
    """Of the student's most probable tokens (the code's default)."""
    closure: Closure = "raw"
    """The code's default; it has `renorm` behind a flag."""
    reduction: Literal["seq_mean", "token_mean"] = "token_mean"

    @property
    def target(self) -> Role:
        """The role of T⁺."""
        return Role(self.teacher, "privileged")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (self.target,)

    @property
    def components(self) -> tuple[Component, ...]:
        return (Component("OPCD", self.target, Divergence(kind="rkl", k=self.k, closure=self.closure)),)

    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        privileged_N = scores.has_privilege_N.float()
        weight_N = privileged_N if self.teacher == "initial" else torch.ones_like(privileged_N)
        return weight_N.unsqueeze(0), {"share/privileged": mean(privileged_N)}


METHOD = OPCD
