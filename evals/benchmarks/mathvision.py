"""MathVision (MATH-V): 3,040 competition problems with pictures, half multiple choice, half free-form; 16 subjects.

The official scorer turns the reply into one normalised formula and compares it with the gold letter or the gold
option's text: as strings, as tuples, or by value to two decimals, so 0.499 is a half. It keeps known faults, and some
golds can never be met: those wrapped in a box or with a degree mark, because only the reply is cleaned. The original
evaluates with latex2sympy; ours evaluates a bounded grammar (`evals.maths`).
"""

from __future__ import annotations

import re

from PIL import Image

from .. import careful
from ..aggregate import Numbers, Table
from ..maths import evaluate
from ..questions import Media, Reading, Record, lettered
from . import Benchmark, Case, Protocol, Row, Source

_PHRASES = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
_FLAGS = tuple(variant for phrase in _PHRASES for variant in (phrase, phrase.replace("the", "The", 1)))
_DELETED = (
    " ", "\\,", "\\text", "\\mbox", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\circ", "°", "units", "km", "m^3",
)  # fmt: skip
_MAX_LENGTH = 100_000


def read(row: Row, source: Source, index: int) -> Record:
    """Multiple choice where the row has options; `decoded_image` is one picture, whatever tags the question has."""
    choices = lettered(row["options"]) or None
    if choices is not None and row["answer"] not in choices:
        raise ValueError(f"column 'answer': expected the letter of an option, got {row['answer']!r}")
    return Record(
        id=f"mathvision-{row['id']}",
        benchmark="mathvision",
        split=source.name,
        question=row["question"],
        answer=row["answer"],
        answer_type="open" if choices is None else "mcq",
        choices=choices,
        # Numbered 0: the tags name parts of the one picture, so it goes first and they stay as text.
        media=(Media("image", row["decoded_image"], number=0),),
        group={"subject": row["subject"], "level": str(row["level"])},
        cluster=f"mathvision-{row['id']}",
    )


def official(record: Record, reply: str) -> Reading:
    """The normalised formula against the gold letter, then against the gold option's text."""
    formula = normalised(final_formula(reply[-_MAX_LENGTH:]))
    golds = [str(record.answer)] + ([record.choices[str(record.answer)]] if record.choices else [])
    right = any(equal(gold, formula) for gold in golds)
    return Reading(formula or None, float(right and bool(formula)), "normalised formula")


def final_formula(reply: str) -> str:
    """The part of the reply that holds the answer, by its letter, its last "is", a phrase, or a box."""
    text = reply.strip()
    for letter in "ABCDE":
        if text.endswith((f" {letter}.", f" ({letter}).")) or text.startswith(
            (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        ):
            text = letter
    tail = text.split("is ")[-1].rstrip(".")
    if _is_float(tail):
        text = tail
    if "oxed{" not in text:
        for flag in _FLAGS:
            if flag in text:
                text = text.split(flag)[-1].strip().split("\n")[0].split(". ")[0]
    elif text.count("oxed{") > 1:
        text = "\\boxed{" + text.split("oxed{")[-1]
    return text


def normalised(text: str) -> str:
    """Lower-case formula without box, left-hand side, spacing and units; then the rules of the MATH data set."""
    text = text.lower().replace("{}", "")
    start, end = text.find("oxed{"), text.rfind("}")
    if start >= 0 and end > start:
        text = text[start + len("oxed{") : end]
    closing, opening = text.find("}"), text.find("{")
    if closing >= 0 and (opening < 0 or closing < opening):
        text = text[:closing]
    text = text.split("=")[-1].split("\\approx")[-1]
    for part in _DELETED:
        text = text.replace(part, "")
    text = _as_math(text)
    if wrapped := re.fullmatch(r"\(([a-e])\)|\{([a-e])\}", text):
        text = wrapped[1] or wrapped[2]
    return text.rstrip(".").lstrip(":")


def _as_math(text: str) -> str:
    for old, new in (
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("$", ""),
        ("\\%", ""),
    ):
        text = text.replace(old, new)
    if text.startswith("."):
        text = "0" + text
    if "sqrt" in text:
        text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)
        text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    if text == "0.5":
        return "\\frac{1}{2}"
    quotient = re.fullmatch(r"(-?\d{1,18})/(-?\d{1,18})", text, flags=re.ASCII)
    if quotient and all(str(int(part)) == part for part in quotient.groups()):
        return f"\\frac{{{quotient[1]}}}{{{quotient[2]}}}"
    return text


def equal(gold: str, given: str) -> bool:
    """The same text, the same tuple, or the same value to two decimals. Nothing equals an empty text."""
    gold, given = gold.lower(), given.lower()
    if not gold or not given:
        return False
    if gold == given:
        return True
    tuples = [_elements(text) for text in (gold, given)]
    if tuples[0] and tuples[1] and gold[0] == given[0] and len(tuples[0]) == len(tuples[1]):
        return all(a == b or _same_to_two_decimals(a, b) for a, b in zip(*tuples, strict=True))
    return _same_to_two_decimals(gold, given)


def _same_to_two_decimals(a: str, b: str) -> bool:
    values = [evaluate(text) for text in (a, b)]
    if values[0] is None or values[1] is None:
        return False
    return round(float(values[0]), 2) == round(float(values[1]), 2)


def _elements(text: str) -> list[str]:
    if "," in text and (text[0], text[-1]) in (("(", ")"), ("[", "]")):
        return [part.strip() for part in text[1:-1].split(",")]
    return []


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def careful_reply(record: Record, reply: str) -> Reading:
    """Options by letter, else by the value of an option's text; free-form answers as `careful.formula`."""
    if record.choices is None:
        return careful.formula(record, reply)
    reading = careful.choice(record, reply)
    stated, _ = careful.final_statement(reply)
    if reading.parsed is not None or not stated:
        return reading
    same = [letter for letter, text in record.choices.items() if careful.same_formula(stated, text)]
    return Reading(same[0], float(same[0] == record.answer), "value of an option") if len(same) == 1 else reading


def _options(record: Record) -> str:
    return "".join(f"\n({letter}) {text}" for letter, text in (record.choices or {}).items())


def prompt(record: Record) -> str:
    """Instruction first, then question and options."""
    return (
        'Please solve the problem and put your answer in one "\\boxed{}". If it is a multiple choice question, only '
        f'one letter is allowed in the "\\boxed{{}}".\n{record.question}{_options(record)}'
    )


BENCHMARK = Benchmark(
    name="mathvision",
    title="MathVision",
    hub="MathLLMs/MathVision",
    sources=(Source(None, "test", 3040),),
    columns={
        "id": "id",
        "question": "text",
        "options": "list",
        "answer": "text",
        "decoded_image": "image",
        "level": "id",
        "subject": "text",
    },
    scored_by=("options", "answer"),
    read=read,
    protocols={
        "official": Protocol(
            prompt=prompt,
            score=official,
            max_new_tokens=4096,
            origin="MATH-V a1f5cc3 evaluation/evaluate.py; budget ours",
            reads_truncated=True,
        ),
        "toolkit": Protocol(
            prompt=lambda record: record.question + _options(record),
            score=careful_reply,
            max_new_tokens=8192,
            origin="VLMEvalKit e8e78f0, reader ours in place of its judge; budget ours",
        ),
    },
    numbers=Numbers(tables=(Table("level"), Table("subject"))),
    licence="MIT by the data card; the problems come from contests",
)

_ROW = {"solution": None, "image": "images/0.jpg", "decoded_image": Image.new("RGB", (64, 48), "white")}

EXAMPLE = (
    Case(
        row={
            **_ROW,
            "id": "0",
            "question": "The square in <image1> has a diagonal of 2. What is its area?",
            "options": ["$1$", "$2$", "$2\\sqrt{2}$", "$4$", "$\\frac{1}{2}$"],
            "answer": "B",
            "level": 2,
            "subject": "metric geometry - area",
        },
        good="\\boxed{B}",
        bad="\\boxed{C}",
    ),
    Case(
        row={
            **_ROW,
            "id": "1",
            "question": "<image1> How long is the path?",
            "options": [],
            "answer": "5\\sqrt{3}",
            "level": 4,
            "subject": "metric geometry - length",
        },
        good="It is \\boxed{5\\sqrt{3}}",
        bad="\\boxed{9}",
    ),
)
