"""TIP, token importance (arXiv 2604.14084). Its delta from vanilla OPD:

1. h_t is the student's entropy and d_t its divergence from the teacher, each scaled to 0..1 over the window;
2. s = h + d − h·d is high where the student is unsure, or sure and at odds with the teacher;
3. the tokens with the highest s are kept, half of them by default; L = mean over these of KL(S‖T), full vocabulary.

Special tokens are measured against the scale and the threshold of the others, and are part of neither.
p plays no part: all prompts are plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..divergences import Divergence
from . import STUDENT_PLAIN, TEACHER_PLAIN, Component, Method, Role, Statistic, WindowScores
from ._shared import fractions, mean, min_max, quantile_scaled, top_share

OPEN = "tip: the direction of the divergence inside d is not said; read as the loss's own, KL(S‖T)"


@dataclass(frozen=True, kw_only=True)
class TIP(Method):
    share: float = 0.5
    """Of the tokens that are kept (the paper's main setting; 0.2 is reported too)."""
    disagreement: Literal["rkl", "fkl"] = "rkl"
    """d. Forks of the code test one or the other."""
    scaling: Literal["min_max", "quantile"] = "min_max"
    """`min_max` is the paper's and lets one outlier rule; `quantile` goes from the 5 % to the 95 % quantile."""
    reduction = "sum"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected more than 0 and at most 1, got {self.share}")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (STUDENT_PLAIN, TEACHER_PLAIN)

    @property
    def components(self) -> tuple[Component, ...]:
        return (Component("TIP", TEACHER_PLAIN, Divergence(kind="rkl", support="full")),)

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        divergence = Divergence(kind=self.disagreement, support="full")
        return (Statistic("disagreement", STUDENT_PLAIN, TEACHER_PLAIN, divergence),)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        scaled = min_max if self.scaling == "min_max" else quantile_scaled
        h_N = scaled(scores.entropy_N[STUDENT_PLAIN], scores.ordinary_N)
        d_N = scaled(scores.statistic_N["disagreement"], scores.ordinary_N)
        kept_N = top_share(h_N + d_N - h_N * d_N, self.share, scores.ordinary_N)
        figures = {
            "share/kept": mean(kept_N),
            "entropy/kept": mean(scores.entropy_N[STUDENT_PLAIN], kept_N),
            "disagreement/kept": mean(scores.statistic_N["disagreement"], kept_N),
        }
        return fractions(kept_N).unsqueeze(0), figures


METHOD = TIP
