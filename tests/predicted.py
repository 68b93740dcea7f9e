"""Rows of runs without a model that wrote them."""

from evals import Prediction


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
