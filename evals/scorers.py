"""From a reply to a score. Pure functions: no network, no randomness, nothing of the model's text is executed."""

from __future__ import annotations

import re
from decimal import Decimal

from .extract import final_answer, normalise, trim
from .records import Score

_NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d*)(\.\d*)?(e[+-]?\d{1,3})?", flags=re.ASCII)


def exact_match(answer: str, reply: str, truncated: bool) -> Score:
    """Whether the final answer of `reply` is `answer`: the same number, or the same text up to case and spacing.

    A truncated reply is never read, even where it holds an answer: "Answer: 1" may have been about to say 12.
    """
    if truncated:
        return Score(parsed=None, fate="truncated")
    parsed = final_answer(reply)
    if parsed is None:
        return Score(parsed=None, fate="unparsed")
    return Score(parsed=parsed, fate="correct" if same(parsed, answer) else "wrong")


def same(parsed: str, answer: str) -> bool:
    """Whether two answers are equal as numbers (7 = 7.0, 1,000 = 1000), or as text that is not a number.

    The whole text must be the number: 711 is not 11, "7 apples" is not 7, and 60 % is not 60.
    """
    a, b = (" ".join(trim(normalise(text)).casefold().split()) for text in (parsed, answer))
    number_a, number_b = _number(a), _number(b)
    return a == b if number_a is None or number_b is None else number_a == number_b


def _number(text: str) -> Decimal | None:
    match = _NUMBER.fullmatch(text)
    if match is None or not any(c.isdigit() for c in (match[2] + (match[3] or ""))):
        return None
    return Decimal(text.replace(",", ""))
