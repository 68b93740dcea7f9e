"""Vision-OPD (arXiv 2605.18740): the student that looks at the evidence close up teaches itself looking at the whole.

Its delta from vanilla OPD: no larger teacher; the target is S⁺ = S^ema shown crops of the labelled boxes.

    L = mean over tokens of sg[min(ρ, 2)] · JS_½(S, S⁺),   student's top 100 + tail

Set `data.builder: crops`. One departure: the privileged prompt is the plain one plus a section, so by default the
teacher sees the full image and the crops; the paper's sees the crops alone, as with `data.builder_options.mode:
replace`. Rows without p get weight 0: a target on the same prompt teaches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..divergences import Divergence
from . import STUDENT_PLAIN, Component, Method, Role, WindowScores
from ._shared import importance, mean

CROPS = Role("ema", "privileged")


@dataclass(frozen=True, kw_only=True)
class VisionOPD(Method):
    k: int = 100
    ratio_cap: float | None = 2.0
    """Of ρ. None leaves it out, and saves a pass: enough where the engine samples from the very weights that are
    trained."""
    ema_rate: float = 0.05
    reduction: Literal["seq_mean", "token_mean"] = "token_mean"

    def __post_init__(self) -> None:
        if not 0 < self.ema_rate <= 1:
            raise ValueError(f"ema_rate: expected more than 0 and at most 1, got {self.ema_rate}")
        if self.ratio_cap is not None and not self.ratio_cap > 0:
            raise ValueError(f"ratio_cap: expected more than 0, or none, got {self.ratio_cap}")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (CROPS,) if self.ratio_cap is None else (CROPS, STUDENT_PLAIN)

    @property
    def components(self) -> tuple[Component, ...]:
        return (Component("crops", CROPS, Divergence(kind="js", support="topk", closure="tail", k=self.k)),)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        weight_N = scores.has_privilege_N.float()
        if self.ratio_cap is None:
            return weight_N.unsqueeze(0), {}
        ratio_N = importance(scores, self.ratio_cap)
        return (weight_N * ratio_N).unsqueeze(0), {"ratio/mean": mean(ratio_N, weight_N)}


METHOD = VisionOPD
