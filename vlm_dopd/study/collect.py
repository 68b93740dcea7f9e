"""The cells of a study -> every number of its table and page. What is not finished is said, not guessed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import evals
from privileged.errors import DataError

from ..callbacks import read_metrics
from ..config import RunConfig
from ..report.collect import Estimate
from . import statistics
from .plan import Cell, Study, Task
from .records import failure_of, result_of

CURVES = ("eval/accuracy", "entropy/student", "rollout/length")

Scores = dict[str, float]


def collect(study: Study) -> dict[str, Any]:
    """The content of study.json; the table and the page show these numbers and no others.

    Shares are in 0..1, differences in points. Raises DataError if cells were asked different questions.
    """
    cells = {name: _Read(cell) for name, cell in study.cells.items()}
    return {
        "title": study.file.title,
        "base": study.file.base,
        "settings": study.file.settings,
        "seeds": study.file.seeds,
        "baseline": study.file.baseline,
        "runs": {"all": len(study.tasks), "done": sum(result_of(task) is not None for task in study.tasks)},
        "references": _references(study),
        "cells": {name: _cell(study, cell) for name, cell in cells.items()},
        "groups": [
            {
                "name": group.name,
                "note": group.note,
                "baseline": group.baseline or study.file.baseline,
                "paper": group.paper,
                "differences": {
                    name: _against(cells[name], cells[group.baseline or study.file.baseline]) for name in group.cells
                },
            }
            for group in study.groups
        ],
        "versions": _versions(study.tasks),
    }


class _Read:
    """What the files of a cell hold: answers, by stage and seed, of the seeds that are done."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.seeds = [seed for seed, task in cell.tasks.items() if result_of(task) is not None]
        self.references = {
            name: evals.scores(evals.read(task.folder / "answers.jsonl"))
            for name, task in cell.references.items()
            if result_of(task) is not None
        }
        self.stages: list[dict[int, Scores]] = []
        self.kinds: dict[str, str] = {}
        for number in range(1, len(cell.stages) + 1):
            answers = {seed: evals.read(cell.tasks[seed].folder / f"stage-{number}.jsonl") for seed in self.seeds}
            self.stages.append({seed: evals.scores(predictions) for seed, predictions in answers.items()})
            self.kinds |= {p.id: p.kind for predictions in answers.values() for p in predictions}

    @property
    def questions(self) -> list[str]:
        return list(self.kinds)

    def table(self, stage: int, seeds: Iterable[int], questions: list[str]) -> np.ndarray:
        """Scores [S, Q] after a stage."""
        return np.array([_row(self.stages[stage][seed], questions, self.cell.name) for seed in seeds])

    def reference(self, name: str, questions: list[str]) -> np.ndarray:
        """Scores [1, Q]."""
        return np.array([_row(self.references[name], questions, self.cell.name)])

    def trained(self, stage: int) -> set[str]:
        """Kinds that the stage trains."""
        return set(self.cell.stages[stage].data.train_kinds or self.kinds.values())


def _row(scores: Scores, questions: list[str], name: str) -> list[float]:
    if scores.keys() != set(questions) and not set(questions) <= scores.keys():
        missing = next(question for question in questions if question not in scores)
        raise DataError(f"cell {name!r}: expected the same held-out questions everywhere, got none with id {missing!r}")
    return [scores[question] for question in questions]


def _cell(study: Study, read: _Read) -> dict[str, Any]:
    cell = read.cell
    figures: dict[str, Any] = {
        "settings": cell.settings,
        "method": cell.stages[-1].method["name"],
        "seeds": read.seeds,
        "failed": {str(seed): why for seed, task in cell.tasks.items() if (why := failure_of(task)) is not None},
        "passes": _passes(cell.stages[-1]),
    }
    if not read.seeds:
        return figures
    score_SQ = read.table(-1, read.seeds, read.questions)
    figures |= {
        "n": len(read.questions),
        "accuracy": asdict(statistics.accuracy(score_SQ)),
        "by_seed": {str(seed): float(row.mean()) for seed, row in zip(read.seeds, score_SQ, strict=True)},
        "by_kind": _by_kind(read, -1),
        "curves": _curves(study, read),
        "cost": _cost(read),
    }
    if {"before", "teacher"} <= read.references.keys():
        before, teacher = (read.reference(name, read.questions) for name in ("before", "teacher"))
        figures["gain"] = _points(statistics.difference(score_SQ, before))
        figures["gap_recovery"] = asdict(statistics.recovery(before, score_SQ, teacher))
    return figures | _transfer(read) | _forgetting(read)


def _transfer(read: _Read) -> dict[str, Any]:
    """Where only some kinds were trained: the gain on those, and on the others."""
    trained = set().union(*(read.trained(stage) for stage in range(len(read.stages))))
    if set(read.kinds.values()) <= trained or "before" not in read.references:
        return {}
    sides = {side: [q for q, kind in read.kinds.items() if (kind in trained) == side] for side in (True, False)}
    gains = {
        name: _points(
            statistics.difference(read.table(-1, read.seeds, sides[side]), read.reference("before", sides[side]))
        )
        for name, side in (("trained", True), ("untrained", False))
        if sides[side]
    }
    return {"transfer": {"kinds": sorted(trained)} | gains}


def _forgetting(read: _Read) -> dict[str, Any]:
    """After several stages: accuracy by kind after each, and how the kinds of earlier stages have changed since."""
    if len(read.stages) < 2:
        return {}
    last = {kind: max(s for s in range(len(read.stages)) if kind in read.trained(s)) for kind in _all_trained(read)}
    old = [q for q, kind in read.kinds.items() if last.get(kind, len(read.stages)) < len(read.stages) - 1]
    then = np.array([[read.stages[last[read.kinds[q]]][seed][q] for q in old] for seed in read.seeds])
    stages = [
        {"trained": sorted(read.trained(stage)), "by_kind": _by_kind(read, stage)} for stage in range(len(read.stages))
    ]
    change = _points(statistics.difference(read.table(-1, read.seeds, old), then)) if old else None
    return {"stages": stages, "forgetting": {"kinds": sorted({read.kinds[q] for q in old}), "change": change}}


def _all_trained(read: _Read) -> set[str]:
    return set().union(*(read.trained(stage) for stage in range(len(read.stages))))


def _by_kind(read: _Read, stage: int) -> dict[str, dict[str, float]]:
    """Mean accuracy of every kind, with that of the references."""
    found = {}
    for kind in sorted(set(read.kinds.values())):
        questions = [q for q, its in read.kinds.items() if its == kind]
        row = {"n": len(questions), "accuracy": float(read.table(stage, read.seeds, questions).mean())}
        found[kind] = row | {name: float(read.reference(name, questions).mean()) for name in read.references}
    return found


def _against(read: _Read, baseline: _Read) -> dict[str, float | None] | None:
    """A cell minus the baseline, in points, on the seeds that both have; None for the baseline itself."""
    seeds = [seed for seed in read.seeds if seed in baseline.seeds]
    if read is baseline or not seeds:
        return None
    if read.kinds.keys() != baseline.kinds.keys():
        raise DataError(f"cells {read.cell.name!r} and {baseline.cell.name!r} were asked different questions")
    questions = read.questions
    return _points(statistics.difference(read.table(-1, seeds, questions), baseline.table(-1, seeds, questions)))


def _curves(study: Study, read: _Read) -> dict[str, dict[str, list[float]]]:
    """Mean over seeds with its range, at the steps that all seeds have; stages one after the other."""
    by_seed = [_metrics(read.cell.tasks[seed].folder, len(read.stages)) for seed in read.seeds]
    limit, before = read.cell.stages[0].data.eval_limit, list(read.references.get("before", {}).values())
    if before and (study.file.held_out is None if limit is None else limit <= len(before)):
        for points in by_seed:  # the untrained student has answered these very questions
            if points["eval/accuracy"]:
                points["eval/accuracy"].setdefault(0, float(np.mean(before[:limit])))
    curves = {}
    for name in CURVES:
        steps = sorted(set.intersection(*(set(points[name]) for points in by_seed)))
        value_SP = np.array([[points[name][step] for step in steps] for points in by_seed])
        if steps:
            ends = {"mean": value_SP.mean(0), "low": value_SP.min(0), "high": value_SP.max(0)}
            curves[name] = {"step": steps} | {end: row.tolist() for end, row in ends.items()}
    return curves


def _metrics(folder: Path, stages: int) -> dict[str, dict[int, float]]:
    points: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    before = 0
    for number in range(1, stages + 1):
        lines = read_metrics(folder / f"stage-{number}" / "metrics.jsonl")
        for line in lines:
            for name in CURVES:
                if name in line:
                    points[name][before + line["step"]] = line[name]
        before += max((line["step"] for line in lines), default=0)
    return points


def _cost(read: _Read) -> dict[str, float | None]:
    """Means over seeds: seconds of training (None where every seed was killed once), tokens of all responses, bytes."""
    results = [result_of(read.cell.tasks[seed]) or {} for seed in read.seeds]
    seconds = [result["seconds"] for result in results if result["seconds"] is not None]
    tokens = [_tokens(read.cell.tasks[seed].folder, len(read.stages)) for seed in read.seeds]
    memory = [max(result["memory"].values()) if "device" not in result["memory"] else result["memory"]["device"]
              for result in results]  # fmt: skip
    return {
        "seconds": float(np.mean(seconds)) if seconds else None,
        "tokens": float(np.mean(tokens)),
        "memory": float(np.max(memory)),
    }


def _tokens(folder: Path, stages: int) -> float:
    """A logged figure is the mean over the windows since the one before."""
    total = 0.0
    for number in range(1, stages + 1):
        before = 0
        for line in read_metrics(folder / f"stage-{number}" / "metrics.jsonl"):
            if "rollout/tokens" in line:
                total += line["rollout/tokens"] * (line["step"] - before)
                before = line["step"]
    return total


def _passes(config: RunConfig) -> dict[str, int]:
    """Over every response: passes that only score it, and passes with gradient."""
    method = config.build_method()
    return {"scored": len(method.roles), "trained": len({c.student_view for c in method.components})}


def _references(study: Study) -> list[dict[str, Any]]:
    tasks = {task.folder: task for cell in study.cells.values() for task in cell.references.values()}
    rows = []
    for task in tasks.values():
        if result_of(task) is None:
            continue
        result = evals.summarise(evals.read(task.folder / "answers.jsonl"))
        low, high = result.interval
        row = {"name": task.title, "model": task.work["exam"]["model"], "n": result.n}
        kinds = {kind: its.accuracy for kind, its in result.kinds.items()}
        rows.append(row | {"accuracy": result.accuracy, "low": low, "high": high, "by_kind": kinds})
    return rows


def _versions(tasks: list[Task]) -> dict[str, list[str]]:
    """Of whatever ran the cells; more than one of a kind means that cells are not all comparable."""
    found: dict[str, set[str]] = {}
    for task in tasks:
        for name, version in (result_of(task) or {}).get("versions", {}).items():
            found.setdefault(name, set()).add(str(version))
    return {name: sorted(versions) for name, versions in sorted(found.items())}


def _points(estimate: Estimate) -> dict[str, float | None]:
    return {name: None if value is None else 100 * value for name, value in asdict(estimate).items()}
