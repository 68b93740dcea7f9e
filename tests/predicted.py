"""Rows of runs, and scored records, without a model that answered."""

from typing import NamedTuple

from evals import Prediction
from evals.questions import Record


class Scored(NamedTuple):
    """A question with the score of its reply, which aggregation takes as it takes a prediction."""

    record: Record
    score: float

    @property
    def group(self):
        return self.record.group

    @property
    def cluster(self):
        return self.record.cluster


def predicted(key, outcome="correct", **fields):
    """A prediction whose reply was `correct`, `wrong`, or met another fate than being read."""
    read = outcome in ("correct", "wrong")
    plain = {
        "question": "How many?",
        "response": None if outcome == "error" else "…",
        "truncated": outcome == "truncated",
        "answer": "7",
        "parsed": {"correct": "7", "wrong": "8"}.get(outcome),
        "score": float(outcome == "correct"),
        "fate": "parsed" if read else outcome,
        "digest": "d",
        "protocol": "held-out:exact:1",
    }
    return Prediction(id=key, **plain | fields)
