"""A run folder -> one `Report`: every number the page shows, and nothing it does not.

The page and `report.json` are both made from this object, which is why they cannot disagree.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evals
from evals import Prediction
from privileged.errors import DataError

EVALS = ("before", "after", "teacher")
FILES = ("config.yaml", "versions.json", "metrics.jsonl", "summary.json", *(f"evals/{name}.jsonl" for name in EVALS))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval; `value` is None where the figure is undefined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """Held-out accuracy of one model and view, as fractions."""

    name: str
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Held-out accuracy of one kind of question, as fractions."""

    name: str
    n: int
    before: float
    after: float
    teacher: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric over the optimiser steps, ascending."""

    step: tuple[int, ...]
    value: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything of a run that can be said without its pictures."""

    method: str
    seed: int
    n: int
    seconds: float
    rows: tuple[Row, ...]
    difference: Estimate
    """After minus before, in points."""
    gap_recovery: Estimate
    kinds: tuple[Kind, ...]
    curves: dict[str, Curve]
    evals: dict[str, dict[str, Prediction]]
    """Replies of `EVALS`, by sample id in file order."""
    config: str
    versions: dict[str, str]

    def row(self, name: str) -> Row | None:
        """The row of that name (`student before`, `teacher`); None if the run has none."""
        return next((row for row in self.rows if row.name == name), None)


def collect(run: Path) -> Report:
    """Read the folder of a finished run.

    A last line torn by a kill is dropped. Raises DataError, naming the file, where one is missing or malformed.
    """
    missing = [name for name in FILES if not (run / name).is_file()]
    if missing:
        raise DataError(f"run {run}: expected the folder of a finished run, missing {', '.join(missing)}")
    versions = _object(run / "versions.json")
    return Report(
        **_summary(run / "summary.json"),
        curves=_curves(_lines(run / "metrics.jsonl")),
        evals={name: _replies(run / f"evals/{name}.jsonl") for name in EVALS},
        config=_text(run / "config.yaml"),
        versions={str(name): str(version) for name, version in versions.items()},
    )


def _summary(path: Path) -> dict[str, Any]:
    raw = _object(path)
    try:
        difference, recovery = raw["difference"], raw["gap_recovery"]
        return {
            "method": str(raw["method"]),
            "seed": int(raw["seed"]),
            "n": int(raw["n"]),
            "seconds": float(raw["seconds"]),
            "rows": tuple(
                Row(name=str(r["name"]), accuracy=_share(r["accuracy"]), low=_share(r["low"]), high=_share(r["high"]))
                for r in raw["rows"]
            ),
            "difference": Estimate(
                value=_finite(difference["points"]), low=_finite(difference["low"]), high=_finite(difference["high"])
            ),
            "gap_recovery": Estimate(
                value=_finite(recovery["value"]), low=_finite(recovery["low"]), high=_finite(recovery["high"])
            ),
            "kinds": tuple(
                Kind(name=name, n=int(k["n"]), **{model: _share(k[model]) for model in EVALS})
                for name, k in raw["by_kind"].items()
            ),
        }
    except KeyError as error:
        raise DataError(f"{path}: expected a field {error.args[0]!r}, got none") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: a field has another form than expected ({error})") from None


def _curves(lines: list[dict[str, Any]]) -> dict[str, Curve]:
    """Every finite number that has a step, by metric. A resumed run logs some steps twice: the later line counts."""
    points: dict[str, dict[int, float]] = {}
    for line in lines:
        step = line.get("step")
        if not isinstance(step, int):
            continue
        for name, value in line.items():
            if name != "step" and (number := _finite(value)) is not None:
                points.setdefault(name, {})[step] = number
    ordered = {name: sorted(by_step.items()) for name, by_step in sorted(points.items())}
    return {
        name: Curve(step=tuple(step for step, _ in pairs), value=tuple(value for _, value in pairs))
        for name, pairs in ordered.items()
    }


def _replies(path: Path) -> dict[str, Prediction]:
    try:
        return {prediction.id: prediction for prediction in evals.read(path)}
    except ValueError as error:
        raise DataError(str(error)) from None


def _lines(path: Path) -> list[dict[str, Any]]:
    texts = [text for text in _text(path).split("\n") if text.strip()]
    rows = []
    for number, text in enumerate(texts, 1):
        try:
            row = json.loads(text)
        except ValueError as error:
            if number == len(texts):
                break
            raise DataError(f"{path}: line {number}: expected a JSON object, got {text[:40]!r} ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number}: expected a JSON object, got {text[:40]!r}")
        rows.append(row)
    return rows


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON object, got something unreadable ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _text(path: Path) -> str:
    # A kill can tear a character as well as a line; the rest of the file is still good.
    return path.read_text(encoding="utf-8", errors="replace")


def _finite(value: object) -> float | None:
    """`value` if it is a finite number, else None: NaN is no JSON, and a chart cannot draw it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _share(value: object) -> float:
    share = _finite(value)
    if share is None or not 0 <= share <= 1:
        raise ValueError(f"expected a fraction from 0 to 1, got {value!r}")
    return share
