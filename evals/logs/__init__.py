"""Sample logs of other toolkits, read as rows for `evals.rescore`: `id`, `record`, `response`.

One file a toolkit. A log is known by what its rows hold, never by its name. `id` is the log's own key of a row; columns
that decide what is right are taken from the log, or from the prompt in it where the toolkit drops them. What cannot be
found is said, not guessed.

No log but ours says which replies were cut off by a token limit, so those are scored as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..benchmarks import Benchmark, find
from . import evalscope, lmms_eval, vlmevalkit
from .files import Row, rows

TOOLKITS = (lmms_eval, vlmevalkit, evalscope)


def read(path: Path, benchmark: str) -> Iterator[Row]:
    """Rows of our own files as they are, and those of a toolkit's log of `benchmark` in our form.

    Raises ValueError with one line if the file is of no known kind, is of another benchmark as far as it shows, lacks a
    column that decides what is right, or holds two different replies to a question; OSError if it cannot be read.
    """
    found = find(benchmark)
    logged = rows(path)
    if not logged:
        return
    toolkit = next((toolkit for toolkit in TOOLKITS if toolkit.claims(logged[0])), None)
    if toolkit is None and "id" not in logged[0]:
        names = ", ".join(toolkit.NAME for toolkit in TOOLKITS)
        raise ValueError(
            f"expected rows with id, record and response, or a sample log of {names}; got rows with "
            f"{', '.join(sorted(map(str, logged[0])))[:200]}"
        )
    if toolkit is None:
        yield from logged
        return
    done: dict[str | int, Row] = {}
    for row in logged:
        if not toolkit.claims(row):
            raise ValueError(f"expected every row to be of {toolkit.NAME}, got one with {', '.join(sorted(row))[:200]}")
        converted = toolkit.convert(row, benchmark)
        if converted is None:
            continue
        key = converted["id"]
        if not isinstance(key, str | int):
            raise ValueError(f"expected rows of {toolkit.NAME} with a number or text as their key, got {key!r:.60}")
        _check(converted, found, toolkit.NAME)
        if key in done and done[key]["response"] != converted["response"] and not toolkit.LAST_COUNTS:
            raise ValueError(f"row {key!r}: expected one reply a question, got another one in the same log")
        done[key] = converted
    yield from done.values()


def _check(row: Row, benchmark: Benchmark, toolkit: str) -> None:
    for name in benchmark.scored_by:
        if row["record"].get(name) is None and not benchmark.columns[name].endswith("?"):
            raise ValueError(
                f"row {row['id']!r}: column {name!r}, which decides what is right, is not in this log of {toolkit} "
                f"(it is in {benchmark.hub}): add it to `record` of rows with id, record and response"
            )
