"""ViRL39K: Parquet rows of question, answer and image paths, without any p of its own: what a generator starts from.

The literal `<image>` marks in questions are removed, and `\\boxed{}` around answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import Report
from ..errors import DataError
from ..reader_base import Options
from ..reader_files import expect, get, read_bytes, short
from . import Annotated

BOXED = re.compile(r"\\boxed\{(.*)\}", re.S)
BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class Virl39k(Options):
    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """The sample id is the `qid`; category and source are kept in the record's `extra`."""
        yield from self.samples(self._rows(path), self._row, report)

    def _rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        import io

        import pyarrow as pa
        import pyarrow.parquet as pq

        data = read_bytes(path, self.max_bytes)
        try:
            batches = pq.ParquetFile(io.BytesIO(data)).iter_batches(BATCH)
            number = 0
            for batch in batches:
                for row in batch.to_pylist():
                    yield f"{path.name}[{number}]", row
                    number += 1
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path.name}: expected a Parquet file ({short(str(error))})") from None

    def _row(self, row: Any, where: str, report: Report) -> Annotated | None:
        names = [expect(name, str, f"{where}: image") for name in get(row, "image", list, where, [])]
        question = get(row, "question", str, where).replace("<image>", "").strip()
        answer = get(row, "answer", str, where)
        boxed = BOXED.search(answer)
        scope = self.scope(report, where, *((name, None) for name in names))
        extra = {key: row[key] for key in ("category", "source") if row.get(key) is not None}
        sample_id = str(get(row, "qid", (str, int), where))
        return scope.finish(sample_id, question=question, answer=boxed[1] if boxed else answer, extra=extra)


READER = Virl39k
EXAMPLE = {
    "path": "39Krelease.parquet",
    "images": {"images/kitchen.png": (640, 480)},
    "files": {
        "39Krelease.parquet": [
            {"qid": "q-1", "question": "<image>How many cups are there?", "answer": "\\boxed{2}"}
            | {"image": ["images/kitchen.png"], "category": "counting", "source": "made up"}
        ]
    },
}
