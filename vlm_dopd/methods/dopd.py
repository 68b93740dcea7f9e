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

What is our reading of it: OPEN. Its ablations are the settings of `_ablations.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..divergences import Closure, Divergence, Owner
from ..routing import Regime, Thresholds, gaps, quantile, route, thresholds
from . import STUDENT_PRIVILEGED, TEACHER_PRIVILEGED, Component, Role, WindowScores
from ._ablations import Ablations, draws, shuffled
from ._shared import mean

OPEN = (
    "the paper does not say how its thresholds are trimmed and averaged (trim, trim_on, trim_mode, stat_mean), nor "
    "whose top K it is and what becomes of the rest (owner, closure)"
)


@dataclass(frozen=True, kw_only=True)
class DOPD(Ablations):
    beta_light: float = 0.6
    """β_l, strength of LH and HS (section 4.1 of the paper)."""
    beta_weak: float = 0.3
    """β_w, strength of LL (section 4.1)."""
    k: int = 128
    """Support of the top-K reverse KL (section 4.1)."""
    closure: Closure = "tail"
    """What becomes of the mass outside the top K. The paper does not say; the tail's bin keeps it in sight."""
    owner: Owner = "student"
    """Whose top K: the reverse KL is an expectation under the student."""
    trim: float = 0.05
    """Share of largest gaps left out of the mean gap (section 3)."""
    reduction: Literal["seq_mean", "token_mean"] = "seq_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
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
        topk = Divergence(kind="rkl", support="topk", closure=self.closure, k=self.k, owner=self.owner)
        js = Divergence(kind="js", support="full")
        return (
            self.ablated(Component("LH", TEACHER_PRIVILEGED, topk), topk),
            self.ablated(Component("LL", STUDENT_PRIVILEGED, topk), topk),
            self.ablated(Component("HT", TEACHER_PRIVILEGED, js), topk),
            self.ablated(Component("HS", STUDENT_PRIVILEGED, topk), topk),
            # Without p the privileged view is the plain one, so this target is the teacher on the plain prompt.
            Component("NP", TEACHER_PRIVILEGED, topk),
        )

    @property
    def strengths(self) -> tuple[float, ...]:
        """One a regime."""
        return (
            self.ablated_strength("LH", self.beta_light),
            self.ablated_strength("LL", self.beta_weak),
            self.ablated_strength("HT", 1.0),
            self.ablated_strength("HS", self.beta_light),
            1.0,
        )

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        gap_N, routed_N = self._gap(scores), self._routed(scores)
        at = self._thresholds(scores, gap_N, routed_N & scores.ordinary_N)
        member_RN = self._members(scores, gap_N, routed_N, at)
        if self.route == "random":
            member_RN = shuffled(member_RN, routed_N, draws(scores, self.seed, 2))
        strength_R = torch.tensor(self.strengths, device=gap_N.device)
        return member_RN * strength_R.unsqueeze(-1), self._figures(scores, member_RN, gap_N)

    def _routed(self, scores: WindowScores) -> Tensor:
        return scores.has_privilege_N | self.route_without_p

    def _gap(self, scores: WindowScores) -> Tensor:
        return gaps(scores.logp_N[STUDENT_PRIVILEGED].double(), scores.logp_N[TEACHER_PRIVILEGED].double())

    def _thresholds(self, scores: WindowScores, gap_N: Tensor, counted_N: Tensor) -> Thresholds:
        by_response = self.stat_mean == "response"
        return thresholds(
            scores.logp_N[STUDENT_PRIVILEGED][counted_N],
            scores.logp_N[TEACHER_PRIVILEGED][counted_N],
            self.trim,
            gap_N=gap_N[counted_N],
            trim_all=self.trim_on == "all",
            winsor=self.trim_mode == "winsor",
            response_N=scores.responses.response_N[counted_N] if by_response else None,
        )

    def _members(self, scores: WindowScores, gap_N: Tensor, routed_N: Tensor, at: Thresholds) -> Tensor:
        """1 where the token is in the regime, else 0: [R, N]."""
        student_N, teacher_N = scores.logp_N[STUDENT_PRIVILEGED], scores.logp_N[TEACHER_PRIVILEGED]
        regime_N = route(student_N, teacher_N, routed_N, at, gap_N)
        return (regime_N == torch.arange(len(Regime), device=regime_N.device).unsqueeze(-1)).float()

    def _certain(self, scores: WindowScores) -> Tensor:
        """Where the entropy of T⁺ is below its median over the window."""
        entropy_N = scores.entropy_N[TEACHER_PRIVILEGED].double()
        return entropy_N < quantile(entropy_N[self._routed(scores) & scores.ordinary_N], 0.5)

    def _figures(self, scores: WindowScores, member_RN: Tensor, gap_N: Tensor) -> dict[str, float]:
        share_R = (member_RN.sum(-1) / max(member_RN.shape[1], 1)).tolist()
        figures = {f"share/{regime.name}": share_R[regime] for regime in Regime}
        gap_N = gap_N[self._routed(scores)]
        if gap_N.numel():
            figures["gap/mean"] = gap_N.mean().item()
            figures |= {"gap/p50": quantile(gap_N, 0.5), "gap/p95": quantile(gap_N, 0.95)}
        # Confident mistakes: T⁺ knows better, and the student is held to itself. Those that a guard moved count too.
        student_surer_N = scores.logp_N[STUDENT_PRIVILEGED] > scores.logp_N[TEACHER_PRIVILEGED]
        self_taught_N = (member_RN[Regime.HT] + member_RN[Regime.HS]) * student_surer_N
        return figures | {"guard/certain_in_HS": mean(self._certain(scores).float(), self_taught_N)}


METHOD = DOPD
