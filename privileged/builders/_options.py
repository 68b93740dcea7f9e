"""Checks of options. A mistake in a configuration is told when the builder is made, not by a worker in a long run."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..errors import DataError


def check_count(builder: str, option: str, value: object, low: int = 1) -> None:
    """Raises DataError unless `value` is a whole number from `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise DataError(f"builder {builder!r}: {option}: expected a number from {low}, got {value!r}")


def check_choice(builder: str, option: str, value: object, choices: Iterable[str]) -> None:
    """Raises DataError unless `value` is one of `choices`."""
    if value not in (known := tuple(choices)):
        listed = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
        raise DataError(f"builder {builder!r}: {option}: expected {listed}, got {value!r}")


def check_fraction(builder: str, option: str, value: object, low: float, high: float) -> None:
    """Raises DataError unless `value` is a number from `low` to `high`."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not low <= float(value) <= high:  # type: ignore[arg-type]
        raise DataError(f"builder {builder!r}: {option}: expected a number from {low} to {high}, got {value!r}")
