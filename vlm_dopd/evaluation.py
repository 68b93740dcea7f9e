"""From samples and a policy to `evals`: greedy answers to held-out questions, in the plain or the privileged view."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import evals
from evals.model import HFModel
from privileged import build_views
from privileged.builders import Builder
from privileged.errors import DataError

from .data import SampleDataset


def items(
    dataset: SampleDataset,
    builder: Builder,
    view: Literal["plain", "privileged"],
    placement: str = "before_question",
) -> list[evals.Item]:
    """The rows of `dataset` as questions to ask. Raises DataError for a row without a reference answer."""
    found = []
    for index in range(len(dataset)):
        sample = dataset[index]
        if sample.answer is None:
            raise DataError(f"{dataset.path} row {index}: answer: expected one, evaluation compares with it")
        shown = getattr(build_views(sample, builder, placement), view)
        found.append(
            evals.Item(
                id=sample.id,
                messages=shown.messages,
                images=shown.images,
                answer=sample.answer,
                kind=dataset.kind(index),
            )
        )
    return found


def ask(
    model: Any, processor: Any, questions: list[evals.Item], max_new_tokens: int, run: str, out: Path | None = None
) -> list[evals.Prediction]:
    """Greedy answers of `model`; rows go to `out`, from which a killed evaluation goes on."""
    replier = HFModel(model, processor, max_new_tokens=max_new_tokens, batch_size=evals.runner.CHUNK)
    return evals.evaluate(replier, questions, out=out, run=run)


def headline(predictions: list[evals.Prediction]) -> dict[str, float]:
    """Accuracy and its 95 % interval, shares in 0..1."""
    result = evals.summarise(predictions)
    return {"accuracy": result.accuracy, "low": result.interval[0], "high": result.interval[1]}
