"""All rows in numbers. The same rows give the same figures, in whatever order and from however many shards."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..leaks import RULES, Grade
from .fates import FATES

EXAMPLES = 5
TOP = 50
FEW = {"0": 0, "1": 1, "2-5": 5, "6-20": 20, ">20": math.inf}
"""Bins of regions per sample: name and highest number."""
SHARES = {
    "<0.1 %": 0.001,
    "0.1-1 %": 0.01,
    "1-5 %": 0.05,
    "5-20 %": 0.2,
    "20-50 %": 0.5,
    "50-95 %": 0.95,
    ">95 %": math.inf,
}
"""Bins of a box's share of its image: name and upper edge."""
ASPECTS = {"<1:4": 0.25, "1:4-1:2": 0.5, "1:2-1:1": 1.0, "1:1-2:1": 2.0, "2:1-4:1": 4.0, ">4:1": math.inf}
"""Bins of width to height."""

Rows = Sequence[dict[str, Any]]


def summarise(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The figures of audited rows: their facts with `fate` and `rules`, and `overlap` if evaluation files are given.

    Shares are in 0..1; percentiles are those of values that occur.
    """
    ordered = sorted(rows, key=lambda row: (row["id"], json.dumps(row, sort_keys=True)))
    sound = [row for row in ordered if "empty" in row]
    return {
        "rows": _fates(ordered),
        "kinds": _groups(ordered, "kind"),
        "forms": _groups(ordered, "form"),
        "regions": _regions(ordered),
        "labels": _labels(ordered),
        "leaks": _leaks(sound),
        "prompts": _prompts(sound),
        "images": _images(ordered),
        "overlap": _overlap(ordered),
        "origin": _counts(row["origin"] or "not told" for row in ordered if "origin" in row),
        "recheck": _counts(row["recheck"] for row in ordered if row.get("recheck")),
    }


def _fates(rows: Rows) -> dict[str, Any]:
    fates = Counter(row["fate"] for row in rows)
    by_rule = {
        fate: _counts(rule for row in rows if row["fate"] == fate for rule in row["rules"]) for fate in FATES[1:]
    }
    errors = [{"id": row["id"], "error": row["error"]} for row in rows if row["error"] is not None]
    ids = Counter(row["id"] for row in rows)
    return {
        "total": len(rows),
        **{fate: fates[fate] for fate in FATES},
        "dropped_by": by_rule["dropped"],
        "warned_by": by_rule["warned"],
        "errors": len(errors),
        "error_examples": errors[:EXAMPLES],
        "repeated_ids": sum(number > 1 for number in ids.values()),
    }


def _groups(rows: Rows, key: str) -> dict[str, Any]:
    """Rows and what is left of them by kind: a filter that drops all of one kind is a bias."""
    groups = {}
    for name in sorted({row.get(key, "") for row in rows}):
        own = [row for row in rows if row.get(key, "") == name]
        left = sum(row["fate"] != "dropped" for row in own)
        grades = Counter(row["grade"] for row in own if "grade" in row)
        groups[name] = {
            "total": len(own),
            "left": left,
            "share": left / len(own),
            "grades": {grade.name.lower(): grades[grade.value] for grade in Grade},
        }
    return groups


def _regions(rows: Rows) -> dict[str, Any]:
    numbers = [sum(row["labels"].values()) for row in rows if "labels" in row]
    total = sum(numbers)
    flags: Counter[str] = Counter()
    for row in rows:
        flags.update(row.get("flags", {}))
    return {
        "total": total,
        "per_row": _binned(numbers, FEW, inclusive=True),
        "area": _binned((share for row in rows for share in row.get("area", ())), SHARES),
        "aspect": _binned((aspect for row in rows for aspect in row.get("aspect", ())), ASPECTS),
        "flags": {flag: {"count": n, "share": n / total} for flag, n in sorted(flags.items())},
        "left_out": sum(row.get("left_out", 0) for row in rows),
        "rows_cut": sum(row.get("left_out", 0) > 0 for row in rows),
    }


def _labels(rows: Rows) -> dict[str, Any]:
    labels: Counter[str] = Counter()
    scripts: Counter[str] = Counter()
    for row in rows:
        labels.update(row.get("labels", {}))
        scripts.update(row.get("scripts", {}))
    top = sorted(labels.items(), key=lambda item: (-item[1], item[0]))[:TOP]
    return {
        "distinct": len(labels),
        "once": sum(number == 1 for number in labels.values()),
        "top": [list(item) for item in top],
        "scripts": dict(sorted(scripts.items(), key=lambda item: (-item[1], item[0]))),
        "too_long": sum(row.get("flags", {}).get("long label", 0) for row in rows),
    }


def _leaks(rows: Rows) -> dict[str, Any]:
    """By rule (strong and weak hits, examples), and rows by the worst grade of each."""
    found: dict[str, list[dict[str, Any]]] = {rule: [] for rule in RULES}
    for row in rows:
        for hit in row["hits"]:
            example = {key: row[key] for key in ("id", "kind", "question", "answer")}
            found[hit["rule"]].append(hit | example)
    grades = Counter(row["grade"] for row in rows)
    return {
        "grades": {grade.name.lower(): grades[grade.value] for grade in Grade},
        "without_answer": sum(row["answer"] is None for row in rows),
        "rules": {
            rule: {
                "hits": len(hits),
                "weak": sum(hit["weak"] for hit in hits),
                "grades": {grade.name.lower(): sum(hit["grade"] == grade for hit in hits) for grade in list(Grade)[1:]},
                "kinds": _counts(hit["kind"] for hit in hits),
                "examples": sorted(hits, key=lambda hit: (hit["weak"], -hit["grade"], hit["id"]))[:EXAMPLES],
            }
            for rule, hits in found.items()
        },
    }


def _prompts(rows: Rows) -> dict[str, Any]:
    """Lengths of both prompts, and of what p adds; tokens only where they were counted."""
    figures: dict[str, Any] = {"empty": sum(row["empty"] for row in rows), "rows": len(rows)}
    for unit in ("chars", "tokens"):
        pairs = [row[unit] for row in rows if row[unit][0] is not None]
        figures[unit] = {
            "plain": _percentiles([plain for plain, _ in pairs]),
            "privileged": _percentiles([privileged for _, privileged in pairs]),
            "p": _percentiles([privileged - plain for plain, privileged in pairs]),
        }
    return figures


def _images(rows: Rows) -> dict[str, Any]:
    images = [image for row in rows for image in row.get("images", ())]
    digests = Counter(image["sha256"] for image in images)
    asked = Counter(
        (row["question_key"], *(image["sha256"] for image in row["images"])) for row in rows if "images" in row
    )
    return {
        "total": len(images),
        "distinct": len(digests),
        "per_row": _counts(str(len(row["images"])) for row in rows if "images" in row),
        "modes": _counts(image["mode"] for image in images),
        "formats": _counts(image["format"] for image in images),
        "notes": _counts(note for image in images for note in image["notes"]),
        "pixels": _percentiles([image["size"][0] * image["size"][1] for image in images]),
        "longer_side": _percentiles([max(image["size"]) for image in images]),
        "repeated_rows": sum(number - 1 for number in asked.values()),
    }


def _overlap(rows: Rows) -> dict[str, Any] | None:
    """None where no evaluation file was compared."""
    compared = [row for row in rows if "overlap" in row]
    if not compared:
        return None
    pairs = [
        {"id": row["id"], "what": what, "other": other} for row in compared for what, other in row["overlap"].items()
    ]
    named = ("same image", "near image", "same question")
    return {
        **{name: sum(pair["what"] == name for pair in pairs) for name in named},
        "examples": [pair for name in named for pair in [p for p in pairs if p["what"] == name][:EXAMPLES]],
    }


def _counts(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items(), key=lambda item: (-item[1], item[0])))


def _binned(values: Iterable[float], bins: dict[str, float], inclusive: bool = False) -> dict[str, int]:
    counts = dict.fromkeys(bins, 0)
    fits: Callable[[float, float], bool] = (lambda v, edge: v <= edge) if inclusive else (lambda v, edge: v < edge)
    for value in values:
        counts[next(name for name, edge in bins.items() if fits(value, edge) or edge == math.inf)] += 1
    return counts


def _percentiles(values: Sequence[int]) -> dict[str, int] | None:
    """p50, p95 and max, each a value that occurs; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return {f"p{q}": ordered[math.ceil(q / 100 * len(ordered)) - 1] for q in (50, 95)} | {"max": ordered[-1]}
