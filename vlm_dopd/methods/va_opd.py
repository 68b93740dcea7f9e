"""VA-OPD (arXiv 2605.21924): vanilla OPD that listens most where the teacher's opinion depends on the image.

Its delta from vanilla OPD: T⁻ is the teacher shown the image shrunk and enlarged again, VA = relu(ℓ^T − ℓ^{T⁻}) how
much the sampled token needs the details. It weighs responses against their siblings, and tokens within a response:

    w_k = softmax over the siblings of z-score(mean VA)/τ
    L_k = ½·mean over high tokens of RKL(S, T) + ½·mean over the low ones,   high: the 20 % of largest VA
    L = mean over prompts of Σ_k w_k·L_k,   RKL over the full vocabulary

A response without low tokens (one token) is the plain mean of its high ones. Tokens that tie at the border are high in
part, so that a prompt without an image (VA = 0) is vanilla OPD, its siblings weighing the same. Special tokens set
neither the mean VA nor the border. p plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..divergences import Divergence
from . import TEACHER_PLAIN, Component, Method, Role, WindowScores
from ._responses import Responses
from ._shared import group_z_score, mean, top_share

DEGRADED = Role("teacher", "degraded")
OPEN = "va_opd: ties at the 20 % and rounding are not specified; ties are shared, the share is rounded up"


@dataclass(frozen=True, kw_only=True)
class VAOPD(Method):
    tau: float = 1.0
    """τ of the softmax over siblings."""
    high_share: float = 0.2
    """Of a response's tokens, those of largest VA."""
    high_weight: float = 0.5
    """What the high tokens have of their response's weight."""
    reduction = "sum"

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ValueError(f"tau: expected more than 0, got {self.tau}")
        if not 0 < self.high_share <= 1:
            raise ValueError(f"high_share: expected a share above 0 and up to 1, got {self.high_share}")
        if not 0 <= self.high_weight <= 1:
            raise ValueError(f"high_weight: expected a share from 0 to 1, got {self.high_weight}")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (TEACHER_PLAIN, DEGRADED)

    @property
    def components(self) -> tuple[Component, ...]:
        return (Component("OPD", TEACHER_PLAIN, Divergence(kind="rkl", support="full")),)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        responses, ordinary_N = scores.responses, scores.ordinary_N
        visual_N = (scores.logp_N[TEACHER_PLAIN] - scores.logp_N[DEGRADED]).relu().double()
        share_M = self._siblings(responses.mean_M(visual_N, ordinary_N), responses)
        high_N = top_share(visual_N, self.high_share, ordinary_N, responses.response_N).double()
        prompts = responses.group_M.unique().numel()
        weight_N = share_M[responses.response_N] / max(prompts, 1) * self._within(high_N, responses)
        figures = {"visual/mean": mean(visual_N, ordinary_N), "visual/in_high": mean(high_N, visual_N)}
        return weight_N.float().unsqueeze(0), figures

    def _siblings(self, visual_M: Tensor, responses: Responses) -> Tensor:
        """w_k. The z-score of K siblings is at most √(K − 1); a tiny τ still needs the largest taken off."""
        score_M = group_z_score(visual_M, responses) / self.tau
        top_M = torch.full_like(score_M, float("-inf")).scatter_reduce(0, responses.group_M, score_M, "amax")
        exp_M = (score_M - top_M[responses.group_M]).exp()
        return exp_M / responses.group_sum_M(exp_M)

    def _within(self, high_N: Tensor, responses: Responses) -> Tensor:
        """Every token's part of its response's weight; `high_N` may be a fraction."""
        high_M, low_M = responses.sum_M(high_N), responses.sum_M(1 - high_N)
        weight_M = torch.full_like(low_M, self.high_weight).where(low_M > 0, 1.0)
        each_high_M, each_low_M = weight_M / high_M.clamp(min=1e-12), (1 - weight_M) / low_M.clamp(min=1e-12)
        each_high_N, each_low_N = each_high_M[responses.response_N], each_low_M[responses.response_N]
        return high_N * each_high_N + (1 - high_N) * each_low_N


METHOD = VAOPD
