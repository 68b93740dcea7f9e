"""From the text of a reply to regions, hints or a verdict; or to Unusable, with one reason that is counted.

Parsing is strict. One repair is tried on a reply that is not JSON as it stands: what is around the JSON (a fence, talk)
and commas before a closing bracket are taken away. Nothing is guessed, and a reply that was cut off is not used: the
regions that it lacks may be the ones that matter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from ..reader_files import expect, get, short
from ..readers._replies import parse_reply
from ..records import Note
from .prompts import TIGHT, VERDICTS

MAX_HINT = 400
"""Characters of a step; one that is longer is no sub-goal."""
MAX_REASON = 300
"""So many characters of a model's reason are kept."""

REASONS = {
    "refused": "the model declined",
    "truncated reply": "cut off, by the token limit or in the middle of the JSON",
    "not JSON": "no JSON in the reply, also after one repair",
    "wrong form": "JSON of another form than the one asked for",
    "no local evidence": "the model says that no place, or no step, helps",
    "no usable box": "none of the boxes can be drawn on its image",
}
"""Why one reply gives nothing. All of them are final: the same request would be paid for a second time."""

_DECLINED = re.compile(
    r"\W*(?:i['’]?m sorry|i am sorry|sorry|i can(?:not|['’]t)|i(?:['’]m| am) (?:unable|not able))", re.I
)


class Unusable(DataError):
    """Raised for a reply that gives nothing, with one of REASONS."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        assert reason in REASONS
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Text:
    """What an endpoint said: `finish` is its finish_reason, `refusal` what it said instead."""

    text: str = ""
    finish: str | None = None
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Of a re-check. `bad` are the numbers of the parts that must go, `loose` those with too large a box."""

    verdict: str
    complete: bool
    states_answer: bool
    implies_answer: bool
    reason: str
    parts: tuple[dict[str, Any], ...]
    """What was said of each part, in the order of their numbers."""
    bad: frozenset[int]
    loose: frozenset[int] = frozenset()


def parse_regions(reply: Text) -> list[Any]:
    """The objects of a reply, in whatever form each one is: every one gets its own fate later.

    Raises Unusable.
    """
    return _items(reply, "regions")


def parse_hints(reply: Text, most: int) -> tuple[Note, ...]:
    """The steps of a reply as notes. Raises Unusable, also for more than `most`, or one that is not a short text."""
    notes = []
    if len(steps := _items(reply, "steps")) > most:
        raise Unusable("wrong form", f"steps: expected at most {most}, got {len(steps)}")
    for number, step in enumerate(steps, start=1):
        if not isinstance(step, str) or not step.strip() or len(step.strip()) > MAX_HINT:
            raise Unusable("wrong form", f"step {number}: expected up to {MAX_HINT} characters, got {short(step)}")
        # The builder numbers them itself.
        text = re.sub(r"^(?:step\s+)?\d{1,2}\s*[.):]\s+(?=\S)", "", " ".join(step.split()), flags=re.I)
        notes.append(Note(text=text, kind="hint", extra={"step": number}))
    return tuple(notes)


def parse_verdict(reply: Text, kind: str, count: int) -> Verdict:
    """The verdict on `count` regions (`kind` boxes) or steps (hints). Raises Unusable unless every field is there,
    of its type, and every number from 1 to `count` exactly once: what is not known is not kept."""
    return _strictly(lambda: _verdict(_json(reply, "verdict"), kind, count))


def _verdict(value: Any, kind: str, count: int) -> Verdict:
    fields: dict[str, type] = {"complete": bool, "states_answer": bool, "implies_answer": bool, "reason": str}
    found = {name: get(value, name, cls, "reply") for name, cls in fields.items()}
    found["reason"] = found["reason"][:MAX_REASON]
    verdict = _one_of(value, "verdict", VERDICTS)
    parts, bad, loose = {}, set(), set()
    for part in get(value, "regions" if kind == "boxes" else "steps", list, "reply"):
        number = get(part, "number", int, "part")
        names = ("present", "label_ok", "relevant") if kind == "boxes" else ("correct", "executed")
        said = {name: get(part, name, bool, "part") for name in names}
        if kind == "boxes":
            said["tight"] = _one_of(part, "tight", TIGHT)
            good = all(said[name] for name in names) and said["tight"] != "wrong"
        else:
            good = said["correct"] and not said["executed"]
        if number in parts:
            raise DataError(f"part {number}: expected it once, got it twice")
        parts[number] = {"number": number} | said
        bad |= set() if good else {number}
        loose |= {number} if said.get("tight") == "loose" else set()
    if parts.keys() != set(range(1, count + 1)):
        raise DataError(f"reply: expected the numbers 1 to {count}, got {short(sorted(parts))}")
    ordered = tuple(parts[number] for number in sorted(parts))
    return Verdict(verdict=verdict, parts=ordered, bad=frozenset(bad), loose=frozenset(loose), **found)


def _items(reply: Text, name: str) -> list[Any]:
    """The list `name` of a reply. A bare list will do; an empty one means that nothing helps."""

    def read() -> list[Any]:
        value = _json(reply, name)
        return value if isinstance(value, list) else expect(expect(value, dict, "reply").get(name), list, name)

    if items := _strictly(read):
        return items
    raise Unusable("no local evidence", f"reply: {name}: an empty list")


def _strictly(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Unusable:
        raise
    except DataError as error:
        raise Unusable("wrong form", str(error)) from None


def _json(reply: Text, name: str) -> Any:
    """The JSON value of a reply whose object has the key `name`. Raises Unusable."""
    if reply.refusal or reply.finish == "content_filter":
        raise Unusable("refused", f"reply: refused: {short(reply.refusal or reply.finish)}")
    if reply.finish == "length":
        raise Unusable("truncated reply", f"reply: cut off by the token limit after {len(reply.text)} characters")
    text = reply.text.strip()
    try:
        try:
            return _tidy(json.loads(text))
        except ValueError:
            return _tidy(_repaired(text, name))
    except RecursionError:
        raise Unusable("wrong form", f"reply: nested too deeply: {short(text)}") from None


def _repaired(text: str, name: str) -> Any:
    """The one repair: without thoughts and talk around the JSON, and without commas before a closing bracket."""
    try:
        text = re.sub(r"\A<think>.*?</think>", "", text, flags=re.S)  # thoughts hold drafts
        items, cut_off = parse_reply(re.sub(r",(\s*[\]}])", r"\1", text))
    except DataError:
        items, cut_off = [], True
    if cut_off:
        if any(text.count(a) > text.count(b) for a, b in ("{}", "[]")):
            raise Unusable("truncated reply", f"reply: ends inside the JSON: {short(text)}")
        reason = "refused" if _DECLINED.match(text) else "not JSON"
        raise Unusable(reason, f"reply: expected JSON, got {short(text)}")
    whole = len(items) == 1 and isinstance(items[0], dict) and name in items[0]
    return items[0] if whole else items


def _one_of(value: Any, name: str, known: tuple[str, ...]) -> str:
    if (found := get(value, name, str, "reply")) not in known:
        raise DataError(f"reply: {name}: expected one of {', '.join(known)}, got {short(found)}")
    return found


def _tidy(value: Any) -> Any:
    """`value` with halves of surrogate pairs, which JSON can spell and no file can hold, as question marks."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if isinstance(value, dict):
        return {_tidy(key): _tidy(item) for key, item in value.items()}
    return value
