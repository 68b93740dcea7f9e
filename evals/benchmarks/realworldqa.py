"""RealWorldQA: 765 photographs of streets and rooms, one question each.

There is no official code. Our `official` profile takes the data set at its word: most questions end with "answer
directly with only the letter" or "a single word or number", so the whole reply, but for decoration and a final full
stop, has to be the answer. Options stand in the question's text.
"""

from __future__ import annotations

from PIL import Image

from .. import careful
from ..extract import normalise, trim
from ..questions import Media, Reading, Record, options_in
from ..scorers import same
from . import Benchmark, Case, Protocol, Row, Source


def read(row: Row, source: Source, index: int) -> Record:
    """Multiple choice where the gold is the letter of an option that the question spells out; else open."""
    answer = row["answer"].strip()
    if not answer:
        raise ValueError("column 'answer': expected an answer, got an empty text")
    choices = options_in(row["question"])
    mcq = choices is not None and answer in choices
    return Record(
        id=f"realworldqa-{index:04d}",
        benchmark="realworldqa",
        split=source.name,
        question=row["question"],
        answer=answer,
        answer_type="mcq" if mcq else "open",
        choices=choices if mcq else None,
        media=(Media("image", row["image"]),),
        group={"type": "mcq" if mcq else "open"},
        cluster=f"realworldqa-{index:04d}",
    )


def whole_reply(record: Record, reply: str) -> Reading:
    """The whole reply is the answer, or there is none."""
    answer = trim(normalise(reply))
    if record.choices is not None:
        answer = answer.upper() if answer.upper() in record.choices else ""
    return Reading(answer or None, float(bool(answer) and same(answer, str(record.answer))), "the whole reply")


def careful_reply(record: Record, reply: str) -> Reading:
    """Options as `careful.choice`, anything else as `careful.words`."""
    return careful.choice(record, reply) if record.choices is not None else careful.words(record, reply)


BENCHMARK = Benchmark(
    name="realworldqa",
    title="RealWorldQA",
    hub="xai-org/RealworldQA@17e7f75e092e47169732462ea3cdfebe911105dd",
    sources=(Source(None, "test", 765),),
    columns={"image": "image", "question": "text", "answer": "text"},
    scored_by=("question", "answer"),
    read=read,
    protocols={
        "official": Protocol(
            prompt=lambda record: record.question,
            score=whole_reply,
            max_new_tokens=16,
            origin="no official code: question as it is, scorer ours, budget of lmms-eval 0.7.3",
        ),
        "toolkit": Protocol(
            prompt=lambda record: f"Question: {record.question}",
            score=careful_reply,
            max_new_tokens=4096,
            origin="VLMEvalKit's order (image, then question; the question already asks for a letter); budget ours",
        ),
    },
    licence="CC BY-ND 4.0: do not redistribute, changed or in parts",
)

EXAMPLE = (
    Case(
        row={
            "image": Image.new("RGB", (64, 48), "grey"),
            "question": "Where does the path lead?\n\nA. To a gate\nB. To a pond\nC. Uphill\n"
            "Please answer directly with only the letter of the correct option and nothing else.",
            "answer": "B",
        },
        good="B.",
        bad="C",
        junk="It is hard to see.",
    ),
    Case(
        row={
            "image": Image.new("RGB", (64, 48), "white"),
            "question": "How many lamps are lit? Please answer directly with a single word or number.",
            "answer": "3",
        },
        good="3",
        bad="4",
    ),
)
