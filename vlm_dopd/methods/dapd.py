"""DAPD (arXiv 2608.01735): self-distillation with pairs whose two sides know the same, beside those that do not.

Its delta from vanilla OPD: no teacher but copies of the student, which know more than it does from their prompt. Every
prompt has two kinds of completion, its own rollouts y and a reference r, and the prompt may show either. Six terms,
each KL(anchor‖student) over the full vocabulary and a token mean of its own over the completions of its kind:

| term | completion | anchor: weights, shown | student shown | strength |
|---|---|---|---|---|
| entangled rollout (= OPSD) | y | snapshot, r | nothing | 2/15 |
| entangled reference | r | snapshot, y | nothing | 2/5 |
| inference rollout | y | initial, nothing | y | 2/5 |
| inference reference | r | initial, nothing | r | 2/15 |
| privileged rollout | y | initial, r | y | 2/15 |
| privileged reference | r | initial, y | r | 4/5 |

Both sides' logits are divided by 1.1, each vocabulary term of the sum is at most 0.05. r is a full solution, by the
teacher or of the data; p plays no part. Where a prompt has several rollouts, its reference is shown the first. The
dearest method: four passes with gradient (two over each kind) and six for the anchors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..divergences import Divergence
from . import Component, Method, Role, View, WindowScores
from ._shared import fractions, mean


class _Pair(NamedTuple):
    name: str
    reference: bool
    """Whether the term is over reference completions; else over rollouts."""
    anchor: Role
    student_view: View
    strength: float


# The view `rollout` of a rollout shows it itself, that of a reference shows a rollout; likewise for `reference`.
PAIRS = (
    _Pair("entangled_rollout", False, Role("snapshot", "reference"), "plain", 2 / 15),
    _Pair("entangled_reference", True, Role("snapshot", "rollout"), "plain", 2 / 5),
    _Pair("inference_rollout", False, Role("initial", "plain"), "rollout", 2 / 5),
    _Pair("inference_reference", True, Role("initial", "plain"), "reference", 2 / 15),
    _Pair("privileged_rollout", False, Role("initial", "reference"), "rollout", 2 / 15),
    _Pair("privileged_reference", True, Role("initial", "rollout"), "reference", 4 / 5),
)


@dataclass(frozen=True, kw_only=True)
class DAPD(Method):
    cap: float | None = 0.05
    """Of each vocabulary term of the KL, nats; one-sided. None for no cap."""
    temperature: float = 1.1
    snapshot_steps: int = 100
    reduction = "sum"
    references = True

    def __post_init__(self) -> None:
        if self.cap is not None and not self.cap > 0:
            raise ValueError(f"cap: expected more than 0, or none, got {self.cap}")
        if not self.temperature > 0:
            raise ValueError(f"temperature: expected more than 0, got {self.temperature}")
        if self.snapshot_steps < 1:
            raise ValueError(f"snapshot_steps: expected 1 or more, got {self.snapshot_steps}")

    @property
    def roles(self) -> tuple[Role, ...]:
        return tuple(dict.fromkeys(pair.anchor for pair in PAIRS))

    @property
    def components(self) -> tuple[Component, ...]:
        divergence = Divergence(kind="fkl", support="full", cap=self.cap)
        return tuple(Component(pair.name, pair.anchor, divergence, pair.student_view) for pair in PAIRS)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        reference_N = scores.responses.reference_M[scores.responses.response_N]
        each_2N = [fractions((reference_N == kind).float()) for kind in (False, True)]
        weight_RN = torch.stack([pair.strength * each_2N[pair.reference] for pair in PAIRS])
        return weight_RN, {"share/reference": mean(reference_N.float())}


METHOD = DAPD
