"""LogicVista: 448 puzzles whose options stand only in the picture; five skills.

Official scoring has GPT-4 extract a list of labels from the reply: without a judge its replies are unparsed, but for
the few that its pre-check calls wrong. `toolkit` needs no judge. Three golds name two labels, one is a number, and one
is blank: that item can never be right, and officially an empty reply to it would be.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from .. import careful
from ..aggregate import Numbers, Table
from ..questions import AnswerType, Media, Reading, Record
from . import Benchmark, Case, Protocol, Row, Source

LABELS = dict.fromkeys("ABCDEFGHI", "")
SKILLS = ("inductive", "deductive", "numerical", "spatial", "mechanical")

_WRONG = "ZZZZZ"


def read(row: Row, source: Source, index: int) -> Record:
    """Single label, several labels, or a number, by the gold."""
    skills = [str(skill) for skill in row["skill"]]
    if len(skills) != 1 or skills[0] not in SKILLS:
        raise ValueError(f"column 'skill': expected one of {', '.join(SKILLS)}, got {skills}")
    labels = tuple(label.strip() for label in row["answer"].split(","))
    answer_type: AnswerType = "open"
    if all(label in LABELS for label in labels):
        answer_type = "mcq" if len(labels) == 1 else "multi_mcq"
    elif row["answer"].strip().isdigit():
        answer_type = "number"
    return Record(
        id=f"logicvista-{index:03d}",
        benchmark="logicvista",
        split=source.name,
        question=row["question"],
        answer=labels if len(labels) > 1 else labels[0],
        answer_type=answer_type,
        choices=LABELS,
        media=(Media("image", row["image"]),) if row["image"] is not None else (),
        group={"skill": skills[0]},
        cluster=f"logicvista-{index:03d}",
    )


def precheck(reply: str) -> list[str] | None:
    """Labels that need no judge: one character that is neither a-e nor a digit is wrong. None: ask the judge."""
    entry = reply.split("ASSISTANT:")[-1].strip()
    if len(entry) == 1 and entry.lower() not in "abcde" and not entry.isdigit():
        return [_WRONG]
    return [""] if entry == "" else None


def before_judge(record: Record, reply: str) -> Reading:
    """What is known of a reply before a judge has seen it."""
    labels = precheck(reply)
    if labels == [_WRONG]:
        return Reading(reply.strip(), 0.0, "one character that is no label")
    return Reading(None, 0.0, "needs a judge" if labels is None else "empty")


def judged(record: Record, labels: Sequence[str]) -> Reading:
    """The labels that a judge extracted: right if they are the gold's, in any order and case. "AC" is one label."""
    given = sorted(label.lower() for label in labels)
    gold = sorted(label.lower() for label in careful.golds(record) if label)
    return Reading(", ".join(given), float(given == gold and bool(gold)), "judge")


def careful_reply(record: Record, reply: str) -> Reading:
    """Labels as `careful.choice`, the number as `careful.number`; the blank gold is never met."""
    if record.answer_type == "number":
        return careful.number(record, reply)
    return careful.choice(record, reply)


BENCHMARK = Benchmark(
    name="logicvista",
    title="LogicVista",
    hub="lscpku/LogicVista",
    sources=(Source(None, "test", 448),),
    columns={"question": "text", "answer": "text", "skill": "list", "image": "image"},
    scored_by=("answer",),
    read=read,
    protocols={
        "official": Protocol(
            prompt=lambda record: record.question,
            score=before_judge,
            max_new_tokens=1024,
            origin="LogicVista e5795f1 extract_accuracy.py; no prompt is given, budget ours",
            reads_truncated=True,
            judge=judged,
        ),
        "toolkit": Protocol(
            prompt=lambda record: record.question,
            score=careful_reply,
            max_new_tokens=4096,
            origin="VLMEvalKit e8e78f0, reader ours in place of its judge; budget ours",
        ),
    },
    numbers=Numbers(tables=(Table("skill"),)),
    licence="to be checked in the repository",
    notes=("one gold is blank: at most 447 of 448 can be right",),
)

_PICTURE = Image.new("RGB", (64, 48), "white")

EXAMPLE = (
    Case(
        row={
            "question": "Which figure continues the row?",
            "answer": "D",
            "reasoning": "Each step adds a dot.",
            "skill": ["inductive"],
            "image": _PICTURE,
        },
        good="The answer is (D).",
        bad="The answer is (A).",
        junk="I cannot see a row.",
        judged=["D"],
    ),
    Case(
        row={
            "question": "Which two pieces fit together?",
            "answer": "A, C",
            "reasoning": "Their edges match.",
            "skill": ["spatial"],
            "image": _PICTURE,
        },
        good="Answer: C and A",
        bad="Answer: A",
        junk="None.",
        judged=["c", "a"],
    ),
    Case(
        row={
            "question": "How many cubes are hidden?",
            "answer": "3",
            "reasoning": "Seven are in sight, ten make the block.",
            "skill": ["numerical"],
            "image": _PICTURE,
        },
        good="3",
        bad="4",
        junk="Some.",
        judged=["3"],
    ),
)
