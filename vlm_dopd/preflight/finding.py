"""What a check is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["PASS", "WARN", "FAIL", "SKIP"]
Cost = Literal["cheap", "model"]
"""`cheap` reads files: configurations, processors, a few rows. `model` needs the pair in memory."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check has seen, beside what a sound run has."""

    status: Status
    figure: str
    """What was seen; of SKIP, why nothing was looked at. One line, as are the next two."""
    expected: str = ""
    fix: str = ""
    """What to do about a WARN or a FAIL."""
    shown: tuple[str, ...] = ()
    """Lines for a person to read: a decoded prompt, answers."""


@dataclass(frozen=True)
class Check:
    """A question to a run that has not begun, and what it costs to ask."""

    name: str
    cost: Cost
    find: Callable[[Any], Finding]
    """Of a `Wiring` if it is cheap, else of a `Trial`."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One line of the ladder: what a check found."""

    number: int
    name: str
    cost: Cost
    seconds: float
    finding: Finding

    @property
    def sentence(self) -> str:
        """A WARN or FAIL for the log, or for an error."""
        found = self.finding
        expected = f" (expected {found.expected})" if found.expected else ""
        return f"{self.name}: {found.figure}{expected}" + (f": {found.fix}" if found.fix else "")


def skipped(why: str) -> Finding:
    """A SKIP, and why."""
    return Finding(status="SKIP", figure=why)


def judged(
    figure: str, expected: str, *, fail: bool = False, warn: bool = False, fix: str = "", shown: tuple[str, ...] = ()
) -> Finding:
    """FAIL before WARN before PASS; the fix is for what is not a PASS."""
    status: Status = "FAIL" if fail else "WARN" if warn else "PASS"
    return Finding(status=status, figure=figure, expected=expected, fix=fix if fail or warn else "", shown=shown)
