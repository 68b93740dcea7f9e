"""The run: every row of a file, or of one shard of it, in the order of the file, none lost and none twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..rows import Rows, read_rows, write_rows
from ..scale import Shard
from .asker import Asker, NotAsked
from .endpoint import Endpoint
from .ledger import Ledger
from .pictures import unpack
from .probe import run_probe
from .row import Outcome, annotate
from .settings import Settings
from .summary import Summary

OnProgress = Callable[[int, int, Summary], None]
"""(rows done, rows in all, figures so far), after each row."""


def generate(
    data: Path, out: Path, settings: Settings, *, shard: Shard | None = None, on_progress: OnProgress | None = None
) -> Summary:
    """Ask for p of each row of `data` and write all rows to `out`, as JSON lines, those with p with their record.

    `out` must lie in the folder of `data`, so that image paths stay valid; embedded images are written to files there.
    Killed or stopped, the same call goes on where it ended. The outputs of shards, one after the other, are that of the
    whole file. Without `on_progress` a bar is shown on terminals. Raises DataError, and writes nothing, if the endpoint
    takes no requests or the probe fails; a spend cap or an endpoint that is down end the asking, and the rest of the
    rows are written without p (`Summary.stopped`).
    """
    _check_paths(data, out)
    rows = read_rows(data)
    places = (shard or Shard()).slice(len(rows))
    folder = Path(settings.replies) if settings.replies else out.parent / f"{data.stem}.replies"
    name = f"{(shard or Shard()).index}-of-{(shard or Shard()).count}"
    summary = Summary(dry_run=settings.dry_run)
    endpoint = None if settings.dry_run else Endpoint(settings)
    ledger = Ledger(folder, name, read_only=settings.dry_run)
    try:
        work = _work(rows, places, data, settings, ledger, endpoint, summary, on_progress)
        outcomes = asyncio.run(work)
    finally:
        ledger.close()
    for place in places:
        summary.count(outcomes[place].fate, outcomes[place].place)
        for report in outcomes[place].boxes:
            summary.boxes.merge(report)
    summary.spent, summary.uncertain = ledger.spent, ledger.uncertain
    if not settings.dry_run:
        write_rows(out, _written(rows, places, outcomes, out.parent))
    return summary


async def _work(
    rows: Rows,
    places: range,
    data: Path,
    settings: Settings,
    ledger: Ledger,
    endpoint: Endpoint | None,
    summary: Summary,
    on_progress: OnProgress | None,
) -> dict[int, Outcome]:
    """The outcome of each place; `concurrency` rows are in memory at a time."""
    asker = Asker(settings, ledger, endpoint, summary)
    outcomes: dict[int, Outcome] = {}
    waiting = iter(places)
    refused: list[DataError] = []

    async def worker() -> None:
        for place in waiting:  # shared by all workers
            if refused:
                return
            try:
                row = rows[place]
                await asyncio.to_thread(_for_file, row, place, data.parent)  # before it is paid for
                outcomes[place] = await annotate(row, f"{data.stem}-{place}", data.parent, settings, asker)
            except DataError as error:
                refused.append(error)
                return
            show(len(outcomes), len(places), summary)

    with _Bar(on_progress, len(places)) as show:
        try:
            if settings.kind == "boxes" and settings.probe and places:
                try:
                    summary.probe = await run_probe(settings, asker)
                except NotAsked as error:
                    summary.probe = f"probe: not asked ({error})"
            # Others' replies that are under way are waited for and kept, whatever ends the run: they are paid for.
            await asyncio.gather(*(worker() for _ in range(min(settings.concurrency, len(places)))))
        finally:
            if endpoint is not None:
                await endpoint.close()
    if refused:
        raise refused[0]
    return outcomes


class _Bar:
    """The user's `on_progress`, or a bar of tqdm."""

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self._on_progress, self._total = on_progress, total

    def __enter__(self) -> OnProgress:
        if self._on_progress is not None:
            return self._on_progress
        from tqdm import tqdm

        self._shown = tqdm(total=self._total, desc="generate", unit="row", disable=None)
        return self._show

    def __exit__(self, *error: object) -> None:
        if self._on_progress is None:
            self._shown.close()

    def _show(self, done: int, total: int, summary: Summary) -> None:
        self._shown.set_postfix(calls=summary.calls, cost=f"{summary.cost:.2f}", refresh=False)
        self._shown.update(done - self._shown.n)


def _written(rows: Rows, places: range, outcomes: dict[int, Outcome], root: Path) -> Iterator[dict[str, Any]]:
    for place in places:
        row = _for_file(rows[place], place, root)
        yield row if (record := outcomes[place].record) is None else row | {"privileged": record}


def _for_file(row: dict[str, Any], place: int, root: Path) -> dict[str, Any]:
    """`row` as it goes into the output, embedded images written. Raises DataError if JSON cannot hold it."""
    row = unpack(row, root)
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"row {place}: expected columns that JSON can hold, got others ({error})") from None
    return row


def _check_paths(data: Path, out: Path) -> None:
    if out.suffix != ".jsonl":
        raise DataError(f"{out}: expected a name ending in .jsonl")
    if out.resolve().parent != data.resolve().parent:
        raise DataError(f"{out}: expected the folder of {data}, since image paths are relative to it, got another")
    if out.resolve() == data.resolve():
        raise DataError(f"{out}: expected another file than the data, got the same")
