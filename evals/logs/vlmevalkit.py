"""VLMEvalKit, as ms-vlmeval 0.0.20 packages it: `MODEL_DATASET.xlsx`, `.tsv` or `.json` (PRED_FORMAT), the rows of its
own data set tables with a column `prediction`; the tables that it writes while it evaluates hold these and more.

Those data set tables keep options in columns A, B, C … of their own. Pickles, which it falls back to, are not read.
"""

from __future__ import annotations

import math
from typing import Any

from ..benchmarks.mmmu import as_list
from ..questions import LETTERS, options_in
from .files import Row

NAME = "VLMEvalKit"
LAST_COUNTS = False

FAILED = "Failed to obtain answer"
"""What stands in place of a reply where the request failed."""
OTHER = "Other Answers"
"""Option B of an open MMMU question, which its evaluation turns into a choice between this and the gold."""


def claims(row: Row) -> bool:
    """Whether a row is of this toolkit."""
    return "index" in row and "prediction" in row


def convert(row: Row, benchmark: str) -> Row | None:
    """The row in our form; None for MMMU's development questions, which share its table with the validation split."""
    cells = {name: _text(value) for name, value in row.items()}
    if benchmark == "mmmu" and cells.get("split") == "dev":
        return None
    reply = cells["prediction"] or ""
    response = None if reply.startswith(FAILED) else reply
    try:
        return {"id": cells["index"], "record": _record(cells, benchmark), "response": response}
    except ValueError as error:
        raise ValueError(f"row {cells['index']!r}: {error}") from None


def _text(value: Any) -> str | None:
    """The text of a cell, None if it is empty. A spreadsheet has numbers, JSON has NaN for an empty cell."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def _record(cells: dict[str, str | None], benchmark: str) -> dict[str, Any]:
    options = _options(cells)
    answer = cells.get("answer")
    match benchmark:
        case "mmstar" | "realworldqa":
            return {"answer": answer, "question": _spelt_out(cells.get("question") or "", options)}
        case "mmmu" if not options or options.get("B") == OTHER:
            return {"answer": options.get("A", answer), "options": [], "question_type": "open"}
        case "mmmu":
            return {"answer": answer, "options": list(options.values()), "question_type": "multiple-choice"}
        case "mmmu_pro":
            return {"answer": answer, "options": list(options.values()) or None}
        case "mathvision":
            return {"answer": answer, "options": _listed(cells, "choices") if "choices" in cells else None}
        case "dynamath":
            return {**cells, "ground_truth": answer}
        case "logicvista":
            # One item has a blank gold; a table without the skills is of another benchmark.
            return {"answer": (answer or "") if "skill" in cells else None}
        case "vsibench":
            return {
                **cells,
                "ground_truth": cells.get("ground_truth") or answer,
                "options": _listed(cells, "candidates"),
            }
    return dict(cells)


def _options(cells: dict[str, str | None]) -> dict[str, str]:
    found: dict[str, str] = {}
    for letter in LETTERS:
        text = cells.get(letter)
        if text is None:
            break
        found[letter] = text
    return found


def _listed(cells: dict[str, str | None], column: str) -> list[Any]:
    return as_list(cells.get(column) or "[]", column)


def _spelt_out(question: str, options: dict[str, str]) -> str:
    """A question that names its options in its text, as the benchmark's own data set does."""
    spelt = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    for text in (f"{question}\n{spelt}", spelt):
        if options_in(text) == {letter: option.strip(" \n,;.") for letter, option in options.items()}:
            return text
    return f"{question}\n{spelt}" if spelt else question
