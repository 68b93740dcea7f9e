"""PAGE XML (OCR ground truth): `level` `line` or `word` gives the regions, with outline and text, in file order."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..checks import Report
from ..errors import DataError
from ..reader_base import Options
from ..reader_files import load_xml, score, size, spelled_points
from . import Annotated
from ._ocr import LABELS, check_level

TAGS = {"line": "TextLine", "word": "Word"}


@dataclass(frozen=True, kw_only=True)
class PageXml(Options):
    level: str = "line"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level("page_xml", self.level)

    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """The sample id is the name of the XML file."""
        yield from self.documents(path, (".xml",), self._document, report)

    def _document(self, path: Path, sample_id: str, report: Report) -> Annotated | None:
        page = load_xml(path, self.max_bytes, "PcGts").find("Page")
        if page is None or not page.get("imageFilename"):
            raise DataError(f"{path.name}: expected a Page with imageFilename, got none")
        declared = size(page.get("imageWidth"), page.get("imageHeight"), path.name)
        scope = self.scope(report, path.name, (page.get("imageFilename", ""), declared))
        for element in page.iter(TAGS[self.level]):
            with scope.entry():
                coords = element.find("Coords")
                outline = spelled_points("" if coords is None else coords.get("points", ""), "Coords")
                text, confidence = _text(element)
                scope.add(label=LABELS[self.level], outline=outline, text=text, score=confidence)
        return scope.finish(sample_id)


def _text(element: ET.Element) -> tuple[str | None, float | None]:
    """Text and confidence of the element's own first reading."""
    equivalent = element.find("TextEquiv")
    if equivalent is None:
        return None, None
    return equivalent.findtext("Unicode"), score(equivalent.get("conf"))


READER = PageXml
EXAMPLE = {
    "path": "letter.xml",
    "images": {"letter.png": (640, 480)},
    "files": {
        "letter.xml": '<PcGts xmlns="http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15">'
        '<Page imageFilename="letter.png" imageWidth="640" imageHeight="480"><TextRegion id="t1">'
        '<TextLine id="l1"><Coords points="64,48 320,48 320,80 64,80"/><TextEquiv><Unicode>Dear Ada,</Unicode>'
        "</TextEquiv></TextLine></TextRegion></Page></PcGts>"
    },
}
