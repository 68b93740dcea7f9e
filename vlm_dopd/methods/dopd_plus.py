"""DOPD (arXiv 2606.30626) with our answers to its weak points, each a switch; with all of them off it is `dopd`.

    gap: js                A = JS_½(S⁺, T⁺) over the vocabulary: one sampled log-ratio is noisy, ruled by unlikely draws
    gap: difference        A = abs((ℓ_T⁺ − ℓ_T) − (ℓ_S⁺ − ℓ_S)), what p is worth to one policy and not to the other: a
                           gap that is there without p as well is not one of information
    gap_quantile           Ā is a quantile of A: a mean drifts with the student and follows outliers
    confidence_quantile    q̄_S + q̄_T is a quantile of q_S + q_T
    threshold_rate         both thresholds are moving averages over windows
    softness               a token has shares of all regimes: at a hard border target, loss and strength jump
    guard                  HS becomes HT where T⁺ is certain, its entropy below the window's median. A sampled mistake
                           has q_S > q_T and a large gap by construction, and HS would anchor the student to it
    self_teacher           S⁺ as a target is the moving average, or the initial student: a live one moves with what it
                           teaches
    match_scales           JS counts four times: near S = T it is a quarter of the reverse KL
    cap                    bounds every vocabulary entry's term: tokens of style rule the sum
    merge_stops            the ids that end a turn count as one token: a teacher that prefers another one than the
                           student would teach it not to stop, and responses would grow

ℓ is the log-probability of the sampled token, without ⁺ on the plain prompt. Who is surer of a token stays the paper's
q_T ≥ q_S, and the loss of rows without p stays vanilla OPD, whatever the switches (`merge_stops` is for all rows).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ..divergences import Divergence
from ..routing import Regime, Thresholds, gaps, quantile, soft_route
from . import (
    STUDENT_PLAIN,
    STUDENT_PRIVILEGED,
    TEACHER_PLAIN,
    TEACHER_PRIVILEGED,
    Component,
    Role,
    Statistic,
    WindowScores,
)
from .dopd import DOPD

OPEN = "none of the switches is the paper's; which of them help, and at which values, is for your own runs to say"


@dataclass(frozen=True, kw_only=True)
class DOPDPlus(DOPD):
    gap: Literal["log_ratio", "js", "difference"] = "log_ratio"
    """`js` costs a pass over both vocabularies, `difference` two more scored roles."""
    gap_quantile: float | None = None
    """0.75 puts the quarter of the tokens with the largest gaps into HT and HS."""
    confidence_quantile: float | None = None
    threshold_rate: float = 1.0
    """Weight of the present window in the thresholds; 1 is no memory."""
    softness: float = 0.0
    """Nats over which a regime fades into its neighbour; 0 is a hard border."""
    guard: bool = False
    self_teacher: Literal["live", "ema", "initial"] = "live"
    """Whose weights S⁺ has as a target. The gap stays the live student's, so a copy costs one more scored role."""
    ema_rate: float = 0.05
    """Of `self_teacher: ema` (SDPO and Vision-OPD)."""
    match_scales: bool = False
    cap: float | None = None
    """OPSD has 0.05, in nats."""
    merge_stops: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gap_quantile", "confidence_quantile"):
            level = getattr(self, name)
            if level is not None and not 0 <= level <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, or null for the paper's mean, got {level}")
        for name in ("threshold_rate", "ema_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a rate above 0 and at most 1, got {getattr(self, name)}")
        if not 0 <= self.softness < float("inf"):
            raise ValueError(f"softness: expected 0 (a hard border) or more nats, got {self.softness}")

    @property
    def roles(self) -> tuple[Role, ...]:
        targets = (component.target for component in self.components if component.target is not None)
        plain = (STUDENT_PLAIN, TEACHER_PLAIN) if self.gap == "difference" else ()
        return tuple(dict.fromkeys((*super().roles, *targets, *plain)))

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        js = Divergence(kind="js", support="full")
        return (Statistic("gap", STUDENT_PRIVILEGED, TEACHER_PRIVILEGED, js),) if self.gap == "js" else ()

    @property
    def components(self) -> tuple[Component, ...]:
        *routed, vanilla = super().components
        return (*map(self._improved, routed), vanilla)

    @property
    def strengths(self) -> tuple[float, ...]:
        kinds = (component.divergence.kind for component in self.components)
        factors = (4.0 if self.match_scales and kind == "js" else 1.0 for kind in kinds)
        return tuple(strength * factor for strength, factor in zip(super().strengths, factors, strict=True))

    def _improved(self, component: Component) -> Component:
        if component.target == STUDENT_PRIVILEGED and self.self_teacher != "live":
            component = replace(component, target=Role(self.self_teacher, "privileged"))
        if self.cap is not None:
            component = replace(component, divergence=replace(component.divergence, cap=self.cap))
        return component

    def _gap(self, scores: WindowScores) -> Tensor:
        if self.gap == "js":
            return scores.statistic_N["gap"]
        if self.gap == "difference":
            worth = [
                scores.logp_N[privileged].double() - scores.logp_N[plain].double()
                for privileged, plain in ((STUDENT_PRIVILEGED, STUDENT_PLAIN), (TEACHER_PRIVILEGED, TEACHER_PLAIN))
            ]
            return gaps(*worth)
        return super()._gap(scores)

    def _thresholds(self, scores: WindowScores, gap_N: Tensor, counted_N: Tensor) -> Thresholds:
        at = super()._thresholds(scores, gap_N, counted_N)
        if not counted_N.any():
            return at
        if self.gap_quantile is not None:
            at = replace(at, gap=quantile(gap_N[counted_N], self.gap_quantile))
        if self.confidence_quantile is not None:
            q_S_N, q_T_N = (scores.logp_N[role].double().exp() for role in (STUDENT_PRIVILEGED, TEACHER_PRIVILEGED))
            at = replace(at, confidence=quantile((q_S_N + q_T_N)[counted_N], self.confidence_quantile))
        if self.threshold_rate == 1:
            return at
        for name, now in (("gap", at.gap), ("confidence", at.confidence)):
            before = scores.state.get(f"threshold/{name}", now)
            scores.state[f"threshold/{name}"] = before + self.threshold_rate * (now - before)
        return Thresholds(gap=scores.state["threshold/gap"], confidence=scores.state["threshold/confidence"])

    def _members(self, scores: WindowScores, gap_N: Tensor, routed_N: Tensor, at: Thresholds) -> Tensor:
        if self.softness:
            student_N, teacher_N = scores.logp_N[STUDENT_PRIVILEGED], scores.logp_N[TEACHER_PRIVILEGED]
            member_RN = soft_route(student_N, teacher_N, routed_N, at, self.softness, gap_N).float()
        else:
            member_RN = super()._members(scores, gap_N, routed_N, at)
        if self.guard:
            moved_N = member_RN[Regime.HS] * self._certain(scores)
            member_RN[Regime.HT] += moved_N
            member_RN[Regime.HS] -= moved_N
        return member_RN


METHOD = DOPDPlus
