"""Methods: one file each. A method says which roles it needs, how tokens are weighted, and which loss they get.

`find("dopd")` imports `methods/dopd.py`. A method file has one public name, `METHOD`: a frozen dataclass whose fields
are the options (their defaults are the vetted setting). It touches neither a model nor a trainer. Outside the tree the
same file is found through the entry-point group `vlm_dopd.methods`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from privileged.errors import DataError
from privileged.plugins import Plugins

from ..divergences import Divergence
from ..errors import ConfigError
from ._responses import Responses

ENTRY_POINTS = "vlm_dopd.methods"

Weights = Literal["student", "ema", "initial", "snapshot", "teacher", "teacher_base"]
"""`student` is live; `ema`, `initial` and `snapshot` are copies of it; `teacher_base` is a second frozen model."""
View = Literal["plain", "privileged", "degraded", "masked", "praised", "blamed", "sibling", "reference", "rollout"]
"""What a role's prompt shows:

plain        the deployed prompt                      privileged  with p
degraded     images shrunk and enlarged again         masked      images with random patches painted grey
praised      a sentence that the response is right    blamed      that it is wrong
sibling      with another response of the group that was right; else with p; else plain
reference    with the reference completion            rollout     with the response itself; a reference completion's
                                                                  prompt shows the group's first response
"""


class Role(NamedTuple):
    """Whose weights see which prompt. All roles score the same response ids; none of these has a gradient."""

    weights: Weights
    view: View


STUDENT_PLAIN = Role("student", "plain")
STUDENT_PRIVILEGED = Role("student", "privileged")
TEACHER_PLAIN = Role("teacher", "plain")
TEACHER_PRIVILEGED = Role("teacher", "privileged")


@dataclass(frozen=True)
class Component:
    """One kind of loss a token can get: divergence of the student from `target`."""

    name: str
    target: Role | None
    """None for a divergence that has no target: `nll`."""
    divergence: Divergence
    student_view: View = "plain"
    """The prompt of the pass with gradient."""


@dataclass(frozen=True)
class Statistic:
    """A number a token, from the whole distributions of two roles; without gradient."""

    name: str
    first: Role
    second: Role
    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(log-probabilities [n, V] of the first, of the second, sampled ids [n]) -> [n]. A `Divergence` is one."""


@dataclass(frozen=True)
class WindowScores:
    """What a method may look at: every token of the window, all micro-batches and ranks, in one flat order.

    The student's pass with gradient is not here, it happens later; a method that needs the student's own opinion of its
    response before that names STUDENT_PLAIN among its roles, which costs a pass.
    """

    logp_N: dict[Role, Tensor]
    """Of the sampled token, nats."""
    entropy_N: dict[Role, Tensor]
    """nats"""
    has_privilege_N: Tensor
    """bool: the token's row has a privileged view of its own."""
    ordinary_N: Tensor
    """bool: not an end-of-sequence or other special token. Special tokens are trained on, but set no threshold."""
    responses: Responses
    """Which token belongs to which response, and what is known of responses."""
    statistic_N: dict[str, Tensor]
    """By `Statistic.name`."""
    progress: float = 0.0
    """Share of the training steps that are done."""
    state: dict[str, float] = field(default_factory=dict)
    """Numbers that a method keeps from one window to the next; they are saved with checkpoints."""


class Method:
    """Everything a trainer knows about a method. Subclasses are frozen dataclasses; what they leave out is as here."""

    reduction: Literal["seq_mean", "token_mean", "sum"] = "seq_mean"
    """What the sum over tokens is divided by: each response's length and the number of responses of the window, the
    number of its tokens, or nothing (the weights of `sum` are the method's own fractions)."""
    temperature: float = 1.0
    """Both sides' logits are divided by it in the loss."""
    merge_stops: bool = False
    """The ids that end a turn, the student's and the teacher's, count as one token in scores and losses."""
    ema_rate: float = 0.0
    """Of the role weights `ema`: after a step they become (1 − rate) · ema + rate · student."""
    snapshot_steps: int = 0
    """The role weights `snapshot` are copied from the student before the first step and after every so many."""
    rollout_view: Literal["plain", "privileged"] = "plain"
    """What the student is shown when it writes its responses."""
    own_share: float = 1.0
    """Share of the groups whose responses are the student's own; the others get reference completions instead."""
    references: bool = False
    """Every group gets a reference completion as one response more."""
    needs_reward: ClassVar[bool] = False
    success: float = 1.0
    """Reward from which on a response is right, for the view `sibling`."""

    @property
    def wants_references(self) -> bool:
        """Whether some responses are not the student's own."""
        return self.references or self.own_share < 1

    @property
    def roles(self) -> tuple[Role, ...]:
        """Whose scores `weights` reads or components aim at. Each costs a pass without gradient, so name no others."""
        raise NotImplementedError

    @property
    def components(self) -> tuple[Component, ...]:
        """The kinds of loss, R of them, in the order of the rows of `weights`."""
        raise NotImplementedError

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """Numbers beyond log-probability and entropy that `weights` reads; none by default."""
        return ()

    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        """Weight of every component on every token, [R, N], and figures for the log.

        Hard routing gives 0 or β; a soft router may mix. No gradient flows through it.
        """
        raise NotImplementedError


_PLUGINS = Plugins(kind="method", package=__name__, path=__path__, group=ENTRY_POINTS)


def available() -> list[str]:
    """Names of all methods, those of other packages included."""
    return _PLUGINS.available()


def find(name: str) -> type[Method]:
    """The class of method `name`. Raises ConfigError with the close match if there is none.

    >>> for part in find("dopd")().components[:4]:
    ...     print(part.name, part.target.weights, part.target.view, part.divergence.kind, part.divergence.support)
    LH teacher privileged rkl topk
    LL student privileged rkl topk
    HT teacher privileged js full
    HS student privileged rkl topk
    """
    try:
        return _PLUGINS.find(name).METHOD
    except DataError as error:
        raise ConfigError(f"method.name: {error}") from None
