"""Rows of a training file that an evaluation file has too: same image, nearly the same image, same question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

NEAR = 4
"""Bits of 64 in which the hashes of two copies may differ. Scaling, recompression and small edits flip a few; two
unrelated hashes differ in 32 ± 4 on average, and of 10^9 pairs of random ones, 0.00004 come this close."""
LEVELS = 2
"""Of 16, in which each mean colour of 8 x 8 cells may differ. The hash alone takes two drawings, or two pages of print,
for the same: most of their cells are background. Copies differ by one level, other content by many in some cell."""
BLOCK = 1 << 14
"""Hashes compared at once: what fits the cache of a core."""


def mark_overlap(facts: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`facts` with `overlap`: which of `same image`, `near image`, `same question` hold, and with which row.

    `others` are the facts, or fingerprints, of the evaluation rows. The first of them in the order of ids is named.
    """
    others = sorted((row for row in others if "images" in row), key=lambda row: row["id"])
    questions: dict[str, str] = {}
    digests: dict[str, str] = {}
    for row in others:
        questions.setdefault(row["question_key"], row["id"])
        for image in row["images"]:
            digests.setdefault(image["sha256"], row["id"])
    near = _near_images(facts, others)
    marked = []
    for row in facts:
        images = row.get("images", ())
        found = {
            "same image": next((digests[i["sha256"]] for i in images if i["sha256"] in digests), None),
            "near image": next((near[i["sha256"]] for i in images if i["sha256"] in near), None),
            "same question": questions.get(row.get("question_key", "")),
        }
        if found["same image"] is not None:
            found["near image"] = None
        marked.append(row | {"overlap": {name: other for name, other in found.items() if other is not None}})
    return marked


def _near_images(facts: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> dict[str, str]:
    """sha256 of an image of `facts` -> the first row of `others` with one that is nearly the same."""
    mine, theirs = _by_hash(facts), _by_hash(others)
    ours, hashes = sorted(mine), sorted(theirs)
    near: dict[str, str] = {}
    for a, b in near_pairs(ours, hashes):
        ids = list(theirs[hashes[b]].values())
        levels = np.array([_levels(image["cells"]) for _, image in ids])
        for digest, (_, image) in mine[ours[a]].items():
            close = np.flatnonzero((abs(levels - _levels(image["cells"])) <= LEVELS).all(axis=1))
            if len(close):
                near[digest] = min(near.get(digest, ids[close[0]][0]), ids[close[0]][0])
    return near


def _by_hash(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[str, dict[str, Any]]]]:
    """dhash -> sha256 -> (id of the first row, image)."""
    found: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {}
    for row in rows:
        for image in row.get("images", ()):
            found.setdefault(image["dhash"], {}).setdefault(image["sha256"], (row["id"], image))
    return found


def _levels(cells: str) -> np.ndarray:
    return np.array([int(level, 16) for level in cells], dtype=np.int8)


def near_pairs(mine: Sequence[str], theirs: Sequence[str], distance: int = NEAR) -> Iterator[tuple[int, int]]:
    """Places (in `mine`, in `theirs`) of 64-bit hashes that differ in at most `distance` bits, in order of `theirs`.

    All pairs are compared, a block at a time: 100,000 x 10,000 take seconds and a megabyte. Hashes within reach of
    the empty one are left out: flat images are near each other whatever they show.
    """
    a, b = (np.array([int(h, 16) for h in hashes], dtype=np.uint64) for hashes in (mine, theirs))
    kept = np.flatnonzero(_bits(a) > distance)
    a = a[kept]
    for place in np.flatnonzero(_bits(b) > distance):
        for start in range(0, len(a), BLOCK):
            for hit in np.flatnonzero(_bits(a[start : start + BLOCK] ^ b[place]) <= distance):
                yield int(kept[start + hit]), int(place)


def _bits(values: np.ndarray) -> np.ndarray:
    """Set bits of each uint64, added up in pairs, then fours, then bytes (numpy has a function for it from 2.0 on)."""
    one, two, four = (np.uint64(mask) for mask in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F))
    values = values - ((values >> np.uint64(1)) & one)
    values = (values & two) + ((values >> np.uint64(2)) & two)
    values = (values + (values >> np.uint64(4))) & four
    return (values * np.uint64(0x0101010101010101)) >> np.uint64(56)
