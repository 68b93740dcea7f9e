"""p from an external strong model: generated without the answer, re-checked with it, every row with one fate.

Read in this order: `settings` (what can be said), `row` (what happens to one row), `prompts` and `replies` (what is
asked and understood), `asker` (cache, spend), `run`.
"""

from ..scale import Shard
from .run import generate
from .settings import Settings
from .summary import Summary

__all__ = ["Settings", "Shard", "Summary", "generate"]
