"""The number that a reply means, in digits or English words; None where there is none or more than one reading."""

from __future__ import annotations

import re
from fractions import Fraction

from .extract import declared_answer, trim, visible
from .maths import Value, evaluate_plain

_UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {word: i for i, word in enumerate(_UNITS)} | {word: 10 * (i + 2) for i, word in enumerate(_TENS)}
_WORD = "|".join(sorted(_WORDS, key=len, reverse=True))
_NUMBER = re.compile(
    r"(?<![\w.,^])(?<!\d:)(?:[-+](?=[\d.]))?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<=\d)\.\d*|\.\d+)?(?:(?<=[\d.])[eE][-+]?\d{1,2})?"
    rf"(?<=[\d.])(?![,.:]?\d)|(?<!point )\b(?:{_WORD})(?:[- ](?:{_WORD}))?(?: hundred)?\b(?!-| point\b)",
    flags=re.IGNORECASE | re.ASCII,
)
_MAX_LENGTH = 40
_ALTERNATIVE = re.compile(r"\s*(?:-|–|—|to|or|/|and)\s*", flags=re.IGNORECASE)
_MINUS = re.compile(r"\b(?:minus|negative)\s+(?=\d)", flags=re.IGNORECASE)
# A number next to one of these is part of a formula that could not be evaluated.
_PART_BEFORE, _PART_AFTER = re.compile(r"[/^*×]\s*$"), re.compile(r"\s*(?:π|\\?pi\b|[/^*×])")
_RELATION = re.compile(r"[=≈]|\\approx")


def read_number(reply: str) -> tuple[Value | None, str]:
    """The number that `reply` gives as its answer, and the rule that read it.

    In a declared answer that opens with a number: that one. Else a formula that can be evaluated; else the last number
    of the declared answer or of the last line that has one. "4-5", "4 or 5" and "1,6" can be read in more than one
    way and are not read; units are ignored.

    >>> read_number("Answer: twenty-one apples")
    (Fraction(21, 1), 'declared')
    >>> read_number("Answer: 4 or 5")
    (None, 'declared no number')
    """
    text = visible(reply)
    if text is None:
        return None, "thinking never ended"
    declared = declared_answer(text)
    if declared is not None:
        value = _value(declared, first=True)
        return value, "declared" if value is not None else "declared no number"
    for line in reversed([line for line in text.splitlines() if line.strip()]):
        value = _value(line, first=False)
        if value is not None:
            return value, "last number"
        if re.search(r"\d", line):
            return None, "unclear number"
    return None, "no number"


def _value(text: str, first: bool) -> Value | None:
    text = _MINUS.sub("-", text)
    formula = trim(_RELATION.split(text)[-1]).lstrip("~≈ ")
    value = evaluate_plain(formula)
    if value is not None and not re.search(r"\d\s*[-–—]\s*\d|:", formula):
        return value
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    opens = first and not trim(text[: found[0].start()])
    number, pair = (found[0], found[:2]) if opens else (found[-1], found[-2:])
    if len(pair) == 2 and _ALTERNATIVE.fullmatch(text[pair[0].end() : pair[1].start()]):
        return None
    before = text[max(0, number.start() - 8) : number.start()]
    if _PART_BEFORE.search(before) or _PART_AFTER.match(text, number.end()) or len(number[0]) > _MAX_LENGTH:
        return None
    return _parse(number[0])


def _parse(token: str) -> Value:
    if token[-1:].isalpha():
        words = re.split(r"[- ]", token.casefold())
        scale = 100 if words[-1] == "hundred" else 1
        return Fraction(scale * sum(_WORDS[word] for word in words if word != "hundred"))
    return Fraction(token.replace(",", "").rstrip("."))
