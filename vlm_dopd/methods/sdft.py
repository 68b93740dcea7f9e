"""SDFT, self-distillation fine-tuning (arXiv 2601.19897). Its delta from vanilla OPD:

1. the target T⁺ is a moving average of the student, θ̄ ← 0.99·θ̄ + 0.01·θ after every step, which sees p, a
   demonstration;
2. the divergence is over the full vocabulary: KL(T⁺‖S) in the released code, the reverse in the paper's text;
3. the first 3 tokens of a response are left out, and the loss is the mean over responses of the mean over the rest:
   L = mean_i w_i · mean_{t > 3} KL_t, with w_i = min(Π_t ρ_t, 2), for an engine that samples a little differently.

Rows without p have weight 0: the student has nothing to learn from itself on the same prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..divergences import Divergence
from . import STUDENT_PLAIN, Component, Method, Role, WindowScores
from ._shared import log_ratio, mean

OPEN = "sdft: paper and code disagree on the direction of the KL; read as the code's default, KL(T⁺‖S)"
EMA_PRIVILEGED = Role("ema", "privileged")


@dataclass(frozen=True, kw_only=True)
class SDFT(Method):
    divergence: Literal["fkl", "rkl"] = "fkl"
    """The released code's default; the paper writes the reverse, `rkl`."""
    ema_rate: float = 0.01
    """1 − 0.99 (the paper's, at every step)."""
    skip: int = 3
    """Tokens at the start of a response without a loss (the code's); they copy the demonstration's opening."""
    ratio_cap: float | None = 2.0
    """Of the product of a response's ρ. None leaves w out, and saves a pass: enough where the engine samples from the
    very weights that are trained."""
    reduction = "sum"

    def __post_init__(self) -> None:
        if not 0 < self.ema_rate <= 1:
            raise ValueError(f"ema_rate: expected more than 0 and at most 1, got {self.ema_rate}")
        if self.skip < 0:
            raise ValueError(f"skip: expected 0 tokens or more, got {self.skip}")
        if self.ratio_cap is not None and not self.ratio_cap > 0:
            raise ValueError(f"ratio_cap: expected more than 0, or none, got {self.ratio_cap}")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (EMA_PRIVILEGED,) if self.ratio_cap is None else (EMA_PRIVILEGED, STUDENT_PLAIN)

    @property
    def components(self) -> tuple[Component, ...]:
        return (Component("SDFT", EMA_PRIVILEGED, Divergence(kind=self.divergence, support="full")),)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        responses = scores.responses
        kept_N = (responses.position_N >= self.skip) & scores.has_privilege_N
        kept_M = responses.sum_M(kept_N.double())
        written = int((responses.length_M > 0).sum())
        weight_M = 1 / (kept_M.clamp(min=1) * max(written, 1))
        if self.ratio_cap is not None:
            ratio_M = responses.sum_M(log_ratio(scores).double()).exp().clamp(max=self.ratio_cap)
            weight_M = weight_M * ratio_M
        weight_N = (weight_M[responses.response_N] * kept_N).float()
        return weight_N.unsqueeze(0), {"share/kept": mean(kept_N.float())}


METHOD = SDFT
