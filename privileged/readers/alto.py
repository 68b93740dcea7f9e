"""ALTO XML: `level` `line` or `word`, places HPOS, VPOS, WIDTH, HEIGHT in the file's own MeasurementUnit.

`pixel` is read as it is. `mm10` (tenths of a millimetre) and `inch1200` need the `dpi` of the scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..checks import Report
from ..errors import DataError
from ..geometry import Coords
from ..reader_base import Options
from ..reader_files import load_xml, number, score, short, size
from . import Annotated
from ._ocr import LABELS, check_level

XYWH = Coords(order="xywh")
TAGS = {"line": "TextLine", "word": "String"}
UNITS_PER_INCH = {"mm10": 254.0, "inch1200": 1200.0}


@dataclass(frozen=True, kw_only=True)
class Alto(Options):
    level: str = "line"
    dpi: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level("alto", self.level)
        if self.dpi is not None and not (isinstance(self.dpi, int | float) and 0 < self.dpi < 1e5):
            raise DataError(f"reader 'alto': dpi: expected a number above 0, got {self.dpi!r}")

    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """The sample id is the name of the XML file."""
        yield from self.documents(path, (".xml",), self._document, report)

    def _document(self, path: Path, sample_id: str, report: Report) -> Annotated | None:
        root = load_xml(path, self.max_bytes, "alto")
        scale = self._scale(root.findtext(".//MeasurementUnit", "pixel").strip(), path.name)
        pages = root.findall(".//Page")
        if len(pages) != 1:
            raise DataError(f"{path.name}: expected one Page, got {len(pages)}")
        # Only pixels are whole numbers; a size in millimetres is too coarse to compare with that of the image.
        declared = size(pages[0].get("WIDTH"), pages[0].get("HEIGHT"), path.name) if scale == 1 else None
        name = root.findtext(".//sourceImageInformation/fileName", "").strip() or self.image_of_stem(sample_id)
        scope = self.scope(report, path.name, (name or f"{sample_id}.*", declared))
        for element in pages[0].iter(TAGS[self.level]):
            with scope.entry():
                edges = [number(element.get(key), key) * scale for key in ("HPOS", "VPOS", "WIDTH", "HEIGHT")]
                words = [element] if self.level == "word" else list(element.iter("String"))
                confidence = score(element.get("WC"))
                text = " ".join(word.get("CONTENT", "") for word in words)
                scope.add(label=LABELS[self.level], box=edges, coords=XYWH, text=text, score=confidence)
        return scope.finish(sample_id)

    def _scale(self, unit: str, where: str) -> float:
        """Pixels a unit. Raises DataError for one that is unknown, or known but useless without dpi."""
        if unit == "pixel":
            return 1.0
        if unit not in UNITS_PER_INCH:
            raise DataError(f"{where}: MeasurementUnit: expected pixel, mm10 or inch1200, got {short(unit)}")
        if self.dpi is None:
            raise DataError(f"{where}: MeasurementUnit {unit}: expected the option dpi, got none")
        return self.dpi / UNITS_PER_INCH[unit]


READER = Alto
EXAMPLE = {
    "path": "letter.xml",
    "images": {"letter.png": (640, 480)},
    "files": {
        "letter.xml": '<alto xmlns="http://www.loc.gov/standards/alto/ns-v4#"><Description>'
        "<MeasurementUnit>pixel</MeasurementUnit><sourceImageInformation><fileName>letter.png</fileName>"
        '</sourceImageInformation></Description><Layout><Page WIDTH="640" HEIGHT="480"><PrintSpace><TextBlock>'
        '<TextLine HPOS="64" VPOS="48" WIDTH="256" HEIGHT="32"><String CONTENT="Dear" HPOS="64" VPOS="48" '
        'WIDTH="120" HEIGHT="32" WC="0.98"/><SP/><String CONTENT="Ada," HPOS="200" VPOS="48" WIDTH="120" '
        'HEIGHT="32" WC="0.91"/></TextLine></TextBlock></PrintSpace></Page></Layout></alto>'
    },
}
