"""The figures of `evals.comparison` as one self-contained HTML file, with the samples that flipped.

Everything that strangers wrote (questions, replies, labels, file names) is text here: escaped by the template, and
with controls, reversing marks and halves of characters written out (`evals.printable`). The page asks nobody for
anything and runs no script.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .compare_table import chance, difference, plus_minus, points, recovered
from .comparison import RUNS, Figures, Run
from .printable import printable
from .records import FATES, Prediction

Pictures = Callable[[Prediction], Sequence[bytes]]

SHOWN = 12
"""Samples shown of those that gained, and of those that lost, in each benchmark."""
SHORT = 280
"""Characters up to which a text is shown whole; a longer one opens on demand."""
LONGEST = 20_000
"""Characters of a text that the page holds."""
BRIEF = 200
"""Characters of an answer or a name."""

_PICTURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}


@dataclass(frozen=True)
class Text:
    """A text of any length: its start, all of it that the page holds, and how long it was."""

    start: str
    full: str
    length: int

    @property
    def short(self) -> bool:
        """Whether the start is all of it."""
        return len(self.start) == self.length


@dataclass(frozen=True)
class Answer:
    """What one run said of a sample."""

    run: str
    mark: str
    """`right`, `wrong` or the share of credit."""
    parsed: str | None
    fate: str
    reply: Text | None
    samples: int


@dataclass(frozen=True)
class Card:
    """A sample that flipped."""

    id: str
    groups: str
    question: Text
    gold: str
    answers: tuple[Answer, ...]
    pictures: tuple[str, ...]
    """Data URIs."""


@dataclass(frozen=True)
class Flips:
    """Samples whose score rose, or fell: some of `total`."""

    name: str
    total: int
    cards: tuple[Card, ...]


def write_page(
    figures: Figures,
    predictions: Mapping[str, Run],
    out: Path,
    picture: Pictures | None = None,
    shown: int = SHOWN,
) -> None:
    """Writes the page of `figures = compare_runs(…)` to `out`, which appears only once it is complete.

    `predictions` holds the runs the figures were made of: `{"before": {name: rows}, "after": …, "teacher": …}`.
    `picture` gives the images of a question as PNG or JPEG bytes, already scaled down; it is asked only for samples
    that are shown, `shown` of those that gained and of those that lost in each benchmark.
    """
    flips = {
        name: _flips({run: rows[name] for run, rows in predictions.items() if name in rows}, picture, shown)
        for name in figures["benchmarks"]
    }
    page = _environment().get_template("compare.html.jinja").render(
        figures=figures, flips=flips, headline=_headline(figures), runs=RUNS, fates=FATES
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(page, encoding="utf-8", newline="\n")
    part.replace(out)


def _headline(figures: Figures) -> str:
    """The result in one sentence."""
    benchmarks, macro = figures["benchmarks"], figures["macro"]
    if macro is None and len(benchmarks) > 1:
        return f"Before and after on {len(benchmarks)} benchmarks"
    if macro is None:
        (figure,) = benchmarks.values()
        entry, where = figure["headlines"][figure["headline"]], f"on {figure['title']}"
    else:
        entry, where = macro, f"over {len(macro['benchmarks'])} benchmarks"
    change = entry["difference"]
    if change["value"] is None:
        return f"Before and after {where}: no number can be formed"
    told = f"{_unbroken(difference(change))} points {where}"
    if change["low"] is not None and change["low"] <= 0 <= change["high"]:
        return f"No difference that chance does not explain: {told}"
    if entry.get("recovery", {}).get("value") is not None:
        return f"{told}, {_unbroken(recovered(entry['recovery']))} of the way to the teacher"
    return told


def _unbroken(text: str) -> str:
    return text.replace(" ", "\u00a0")


def _flips(runs: Mapping[str, Sequence[Prediction]], picture: Pictures | None, shown: int) -> tuple[Flips, Flips]:
    by_id: dict[str, dict[str, list[Prediction]]] = {}
    for run in RUNS:
        for row in runs.get(run, ()):
            by_id.setdefault(row.id, {}).setdefault(run, []).append(row)
    change = {key: _mean(rows["after"]) - _mean(rows["before"]) for key, rows in by_id.items()}
    gained = [key for key, value in change.items() if value > 0]
    lost = [key for key, value in change.items() if value < 0]
    return tuple(  # type: ignore[return-value]
        Flips(name, len(keys), tuple(_card(by_id[key], picture) for key in _spread(keys, shown)))
        for name, keys in (("gained", gained), ("lost", lost))
    )


def _mean(rows: Sequence[Prediction]) -> float:
    return sum(row.score for row in rows) / len(rows)


def _spread(keys: list[str], shown: int) -> list[str]:
    """`shown` of the keys, evenly over the file: its first ones would all be of one category."""
    count = min(shown, len(keys))
    return [keys[index * len(keys) // count] for index in range(count)]


def _card(rows: Mapping[str, Sequence[Prediction]], picture: Pictures | None) -> Card:
    first = rows["before"][0]
    return Card(
        id=first.id,
        groups=" · ".join(str(value) for value in first.group.values() if value),
        question=_text(first.question),
        gold=first.answer,
        answers=tuple(_answer(run, rows[run]) for run in RUNS if run in rows),
        pictures=tuple(uri for image in (picture(first) if picture else ()) if (uri := _uri(image))),
    )


def _answer(run: str, rows: Sequence[Prediction]) -> Answer:
    row, score = rows[0], _mean(rows)
    return Answer(
        run=run,
        mark={0.0: "wrong", 1.0: "right"}.get(score, f"{score:.2f}"),
        parsed=row.parsed,
        fate=row.fate,
        reply=None if row.response is None else _text(row.response),
        samples=len(rows),
    )


def _text(text: str) -> Text:
    start = text if len(text) <= SHORT else text[: SHORT // 2].rstrip()
    return Text(start, text[:LONGEST], len(text))


def _uri(image: bytes) -> str | None:
    """A data URI, None for what is neither PNG nor JPEG."""
    kind = next((kind for magic, kind in _PICTURES.items() if image.startswith(magic)), None)
    return kind and f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("evals", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_inert,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "points": points,
        "plus_minus": plus_minus,
        "difference": difference,
        "recovered": recovered,
        "chance": chance,
        "at": _at,
        "brief": _brief,
    }
    return environment


def _inert(value: Any) -> Any:
    """Every text that the template prints, before it is escaped."""
    return printable(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


def _at(share: float) -> str:
    """A share as a place on the axis of a plot."""
    return f"{100 * share:.2f}%"


def _brief(text: str) -> str:
    return text if len(text) <= BRIEF else f"{text[:BRIEF].rstrip()} […]"
