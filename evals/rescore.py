"""Scoring saved replies again, offline: rows with `id`, `record` and `response` in, rows with the verdict out.

`record` holds columns of the benchmark's data set. Those that decide what is right have to be there
(`Benchmark.scored_by`); pictures and groups need not. `answer` is understood where the data set says `ground_truth`.
The rows of our own runs are such rows; sample logs of other toolkits are turned into them (`evals.logs`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .benchmarks import Benchmark, example, find
from .logs import read
from .questions import Record

Row = Mapping[str, Any]


def rescore(rows: Iterable[Row], benchmark: str, protocol: str) -> Iterator[dict[str, Any]]:
    """Verdicts of `rows` in their order: `id, parsed, score, parse_ok, fate, method`.

    `truncated: true` in a row marks a reply cut off by its budget, and `response: null` one that never came. Rows of a
    `kind` other than `item` hold no reply and are left out. Raises ValueError with one line for a row that cannot be
    read, or that our run of another benchmark wrote.
    """
    found = find(benchmark)
    found.protocol(protocol)
    template = example(benchmark)[0].row
    for number, row in enumerate(rows, start=1):
        if row.get("kind", "item") != "item":
            continue
        asked = str(row.get("protocol", benchmark)).partition(":")[0]
        if asked != benchmark:
            raise ValueError(f"row {row.get('id', number)!r}: expected a run of {benchmark}, got one of {asked!r:.60}")
        record = _record(row, found, template, number)
        reply = row["response"]
        if reply is not None and not isinstance(reply, str):
            raise ValueError(f"row {record.id!r}: response: expected text or null, got {type(reply).__name__}")
        verdict = found.score(record, reply, protocol, truncated=row.get("truncated") is True)
        yield {
            "id": row["id"],
            "parsed": verdict.parsed,
            "score": verdict.score,
            "parse_ok": verdict.parse_ok,
            "fate": verdict.fate,
            "method": verdict.method,
        }


def rescore_file(source: Path, benchmark: str, protocol: str, out: Path) -> list[dict[str, Any]]:
    """Rescores `source`, such rows or a toolkit's log, into the JSONL file `out`, which appears once it is complete.

    A torn last line of `source`, as a kill leaves it, is left out. Raises ValueError with one line naming file and line
    for anything else that cannot be read.
    """
    if out.resolve() == source.resolve():
        raise ValueError(f"{out}: expected another file than the one that is read")
    try:
        verdicts = list(rescore(read(source, benchmark), benchmark, protocol))
    except OSError as error:
        raise ValueError(f"{source}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if not verdicts:
        raise ValueError(f"{source}: expected rows with id, record and response, got none")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    with part.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(verdict, ensure_ascii=False) + "\n" for verdict in verdicts)
    part.replace(out)
    return verdicts


def _record(row: Row, benchmark: Benchmark, template: Row, number: int) -> Record:
    for name in ("id", "record", "response"):
        if name not in row:
            raise ValueError(f"row {row.get('id', number)!r}: expected id, record and response, got no {name!r}")
    saved = row["record"]
    if not isinstance(saved, dict):
        raise ValueError(f"row {row['id']!r}: record: expected an object, got {type(saved).__name__}")
    if "ground_truth" in benchmark.columns and "ground_truth" not in saved and "answer" in saved:
        saved = {**saved, "ground_truth": saved["answer"]}
    for name in benchmark.scored_by:
        if name not in saved and not benchmark.columns[name].endswith("?"):
            raise ValueError(f"row {row['id']!r}: record: expected column {name!r}, got {', '.join(sorted(saved))}")
    # What does not decide the score comes from the example: its pictures are never looked at.
    blank = {name: value for name, value in template.items() if name not in benchmark.scored_by}
    return benchmark.record({**dict.fromkeys(benchmark.scored_by), **blank, **saved})
