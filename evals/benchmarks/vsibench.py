"""VSI-Bench: 5,130 questions about the space in 288 videos of rooms; letters, and numbers with partial credit.

Official scorer: the first word of the reply, without final full stops. A number scores MRA, the mean relative accuracy
over ten thresholds. The overall number is the mean of eight tasks, of which "direction" is the mean of three question
types; it is no mean over questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .. import careful
from ..aggregate import Graded, Headline, Numbers, Table
from ..extract import trim
from ..quantities import read_number
from ..questions import Media, Reading, Record
from . import Benchmark, Case, Protocol, Row, Source

NUMERIC = ("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation")
DIRECTIONS = ("object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard")
CHOICE = ("object_rel_distance", *DIRECTIONS, "route_planning", "obj_appearance_order")
DIRECTION = "object_rel_direction"
TASKS = (*NUMERIC, "object_rel_distance", DIRECTION, "route_planning", "obj_appearance_order")

_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_FRAMES = "These are frames of a video.\n"


def mra(given: float, gold: float) -> float:
    """Share of the thresholds t in 0.5, 0.55 … 0.95 with |given − gold| / gold ≤ 1 − t.

    Exactly this expression: floating point decides the edges, so 16 for 20 scores 0.6 and not 0.7.
    """
    if not np.isfinite(given):
        return 0.0
    return float((abs(given - gold) / gold <= 1 - _THRESHOLDS).mean())


def read(row: Row, source: Source, index: int) -> Record:
    """The scene is what is resampled: its questions share a video."""
    task, gold = row["question_type"], row["ground_truth"].strip()
    if task not in NUMERIC + CHOICE:
        raise ValueError(f"column 'question_type': expected one of {', '.join(NUMERIC + CHOICE)}, got {task!r}")
    choices = None
    if task in CHOICE:
        choices = {option[:1]: option[1:].lstrip(".:) ") for option in map(str, row["options"] or ())}
        if gold not in choices:
            raise ValueError(f"column 'ground_truth': expected the letter of an option, got {gold!r}")
    elif not _positive(gold):
        raise ValueError(f"column 'ground_truth': expected a number above 0, got {gold!r}")
    scene = f"{row['dataset']}/{row['scene_name']}"
    return Record(
        id=f"vsibench-{row['id']}",
        benchmark="vsibench",
        split=source.name,
        question=row["question"],
        answer=gold,
        answer_type="number" if choices is None else "mcq",
        choices=choices,
        media=(Media("video", f"{scene}.mp4"),),
        group={"task": task, "dataset": row["dataset"]},
        cluster=scene,
    )


def prompt(record: Record) -> str:
    """Question, options line by line, and what form the answer should have."""
    if record.choices is None:
        return f"{_FRAMES}{record.question}\nPlease answer the question using a single word or phrase."
    options = "\n".join(f"{letter}. {text}" for letter, text in record.choices.items())
    asked = "Answer with the option's letter from the given choices directly."
    return f"{_FRAMES}{record.question}\nOptions:\n{options}\n{asked}"


def toolkit_prompt(record: Record) -> str:
    """As VLMEvalKit asks: no "Options:" line, and a float for numbers."""
    if record.choices is None:
        return f"{_FRAMES}{record.question}\nAnswer briefly and directly in one float number."
    options = "\n".join(f"{letter}. {text}" for letter, text in record.choices.items())
    return f"{_FRAMES}{record.question}\n{options}\nAnswer with the option's letter from the given choices directly."


def first_word(record: Record, reply: str) -> Reading:
    """The first word up to a space, without final full stops."""
    word = reply.split(" ")[0].rstrip(".").strip()
    if record.choices is not None:
        known = word.upper() in record.choices
        return Reading(word.upper() if known else None, float(word.lower() == str(record.answer).lower()), "first word")
    try:
        given = float(word)
    except ValueError:
        return Reading(None, 0.0, "first word is no number")
    return Reading(word, mra(given, float(record.answer)), "first word")  # type: ignore[arg-type]


def careful_reply(record: Record, reply: str) -> Reading:
    """Options as `careful.choice`; the last number by MRA, units ignored."""
    if record.choices is not None:
        return careful.choice(record, reply)
    value, method = read_number(reply)
    if value is None:
        return Reading(None, 0.0, method)
    return Reading(careful.shown(value), mra(float(value), float(careful.golds(record)[0])), method)


# Eight tasks of equal weight: the three question types of "direction" are one of them.
_WEIGHTS = {name: 1 / len(DIRECTIONS) if name in DIRECTIONS else 1.0 for name in NUMERIC + CHOICE}


def _remarks(scored: Sequence[Graded]) -> Iterator[str]:
    types = {item.group["task"] for item in scored}
    absent = [name for name in DIRECTIONS if name not in types]
    if 0 < len(absent) < len(DIRECTIONS):
        yield f"no overall number: {DIRECTION} needs its three types, {', '.join(absent)} not scored"
    if missing := [name for name in TASKS if name not in types and (name != DIRECTION or absent)]:
        yield f"{len(TASKS) - len(missing)} of {len(TASKS)} tasks: {', '.join(missing)} missing"


def _task(name: str) -> Headline:
    if name == DIRECTION:
        return Headline(name, by="task", weights=dict.fromkeys(DIRECTIONS, 1), together=DIRECTIONS)
    return Headline(name, by="task", weights={name: 1})


NUMBERS = Numbers(
    headlines=(
        Headline("mean of tasks", by="task", weights=_WEIGHTS, together=DIRECTIONS),
        Headline("mean over questions"),
    ),
    tables=(Table("task", rows=tuple(map(_task, TASKS))), Table("question_type", by="task")),
    remarks=_remarks,
)


def _positive(text: str) -> bool:
    try:
        return 0 < float(trim(text)) < float("inf")
    except ValueError:
        return False


BENCHMARK = Benchmark(
    name="vsibench",
    title="VSI-Bench",
    hub="nyu-visionx/VSI-Bench@668dd47863a49c6ee50946df1bf085a039fc95cd",
    sources=(Source(None, "test", 5130),),
    columns={
        "id": "id",
        "dataset": "text",
        "scene_name": "text",
        "question_type": "text",
        "question": "text",
        "ground_truth": "text",
        "options": "list?",
    },
    scored_by=("question_type", "ground_truth", "options"),
    read=read,
    protocols={
        "official": Protocol(
            prompt=prompt,
            score=first_word,
            max_new_tokens=16,
            origin="thinking-in-space 51e089c lmms_eval/tasks/vsibench",
            frames=32,
            reads_truncated=True,
        ),
        "toolkit": Protocol(
            prompt=toolkit_prompt,
            score=careful_reply,
            max_new_tokens=1024,
            origin="VLMEvalKit e8e78f0, 32 frames; budget ours",
            frames=32,
        ),
    },
    numbers=NUMBERS,
    licence="Apache-2.0 by the data card; videos come from ARKitScenes, ScanNet and ScanNet++ with terms of their own",
    needs_video=True,
)

_SCENE = {"dataset": "scannet", "scene_name": "scene0000_00"}

EXAMPLE = (
    Case(
        row={
            "id": 0,
            **_SCENE,
            "question_type": "object_counting",
            "question": "How many stools are in this room?",
            "ground_truth": "4",
            "options": None,
        },
        good="4",
        bad="9",
        junk="several",
    ),
    Case(
        row={
            "id": 1,
            **_SCENE,
            "question_type": "object_rel_distance",
            "question": "Which of these objects (stool, shelf, rug) is the closest to the sink?",
            "ground_truth": "C",
            "options": ["A. stool", "B. shelf", "C. rug"],
        },
        good="C",
        bad="A",
        junk="unclear",
    ),
)
