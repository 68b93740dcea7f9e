"""The paper's ablations of DOPD (arXiv 2606.30626, Tables 6 and 8), other readings of its thresholds, and controls.

Each setting is one factor; at its default it changes nothing. A row of Table 8 is

    w/o p                        route_without_p: true, on data whose builder is `none`
    w/o distillation from …      regimes: [LH, HT] (not from the student), [LL, HS] (not from the teacher)
    w/o advantage-aware          method `opd` with teacher_view: privileged, divergence: js
    w/o adaptive objectives      objective: js; supports and strengths stay
    w/o adaptive strategies      strategy: topk; divergences and strengths stay

and one of Table 6 is `regimes`, with `adaptive: false` in its upper half. Tokens without a loss still count in |y|.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..divergences import Divergence
from ..routing import Regime
from . import STUDENT_PRIVILEGED, TEACHER_PRIVILEGED, Component, Method, WindowScores

ROUTED = tuple(regime.name for regime in Regime if regime is not Regime.NP)


@dataclass(frozen=True, kw_only=True)
class Ablations(Method):
    """The fields that DOPD and what is built on it share, and how they change a regime's component."""

    regimes: tuple[str, ...] = ROUTED
    """Which regimes get a loss (Table 6; Table 8, w/o distillation from student or teacher)."""
    adaptive: bool = True
    """False: JS on the top K at strength 1 in every regime (Table 6)."""
    objective: Literal["adaptive", "fkl", "rkl", "js"] = "adaptive"
    """One divergence for all regimes (Table 8, w/o adaptive objectives)."""
    strategy: Literal["adaptive", "topk", "full", "sampled"] = "adaptive"
    """One support for all regimes (Table 8, w/o adaptive strategies)."""
    target: Literal["adaptive", "teacher", "student"] = "adaptive"
    """One privileged policy as the target of all regimes: Table 6 leaves open whether its upper half has that."""
    route: Literal["gap", "random"] = "gap"
    """`random`, a control: the window's own regimes, dealt out among its tokens by lot."""
    seed: int = 0
    """Of `route: random`."""
    route_without_p: bool = False
    """Rows without p are routed as well, on plain prompts, instead of vanilla OPD (Table 8, w/o p)."""
    trim_on: Literal["gap", "all"] = "gap"
    """`all`: q_S and q_T are trimmed too, before they are averaged."""
    trim_mode: Literal["drop", "winsor"] = "drop"
    """`winsor`: the largest values are lowered to the largest that is left, instead of dropped."""
    stat_mean: Literal["token", "response"] = "token"
    """`response`: averages are over the responses' own averages, so that long ones count no more than short ones."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "regimes", tuple(self.regimes))
        if not self.regimes or not set(self.regimes) <= set(ROUTED):
            raise ValueError(f"regimes: expected one or more of {', '.join(ROUTED)}, got {list(self.regimes)}")
        if not self.adaptive and (self.objective, self.strategy) != ("adaptive", "adaptive"):
            raise ValueError(
                f"adaptive: false is objective js and strategy topk, got {self.objective} and {self.strategy}; "
                "set either adaptive or these two"
            )

    def ablated(self, component: Component, topk: Divergence) -> Component:
        """The component of a regime with the divergence, support and target that the settings ask for."""
        kind = component.divergence.kind if self.objective == "adaptive" else self.objective
        support = component.divergence.support if self.strategy == "adaptive" else self.strategy
        if not self.adaptive:
            kind, support = "js", "topk"
        if (kind, support) != (component.divergence.kind, component.divergence.support):
            component = replace(component, divergence=replace(topk, kind=kind, support=support))
        if self.target != "adaptive":
            role = TEACHER_PRIVILEGED if self.target == "teacher" else STUDENT_PRIVILEGED
            component = replace(component, target=role)
        return component

    def ablated_strength(self, name: str, strength: float) -> float:
        """Strength of the regime `name`."""
        if name not in self.regimes:
            return 0.0
        return strength if self.adaptive else 1.0


def shuffled(member_RN: Tensor, routed_N: Tensor, draw_2N: Tensor) -> Tensor:
    """The columns of the routed tokens dealt out among them, [R, N]: the i-th in one lot gets that of the i-th in the
    other."""
    place_n = routed_N.nonzero()[:, 0]
    to_n, from_n = (place_n[draw_n.argsort()] for draw_n in draw_2N[:, routed_N])
    shuffled_RN = member_RN.clone()
    shuffled_RN[:, to_n] = member_RN[:, from_n]
    return shuffled_RN


def draws(scores: WindowScores, seed: int, count: int = 1) -> Tensor:
    """Uniform numbers in [0, 1), [count, N] float64, of nothing but the seed, the progress and the token's own place.

    The place is the number of its group, its response's among the siblings, and its position: no generator is shared,
    and the order of the responses plays no part.
    """
    siblings: Counter[int] = Counter()
    parts = []
    for group, length in zip(scores.responses.group_M.tolist(), scores.responses.length_M.tolist(), strict=True):
        name = f"{seed} {scores.progress!r} {group} {siblings[group]}"
        siblings[group] += 1
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
        generator = torch.Generator().manual_seed(number)
        parts.append(torch.rand(length, count, generator=generator, dtype=torch.float64))
    device = scores.has_privilege_N.device
    return torch.cat([torch.empty(0, count, dtype=torch.float64), *parts]).T.to(device)
