"""What is in a training file, what p gives away, and which rows are fit for training. No model is needed.

Read in this order: `rows` (the facts of one row), `fates` (what becomes of it), `overlap` (against evaluation files),
`figures` (all rows in numbers). Facts are plain JSON values, so that they can be cached, split and joined.
"""

from .fates import FATES, DropPolicy, decide
from .figures import summarise
from .overlap import mark_overlap, near_pairs
from .rows import audit_row, dhash, fingerprint_row

__all__ = [
    "FATES", "DropPolicy", "audit_row", "decide", "dhash", "fingerprint_row", "mark_overlap", "near_pairs", "summarise",
]  # fmt: skip
