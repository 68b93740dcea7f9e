"""Benchmarks: one file each. A file says what a row of its data set means, how it is asked, and how a reply is scored.

`find("mmstar")` imports `benchmarks/mmstar.py`. A benchmark file has two public names: `BENCHMARK` and `EXAMPLE`, rows
in the data set's own form, written by us, with replies that are right and wrong. It loads no data and no model. Outside
the tree the same file is found through the entry-point group `vlm_dopd.benchmarks`.

Every benchmark has two protocols. `official` prompts and scores as its own repository does, quirks included; where that
would draw an answer at random or ask a judge, the reply counts as unparsed. `toolkit` prompts as the toolkits that
publish leaderboards do, and reads replies as a careful person would (`evals.choices`, `evals.quantities`).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from ..aggregate import Aggregate, Graded, Numbers
from ..questions import Reading, Record, Segments, check_columns, interleave
from ..records import Verdict

ENTRY_POINTS = "vlm_dopd.benchmarks"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """One split of one configuration, with the number of rows it must have."""

    config: str | None
    split: str
    count: int

    @property
    def name(self) -> str:
        """`standard (4 options)/test`, or only the split where there is one configuration."""
        return f"{self.config}/{self.split}" if self.config else self.split


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a benchmark is asked and scored."""

    prompt: Callable[[Record], str]
    """Text of the prompt; `<image k>` in it is where image k goes, other media come first."""
    score: Callable[[Record, str], Reading]
    max_new_tokens: int
    origin: str
    """Where prompt, scorer and budget come from."""
    version: int = 1
    """Goes up whenever the scorer changes a score."""
    frames: int | None = None
    """Frames of a video, evenly spaced."""
    reads_truncated: bool = False
    """Whether a reply cut off by the budget is scored all the same, as official code does, which cannot know."""
    judge: Callable[[Record, Any], Reading] | None = None
    """Scores what an external judge extracted from a reply, where the protocol has one. Without a judge such replies
    are unparsed."""


@dataclass(frozen=True)
class Case:
    """A row of EXAMPLE, with a reply that scores 1 under every protocol, one that scores 0, and one without answer."""

    row: Row
    good: str
    bad: str
    junk: str = ""
    source: int = 0
    judged: Any = None
    """What a judge extracts from `good`, for protocols that need one."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Everything the rest of the toolkit knows about a benchmark."""

    name: str
    title: str
    hub: str
    """Data set on the Hugging Face hub, `owner/name`; with `@revision` where it is known that it fits this file."""
    sources: tuple[Source, ...]
    columns: Mapping[str, str]
    """Columns that are read, with their types; see `questions.check_columns`."""
    scored_by: tuple[str, ...]
    """Columns that decide what is right: enough to score a saved reply again."""
    read: Callable[[Row, Source, int], Record]
    """Row, where it comes from, and its index there."""
    protocols: Mapping[str, Protocol]
    licence: str
    numbers: Numbers = field(default=Numbers())
    """What it reports; as it stands, the mean over all questions."""
    reproduced: str = ""
    """Published number that real weights have reproduced with this file; empty: none yet."""
    needs_video: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def count(self) -> int:
        """Rows of all sources."""
        return sum(source.count for source in self.sources)

    def record(self, row: Row, source: Source | None = None, index: int = 0) -> Record:
        """The record of a row. `index` is its place in `source` (default: the first), for data sets without ids.

        Raises ValueError with one line if a column is missing or does not hold what the data set promises.
        """
        where = f"{self.name}: row {row.get('id', index)!r}"
        check_columns(row, self.columns, where)
        try:
            record = self.read(row, source or self.sources[0], index)
            return replace(record, columns={name: row[name] for name in self.scored_by if row.get(name) is not None})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def protocol(self, name: str) -> Protocol:
        """Protocol `name`. Raises ValueError if there is none."""
        if name not in self.protocols:
            known = ", ".join(self.protocols)
            raise ValueError(f"{self.name}: protocol {name!r} is unknown: {_close(name, self.protocols)}known: {known}")
        return self.protocols[name]

    def prompt(self, record: Record, protocol: str) -> Segments:
        """What is asked: texts and media in order."""
        return interleave(self.protocol(protocol).prompt(record), record.media)

    def score(self, record: Record, reply: str | None, protocol: str, truncated: bool = False) -> Verdict:
        """The verdict on a reply. None means that no reply came back: fate `error`."""
        used = self.protocol(protocol)
        if reply is None:
            return Verdict(parsed=None, score=0.0, fate="error", method="no reply")
        if truncated and not used.reads_truncated:
            return Verdict(parsed=None, score=0.0, fate="truncated", method="cut off by the token limit")
        reading = used.score(record, reply)
        if reading.parsed is None:
            return Verdict(parsed=None, score=0.0, fate="truncated" if truncated else "unparsed", method=reading.method)
        return Verdict(parsed=reading.parsed, score=reading.score, fate="parsed", method=reading.method)

    def aggregate(self, scored: Sequence[Graded]) -> Aggregate:
        """The numbers of a run. Raises ValueError if there are no replies."""
        return self.numbers.aggregate(scored)

    def fingerprint(self, protocol: str) -> str:
        """Hash of what decides a score besides model and decoding: prompts, budget, frames, scorer version.

        Prompts enter through the rows of EXAMPLE. Runs with different fingerprints must not be subtracted.
        """
        used = self.protocol(protocol)
        prompts = [
            [
                part if isinstance(part, str) else f"<{part.kind} {part.number}>"
                for part in self.prompt(record, protocol)
            ]
            for record in (self.record(case.row, self.sources[case.source]) for case in example(self.name))
        ]
        told = [self.name, protocol, used.version, used.max_new_tokens, used.frames, used.reads_truncated, prompts]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def available() -> list[str]:
    """Names of all benchmarks, those of other packages included."""
    return sorted({*_own(), *(point.name for point in entry_points(group=ENTRY_POINTS))})


def find(name: str) -> Benchmark:
    """The benchmark `name`. Raises ValueError with the close match if there is none."""
    return _attribute(name, "BENCHMARK", Benchmark)


def example(name: str) -> tuple[Case, ...]:
    """Synthetic rows of the benchmark `name` in its data set's form, with replies."""
    return _attribute(name, "EXAMPLE", tuple)


def _attribute(name: str, attribute: str, wanted: type) -> Any:
    value = getattr(_module(name), attribute, None)
    if not isinstance(value, wanted):
        raise ValueError(
            f"benchmark {name!r}: expected a {wanted.__name__} named {attribute} in its file, got {value!r}"
        )
    return value


def _module(name: str) -> ModuleType:
    if name in _own():
        return importlib.import_module(f"{__name__}.{name}")
    for point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            return point.load()
        except Exception as error:  # somebody else's package may fail in any way
            raise ValueError(f"benchmark {name!r} of {point.value!r} cannot be loaded: {error}") from None
    raise ValueError(f"benchmark {name!r} is unknown: {_close(name, available())}available: {', '.join(available())}")


def _own() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]


def _close(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""
