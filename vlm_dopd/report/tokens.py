"""The saved token samples of a run -> `tokens.html`: every token coloured by its regime, its figures on demand.

The page is one file with one script of ours (`tokens.js`), which a content security policy names by its hash: nothing
else can run. Texts of the data set and of models reach it as JSON and are only ever shown as text.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from evals.printable import printable
from privileged.errors import DataError

from .charts import OTHERS, REGIMES
from .overlay import marks, widest

FOLDER = "tokens"
PAGE = "tokens.html"
LARGEST = 4_900_000
"""Bytes of a page. What does not fit is left out of it, and the page says so; the files have all."""
PICTURES = 1_500_000
"""Bytes of its pictures, of those."""
SIDES = (480, 320, 240, 160, 100)
"""px of a picture; the first at which all fit."""
SMALL = 12_000
"""Bytes up to which a picture is taken as it is."""
CANDIDATES = ((8, 0.001), (6, 0.005), (4, 0.01), (3, 0.02), (2, 0.05), (1, 1.0))
"""Of a token: how many, the sampled one included, and how likely one must be to any role. The first at which all
responses fit. The last is none."""
TRIED = 12
"""Pictures from which the size of all is told."""
LONGEST = 4000
"""Characters of a question, answer or p on the page."""

ROLES = {
    "student_plain": "student",
    "student_privileged": "student with p",
    "teacher_privileged": "teacher with p",
    "teacher_plain": "teacher",
}
_FILE = re.compile(r"[0-9a-f]{20}\.(png|jpg)")
_FIELDS = (
    "step",
    "sample",
    "question",
    "pictures",
    "token",
    "component",
    "components",
    "logp",
    "entropy",
    "candidates",
)


def write_tokens(run: Path) -> Path | None:
    """Write `run/tokens.html` from `run/tokens/`; None if the run kept no token samples. The same files give the same
    bytes. Raises DataError, with file and line, for one that is not as `token_files.py` writes it.
    """
    rows = read_rows(run / FOLDER)
    if not rows:
        return None
    found, pictures = len(rows), _pictures(run / FOLDER, rows)
    limit = _limit(rows, LARGEST - len(_page(rows, pictures, CANDIDATES[-1])))
    page = _page(rows, pictures, limit)
    while len(page) > LARGEST and (limit != CANDIDATES[-1] or len(rows) > 1):
        if limit != CANDIDATES[-1]:
            limit = CANDIDATES[CANDIDATES.index(limit) + 1]
        else:
            rows = rows[::2]
        page = _page(rows, pictures, limit, left_out=found - len(rows))
    (run / PAGE).write_bytes(page)
    return run / PAGE


def _limit(rows: Sequence[dict[str, Any]], room: int) -> tuple[int, float]:
    """The first of CANDIDATES that takes no more than `room` bytes, more or less."""
    # A word in 15 bits, a probability a role in 10, a tenth more, in base 64.
    size = {id(row): 1.1 * (15 + 10 * len(row.get("roles", ()))) / 6 for row in rows}
    for limit in CANDIDATES[:-1]:
        if sum(size[id(row)] * len(_others(one, *limit)) for row in rows for one in row["candidates"]) <= room:
            return limit
    return CANDIDATES[-1]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All responses, by step."""
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            try:
                row = json.loads(line)
                if missing := [name for name in _FIELDS if name not in row]:
                    raise ValueError(f"no field {missing[0]!r}")
            except (ValueError, TypeError) as error:
                raise DataError(f"{path} line {number}: expected a token sample, got {line[:40]!r} ({error})") from None
            rows.append(row)
    return rows


def legend(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What a token can be, in order: a regime of DOPD, a component of another method, or without loss."""
    names = list(dict.fromkeys(part["name"] for row in rows for part in row["components"]))
    used = {name for row in rows for name in row["component"]}
    found = []
    for name in names:
        if name in REGIMES:
            if name in used:
                found.append({"code": name, "label": REGIMES[name], "paint": name, "style": name})
        else:
            place = sum(one["style"].startswith("other") for one in found)
            other = OTHERS[place % len(OTHERS)]
            found.append({"code": printable(name), "label": "this method's loss", "paint": other, "style": other})
    if None in used:
        found.append({"code": "–", "label": "no loss", "paint": "", "style": "none"})
    return found


def _page(
    rows: Sequence[dict[str, Any]], pictures: dict[str, str], limit: tuple[int, float], left_out: int = 0
) -> bytes:
    keys = legend(rows)
    words: dict[str, int] = {}
    roles = list(dict.fromkeys(role for row in rows for role in (*ROLES, *row["logp"]) if role in row["logp"]))
    order = {name: place for place, name in enumerate(pictures)}
    columns = [_columns(row, keys, words, limit) for row in rows]  # fills `words`
    packed = json.dumps(
        {"words": [printable(word, lines=True) for word in words], "columns": columns}, separators=(",", ":")
    )
    data = {
        "legend": keys,
        "roles": {role: ROLES.get(role, role.replace("_", " ")) for role in roles},
        "steps": sorted({row["step"] for row in rows}),
        "pictures": list(pictures.values()),
        "responses": [_head(row, order) for row in rows],
        # As JSON it is a few times the limit of the page.
        "packed": base64.b64encode(gzip.compress(packed.encode(), 6, mtime=0)).decode("ascii"),
    }
    script = (Path(__file__).parent / "tokens.js").read_text(encoding="utf-8")
    page = _environment().get_template("tokens.html.jinja").render(
        data=_safe_json(data),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode("ascii"),
        legend=keys,
        steps=data["steps"],
        count=len(rows),
        left_out=left_out,
        candidates=limit[0],
        least=limit[1],
    )  # fmt: skip
    return page.encode("utf-8", errors="replace")


def _head(row: dict[str, Any], order: dict[str, int]) -> dict[str, Any]:
    gaps = gaps_of(row)
    shown = [name for name in (picture["file"] for picture in row["pictures"]) if name in order]
    return {
        "step": row["step"],
        "sample": _short(row["sample"]),
        "question": _short(row["question"]),
        "answer": None if row.get("answer") is None else _short(row["answer"]),
        "p": _short(row.get("p") or ""),
        "sibling": row.get("sibling", 0),
        "truncated": bool(row.get("truncated")),
        "reference": bool(row.get("reference")),
        "reward": row.get("reward"),
        "text": printable("".join(row["token"]), lines=True),
        "mean": round(sum(gaps) / len(gaps), 4) if gaps else None,
        "most": max(gaps, default=None),
        "gap_of": row.get("gap_of"),
        "components": {one["name"]: one for one in row["components"]},
        "pictures": [_place(one, order[one["file"]]) for one in row["pictures"] if one["file"] in shown],
        "missing": len(row["pictures"]) - len(shown),
    }


def gaps_of(row: dict[str, Any]) -> list[float]:
    """Distance of teacher and student on every token, nats; none where a method has no such pair."""
    pair = row.get("gap_of")
    if not pair:
        return []
    student, teacher = (row["logp"][role] for role in pair)
    return [round(abs(t - s), 4) for s, t in zip(student, teacher, strict=True)]


def _place(picture: dict[str, Any], index: int) -> dict[str, Any]:
    size = (int(picture["width"]), int(picture["height"]))
    labels = [printable(box["label"]) for box in picture["boxes"]]
    boxes = [tuple(map(float, box["box"])) for box in picture["boxes"]]
    return {
        "index": index,
        "origin": "a part of p" if picture["origin"] == "p" else "of the question",
        "width": size[0],
        "height": size[1],
        "widest": widest(size),
        "marks": [asdict(mark) for mark in marks(labels, boxes, size)],  # type: ignore[arg-type]
    }


def _columns(
    row: dict[str, Any], keys: list[dict[str, str]], words: dict[str, int], limit: tuple[int, float]
) -> dict[str, Any]:
    """The figures of a response's tokens. Log-probabilities of sampled tokens in thousandths of a nat, the others and
    entropies in hundredths."""
    codes = {key["code"]: place for place, key in enumerate(keys)}

    def word(text: str) -> int:
        return words.setdefault(text, len(words))

    def whole(values: Sequence[float | None], scale: int) -> list[int | None]:
        return [None if value is None else round(scale * value) for value in values]

    return {
        "t": [word(text) for text in row["token"]],
        "r": [codes["–" if name is None else printable(name)] for name in row["component"]],
        "w": row.get("weight", []),
        "l": {role: whole(values, 1000) for role, values in row["logp"].items()},
        "e": {role: whole(values, 100) for role, values in row["entropy"].items()},
        "s": {printable(name): values for name, values in row.get("statistic", {}).items()},
        "of": row.get("roles", []),
        # One flat list a token: word, its values, next word, …
        "k": [
            [number for text, *values in _others(found, *limit) for number in (word(text), *whole(values, 100))]
            for found in row["candidates"]
        ],
    }


def _others(found: Sequence[Sequence[Any]], count: int, least: float) -> list[Sequence[Any]]:
    """The likeliest candidates beside the sampled token, which is the first, in the eyes of any role."""

    def most(one: Sequence[Any]) -> float:
        return max((value for value in one[1:] if value is not None), default=float("-inf"))

    others = [one for one in found[1:] if most(one) >= math.log(least)]
    return sorted(others, key=most, reverse=True)[: count - 1]


def _pictures(folder: Path, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Data URIs by file name, at the largest of SIDES at which all fit. A file that is no picture is left out."""
    names = list(dict.fromkeys(picture["file"] for row in rows for picture in row["pictures"]))
    tried = names[:: max(1, len(names) // TRIED)]
    for side in SIDES:
        if side != SIDES[-1] and _size(folder, tried, side) * len(names) > PICTURES * len(tried):
            continue
        found = {name: uri for name in names if (uri := _uri(folder, name, side))}
        if sum(map(len, found.values())) <= PICTURES:
            return found
    return {}


def _size(folder: Path, names: Sequence[str], side: int) -> int:
    return sum(len(_uri(folder, name, side)) for name in names)


def _uri(folder: Path, name: str, side: int) -> str:
    if not _FILE.fullmatch(name) or not (folder / name).is_file():
        return ""
    data, kind = (folder / name).read_bytes(), "png" if name.endswith("png") else "jpeg"
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image:
            if len(data) > SMALL or max(image.size) > 2 * side:
                small = image.convert("RGB")
                small.thumbnail((side, side))
                stream = io.BytesIO()
                small.save(stream, format="WEBP", quality=65)
                data, kind = stream.getvalue(), "webp"
            else:
                image.load()
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _short(text: object) -> str:
    text = printable(str(text), lines=True)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [… {len(text) - LONGEST:,} more characters]"


def _safe_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in, nor open a comment in it."""
    text = json.dumps(value, allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader(__package__ or "vlm_dopd.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
