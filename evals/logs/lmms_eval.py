"""lmms-eval 0.7.3: `DATE_samples_TASK.jsonl`, written with `--log_samples`.

The row of the data set (`doc`) is dropped before writing. Left are the prompt (`input`), the gold (`target`), the reply
(`filtered_resps`, and `resps` where a filter changed it) and what the task computed under the names of its metrics,
which tells the tasks apart: options are read from the prompt, types and ids from those. Logs with `doc` are read too.
"""

from __future__ import annotations

from typing import Any

from .files import Row, listed

NAME = "lmms-eval"
LAST_COUNTS = False

METRICS = {
    "mmstar": "average",
    "realworldqa": "exact_match",
    "mathvision": "mathvision_standard_eval",
    "dynamath": "dynamath_average",
    "logicvista": "acc_score",
    "mmmu": "mmmu_acc",
    "mmmu_pro": "mmmu_acc",
    "vsibench": "vsibench_overall",
}
"""A metric that the rows of a benchmark's own task hold. Other tasks over the same data are not told apart."""

_ENDINGS = ("Answer with the option letter only.",)
"""Instructions that are put behind the last option without a line break."""


def claims(row: Row) -> bool:
    """Whether a row is of this toolkit."""
    return "doc_id" in row and "filtered_resps" in row


def convert(row: Row, benchmark: str) -> Row:
    """The row in our form. Raises ValueError with one line if it is of another task or holds several replies."""
    where = f"row {row['doc_id']!r}"
    doc = row.get("doc")
    record = doc if isinstance(doc, dict) else _recovered(row, benchmark, where)
    return {"id": row["doc_id"], "record": record, "response": _reply(row, where)}


def _reply(row: Row, where: str) -> str:
    reply = row.get("resps", row["filtered_resps"])
    while isinstance(reply, list) and len(reply) == 1:
        reply = reply[0]
    if not isinstance(reply, str):
        got = f"{len(reply)} of them" if isinstance(reply, list) else type(reply).__name__
        raise ValueError(f"{where}: resps: expected the text of one reply, got {got}")
    return reply


def _recovered(row: Row, benchmark: str, where: str) -> dict[str, Any]:
    metric = METRICS.get(benchmark)
    if metric is None:
        raise ValueError(f"{where}: this log holds no `doc`, and no task of lmms-eval is known for {benchmark!r}")
    if metric not in row:
        raise ValueError(
            f"{where}: expected lmms-eval's own task of {benchmark}, whose rows hold {metric!r}, got a row with "
            f"{', '.join(sorted(row))[:200]}"
        )
    prompt, gold = row.get("input"), row.get("target")
    if not isinstance(prompt, str) or not isinstance(gold, str):
        raise ValueError(f"{where}: expected the prompt in `input` and the gold in `target`, got other types")
    for ending in _ENDINGS:
        prompt = prompt.removesuffix(ending)
    told = row[metric] if isinstance(row[metric], dict) else {}
    match benchmark:
        case "vsibench":
            return dict(told)
        case "mmmu" | "mmmu_pro":
            return _mmmu(told, prompt, benchmark, where)
        case "mathvision":
            _, found, options = prompt.rpartition("\nChoices: ")
            return {"answer": gold, "options": listed(options, ".") if found else []}
        case "dynamath":
            return {"question": prompt, "ground_truth": gold}
    return {"question": prompt, "answer": gold}


def _mmmu(told: Row, prompt: str, benchmark: str, where: str) -> dict[str, Any]:
    kind = told.get("question_type")
    if (kind is None) != (benchmark == "mmmu_pro"):
        raise ValueError(f"{where}: expected a log of {benchmark}, got one of {'mmmu' if kind else 'mmmu_pro'}")
    options = listed(prompt, ".") if kind != "open" else []
    record = {"answer": told.get("answer"), "question_type": kind}
    # The vision setting shows options in the picture only, so the log has none.
    return {**record, "options": options} if options or kind == "open" else record
