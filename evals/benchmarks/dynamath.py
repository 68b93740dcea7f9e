"""DynaMath: 501 seed questions, each in ten variants with other numbers. How good, and how steady, a model is.

The model is asked for JSON with a `short answer`. Two numbers: the mean over all 5,010 replies, and the worst case, the
share of seed questions that are right in all ten variants. Intervals must resample seed questions.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from .. import careful
from ..aggregate import Graded, Headline, Numbers, Table
from ..extract import visible
from ..quantities import read_number
from ..questions import AnswerType, Media, Reading, Record, options_in
from . import Benchmark, Case, Protocol, Row, Source

VARIANTS = 10
SEEDS = 501
TOLERANCE = 0.001

_TYPES: dict[str, AnswerType] = {"multiple choice": "mcq", "float": "number", "text": "text"}
_KEY = re.compile(r"short[ _]answer[\"'*]*\s*:\s*[\"'*]*([^\n\"'}]+)", flags=re.IGNORECASE)
_FORMAT = {
    "mcq": "If the question is multiple choice, give the letter of the choice.",
    "number": "Please answer in a floating-point number.",
    "text": "",
}


def read(row: Row, source: Source, index: int) -> Record:
    """The variant is in the name of the split, `sample_variant3`; the seed question is what is resampled."""
    answer_type = _TYPES.get(row["answer_type"])
    if answer_type is None:
        raise ValueError(f"column 'answer_type': expected one of {', '.join(_TYPES)}, got {row['answer_type']!r}")
    variant = source.split.removeprefix("sample_variant")
    gold = row["ground_truth"].strip()
    if not gold:
        raise ValueError("column 'ground_truth': expected an answer, got an empty text")
    if answer_type == "number" and not _is_float(gold):
        raise ValueError(f"column 'ground_truth': expected a number, got {gold!r}")
    return Record(
        id=f"dynamath-{row['id']}-{variant}",
        benchmark="dynamath",
        split=source.name,
        question=row["question"],
        answer=gold,
        answer_type=answer_type,
        choices=(options_in(row["question"]) or dict.fromkeys("ABCDE", "")) if answer_type == "mcq" else None,
        media=(Media("image", row["decoded_image"]),),
        group={"subject": row["subject"], "level": row["knowledge_level"], "variant": variant},
        cluster=str(row["id"]),
    )


def prompt(record: Record) -> str:
    """The question and the JSON that is asked for."""
    return (
        f"## Question\n{record.question}\n\n## Answer Instruction\nPlease provide an answer to the question outlined "
        "above. Your response should adhere to the following JSON format, which includes two keys: 'solution' and "
        "'short answer'. The 'solution' key can contain detailed steps needed to solve the question, and the 'short "
        f"answer' key should provide a concise response. {_FORMAT[record.answer_type]}\n\n"
        "Example of expected JSON response format:\n\n"
        '{\n    "solution": "[Detailed step-by-step explanation]",\n    "short answer": "[Concise Answer]"\n}'
    )


def official(record: Record, reply: str) -> Reading:
    """The short answer: 0.001 off at most, the gold letter among its first three characters, or the gold inside it."""
    short = official_short_answer(reply)
    if short is None:
        return Reading(None, 0.0, "no short answer")
    gold = str(record.answer)
    if record.answer_type == "number":
        value = _official_float(short)
        if value is None:
            return Reading(None, 0.0, "short answer is no number")
        return Reading(short, float(abs(value - float(gold)) <= TOLERANCE), "short answer")
    right = gold in short[:3] if record.answer_type == "mcq" else gold in short
    return Reading(short or None, float(right), "short answer")


def official_short_answer(reply: str) -> str | None:
    """From the outermost braces, without backslashes; if that is no JSON, the last line without its last character."""
    start, end = reply.find("{"), reply.rfind("}")
    text = (reply[start : end + 1] if 0 <= start < end else reply).replace("\\", "")
    try:
        parsed: Any = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text.split("\n")[-1][:-1]
    short = parsed.get("short answer") if isinstance(parsed, dict) else None
    return None if short is None else str(short)


def _official_float(short: str) -> float | None:
    """All digits, or the first word; `1.5π` is 1.5 times π."""
    word = short if short.isdigit() else short.split(" ")[0]
    factor = 1.0
    if word.endswith("π"):
        word, factor = word[:-1], math.pi
    return float(word) * factor if _is_float(word) else None


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def careful_reply(record: Record, reply: str) -> Reading:
    """The `short answer`, or the reply as it is, read by the type of the question."""
    short = _short_answer(reply)
    text = reply if short is None else short
    if record.answer_type == "mcq":
        return careful.choice(record, text)
    if record.answer_type == "text":
        return careful.words(record, text)
    value, method = read_number(text)
    if value is None:
        return Reading(None, 0.0, method)
    near = abs(float(value) - float(str(record.answer))) <= TOLERANCE
    return Reading(careful.shown(value), float(near), method)


def _short_answer(reply: str) -> str | None:
    """Value of the key (or of `answer`) in JSON, empty if it has none; or of the key in what was meant to be JSON."""
    text = visible(reply)
    if text is None:
        return None
    start, end = text.find("{"), text.rfind("}")
    try:
        parsed = json.loads(text[start : end + 1], strict=False) if 0 <= start < end else None
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, dict):
        keys = {key.casefold().replace("_", " "): value for key, value in parsed.items()}
        short = keys.get("short answer", keys.get("answer"))
        return "" if short is None else str(short)
    written = _KEY.findall(text)
    return written[-1] if written else None


def _remarks(scored: Sequence[Graded]) -> Iterator[str]:
    variants = Counter(item.cluster for item in scored)
    if partial := sum(count < VARIANTS for count in variants.values()):
        lacking = f"{partial} of {len(variants)} seed questions lack a variant"
        yield f"{lacking}: their worst case is over fewer than {VARIANTS}"


NUMBERS = Numbers(
    headlines=(Headline("average"), Headline("worst case", unit="worst of cluster")),
    tables=(
        *(Table(name) for name in ("subject", "level", "variant")),
        *(Table(f"{name}, worst case", by=name, unit="worst of cluster") for name in ("subject", "level")),
    ),
    remarks=_remarks,
)


BENCHMARK = Benchmark(
    name="dynamath",
    title="DynaMath",
    hub="DynaMath/DynaMath_Sample",
    sources=tuple(Source(None, f"sample_variant{variant}", SEEDS) for variant in range(1, VARIANTS + 1)),
    columns={
        "id": "id",
        "question": "text",
        "decoded_image": "image",
        "ground_truth": "text",
        "answer_type": "text",
        "subject": "text",
        "knowledge_level": "text",
    },
    scored_by=("question", "ground_truth", "answer_type"),
    read=read,
    protocols={
        "official": Protocol(
            prompt=prompt,
            score=official,
            max_new_tokens=2048,
            origin="DynaMath 598c3c3; wording of the instruction not byte for byte, budget ours",
            reads_truncated=True,
        ),
        "toolkit": Protocol(
            prompt=prompt,
            score=careful_reply,
            max_new_tokens=4096,
            origin="VLMEvalKit e8e78f0 asks for the same JSON; reader ours in place of its judge; budget ours",
        ),
    },
    numbers=NUMBERS,
    licence="Apache-2.0 by the data card",
)

_ROW = {
    "image": "images/0.png",
    "decoded_image": Image.new("RGB", (64, 48), "white"),
    "subject": "algebra",
    "knowledge_level": "high school",
}
_REPLY = '{{"solution": "Read off the graph.", "short answer": "{}"}}'

EXAMPLE = (
    Case(
        row={
            **_ROW,
            "id": "1",
            "question": "Is the function even? Choices: (A) Yes (B) No",
            "ground_truth": "B",
            "answer_type": "multiple choice",
        },
        good=_REPLY.format("B"),
        bad=_REPLY.format("A"),
        junk="{}",
    ),
    Case(
        row={**_ROW, "id": "2", "question": "What is f(1)?", "ground_truth": "-2.5", "answer_type": "float"},
        good=_REPLY.format("-2.5"),
        bad=_REPLY.format("2.5"),
        junk="{}",
        source=1,
    ),
    Case(
        row={**_ROW, "id": "3", "question": "Which month is warmest?", "ground_truth": "Jul", "answer_type": "text"},
        good=_REPLY.format("Jul"),
        bad=_REPLY.format("Oct"),
    ),
)
