"""The facts of one row, as JSON values. Each image is decoded once; whatever is wrong with a row is its `error`."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..builders import Builder, PrivilegedBlock, discloses
from ..checks import Dropped, Duplicates, check_placement, doubts
from ..geometry import clamp_box
from ..images import image_source, inspect_image
from ..leaks import find_leaks, form, grade
from ..records import PrivilegedRecord, Sample
from ..rows import image_sources, to_sample
from ..views import View, build_views

Facts = dict[str, Any]

LONGEST = 400
"""Characters of a question or answer that are kept for the report."""


def audit_row(
    row: dict[str, Any],
    default_id: str,
    root: Path,
    *,
    builder: Builder,
    count_tokens: Callable[[View], int] | None = None,
    reference: str = "solution",
    placement: str = "before_question",
) -> Facts:
    """All that the report needs to know about one row; nothing here decides whether it is kept.

    `count_tokens` counts a view as the model's processor would. `reference` names the column with a worked solution,
    if there is one. Never raises: a row that cannot be read or built has an `error`, and the facts found before it.
    """
    facts: Facts = {"id": str(row.get("id") or default_id), "kind": str(row.get("kind") or ""), "error": None}
    try:
        sample = to_sample(row, default_id, root)
        facts |= _identity(sample) | {"images": _images(row, sample, root)} | _regions(sample) | _origin(sample)
        facts |= _prompts(sample, builder, count_tokens, row.get(reference), placement)
    except Exception as error:  # of somebody else's builder, or a row without question: one bad row is one row
        message = " ".join(str(error).split()) or type(error).__name__
        facts["error"] = message[:LONGEST] if isinstance(error, ValueError) else f"{type(error).__name__}: {message}"
    return facts


def fingerprint_row(row: dict[str, Any], default_id: str, root: Path) -> Facts:
    """What tells whether another file holds the same row: the question and the images. Never raises."""
    facts: Facts = {"id": str(row.get("id") or default_id), "error": None}
    try:
        sample = to_sample(row, default_id, root)
        facts |= _identity(sample) | {"images": _images(row, sample, root)}
    except Exception as error:
        facts["error"] = " ".join(str(error).split())[:LONGEST]
    return facts


def dhash(image: Image.Image) -> str:
    """Perceptual hash: 64 bits as hexadecimal digits, one for each pair of neighbours in 9 x 8 grey cells.

    A bit says whether it gets brighter to the right, so size, compression and brightness hardly matter; a flat image
    has none set. D. Krawetz, "Kind of like that" (2013).
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX))
    return np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes().hex()


def cells(image: Image.Image) -> str:
    """Mean colours of 8 x 8 cells in 16 levels, a hexadecimal digit each: what tells images of one hash apart."""
    return "".join(f"{level:x}" for level in np.asarray(image.resize((8, 8), Image.Resampling.BOX)).ravel() // 16)


def _identity(sample: Sample) -> Facts:
    plain = " ".join(unicodedata.normalize("NFKC", sample.question).casefold().split())
    return {
        "id": sample.id,
        "question": sample.question[:LONGEST],
        "answer": None if sample.answer is None else sample.answer[:LONGEST],
        "question_key": hashlib.sha256(plain.encode("utf-8", "replace")).hexdigest()[:16],
        "form": form(sample.question, sample.answer),
    }


def _images(row: dict[str, Any], sample: Sample, root: Path) -> list[Facts]:
    found = []
    for source, image in zip(image_sources(row), sample.images, strict=True):
        header = inspect_image(image_source(source, "images"), root, digest=True)
        found.append(
            {
                "size": list(image.size),
                "mode": header.mode,
                "format": header.format,
                "orientation": header.orientation,
                "notes": list(header.notes),
                "sha256": header.sha256,
                "dhash": dhash(image),
                "cells": cells(image),
            }
        )
    return found


def _regions(sample: Sample) -> Facts:
    """Regions per image, shares and aspects of what is left of the boxes, and what is odd about them."""
    regions = sample.privileged.regions if sample.privileged else ()
    flags: Counter[str] = Counter()
    seen = [Duplicates() for _ in sample.images]
    shares, aspects = [], []
    for region in regions:
        if region.image >= len(sample.images):
            flags["no such image"] += 1
            continue
        width, height = sample.images[region.image].size
        try:
            check_placement(region.box, width, height)
        except Dropped as error:
            flags[error.reason] += 1
            continue
        box = clamp_box(region.box, width, height)
        flags.update(doubts(region.label, box, width, height))
        flags["clipped"] += box != region.box or bool(region.extra.get("clipped"))
        flags["duplicate"] += seen[region.image].add(region.label, box)
        shares.append(round((box[2] - box[0]) * (box[3] - box[1]) / (width * height), 6))
        aspects.append(round((box[2] - box[0]) / (box[3] - box[1]), 4))
    labels = Counter(region.label for region in regions)
    return {
        "regions": [sum(region.image == index for region in regions) for index in range(len(sample.images))],
        "area": shares,
        "aspect": aspects,
        "flags": {flag: number for flag, number in sorted(flags.items()) if number},
        "labels": dict(sorted(labels.items())),
        "scripts": dict(sorted(Counter(_script(region.label) for region in regions).items())),
    }


def _script(label: str) -> str:
    """What most letters of `label` are written in: LATIN, CJK, THAI, ...; `none` without letters."""
    names = [unicodedata.name(c, "UNKNOWN").partition(" ")[0] for c in label[:200] if c.isalpha()]
    return min(names, key=lambda name: (-names.count(name), name)) if names else "none"


def _origin(sample: Sample) -> Facts:
    """Where p came from and what a re-check said, as far as the record tells."""
    extra = sample.privileged.extra if sample.privileged else {}
    origin, checks = extra.get("origin"), extra.get("checks")
    words = [
        str(origin[key]) for key in ("how", "model", "prompt", "format") if isinstance(origin, dict) and origin.get(key)
    ]
    recheck = checks.get("recheck") if isinstance(checks, dict) else None
    return {
        "origin": " ".join(words)[:80],
        "recheck": str(recheck.get("verdict") or "")[:20] if isinstance(recheck, dict) else "",
    }


def _prompts(
    sample: Sample, builder: Builder, count_tokens: Callable[[View], int] | None, reference: Any, placement: str
) -> Facts:
    seen = _Seen(builder)
    views = build_views(sample, seen, placement)  # type: ignore[arg-type]  # it discloses what the one inside does
    plain, privileged = views.plain, views.privileged
    hits = find_leaks(
        sample.question,
        sample.answer,
        seen.block.audit_text,
        _disclosed(sample.privileged, seen.block),
        reference if isinstance(reference, str) else None,
    )
    return {
        "empty": not views.has_privilege,
        "left_out": seen.block.left_out,
        "pictures": len(privileged.images),
        "chars": [_chars(plain), _chars(privileged)],
        "tokens": [count_tokens(view) if count_tokens else None for view in (plain, privileged)],
        "hits": [asdict(hit) | {"grade": int(hit.grade)} for hit in hits],
        "grade": int(grade(hits)),
    }


class _Seen:
    """A builder that remembers its last block, so that the block which the view shows is the one that is audited."""

    def __init__(self, builder: Builder) -> None:
        self.builder, self.block = builder, PrivilegedBlock()
        self.discloses = discloses(builder)

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        self.block = self.builder.build(sample, record)
        return self.block


def _disclosed(record: PrivilegedRecord | None, block: PrivilegedBlock) -> PrivilegedRecord | None:
    """`record` with the regions that `block` shows: all if it holds pictures, else those whose label it writes."""
    if record is None or block.replace_images or any(not isinstance(part, str) for part in block.parts):
        return record
    written = Counter(block.audit_text)
    shown = []
    for region in record.regions:
        if written[region.label]:
            written[region.label] -= 1
            shown.append(region)
    return replace(record, regions=tuple(shown))


def _chars(view: View) -> int:
    parts = [part for message in view.messages for part in message["content"]]
    return sum(len(part.get("text", "")) for part in parts)


def to_json(facts: Facts) -> str:
    """One line; the same facts give the same bytes."""
    return json.dumps(facts, ensure_ascii=True, sort_keys=True)
