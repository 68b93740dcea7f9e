"""Evaluation: how good a model is, how sure we can be, and whether two models differ. Knows nothing of training.

Read in this order: `records` (an item, a reply, its fate), `extract` and `scorers` (from reply to fate), `runner` (a
run and its file), `stats` (intervals and comparisons). `model.HFModel`, which needs torch, is imported from there.
"""

from .extract import final_answer
from .records import Item, Prediction, Reply, Result, Verdict
from .runner import Interrupted, Model, compare, evaluate, read, scores, summarise
from .scorers import EXACT, Scoring, exact_match
from .stats import GapRecovery, PairedDifference, gap_recovery, mcnemar, paired_difference, wilson

__all__ = [
    "EXACT", "GapRecovery", "Interrupted", "Item", "Model", "PairedDifference", "Prediction", "Reply", "Result",
    "Scoring", "Verdict", "compare", "evaluate", "exact_match", "final_answer", "gap_recovery", "mcnemar",
    "paired_difference", "read", "scores", "summarise", "wilson",
]  # fmt: skip
