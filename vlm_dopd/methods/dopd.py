"""DOPD, dual on-policy distillation (arXiv 2606.30626). Its delta from vanilla OPD:

1. two policies with privilege score every sampled token: the frozen teacher T⁺ and the live student S⁺;
2. the gap of their log-probabilities and their confidence put the token into one of four regimes (`routing.py`);
3. each regime has its own target, divergence and strength:

| regime | target | divergence | strength |
|---|---|---|---|
| LH: they agree and are sure | T⁺ | top-K reverse KL | β_l |
| LL: they agree, unsure | S⁺, stop-gradient | top-K reverse KL | β_w |
| HT: they differ, the teacher is surer | T⁺ | full-vocabulary JS | 1 |
| HS: they differ, the student is surer | S⁺, stop-gradient | top-K reverse KL | β_l |

The loss is the plain student's in every regime. Rows without p have no gap: they get vanilla OPD at strength 1 and stay
out of the statistics (the paper's own ablation, Table 8, shows that DOPD without p falls below vanilla OPD).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..divergences import Closure, Divergence
from ..routing import Regime, gaps, route, thresholds
from . import STUDENT_PRIVILEGED, TEACHER_PRIVILEGED, Component, Method, Role, WindowScores


@dataclass(frozen=True, kw_only=True)
class DOPD(Method):
    beta_light: float = 0.6
    """β_l, strength of LH and HS (section 4.1 of the paper)."""
    beta_weak: float = 0.3
    """β_w, strength of LL (section 4.1)."""
    k: int = 128
    """Support of the top-K reverse KL (section 4.1)."""
    closure: Closure = "tail"
    """What becomes of the mass outside the top K. The paper does not say; the tail's bin keeps it in sight."""
    trim: float = 0.05
    """Share of largest gaps left out of the mean gap (section 3)."""
    reduction: Literal["seq_mean", "token_mean"] = "seq_mean"

    def __post_init__(self) -> None:
        if min(self.beta_light, self.beta_weak) < 0:
            raise ValueError(f"beta_light and beta_weak: expected 0 or more, got {self.beta_light}, {self.beta_weak}")
        if not 0 <= self.trim < 1:
            raise ValueError(f"trim: expected a share of at least 0 and below 1, got {self.trim}")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (STUDENT_PRIVILEGED, TEACHER_PRIVILEGED)

    @property
    def components(self) -> tuple[Component, ...]:
        """One a regime, in the order of `Regime`."""
        topk = Divergence(kind="rkl", support="topk", closure=self.closure, k=self.k)
        js = Divergence(kind="js", support="full")
        return (
            Component("LH", TEACHER_PRIVILEGED, topk),
            Component("LL", STUDENT_PRIVILEGED, topk),
            Component("HT", TEACHER_PRIVILEGED, js),
            Component("HS", STUDENT_PRIVILEGED, topk),
            # Without p the privileged view is the plain one, so this target is the teacher on the plain prompt.
            Component("NP", TEACHER_PRIVILEGED, topk),
        )

    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        student_N, teacher_N = scores.logp_N[STUDENT_PRIVILEGED], scores.logp_N[TEACHER_PRIVILEGED]
        counted_N = scores.has_privilege_N & scores.ordinary_N
        at = thresholds(student_N[counted_N], teacher_N[counted_N], self.trim)
        regime_N = route(student_N, teacher_N, scores.has_privilege_N, at)
        strength_R = torch.tensor([self.beta_light, self.beta_weak, 1.0, self.beta_light, 1.0], device=regime_N.device)
        member_RN = regime_N == torch.arange(len(Regime), device=regime_N.device).unsqueeze(-1)
        return member_RN * strength_R.unsqueeze(-1), self._figures(scores, member_RN, gaps(student_N, teacher_N))

    def _figures(self, scores: WindowScores, member_RN: Tensor, gap_N: Tensor) -> dict[str, float]:
        share_R = (member_RN.sum(-1) / max(member_RN.shape[1], 1)).tolist()
        figures = {f"share/{regime.name}": share_R[regime] for regime in Regime}
        gap_N = gap_N[scores.has_privilege_N].float()
        if gap_N.numel():
            levels = torch.quantile(gap_N, gap_N.new_tensor([0.5, 0.95])).tolist()
            figures |= {"gap/mean": gap_N.mean().item(), "gap/p50": levels[0], "gap/p95": levels[1]}
        return figures


METHOD = DOPD
