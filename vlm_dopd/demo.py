"""The bundled demonstration: measure teacher and student, distil, measure again, and put it on a page."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import evals
from privileged import get_builder

from .config import RunConfig
from .data import SampleDataset
from .errors import ConfigError
from .evaluation import headline, items, open_model
from .report import write_report
from .run import train

logger = logging.getLogger(__name__)

RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"


@dataclass(frozen=True)
class Row:
    """One line of the table: who is asked, and with which prompt."""

    title: str
    who: Literal["student", "after", "teacher"]
    view: Literal["plain", "privileged"] = "plain"


ROWS = {
    "before": Row("student before", "student"),
    "before_with_p": Row("student before, with p", "student", "privileged"),
    "after": Row("student after", "after"),
    "teacher": Row("teacher", "teacher"),
}
"""By the name of the file in `evals/`, in the order of the table."""


def demo(config: RunConfig) -> dict[str, Any]:
    """Run it and write the run folder; returns the summary that `summary.json` holds.

    A killed demo goes on where it was with `resume=true`. Raises ConfigError if the folder holds a run already.
    """
    if config.data.eval is None:
        raise ConfigError("data.eval: expected a file of held-out questions, got nothing")
    run = Path(config.output_dir)
    if run.exists() and any(run.iterdir()) and not config.resume:
        raise ConfigError(f"output_dir: {run} is not empty; choose another with --out, or go on with resume=true")
    began = time.perf_counter()
    held_out = SampleDataset(config.data.eval, policy=config.build_image_policy())
    predictions = {name: _measure(config, name, held_out) for name in ROWS if name != "after"}
    train(config)
    predictions["after"] = _measure(config, "after", held_out)
    summary = summarise(config, predictions, time.perf_counter() - began)
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    write_report(run, [held_out[i] for i in range(len(held_out))])
    return summary


def _measure(config: RunConfig, name: str, held_out: SampleDataset) -> list[evals.Prediction]:
    row = ROWS[name]
    folder = {"student": config.model.student, "teacher": config.model.teacher, "after": config.output_dir}[row.who]
    builder = get_builder(config.data.builder, **config.data.builder_options)
    questions = items(held_out, builder, row.view, config.data.placement)
    out = Path(config.output_dir) / "evals" / f"{name}.jsonl"
    model = open_model(folder, dtype="float32", use_cpu=bool(config.train.get("use_cpu")))
    predictions = model.ask(questions, config.rollout.max_new_tokens, row.title, out)
    logger.info("%s: %s", row.title, evals.summarise(predictions))
    return predictions


def summarise(config: RunConfig, predictions: dict[str, list[evals.Prediction]], seconds: float) -> dict[str, Any]:
    """Accuracies with intervals, the paired difference, gap recovery, and accuracy by kind of question.

    `predictions` by the names of ROWS. Shares are in 0..1, differences in points.
    """
    before, after, teacher = (evals.scores(predictions[name]) for name in ("before", "after", "teacher"))
    difference = evals.compare(predictions["before"], predictions["after"])
    recovery = evals.gap_recovery(before, after, teacher)
    kinds = {name: evals.summarise(predictions[name]).kinds for name in ("before", "after", "teacher")}
    return {
        "method": config.method["name"],
        "seed": config.train.get("seed"),
        "n": len(before),
        "seconds": round(seconds, 1),
        "rows": [{"name": row.title, **headline(predictions[name])} for name, row in ROWS.items()],
        "difference": {
            "points": 100 * difference.difference,
            "low": 100 * difference.interval[0],
            "high": 100 * difference.interval[1],
        },
        "gap_recovery": {"value": recovery.value, "low": recovery.interval[0], "high": recovery.interval[1]}
        if recovery.interval
        else {"value": None, "low": None, "high": None},
        "by_kind": {
            kind: {"n": result.n} | {name: kinds[name][kind].accuracy for name in kinds}
            for kind, result in kinds["before"].items()
        },
    }
