"""OPSA, on-policy self-adaptation (arXiv 2608.31046): the control for "does the teacher teach anything?".

Its delta from vanilla OPD: no teacher. The student's own least likely tokens are made less likely still, a policy
gradient with a negative advantage on the 20 % of lowest log-probability and none elsewhere:

    A = −½ − (H − H_min) / (2·(H_max − H_min)),   L = mean over these tokens of −A·log S(y)

H is the student's entropy there, its extremes are of these tokens. `advantage: constant` is the paper's other control,
A = −½. Two departures from the released code: the 20 % and the extremes are of the whole window, not of one device's
part; and special tokens set neither, but those below the border are trained on. p plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import STUDENT_PLAIN, Component, Method, Role, WindowScores
from ._shared import POLICY_GRADIENT, clipped, fractions, mean, min_max, top_share


@dataclass(frozen=True, kw_only=True)
class OPSA(Method):
    share: float = 0.2
    """Of the tokens, those of lowest log-probability. 0.3 and 0.4 work as well, 0.1 does not."""
    advantage: Literal["entropy", "constant"] = "entropy"
    clip: float = 0.2
    """ε of PPO, on both sides."""
    reduction = "sum"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a share above 0 and up to 1, got {self.share}")
        if self.advantage not in ("entropy", "constant"):
            raise ValueError(f"advantage: expected entropy or constant, got {self.advantage!r}")
        if not 0 <= self.clip <= 1:
            raise ValueError(f"clip: expected 0 to 1, got {self.clip}")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (STUDENT_PLAIN,)

    @property
    def components(self) -> tuple[Component, ...]:
        return (POLICY_GRADIENT,)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        kept_N = top_share(-scores.logp_N[STUDENT_PLAIN], self.share, scores.ordinary_N).float()
        advantage_N = self._advantage(scores, kept_N > 0)
        weight_N = clipped(scores, advantage_N, self.clip, self.clip) * fractions(kept_N)
        figures = {"advantage/mean": mean(advantage_N, kept_N), "share/kept": mean(kept_N)}
        return weight_N.float().unsqueeze(0), figures

    def _advantage(self, scores: WindowScores, kept_N: Tensor) -> Tensor:
        entropy_N = scores.entropy_N[STUDENT_PLAIN]
        if self.advantage == "constant":
            return torch.full_like(entropy_N, -0.5)
        # From the other end, so that equal entropies give −1, as in the released code.
        return 0.5 * min_max(-entropy_N, kept_N & scores.ordinary_N) - 1


METHOD = OPSA
