"""MMMU: 900 college-level validation questions of 30 subjects, 53 of them open; several images, named in the text.

The official scorer draws a random letter where it reads none; here such a reply is unparsed. It is case-sensitive and
knows few forms: "**B**" and "Answer:\\nB" are not read. Open answers: any number or text found in the reply that equals
or contains a gold.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from .. import careful
from ..aggregate import Numbers, Table
from ..questions import Media, Reading, Record, lettered
from . import Benchmark, Case, Protocol, Row, Source

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Psychology", "Sociology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
DOMAIN_OF = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}
IMAGES = tuple(f"image_{k}" for k in range(1, 8))

_STRIPPED = ",.!?;:'"
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)

_DIGITS = re.compile(r"\d{400,}")


def read(row: Row, source: Source, index: int) -> Record:
    """Options are the text of a Python list; the golds of an open question may be several."""
    subject = source.config or ""
    if match := re.fullmatch(r"[a-z]+_(.+)_\d+", str(row["id"])):
        subject = match[1]
    if subject not in DOMAIN_OF:
        raise ValueError(f"column 'id': expected validation_<subject>_<number>, got {row['id']!r}")
    is_open = row["question_type"] == "open"
    answer = row["answer"]
    golds = tuple(map(str, as_list(answer, "answer"))) if str(answer).startswith("[") else (str(answer),)
    choices = None if is_open else lettered(as_list(row["options"], "options"))
    if choices is not None and answer not in choices:
        raise ValueError(f"column 'answer': expected the letter of an option, got {answer!r}")
    return Record(
        id=f"mmmu-{row['id']}",
        benchmark="mmmu",
        split=source.name,
        question=row["question"],
        answer=golds if len(golds) > 1 else golds[0],
        answer_type="open" if is_open else "mcq",
        choices=choices,
        media=images(row),
        group={"subject": subject, "domain": DOMAIN_OF[subject]},
        cluster=f"mmmu-{row['id']}",
    )


def as_list(cell: Any, column: str) -> list[Any]:
    """A list, or the text of one. Read as a literal, so nothing in it is executed."""
    try:
        value = ast.literal_eval(cell) if isinstance(cell, str) else list(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise ValueError(f"column {column!r}: expected the text of a list, got {cell!r:.60}")
    return value


def images(row: Row) -> tuple[Media, ...]:
    """The images of a row under their own numbers, since text and options name them in any order."""
    cells = ((number, row.get(name)) for number, name in enumerate(IMAGES, start=1))
    return tuple(Media("image", cell, number) for number, cell in cells if cell is not None)


def parse_letter(reply: str, choices: Mapping[str, str], pro: bool) -> str | None:
    """The official letter: "(B)", then " B ", then the text of an option; the one furthest right. None where it draws.

    `pro` is the form of MMMU-Pro, which also takes "B " without a space before it, and "B.".
    """
    text = reply
    for char in _STRIPPED:
        text = text.strip(char)
    text = f" {text} "
    wanted = {letter: f"({letter})" for letter in choices}
    found = [letter for letter in choices if wanted[letter] in text]
    if not found:
        wanted = {letter: f" {letter} " for letter in choices}
        found = [letter for letter in choices if (f"{letter} " if pro else wanted[letter]) in text]
    if not found and pro:
        found = [letter for letter in choices if f"{letter}." in text]
    if not found and len(text.split()) > 5:
        text = text.lower()
        wanted = {letter: option.lower() for letter, option in choices.items()}
        found = [letter for letter in choices if wanted[letter] in text]
    return max(found, key=lambda letter: text.rfind(wanted[letter])) if found else None


def candidates(reply: str) -> list[str | float]:
    """What the official open-answer parser finds: the statement of each line, and every number in them."""
    lines = reply.strip().strip(".").lower().split("\n")
    statements = []
    for i, line in enumerate(lines):
        indicators = (*_INDICATORS, "=") if i == len(lines) - 1 else _INDICATORS
        tails = [line.split(indicator)[-1].strip() for indicator in indicators if indicator in line]
        shortest = min(tails, key=len, default="")
        if shortest and shortest not in _STRIPPED:
            statements.append(shortest)
    statements = statements or ["\n".join(lines)]
    # The patterns take quadratic time on a run of digits, which no answer has.
    short = [_DIGITS.sub(lambda run: run[0][:400], text) for text in statements]
    numbers = [number for text in short for pattern in _NUMBERS for number in pattern.findall(text)]
    return list(dict.fromkeys(value for text in statements + numbers for value in normalised(text)))


def normalised(text: str) -> list[str | float]:
    """A number rounded to two decimals, or lower-case text; one character has to stand alone on one side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def official(record: Record, reply: str) -> Reading:
    """Letter or open answer as the official code reads it."""
    if record.choices is not None:
        letter = parse_letter(reply, record.choices, pro=False)
        return Reading(letter, float(letter == record.answer), "rightmost letter")
    found = candidates(reply)
    golds = [value for gold in careful.golds(record) for value in normalised(gold)]
    texts = [gold for gold in golds if isinstance(gold, str)]
    right = any(any(g in value for g in texts) if isinstance(value, str) else value in golds for value in found)
    shown = "; ".join(map(str, found)).strip()
    return Reading(shown or None, float(right and bool(shown)), "any statement or number")


def careful_reply(record: Record, reply: str) -> Reading:
    """Options as `careful.choice`, open answers as `careful.words`."""
    return careful.choice(record, reply) if record.choices is not None else careful.words(record, reply)


def options(record: Record, form: str) -> str:
    """Options line by line, `form` with {letter} and {text}; none for an open question."""
    return "\n".join(form.format(letter=letter, text=text) for letter, text in (record.choices or {}).items())


def prompt(record: Record) -> str:
    """Question, options as "(A) ..", instruction; images where they are named."""
    if record.choices is None:
        return f"{record.question}\n\nAnswer the question using a single word or phrase."
    asked = "Answer with the option's letter from the given choices directly."
    return f"{record.question}\n\n{options(record, '({letter}) {text}')}\n\n{asked}"


def toolkit_prompt(record: Record) -> str:
    """As VLMEvalKit asks; its open questions are asked as they are."""
    if record.choices is None:
        return f"Question: {record.question}"
    asked = "Please select the correct answer from the options above."
    return f"Question: {record.question}\nOptions:\n{options(record, '{letter}. {text}')}\n{asked}"


BENCHMARK = Benchmark(
    name="mmmu",
    title="MMMU (validation)",
    hub="MMMU/MMMU",
    sources=tuple(Source(subject, "validation", 30) for subject in sorted(DOMAIN_OF)),
    columns={
        "id": "text",
        "question": "text",
        "options": "text or list",
        "answer": "text or list",
        "question_type": "text",
        **dict.fromkeys(IMAGES, "image?"),
    },
    scored_by=("options", "answer", "question_type"),
    read=read,
    protocols={
        "official": Protocol(
            prompt=prompt,
            score=official,
            max_new_tokens=128,
            origin="MMMU bb0b95a mmmu/utils/eval_utils.py; budget ours",
            reads_truncated=True,
        ),
        "toolkit": Protocol(
            prompt=toolkit_prompt,
            score=careful_reply,
            max_new_tokens=4096,
            origin="VLMEvalKit e8e78f0, images in their places; open questions stay open; budget ours",
        ),
    },
    numbers=Numbers(tables=(Table("domain"), Table("subject"))),
    licence="Apache-2.0, to be checked on the data card; images have terms of their own",
)

_ROW = {
    "explanation": "",
    "img_type": "['Diagrams']",
    "topic_difficulty": "Easy",
    "subfield": "Statics",
    "image_1": Image.new("RGB", (64, 48), "white"),
    **dict.fromkeys(IMAGES[2:]),
}

EXAMPLE = (
    Case(
        row={
            **_ROW,
            "id": "validation_Physics_901",
            "question": "Which rod of <image 1> carries the load of <image 2>?",
            "options": "['the left rod', 'the right rod', 'both', 'neither of them']",
            "answer": "C",
            "question_type": "multiple-choice",
            "image_2": Image.new("RGB", (48, 48), "grey"),
        },
        good="(C)",
        bad="(A)",
        junk="Hard to say.",
    ),
    Case(
        row={
            **_ROW,
            "id": "validation_Finance_902",
            "question": "What is the yield in percent? <image 1>",
            "options": "[]",
            "answer": "['7.25', '29/4']",
            "question_type": "open",
            "image_2": None,
        },
        good="The answer is 7.25",
        bad="The answer is 8",
    ),
)
