"""Errors that are the user's to fix. Each is one line: what, where, expected, got, fix. The CLI prints just that."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting that does not exist, has the wrong type, or contradicts another."""


class TrainingError(RuntimeError):
    """Training stopped because going on would spoil the weights."""


def closest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of what there is, for a message about an unknown name."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(known)}"
