"""From a reply to a verdict, for questions with one short answer. Pure: nothing of the model's text is executed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from .extract import final_answer, normalise, trim
from .records import Item, Reply, Verdict

_NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d*)(\.\d*)?(e[+-]?\d{1,3})?", flags=re.ASCII)


@dataclass(frozen=True)
class Scoring:
    """How the replies of a run are judged."""

    protocol: str
    """`benchmark:protocol:hash`; runs with different ones are never subtracted."""
    score: Callable[[Item, Reply], Verdict]
    """Never called for a reply with an error."""
    check: Callable[[Item], None] = lambda item: None
    """Raises ValueError for an item that no reply could answer. Better to know before the run."""


def exact_match(answer: str, reply: str, truncated: bool) -> Verdict:
    """Whether the final answer of `reply` is `answer`: the same number, or the same text up to case and spacing.

    A truncated reply is never read, even where it holds an answer: "Answer: 1" may have been about to say 12.
    """
    if truncated:
        return Verdict(parsed=None, score=0, fate="truncated", method="cut off by the token limit")
    parsed = final_answer(reply)
    if parsed is None:
        return Verdict(parsed=None, score=0, fate="unparsed", method="no final answer")
    return Verdict(parsed=parsed, score=float(same(parsed, answer)), fate="parsed", method="final answer")


def same(parsed: str, answer: str) -> bool:
    """Whether two answers are equal as numbers (7 = 7.0, 1,000 = 1000), or as text that is not a number.

    The whole text must be the number: 711 is not 11, "7 apples" is not 7, and 60 % is not 60.

    >>> same("1,000", "1000.0"), same("Red ", "red"), same("711", "11")
    (True, True, False)
    """
    a, b = (" ".join(trim(normalise(text)).casefold().split()) for text in (parsed, answer))
    number_a, number_b = _number(a), _number(b)
    return a == b if number_a is None or number_b is None else number_a == number_b


def _number(text: str) -> Decimal | None:
    match = _NUMBER.fullmatch(text)
    if match is None or not any(c.isdigit() for c in (match[2] + (match[3] or ""))):
        return None
    return Decimal(text.replace(",", ""))


def _answerable(item: Item) -> None:
    # Published benchmarks hold answers that their own scorer refuses verbatim.
    if not exact_match(item.answer, f"Answer: {item.answer}", truncated=False).correct:
        raise ValueError(
            f"item {item.id!r}: answer {item.answer!r} would not be scored as correct if a model gave it: "
            "expected one line with more than punctuation"
        )


EXACT = Scoring(
    "held-out:exact:1", lambda item, reply: exact_match(item.answer, reply.text, reply.truncated), _answerable
)
"""Held-out questions of training data."""
