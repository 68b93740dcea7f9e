"""MMStar: 1,500 multiple-choice questions that need their picture, 6 categories with 3 sub-categories each.

Official scorer: lower-case, strip, newlines to spaces; right if the gold letter stands at one of four places. It looks
at no word boundary, so a reply that starts with "and" is A. Official aggregation divides by the constants 1,500 and
250, so its numbers of a subset are too low; they are given beside the plain means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from .. import careful
from ..aggregate import Graded, Headline, Numbers, Table
from ..questions import Media, Reading, Record, options_in
from . import Benchmark, Case, Protocol, Row, Source

TOTAL, PER_CATEGORY = 1500, 250

# A letter counts at character 0, after "(", after "option " and after "the answer is ".
_LEADS = ("", "(", "option ", "the answer is ")


def read(row: Row, source: Source, index: int) -> Record:
    """Options stand in the question's text; where they cannot be told apart, their letters are known all the same."""
    letter = row["answer"].strip()
    choices = options_in(row["question"]) or dict.fromkeys("ABCD", "")
    if letter not in choices:
        raise ValueError(f"column 'answer': expected one of {', '.join(choices)}, got {letter!r}")
    return Record(
        id=f"mmstar-{row['index']}",
        benchmark="mmstar",
        split=source.name,
        question=row["question"],
        answer=letter,
        answer_type="mcq",
        choices=choices,
        media=(Media("image", row["image"]),),
        group={"category": row["category"], "l2_category": row["l2_category"]},
        cluster=f"mmstar-{row['index']}",
    )


def four_places(record: Record, reply: str) -> Reading:
    """The gold letter at one of the four places, else the first letter of an option at one of them."""
    text = reply.lower().strip().replace("\n", " ")
    found = [
        text[len(lead)].upper()
        for lead in _LEADS
        if text.startswith(lead) and text[len(lead) : len(lead) + 1].upper() in (record.choices or {})
    ]
    if record.answer in found:
        return Reading(str(record.answer), 1.0, "one of four places")
    return Reading(found[0] if found else None, 0.0, "one of four places")


def _remarks(scored: Sequence[Graded]) -> Iterator[str]:
    if len(scored) != TOTAL:
        yield f"{len(scored)} of {TOTAL}: the official quotients are too low"


NUMBERS = Numbers(
    headlines=(
        Headline("accuracy"),
        Headline("official (over 1,500)", over=TOTAL),
        Headline("mean of sub-categories", by="l2_category"),
    ),
    tables=(
        Table("category"),
        Table("category, official (over 250)", by="category", over=PER_CATEGORY),
        Table("l2_category"),
    ),
    remarks=_remarks,
)


BENCHMARK = Benchmark(
    name="mmstar",
    title="MMStar",
    hub="Lin-Chen/MMStar@bc98d668301da7b14f648724866e57302778ab27",
    sources=(Source(None, "val", TOTAL),),
    columns={
        "index": "id",
        "question": "text",
        "image": "image",
        "answer": "text",
        "category": "text",
        "l2_category": "text",
    },
    scored_by=("question", "answer"),
    read=read,
    protocols={
        "official": Protocol(
            prompt=lambda record: record.question,
            score=four_places,
            max_new_tokens=1024,
            origin="MMStar 88f243a evaluate/mmstar.py; the prompt is left to the model, budget ours",
            reads_truncated=True,
        ),
        "toolkit": Protocol(
            prompt=lambda record: (
                f"Question: {record.question}\nPlease select the correct answer from the options above."
            ),
            score=careful.choice,
            max_new_tokens=4096,
            origin="VLMEvalKit e8e78f0; budget ours",
        ),
    },
    numbers=NUMBERS,
    licence="none on the data card; pictures come from six other benchmarks with terms of their own",
)

EXAMPLE = (
    Case(
        row={
            "index": 0,
            "question": "What covers the table?\nOptions: A: A cloth, B: Old newspapers, C: Sand, D: Nothing",
            "image": Image.new("RGB", (64, 48), "brown"),
            "answer": "B",
            "category": "coarse perception",
            "l2_category": "image scene and topic",
            "meta_info": {"source": "ours", "split": "val", "image_path": "images/0.jpg"},
        },
        good="B: Old newspapers",
        bad="D",
        junk="I cannot tell.",
    ),
)
