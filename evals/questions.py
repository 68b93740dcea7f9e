"""A question of a benchmark, how one reply to it was judged, and what a run of them says.

A `Record` holds what the data set says and nothing of how it is asked: prompts and scorers belong to a protocol of the
benchmark. Raises ValueError with one line wherever a row is not what its data set promises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from PIL import Image

AnswerType = Literal["mcq", "multi_mcq", "number", "text", "open"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_TAG = re.compile(r"<image\s?(\d{1,2})>")
# Labels as data sets write them, tried in this order: "(A) ", then "A. ", "A: " or "A) " after a break.
_LABELS = (r"\(([A-Z])\)\s*", r"(?:^|[\n,;]\s*|\s)([A-Z])[.:)]\s+")
_COLUMN_TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "integer": (int,),
    "id": (str, int),
    "list": (list, tuple),
    "text or list": (str, list, tuple),
    "mapping": (Mapping,),
    "image": (Image.Image, Mapping, str),
}


@dataclass(frozen=True)
class Media:
    """An image or a video of a question, not yet decoded: a PIL image, a hub cell with bytes or path, or a path."""

    kind: Literal["image", "video"]
    ref: Any
    number: int = 1
    """What `<image 3>` in the text refers to: 3."""


Segments = tuple[str | Media, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One question of a benchmark."""

    id: str
    benchmark: str
    split: str
    question: str
    answer: str | tuple[str, ...]
    """The gold. A tuple holds several golds of an open question, or all labels of a `multi_mcq` one."""
    answer_type: AnswerType
    choices: Mapping[str, str] | None = None
    """Text by letter; the texts are empty where the options stand only in the picture."""
    media: tuple[Media, ...] = ()
    group: Mapping[str, str] = field(default_factory=dict)
    """What the benchmark reports by: subject, task, category."""
    cluster: str
    """What is resampled as one in a bootstrap: seed question, scene, source item."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The columns of the row that decide what is right (`Benchmark.scored_by`)."""

    @property
    def segments(self) -> Segments:
        """The question alone, its media in their places."""
        return interleave(self.question, self.media)


class Reading(NamedTuple):
    """What a scorer says of a reply: the answer read in it (None: no answer), score 0..1, and the rule that read it."""

    parsed: str | None
    score: float
    method: str


def interleave(text: str, media: Sequence[Media]) -> Segments:
    """`text` with each image at the first `<image k>` that names it; what is never named comes first.

    A tag is taken by its number, because shuffled options name images out of order. A later tag of the same image
    stays as text, and so do all tags that name no image of ours.
    """
    by_number = {item.number: item for item in media}
    if len(by_number) != len(media):
        raise ValueError(f"media: expected different numbers, got {[item.number for item in media]}")
    placed: list[str | Media] = []
    start = 0
    for match in _TAG.finditer(text):
        item = by_number.pop(int(match[1]), None)
        if item is not None:
            placed += [text[start : match.start()], item]
            start = match.end()
    parts = [*by_number.values(), *placed, text[start:]]
    return tuple(part for part in parts if part != "")


def options_in(question: str) -> dict[str, str] | None:
    """Options that a question spells out: labels A, B, C … in order. None if there are fewer than two."""
    for pattern in _LABELS:
        found: list[re.Match[str]] = []
        for match in re.finditer(pattern, question):
            if match[1] == LETTERS[len(found)]:
                found.append(match)
        if len(found) > 1:
            ends = [match.start() for match in found[1:]]
            # An instruction on a line of its own ends the last option.
            last = question[found[-1].end() :].splitlines() or [""]
            texts = [question[m.end() : end] for m, end in zip(found, ends, strict=False)] + [last[0]]
            return {match[1]: text.strip(" \n,;.") for match, text in zip(found, texts, strict=True)}
    return None


def lettered(options: Sequence[Any]) -> dict[str, str]:
    """Options by letter. Raises ValueError if there are more than letters."""
    if len(options) > len(LETTERS):
        raise ValueError(f"options: expected at most {len(LETTERS)}, got {len(options)}")
    return dict(zip(LETTERS, map(str, options), strict=False))


def check_columns(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    """Raises ValueError naming the first column that is missing or has the wrong type.

    Types are words, `text` or `image`; with a final "?" the cell may be empty, and the column may be missing.
    """
    for name, wanted in columns.items():
        kind = wanted.rstrip("?")
        if wanted.endswith("?") and row.get(name) is None:
            continue
        if name not in row:
            raise ValueError(
                f"{where}: column {name!r}: expected {kind}, got no such column; the row has {', '.join(sorted(row))}"
            )
        value = row[name]
        if not isinstance(value, _COLUMN_TYPES[kind]) or isinstance(value, bool):
            raise ValueError(f"{where}: column {name!r}: expected {kind}, got {type(value).__name__} {value!r:.60}")
