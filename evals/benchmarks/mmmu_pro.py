"""MMMU-Pro: 1,730 questions in three settings: up to ten options, four options, and all of it in one picture.

Official scorer: a single option letter after the last "Answer:", else the letter as in MMMU; a draw is unparsed here.
The number usually quoted is the mean of ten options and vision. Direct and step-by-step prompts give very different
numbers, so they are two protocols: `official` thinks first, `official-direct` does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from PIL import Image

from .. import careful
from ..aggregate import Graded, Headline, Numbers, Table
from ..questions import Media, Reading, Record, lettered
from . import Benchmark, Case, Protocol, Row, Source, mmmu

STANDARD_10, STANDARD_4, VISION = "standard (10 options)", "standard (4 options)", "vision"

_STEPS = (
    "{} The last line of your response should be of the following format: 'Answer: $LETTER' (without quotes) where "
    "LETTER is one of options. Think step by step before answering."
)
_SELECT = "Please select the correct answer from the options above."


def read(row: Row, source: Source, index: int) -> Record:
    """The same source item has one id in all settings, which is what is resampled."""
    setting = source.config or STANDARD_10
    choices = lettered(mmmu.as_list(row["options"], "options"))
    if row["answer"] not in choices:
        raise ValueError(f"column 'answer': expected the letter of an option, got {row['answer']!r}")
    needed = "image" if setting == VISION else "question"
    if row.get(needed) is None:
        raise ValueError(f"column {needed!r}: expected one in setting {setting!r}, got none")
    match = re.fullmatch(r"[a-z]+_(.+)_\d+", row["id"])
    return Record(
        id=f"mmmu_pro-{setting}-{row['id']}",
        benchmark="mmmu_pro",
        split=source.name,
        question="" if setting == VISION else row["question"],
        answer=row["answer"],
        answer_type="mcq",
        choices=choices,
        media=(Media("image", row["image"]),) if setting == VISION else mmmu.images(row),
        group={"setting": setting, "subject": row.get("subject") or (match[1] if match else "")},
        cluster=row["id"],
        meta={"setting": setting},
    )


def after_answer(record: Record, reply: str) -> Reading:
    """Exactly one option letter anywhere after the last "Answer:", else the letter as in MMMU."""
    choices = record.choices or {}
    _, marker, rest = reply.rpartition("Answer:")
    found = [letter for letter in choices if marker and letter in rest]
    if len(found) == 1:
        return Reading(found[0], float(found[0] == record.answer), "after Answer:")
    letter = mmmu.parse_letter(reply, choices, pro=True)
    return Reading(letter, float(letter == record.answer), "rightmost letter")


def steps(record: Record) -> str:
    """Question and options first, then the instruction; in the vision setting only the instruction."""
    if record.meta["setting"] == VISION:
        return _STEPS.format("Write out the multiple-choice question in the image and then solve it.")
    return f"{_asked(record)}\n{_STEPS.format('Answer the preceding multiple choice question.')}"


def direct(record: Record) -> str:
    """As `steps`, without thinking first."""
    if record.meta["setting"] == VISION:
        return (
            "Answer with the option letter from the given choices directly. The last line of your response should be "
            "of the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of options."
        )
    return f"{_asked(record)}\nAnswer with the option letter from the given choices directly."


def toolkit_prompt(record: Record) -> str:
    """As VLMEvalKit asks in the standard settings; in the vision setting, the question of the picture."""
    if record.meta["setting"] == VISION:
        return f"Answer the multiple-choice question in the image. {_SELECT.replace('above', 'in it')}"
    return f"Question: {record.question}\nOptions:\n{mmmu.options(record, '{letter}. {text}')}\n{_SELECT}"


def _asked(record: Record) -> str:
    return f"{record.question}\n{mmmu.options(record, '{letter}. {text}')}"


def _remarks(scored: Sequence[Graded]) -> Iterator[str]:
    if not {STANDARD_10, VISION} <= {item.group["setting"] for item in scored}:
        yield f"no overall number: it needs {STANDARD_10!r} and {VISION!r}"


NUMBERS = Numbers(
    headlines=(
        Headline("overall", by="setting", weights={STANDARD_10: 1, VISION: 1}, together=(STANDARD_10, VISION)),
        *(Headline(name, by="setting", weights={name: 1}) for name in (STANDARD_10, STANDARD_4, VISION)),
    ),
    tables=(Table("setting"), Table("subject")),
    remarks=_remarks,
)


BENCHMARK = Benchmark(
    name="mmmu_pro",
    title="MMMU-Pro",
    hub="MMMU/MMMU_Pro",
    sources=tuple(Source(config, "test", 1730) for config in (STANDARD_10, STANDARD_4, VISION)),
    columns={
        "id": "text",
        "options": "text or list",
        "answer": "text",
        "subject": "text?",
        "question": "text?",
        "image": "image?",
        **dict.fromkeys(mmmu.IMAGES, "image?"),
    },
    scored_by=("options", "answer"),
    read=read,
    protocols={
        "official": Protocol(
            prompt=steps,
            score=after_answer,
            max_new_tokens=4096,
            origin="MMMU bb0b95a mmmu-pro/evaluate.py, prompt `cot`; budget ours",
            reads_truncated=True,
        ),
        "official-direct": Protocol(
            prompt=direct,
            score=after_answer,
            max_new_tokens=128,
            origin="MMMU bb0b95a mmmu-pro/evaluate.py, prompt `direct`; vision wording not byte for byte; budget ours",
            reads_truncated=True,
        ),
        "toolkit": Protocol(
            prompt=toolkit_prompt,
            score=careful.choice,
            max_new_tokens=4096,
            origin="VLMEvalKit e8e78f0; vision wording and budget ours",
        ),
    },
    numbers=NUMBERS,
    licence="Apache-2.0 by the data card; images have terms of their own",
)

_OPTIONS = "['granite', 'basalt', 'slate', 'marble', 'chalk', 'flint', 'pumice', 'gneiss', 'schist', 'obsidian']"
_PICTURE = Image.new("RGB", (64, 48), "white")

EXAMPLE = (
    Case(
        row={
            "id": "test_Geography_901",
            "question": "<image 1> Which rock is this?",
            "options": _OPTIONS,
            "explanation": "",
            "image_1": _PICTURE,
            **dict.fromkeys(mmmu.IMAGES[1:]),
            "img_type": "['Photographs']",
            "answer": "J",
            "topic_difficulty": "Medium",
            "subject": "Geography",
        },
        good="It is glass.\nAnswer: J",
        bad="Answer: B",
        junk="It is a stone.",
    ),
    Case(
        row={
            "id": "test_Geography_901",
            "image": _PICTURE,
            "options": _OPTIONS,
            "answer": "J",
            "subject": "Geography",
        },
        good="Answer: J",
        bad="Answer: B",
        junk="It is a stone.",
        source=2,
    ),
)
