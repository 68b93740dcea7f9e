"""Replies of grounding models: a JSON list, often in a fence, with talk around it, or cut off by a token limit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import Report
from ..errors import DataError
from ..geometry import Coords
from ..reader_base import Options, Scope
from ..reader_files import get, json_rows, number, read_text, short, size
from . import Annotated

_DECODER = json.JSONDecoder()


def parse_reply(text: str) -> tuple[list[Any], bool]:
    """The items of the first JSON list (or object) in `text`, and whether the list was cut off.

    Of a list that is cut off the complete items are given. Raises DataError if there is no JSON at all.
    """
    fence = re.search(r"```(?:json)?\s*", text)
    start = re.search(r"[\[{]", text[fence.end() :] if fence else text)
    if start is None:
        raise DataError(f"reply: expected a JSON list, got {short(text)}")
    place = start.start() + (fence.end() if fence else 0)
    try:
        value, _ = _DECODER.raw_decode(text, place)
        return (value if isinstance(value, list) else [value]), False
    except (ValueError, RecursionError):
        if text[place] != "[":
            raise DataError(f"reply: expected a JSON list, got {short(text[place:])}") from None
    items: list[Any] = []
    place += 1
    while True:
        gap = re.compile(r"[\s,]*").match(text, place)
        place = gap.end() if gap else place
        try:
            item, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            return items, True
        items.append(item)


@dataclass(frozen=True, kw_only=True)
class Replies(Options):
    """Reads JSON lines of `image`, `response` (text, or the list itself) and if known `id`, `width`, `height`; or a
    `.json` or `.txt` file, or a folder of them, that holds one reply each for the image of the same name."""

    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """The sample id is the row's `id`, or the name of the image or file without suffix."""
        if path.suffix == ".jsonl":
            yield from self.samples(json_rows(path, self.max_bytes), self._row, report)
        else:
            yield from self.documents(path, (".json", ".txt"), self._document, report)

    def coords_of(self, row: dict[str, Any], where: str) -> Coords:
        """The convention of one row."""
        raise NotImplementedError

    def add(self, scope: Scope, item: Any, coords: Coords) -> None:
        """One item of a reply."""
        raise NotImplementedError

    def _row(self, row: Any, where: str, report: Report) -> Annotated | None:
        name = get(row, "image", str, where)
        declared = size(row.get("width"), row.get("height"), where)
        reply = get(row, "response", (str, list), where)
        sample_id = str(get(row, "id", (str, int), where, Path(name).stem))
        scope = self.scope(report, where, (name, declared))
        return self._sample(scope, reply, self.coords_of(row, where), sample_id)

    def _document(self, path: Path, sample_id: str, report: Report) -> Annotated | None:
        reply = read_text(path, self.max_bytes)
        scope = self.scope(report, path.name, (self.image_of_stem(sample_id) or f"{sample_id}.*", None))
        return self._sample(scope, reply, self.coords_of({}, path.name), sample_id)

    def _sample(self, scope: Scope, reply: Any, coords: Coords, sample_id: str) -> Annotated | None:
        items, cut_off = parse_reply(reply) if isinstance(reply, str) else (reply, False)
        if cut_off:
            scope.note("reply cut off: its complete objects are kept")
        for item in items:
            with scope.entry():
                self.add(scope, item, coords)
        return scope.finish(sample_id)


def check_rel1000(values: Any) -> None:
    """Raises DataError for a coordinate outside 0..1000: such a reply is of another convention than the declared."""
    for value in values if isinstance(values, list) else ():
        if not 0 <= number(value, "coordinate") <= 1000:
            raise DataError(f"coordinate {short(value)}: expected 0..1000; pixels? declare another convention")
