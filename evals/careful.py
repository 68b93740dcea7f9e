"""The scorers of the `toolkit` protocols: each reads a reply as a careful person would, and never guesses.

All take a record and the text of a reply, and give a `Reading`; nothing read scores 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .choices import read_choice, read_choices
from .extract import declared_answer, trim, visible
from .maths import Value, agrees, evaluate_plain
from .quantities import read_number
from .questions import Reading, Record

_STATED = re.compile(r"\b(?:is|are|was|equals|be)\b(?! not\b)\s*:?", flags=re.IGNORECASE)
_LIST = re.compile(r"[,;]\s|\b(?:or|and)\b|\bnot\b", flags=re.IGNORECASE)
_DROPPED = re.compile(r"\\left|\\right|\\[,;!: ]|\\text|\\mathrm|[\s${}]|\\?%|\^?\{?\\circ\}?|°")


def choice(record: Record, reply: str) -> Reading:
    """One option, or for `multi_mcq` exactly the right set of them."""
    choices = record.choices or {}
    if record.answer_type == "multi_mcq":
        letters, method = read_choices(reply, choices)
        return Reading(letters, float(letters == "".join(sorted(golds(record)))), method)
    letters, method = read_choice(reply, choices)
    return Reading(letters, float(letters == record.answer), method)


def number(record: Record, reply: str) -> Reading:
    """The number, equal to the gold or rounded to two decimals or more."""
    value, method = read_number(reply)
    if value is None:
        return Reading(None, 0.0, method)
    return Reading(shown(value), float(agrees(shown(value), golds(record)[0])), method)


def formula(record: Record, reply: str) -> Reading:
    """A formula: the same text but for spacing, or the same value. Nothing declared: what the last line states."""
    stated, method = final_statement(reply)
    if not stated:
        return Reading(None, 0.0, method)
    if any(same_formula(stated, gold) for gold in golds(record)):
        return Reading(stated, 1.0, method)
    if evaluate_plain(stated) is None and any(evaluate_plain(trim(gold)) is not None for gold in golds(record)):
        # The gold is a number and the statement is not one alone: "60 cm", "about 60".
        read = number(record, reply)
        right = read.parsed is not None and any(agrees(read.parsed, trim(gold)) for gold in golds(record))
        return Reading(read.parsed, float(right), read.method)
    return Reading(stated, 0.0, method)


def words(record: Record, reply: str) -> Reading:
    """A word, name or number: the gold itself, or a short statement with it and no alternative to it."""
    stated, method = final_statement(reply)
    if not stated:
        return Reading(None, 0.0, method)
    right = any(_says(stated, gold) for gold in golds(record))
    if not right and all(evaluate_plain(trim(gold)) is not None for gold in golds(record)):
        return formula(record, reply)
    return Reading(stated, float(right), method)


def golds(record: Record) -> tuple[str, ...]:
    """The golds of a record, one or more."""
    return (record.answer,) if isinstance(record.answer, str) else tuple(record.answer)


def shown(value: Value) -> str:
    """A value as text: `7`, `0.125`."""
    return f"{float(value):.12g}"


def final_statement(reply: str) -> tuple[str, str]:
    """The declared answer; else what the last line says, after its last "is" or "="; with the rule that found it."""
    text = visible(reply)
    if text is None:
        return "", "thinking never ended"
    declared = declared_answer(text)
    if declared is not None:
        return declared, "declared" if declared else "declared nothing"
    lines = [line for line in text.splitlines() if trim(line)]
    if not lines:
        return "", "empty"
    stated = max((match.end() for match in _STATED.finditer(lines[-1])), default=0)
    return trim(lines[-1][stated:].rpartition("≈")[2]), "last line"


def same_formula(a: str, b: str) -> bool:
    """Equal as text without spacing and case, as values, or as tuples of equal formulas."""
    plain_a, plain_b = (_DROPPED.sub("", trim(text)).casefold() for text in (a, b))
    if plain_a == plain_b:
        return bool(plain_a)
    parts_a, parts_b = _parts(plain_a), _parts(plain_b)
    if len(parts_a) == len(parts_b) > 1 and plain_a[:1] == plain_b[:1]:
        return all(agrees(x, y) for x, y in zip(parts_a, parts_b, strict=True))
    return agrees(*(re.split(r"=|\\approx|≈", trim(text))[-1] for text in (a, b)))


def _parts(text: str) -> list[str]:
    """Elements of `(1,2)` or `1,2`; a thousands comma is no separator."""
    return [] if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text) else text.strip("()[]").split(",")


def _says(stated: str, gold: str) -> bool:
    if same_formula(stated, gold):
        return True
    wanted = _words(trim(gold))
    found = _words(stated)
    if not wanted or len(found) > len(wanted) + 8 or _LIST.search(stated):
        return False
    return any(found[i : i + len(wanted)] == wanted for i in range(len(found) - len(wanted) + 1))


def _words(text: str) -> list[str]:
    return list(_pieces(text.casefold().replace("$", "")))


def _pieces(text: str) -> Iterable[str]:
    return re.findall(r"[-+]?\d+(?:[.,:/]\d+)*|\w+|[^\w\s.,;!?]", text)
