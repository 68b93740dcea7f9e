"""SFT, supervised fine-tuning on reference completions: the control without rollouts and a teacher's opinion of them.

Its delta from vanilla OPD: the completions are the data's or the teacher's, and the loss is −log S(y), a mean over all
their tokens. p plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..divergences import Divergence
from . import Component, Method, Role, WindowScores


@dataclass(frozen=True, kw_only=True)
class SFT(Method):
    reduction: Literal["seq_mean", "token_mean"] = "token_mean"
    own_share = 0.0

    @property
    def roles(self) -> tuple[Role, ...]:
        return ()

    @property
    def components(self) -> tuple[Component, ...]:
        return (Component("SFT", None, Divergence(kind="nll", support="sampled")),)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        return torch.ones_like(scores.responses.token_N, dtype=torch.float32).unsqueeze(0), {}


METHOD = SFT
