"""evalscope 1.14.1: `reviews/MODEL/BENCHMARK_SUBSET.jsonl`, one row a judged reply.

A row holds the messages, the accepted golds, and under `sample_score` the raw reply and some columns of the data set.
Options are read from the prompt. The files under `predictions/` hold no gold. DynaMath and VSI-Bench it does not have.
"""

from __future__ import annotations

from typing import Any

from ..questions import options_in
from .files import Row, listed

NAME = "evalscope"
LAST_COUNTS = True
"""A question that was asked again is appended; evalscope takes the last row."""

_SIGNS = {
    "l2_category": "mmstar",
    "subfield": "mmmu",
    "solution": "mathvision",
    "subject": "mmmu_pro",
    "image_path": "realworldqa",
}
"""Columns by which a benchmark shows, the telling ones first. LogicVista's rows have none of them."""


def claims(row: Row) -> bool:
    """Whether a row is of this toolkit."""
    return "index" in row and ("sample_score" in row or "model_output" in row)


def convert(row: Row, benchmark: str) -> Row:
    """The row in our form. Raises ValueError with one line if it has no gold or is of another benchmark."""
    where = f"row {row['index']!r}"
    if "sample_score" not in row:
        raise ValueError(f"{where}: predictions of evalscope hold no gold: read the file of this name under reviews/")
    judged = _mapping(row, "sample_score", where)
    told = judged.get("sample_metadata") or {}
    golds = row.get("target")
    golds = [golds] if isinstance(golds, str) else golds
    if not isinstance(told, dict) or not isinstance(golds, list) or not golds or not isinstance(golds[0], str):
        raise ValueError(f"{where}: expected golds in `target` and columns in `sample_metadata`, got other types")
    shown = next((name for column, name in _SIGNS.items() if column in told), "logicvista")
    if told and shown != benchmark:
        raise ValueError(f"{where}: expected a log of {benchmark}, got one that looks like {shown}")
    prompt = _prompt(row)
    record = _record(golds, prompt, told, benchmark)
    reply = _mapping(judged, "score", where).get("prediction")
    return {"id": row["index"], "record": record, "response": _said(row) if reply is None else reply}


def _record(golds: list[str], prompt: str, told: Row, benchmark: str) -> dict[str, Any]:
    gold = golds[0]
    match benchmark:
        case "realworldqa" if gold.upper() in (options_in(prompt) or {}):
            return {"question": prompt, "answer": gold.upper()}  # evalscope lower-cases it
        case "mathvision" | "mmmu":
            kind = told.get("question_type")
            if kind in ("open", "free_form"):
                return {"answer": gold, "options": [], "question_type": kind}
            return {"answer": gold, "options": listed(prompt, ")") if kind else None, "question_type": kind}
        case "mmmu_pro":
            return {"answer": gold, "options": listed(prompt, ")") or None}
        case "logicvista":
            return {"answer": ", ".join(gold)}  # "AC" for "A, C"
    return {"question": prompt, "answer": gold}


def _mapping(row: Row, name: str, where: str) -> Row:
    value = row.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {name}: expected an object, got {type(value).__name__}")
    return value


def _messages(row: Row, role: str) -> list[str]:
    """Texts of the messages of a role, images as `<image>`."""
    messages = row.get("messages")
    found = [m for m in messages if isinstance(m, dict) and m.get("role") == role] if isinstance(messages, list) else []
    return [_flat(message.get("content")) for message in found]


def _flat(content: Any) -> str:
    if not isinstance(content, list):
        return str(content or "")
    text = ""
    for part in content:
        if isinstance(part, dict) and part.get("type") == "text":
            text += str(part.get("text"))
        elif isinstance(part, dict) and part.get("type") == "image":
            # In its place behind "B) ", or added behind a whole prompt, where it must not join the last option.
            text += "<image>" if text[-1:].isspace() else "\n<image>"
    return text


def _prompt(row: Row) -> str:
    asked = _messages(row, "user")
    old = row.get("input")
    return asked[0] if asked else old if isinstance(old, str) else ""


def _said(row: Row) -> str | None:
    replies = _messages(row, "assistant")
    return replies[-1] if replies else None
