"""A run folder -> one `Report`: every number the page shows, and nothing it does not.

The page and `report.json` are both made from this object, which is why they cannot disagree.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import evals
from evals import Prediction
from privileged.errors import DataError

from ..health import Check, check

EVALS = ("before", "after", "teacher")
FILES = ("config.yaml", "metrics.jsonl")
MEASURED = ("versions.json", "summary.json", *(f"evals/{name}.jsonl" for name in EVALS))
"""Also in the folder of a run that was measured before and after: a demo's."""


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
class Cost:
    """Of training alone, from the log; None where an older run did not log it."""

    seconds: float | None
    steps: int
    tokens: float | None
    """Sampled by the student."""
    tokens_per_s: float | None
    peak_gib: float | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything of a run that can be said without its pictures."""

    name: str
    """Of the run folder."""
    method: str
    seed: int | None
    measured: bool
    """Before and after, on all held-out questions. If not, `rows` are of the log: its first and last evaluation."""
    n: int | None
    seconds: float | None
    rows: tuple[Row, ...]
    difference: Estimate
    """After minus before, in points."""
    gap_recovery: Estimate
    kinds: tuple[Kind, ...]
    curves: dict[str, Curve]
    evals: dict[str, dict[str, Prediction]]
    """Replies of `EVALS`, by sample id in file order."""
    cost: Cost
    health: tuple[Check, ...]
    config: str
    settings: dict[str, str]
    """`config` as dotted keys."""
    versions: dict[str, str]

    def row(self, name: str) -> Row | None:
        """The row of that name (`student before`, `teacher`); None if the run has none."""
        return next((row for row in self.rows if row.name == name), None)


def collect(run: Path) -> Report:
    """Read the folder of a run, finished or not.

    A last line torn by a kill is dropped. Raises DataError, naming the file, where one is missing or malformed.
    """
    measured = any((run / name).is_file() for name in ("summary.json", "evals/after.jsonl"))
    missing = [name for name in (*FILES, *(MEASURED if measured else ())) if not (run / name).is_file()]
    if missing:
        raise DataError(f"run {run}: expected the folder of a run, missing {', '.join(missing)}")
    versions = _object(run / "versions.json") if (run / "versions.json").is_file() else {}
    lines, config = _lines(run / "metrics.jsonl"), _text(run / "config.yaml")
    curves, settings = _curves(lines), _settings(config)
    cost = _cost(curves)
    return Report(
        name=run.resolve().name,
        measured=measured,
        **(_summary(run / "summary.json") if measured else _logged(settings, curves, cost)),
        curves=curves,
        evals={name: _replies(run / f"evals/{name}.jsonl") for name in EVALS} if measured else {},
        cost=cost,
        health=tuple(check(lines)),
        config=config,
        settings=settings,
        versions={str(name): str(version) for name, version in versions.items()},
    )


def _settings(config: str) -> dict[str, str]:
    """Every setting as `train.seed: 0`; none of a file that is no YAML mapping."""
    try:
        loaded = OmegaConf.to_container(OmegaConf.create(config), resolve=False)
    except Exception:  # yaml and omegaconf each raise a family of their own
        return {}
    found: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for name, part in value.items():
                walk(f"{prefix}.{name}" if prefix else str(name), part)
        else:
            found[prefix] = value if isinstance(value, str) else json.dumps(value, default=str)

    walk("", loaded)
    return found


def _logged(settings: dict[str, str], curves: dict[str, Curve], cost: Cost) -> dict[str, Any]:
    """What stands in place of a summary: the first and the last evaluation of the log."""
    by_step = {
        name: dict(zip(curves[f"eval/{name}"].step, curves[f"eval/{name}"].value, strict=True))
        for name in ("accuracy", "low", "high")
        if f"eval/{name}" in curves
    }
    steps = sorted(set.intersection(*map(set, by_step.values()))) if len(by_step) == 3 else []
    none = Estimate(value=None, low=None, high=None)
    seed = settings.get("train.seed", "")
    return {
        "method": settings.get("method.name", "unknown"),
        "seed": int(seed) if seed.lstrip("-").isdigit() else None,
        "n": None,
        "seconds": cost.seconds,
        "rows": tuple(
            Row(name=f"student, step {step}", **{name: its[step] for name, its in by_step.items()})
            for step in dict.fromkeys((*steps[:1], *steps[-1:]))
        ),
        "difference": none,
        "gap_recovery": none,
        "kinds": (),
    }


def _cost(curves: dict[str, Curve]) -> Cost:
    """A log line is the mean over the steps since the one before."""
    seconds, tokens = (_total(curves.get(name)) for name in ("time/step", "rollout/tokens"))
    peak = curves.get("memory/peak_gib")
    return Cost(
        seconds=seconds,
        steps=max((curve.step[-1] for name, curve in curves.items() if not name.startswith("eval/")), default=0),
        tokens=tokens,
        tokens_per_s=tokens / seconds if tokens is not None and seconds else None,
        peak_gib=max(peak.value) if peak else None,
    )


def _total(curve: Curve | None) -> float | None:
    if curve is None:
        return None
    return sum(
        value * (step - before) for before, step, value in zip((0, *curve.step), curve.step, curve.value, strict=False)
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
