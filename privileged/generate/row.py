"""One row: generate without the answer, check with it, and exactly one fate at the end."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checks import Report
from ..draw import draw_boxes
from ..errors import DataError, ImageError
from ..reader_base import Options
from ..reader_files import expect, get
from ..records import ImageRef, PrivilegedRecord, Region, Sample
from ..rows import to_sample
from . import pictures, prompts, replies
from .asker import Asker, NotAsked
from .endpoint import Lost, Rejected
from .pictures import Picture
from .profiles import PROFILES
from .replies import Text, Unusable, Verdict
from .request import Request
from .settings import Settings


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The fate of one row (see `summary`), its record if it has one now, and what became of its boxes."""

    fate: str
    place: str = ""
    record: str | None = None
    """As JSON text."""
    boxes: tuple[Report, ...] = ()


class Fate(Exception):
    """Ends the work on a row."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row that can be asked about: its sample, and for each image what stands for it."""

    sample: Sample
    refs: tuple[ImageRef, ...]
    where: str


async def annotate(row: dict[str, Any], default_id: str, root: Path, settings: Settings, asker: Asker) -> Outcome:
    """The fate of `row`. Raises DataError only if the endpoint takes no request at all."""
    if row.get("privileged"):
        return Outcome(fate="already", place=default_id)
    reports: list[Report] = []
    try:
        loaded = await asyncio.to_thread(_load, row, default_id, root, settings)
        record, fate = await _ask(loaded, settings, asker, reports)
        return Outcome(fate=fate, place=loaded.sample.id, record=record.to_json(), boxes=tuple(reports))
    except Fate as error:
        fate, message = error.args
    except Unusable as error:
        fate, message = f"dropped:{error.reason}", str(error)
    except Rejected as error:
        fate, message = "dropped:rejected", str(error)
    except Lost as error:
        fate, message = "dropped:endpoint gave up", str(error)
    except NotAsked as error:
        why = str(error)
        fate, message = ("planned" if why == "planned" else f"not asked:{why}"), ""
    return Outcome(fate=fate, place=f"{default_id}: {message}" if message else default_id, boxes=tuple(reports))


def _load(row: dict[str, Any], default_id: str, root: Path, settings: Settings) -> Row:
    """Raises Fate for a row that is not worth a call."""
    try:
        sample = to_sample(row, default_id, root)
        sources = pictures.source_digests(row, root)
    except (ImageError, OSError) as error:
        raise Fate("dropped:bad image", str(error)) from None
    except (DataError, KeyError, TypeError) as error:
        raise Fate("dropped:bad row", str(error)) from None
    if settings.kind == "boxes" and not sample.images:
        raise Fate("dropped:no image", "")
    if settings.recheck and not (sample.answer or "").strip():
        raise Fate("dropped:no answer", "give answers, or set recheck=False")
    refs = tuple(
        ImageRef(path=path, sha256=digest, width=image.width, height=image.height)
        for (path, digest), image in zip(sources, sample.images, strict=True)
    )
    return Row(sample=replace(sample, privileged=None), refs=refs, where=sample.id)


async def _ask(row: Row, settings: Settings, asker: Asker, reports: list[Report]) -> tuple[PrivilegedRecord, str]:
    """The record and its fate, `kept` or `fixed`; what became of its boxes is put into `reports`.

    Raises Fate, Unusable, NotAsked, Lost, Rejected.
    """
    request = _generation(row, settings)

    def read(reply: Text) -> Sequence[Any]:
        if settings.kind == "hints":
            return replies.parse_hints(reply, settings.max_regions)
        reports[:] = [Report()]  # of the last reply: one that is not usable may be asked for again
        return _regions(replies.parse_regions(reply), row, settings, reports[0])

    try:
        parts, created = await asker.ask(request, read)
    except NotAsked as error:
        if str(error) == "planned" and settings.recheck:
            asker.plan(request)  # a second call of about the same size
        raise
    origin = {
        "how": "model", "model": settings.model, "prompt": request.prompt, "coords": settings.coords,
        "created": created, "request": request.key(settings),
    }  # fmt: skip
    if settings.kind == "hints":
        del origin["coords"]
    checks: dict[str, Any] = {
        "geometry": sorted(fate for report in reports for fate in report.objects.elements() if fate != "kept")
    }
    fate = "kept"
    if settings.recheck:
        parts, fate, checks["recheck"] = await _recheck(parts, row, settings, asker)
    fields = {"regions" if settings.kind == "boxes" else "notes": tuple(parts)}
    extra = {"origin": origin, "checks": checks}
    return PrivilegedRecord(sample_id=row.sample.id, images=row.refs, extra=extra, **fields), fate


def _generation(row: Row, settings: Settings) -> Request:
    """The first call: question and images, nothing of the answer."""
    profile, many = PROFILES[settings.coords], len(row.refs) > 1
    shown = tuple(_picture(row, index, settings) for index in range(len(row.refs)))
    if settings.kind == "boxes":
        sizes = [picture.size for picture in shown]
        messages = prompts.ask_boxes(row.sample.question, sizes, profile, settings.max_regions)
    else:
        messages = prompts.ask_hints(row.sample.question, len(shown), settings.max_regions)
    version = prompts.VERSIONS[settings.kind]
    schema = prompts.schema(version, profile, many)
    return Request(prompt=version, messages=messages, pictures=shown, schema=schema, about=row.sample.id)


def _regions(items: list[Any], row: Row, settings: Settings, report: Report) -> tuple[Region, ...]:
    """The boxes of a reply as regions, at least one; each box that is not kept has its fate in `report`."""
    profile = PROFILES[settings.coords]
    sizes = [image.size for image in row.sample.images]
    names = [(ref.path, size) for ref, size in zip(row.refs, sizes, strict=True)]
    scope = Options().scope(report, row.where, *names)
    for item in items:
        if len(scope.regions) == settings.max_regions:
            scope.note("left out: more boxes than max_regions")
            continue
        with scope.entry():
            index = 0 if len(sizes) == 1 else get(item, "image", int, "region") - 1
            if not 0 <= index < len(sizes):
                raise DataError(f"image: expected a number from 1 to {len(sizes)}, got {index + 1}")
            values = expect(item, dict, "region").get(profile.key)
            profile.check(values)
            coords = profile.coords(profile.sent_size(sizes[index], settings.max_side))
            scope.add(label=item.get("label"), box=values, coords=coords, image=index)
    if not scope.regions:
        fates = ", ".join(f"{number} {fate}" for fate, number in sorted(report.objects.items()))
        raise Unusable("no usable box", f"reply: expected a box that can be drawn, got {fates}")
    return tuple(scope.regions)


async def _recheck(
    parts: Sequence[Any], row: Row, settings: Settings, asker: Asker
) -> tuple[Sequence[Any], str, dict[str, Any]]:
    """The second call: what is left of `parts`, the fate, and what was said. Raises Fate if nothing may stay."""
    sample, answer = row.sample, row.sample.answer or ""
    profile, version = PROFILES[settings.coords], prompts.VERSIONS[f"recheck_{settings.kind}"]
    if settings.kind == "boxes":
        shown = tuple(_picture(row, index, settings, parts) for index in range(len(row.refs)))
        messages = prompts.ask_recheck_boxes(sample.question, answer, len(shown), parts)
    else:
        shown = tuple(_picture(row, index, settings) for index in range(len(row.refs)))
        messages = prompts.ask_recheck_hints(sample.question, answer, len(shown), parts)
    schema = prompts.schema(version, profile, many=False)
    request = Request(prompt=version, messages=messages, pictures=shown, schema=schema, about=sample.id)
    try:
        verdict, _ = await asker.ask(request, lambda reply: replies.parse_verdict(reply, settings.kind, len(parts)))
    except Unusable as error:
        raise Fate("dropped:re-check unreadable", str(error)) from None
    kept = [part for number, part in enumerate(parts, start=1) if number not in judge(verdict, settings)]
    said = vars(verdict) | {"prompt": version, "model": settings.model, "removed": len(parts) - len(kept)}
    said = {name: value for name, value in said.items() if name not in ("bad", "loose")}
    if not kept:
        raise Fate("dropped:re-check: drop", verdict.reason)
    return kept, "kept" if len(kept) == len(parts) else "fixed", said


def judge(verdict: Verdict, settings: Settings) -> frozenset[int]:
    """The numbers of the parts that must go. Raises Fate if all of p must.

    A verdict is not taken against its own particulars: `keep` with a bad part is a fix; `fix` that names nothing bad
    takes away boxes that are too large, and if there are none either, nobody knows what is wrong.
    """
    if verdict.states_answer:
        raise Fate("dropped:re-check: states the answer", verdict.reason)
    if verdict.implies_answer and not settings.keep_implied:
        raise Fate("dropped:re-check: implies the answer", verdict.reason)
    if verdict.verdict == "drop":
        raise Fate("dropped:re-check: drop", verdict.reason)
    if not verdict.complete:
        raise Fate("dropped:re-check: incomplete", verdict.reason)
    if verdict.verdict == "fix" and not verdict.bad:
        if not verdict.loose:
            raise Fate("dropped:re-check: drop", f"fix, but nothing to take away: {verdict.reason}")
        return verdict.loose
    return verdict.bad


def _picture(row: Row, index: int, settings: Settings, regions: Sequence[Region] = ()) -> Picture:
    """One image of the row as it is sent, with the boxes of `regions` drawn on it, numbered over all images."""
    image, ref = row.sample.images[index], row.refs[index]
    here = [(number, region.box) for number, region in enumerate(regions, start=1) if region.image == index]
    size = PROFILES[settings.coords].sent_size(image.size, settings.max_side)
    if not here:
        return Picture(lambda: image, size, ref.sha256 or "")
    draw = functools.partial(draw_boxes, image, [box for _, box in here], [number for number, _ in here])
    return Picture(draw, size, f"{ref.sha256} {json.dumps(here)}")
