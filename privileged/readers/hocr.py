"""hOCR: HTML whose `title` attributes hold places, `bbox x0 y0 x1 y1; x_wconf 95`, in px of the page image.

Read as HTML, tags and entities alike by Python's html.parser: nothing is fetched or expanded. `level` is `line` or
`word`. A page whose own bbox does not start at 0 0 is a part of its scan: its size must come from `image_root`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from ..checks import Report
from ..errors import DataError
from ..reader_base import Options
from ..reader_files import number, read_text, score, size
from . import Annotated
from ._ocr import LABELS, check_level

CLASSES = {"line": ("ocr_line", "ocr_header", "ocr_caption", "ocr_textfloat"), "word": ("ocrx_word", "ocr_word")}
VOID = ("br", "img", "meta", "link", "hr", "input", "wbr")


@dataclass
class _Part:
    title: str
    text: list[str] = field(default_factory=list)


@dataclass
class _Page(_Part):
    parts: list[_Part] = field(default_factory=list)


class _Parser(HTMLParser):
    """Collects pages and, in each, the parts of one level with their text."""

    def __init__(self, level: str) -> None:
        super().__init__(convert_charrefs=True)
        self.pages: list[_Page] = []
        self._wanted = CLASSES[level]
        self._open: list[_Part | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        classes, title = found.get("class", "").split(), found.get("title", "")
        part = None
        if "ocr_page" in classes:
            self.pages.append(_Page(title))
        elif self.pages and any(name in self._wanted for name in classes):
            part = _Part(title)
            self.pages[-1].parts.append(part)
        if tag not in VOID:
            self._open.append(part)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if self._open and tag not in VOID:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if part := next((part for part in reversed(self._open) if part), None):
            part.text.append(data)


@dataclass(frozen=True, kw_only=True)
class Hocr(Options):
    level: str = "line"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level("hocr", self.level)

    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """The sample id is the name of the file, with `_1`, `_2` ... if it holds several pages."""
        if path.is_dir():
            raise DataError(f"{path.name}: expected one hOCR file, got a folder")
        parser = _Parser(self.level)
        parser.feed(read_text(path, self.max_bytes))
        parser.close()
        if not parser.pages:
            raise DataError(f"{path.name}: expected hOCR with an ocr_page, got none")
        many = len(parser.pages) > 1
        rows = (
            (f"{path.name}: page {i}", (page, f"{path.stem}_{i}" if many else path.stem))
            for i, page in enumerate(parser.pages, start=1)
        )
        yield from self.samples(rows, self._page, report)

    def _page(self, row: tuple[_Page, str], where: str, report: Report) -> Annotated | None:
        page, sample_id = row
        image = re.search(r"""image\s+["']?([^"';]+)""", page.title)
        name = image[1].strip().replace("\\", "/").rpartition("/")[2] if image else self.image_of_stem(sample_id)
        box = _numbers(page.title, "bbox", 4)
        declared = size(box[2], box[3], where) if box and box[:2] == [0, 0] else None
        scope = self.scope(report, where, (name or f"{sample_id}.*", declared))
        for part in page.parts:
            with scope.entry():
                confidence = _numbers(part.title, "x_wconf", 1)
                scope.add(
                    label=LABELS[self.level],
                    box=_numbers(part.title, "bbox", 4),
                    text=" ".join("".join(part.text).split()),
                    score=score(confidence[0] / 100) if confidence else None,
                )
        return scope.finish(sample_id)


def _numbers(title: str, key: str, count: int) -> list[float] | None:
    """The numbers after `key` in a title, None if it is not there."""
    for entry in title.split(";"):
        name, *words = entry.split() or [""]
        if name == key:
            if len(words) < count:
                raise DataError(f"title: {key}: expected {count} numbers, got {len(words)}")
            return [number(word, key) for word in words[:count]]
    return None


READER = Hocr
EXAMPLE = {
    "path": "letter.hocr",
    "images": {"letter.png": (640, 480)},
    "files": {
        "letter.hocr": '<!DOCTYPE html><html><body><div class="ocr_page" title="image letter.png; bbox 0 0 640 480">'
        '<span class="ocr_line" title="bbox 64 48 320 80; baseline 0 0"><span class="ocrx_word" '
        'title="bbox 64 48 184 80; x_wconf 95">Dear</span> <span class="ocrx_word" title="bbox 200 48 320 80; '
        'x_wconf 91">Ada &amp;</span></span></div></body></html>'
    },
}
