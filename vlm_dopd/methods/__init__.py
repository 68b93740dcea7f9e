"""Methods: one file each. A method says which roles it needs, how tokens are weighted, and which divergence they get.

`find("dopd")` imports `methods/dopd.py`. A method file has one public name, `METHOD`: a frozen dataclass whose fields
are the options (their defaults are the vetted setting). It touches neither a model nor a trainer. Outside the tree the
same file is found through the entry-point group `vlm_dopd.methods`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from privileged.errors import DataError
from privileged.plugins import Plugins

from ..divergences import Divergence
from ..errors import ConfigError

ENTRY_POINTS = "vlm_dopd.methods"


class Role(NamedTuple):
    """Whose weights see which prompt. All roles score the same response ids; none of these has a gradient."""

    weights: Literal["student", "teacher"]
    view: Literal["plain", "privileged"]


STUDENT_PRIVILEGED = Role("student", "privileged")
TEACHER_PLAIN = Role("teacher", "plain")
TEACHER_PRIVILEGED = Role("teacher", "privileged")


@dataclass(frozen=True)
class Component:
    """One kind of loss a token can get: divergence of the student's plain pass from `target`."""

    name: str
    target: Role
    divergence: Divergence


@dataclass(frozen=True)
class WindowScores:
    """What routing may look at: every token of the window, all micro-batches and ranks, in one flat order.

    The student's own plain pass is not here: it happens later, with gradient.
    """

    logp_N: dict[Role, Tensor]
    entropy_N: dict[Role, Tensor]
    has_privilege_N: Tensor
    """bool: the token's row has a privileged view of its own."""
    ordinary_N: Tensor
    """bool: not an end-of-sequence or other special token. Special tokens are trained on, but set no threshold."""


class Method(Protocol):
    """Everything a trainer knows about a method."""

    reduction: Literal["seq_mean", "token_mean"]

    @property
    def roles(self) -> tuple[Role, ...]: ...

    @property
    def components(self) -> tuple[Component, ...]: ...

    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        """Weight of every component on every token, [R, N], and figures for the log.

        Hard routing gives 0 or β; a soft router may mix. No gradient flows through it.
        """
        ...


_PLUGINS = Plugins(kind="method", package=__name__, path=__path__, group=ENTRY_POINTS)


def available() -> list[str]:
    """Names of all methods, those of other packages included."""
    return _PLUGINS.available()


def find(name: str) -> type:
    """The class of method `name`. Raises ConfigError with the close match if there is none."""
    try:
        return _PLUGINS.find(name).METHOD
    except DataError as error:
        raise ConfigError(f"method.name: {error}") from None
