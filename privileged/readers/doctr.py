"""docTR JSON export: pages, blocks, lines, words, 0..1 of the page; two corners, or four of a turned line.

The export names no images: the page is the image of the file's name under `image_root`, with `_1`, `_2` ... added if
there are several. Page `dimensions` are (height, width).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import Report
from ..errors import DataError
from ..geometry import Coords
from ..reader_base import Options
from ..reader_files import get, load_json, points, score, size
from . import Annotated
from ._ocr import LABELS, check_level

REL1 = Coords(unit="rel1")


@dataclass(frozen=True, kw_only=True)
class DocTr(Options):
    level: str = "line"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level("doctr", self.level)

    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """The sample id is that of the page's image."""
        data = load_json(path, self.max_bytes)
        pages = get(data, "pages", list, path.name)
        rows = (
            (f"{path.name}: page {i}", (page, path.stem if len(pages) == 1 else f"{path.stem}_{i}"))
            for i, page in enumerate(pages, start=1)
        )
        yield from self.samples(rows, self._page, report)

    def _page(self, row: Any, where: str, report: Report) -> Annotated | None:
        page, sample_id = row
        dimensions = get(page, "dimensions", list, where)
        if len(dimensions) != 2:
            raise DataError(f"{where}: dimensions: expected [height, width], got {len(dimensions)} numbers")
        declared = size(dimensions[1], dimensions[0], where)
        scope = self.scope(report, where, (self.image_of_stem(sample_id) or f"{sample_id}.*", declared))
        for block in get(page, "blocks", list, where):
            for line in get(block, "lines", list, where):
                words = get(line, "words", list, where)
                for item in words if self.level == "word" else [line]:
                    with scope.entry():
                        corners = points(get(item, "geometry", list, "geometry"), "geometry")
                        place: dict[str, Any] = {"outline": corners}
                        if len(corners) == 2:
                            place = {"box": (*corners[0], *corners[1])}
                        text = " ".join(get(w, "value", str, "word") for w in ([item] if item is not line else words))
                        confidence = score(item.get("confidence"))
                        scope.add(label=LABELS[self.level], coords=REL1, text=text, score=confidence, **place)
        return scope.finish(sample_id)


READER = DocTr
EXAMPLE = {
    "path": "letter.json",
    "images": {"letter.png": (640, 480)},
    "files": {
        "letter.json": json.dumps(
            {
                "pages": [
                    {
                        "dimensions": [480, 640],
                        "blocks": [
                            {
                                "lines": [
                                    {
                                        "geometry": [[0.1, 0.1], [0.5, 0.16]],
                                        "words": [
                                            {"value": "Dear", "geometry": [[0.1, 0.1], [0.3, 0.16]]},
                                            {"value": "Ada,", "geometry": [[0.32, 0.1], [0.5, 0.16]]},
                                        ],
                                    }
                                ]
                            }
                        ],
                    }
                ]
            }
        )
    },
}
