"""Pascal VOC XML: a file an image. Boxes xmin, ymin, xmax, ymax in px.

`base=0`, what most exporters write: 0-based edges. `base=1`, the original devkit: 1-based pixel indices, xmax and ymax
inclusive. The two cannot be told apart by looking, except that a 0 in xmin or ymin proves base 0 (it is noted).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import Report
from ..errors import DataError
from ..reader_base import Options
from ..reader_files import load_xml, number, size
from . import Annotated

FLAGS = ("difficult", "truncated", "occluded", "pose")


@dataclass(frozen=True, kw_only=True)
class Voc(Options):
    base: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base not in (0, 1):
            raise DataError(f"reader 'voc': base: expected 0 or 1, got {self.base!r}")

    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """The sample id is the name of the XML file."""
        yield from self.documents(path, (".xml",), self._document, report)

    def _document(self, path: Path, sample_id: str, report: Report) -> Annotated | None:
        root = load_xml(path, self.max_bytes, "annotation")
        name = root.findtext("filename", "").strip() or f"{path.stem}.jpg"
        declared = size(root.findtext("size/width"), root.findtext("size/height"), path.name)
        scope = self.scope(report, path.name, (name, declared))
        for item in root.iter("object"):
            with scope.entry():
                edges = {key: number(item.findtext(f"bndbox/{key}"), key) for key in ("xmin", "ymin", "xmax", "ymax")}
                x0, y0, x1, y1 = edges.values()
                if self.base == 1 and min(x0, y0) == 0:
                    scope.note("xmin or ymin is 0 although base=1: the file is 0-based, read it with base=0")
                attributes: dict[str, Any] = {
                    key: text.strip() for key in FLAGS if (text := item.findtext(key)) and text.strip() != "0"
                }
                box = (x0 - self.base, y0 - self.base, x1, y1)
                scope.add(label=item.findtext("name"), box=box, attributes=attributes)
        return scope.finish(sample_id)


READER = Voc
EXAMPLE = {
    "path": "Annotations",
    "images": {"kitchen.png": (640, 480)},
    "files": {
        "Annotations/kitchen.xml": "<annotation><filename>kitchen.png</filename>"
        "<size><width>640</width><height>480</height><depth>3</depth></size>"
        "<object><name>cup</name><difficult>0</difficult><bndbox><xmin>64</xmin><ymin>48</ymin><xmax>96.5</xmax>"
        "<ymax>88</ymax></bndbox></object></annotation>"
    },
}
