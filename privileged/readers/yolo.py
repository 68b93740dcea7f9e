"""YOLO text: a file an image, a line an object, 0..1 of the image, classes by number.

`task` declares what a line holds, because five numbers more or less prove nothing: `detect` (class, centre, size),
`segment` (class, outline) or `obb` (class, four corners). One further number at the end is a score. The image is found
under `image_root` by the name of the text file; an empty file is an image without objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..checks import Dropped, Report
from ..errors import DataError
from ..geometry import Coords
from ..reader_base import Options, Scope
from ..reader_files import number, read_text, score, short
from . import Annotated

CENTRED = Coords(unit="rel1", order="cxcywh")
TASKS = ("detect", "segment", "obb")


@dataclass(frozen=True, kw_only=True)
class Yolo(Options):
    names: tuple[str, ...] = ()
    """Class names by number; or give `data`, the path of the data.yaml that has them."""
    data: str = ""
    task: str = "detect"
    _names: dict[int, str] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASKS:
            raise DataError(f"reader 'yolo': task: expected one of {', '.join(TASKS)}, got {self.task!r}")
        if not self.image_root:
            raise DataError("reader 'yolo': image_root: expected the folder of the images, got none; it has the sizes")
        if bool(self.names) == bool(self.data):
            raise DataError("reader 'yolo': expected either names or data (a data.yaml), got both or neither")
        if isinstance(self.names, str):
            raise DataError(f"reader 'yolo': names: expected a list, got {self.names!r}")
        self._names.update(_named(list(self.names), "names") if self.names else self._of_yaml(Path(self.data)))

    def read(self, path: Path, report: Report) -> Iterator[Annotated]:
        """The sample id is the name of the text file."""
        yield from self.documents(path, (".txt",), self._document, report)

    def _document(self, path: Path, sample_id: str, report: Report) -> Annotated | None:
        lines = read_text(path, self.max_bytes).splitlines()
        scope = self.scope(report, path.name, (self.image_of_stem(sample_id) or f"{sample_id}.*", None))
        for line in lines:
            if line.strip():
                with scope.entry():
                    self._add(scope, line.split())
        return scope.finish(sample_id)

    def _add(self, scope: Scope, words: list[str]) -> None:
        key, *values = [number(word, "line") for word in words]
        if key not in self._names:
            raise Dropped("unknown category", f"class {words[0][:20]}: expected one of {len(self._names)} names")
        many = {"detect": 4, "obb": 8}.get(self.task, len(values) - len(values) % 2)
        if len(values) not in (many, many + 1) or many < 4 or (self.task == "segment" and many < 6):
            raise DataError(f"line: expected class and the numbers of task {self.task!r}, got {len(values)} numbers")
        place: dict[str, Any] = {"outline": values[:many]} if self.task != "detect" else {"box": values[:many]}
        confidence = score(values[many]) if len(values) > many else None
        scope.add(label=self._names[int(key)], coords=CENTRED, score=confidence, **place)

    def _of_yaml(self, path: Path) -> dict[int, str]:
        try:
            data = yaml.safe_load(read_text(path, self.max_bytes))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise DataError(f"{path.name}: expected YAML, got something else ({short(str(error))})") from None
        if not isinstance(data, dict) or "names" not in data:
            raise DataError(f"{path.name}: expected an object with names, got {short(data)}")
        return _named(data["names"], path.name)


def _named(names: Any, where: str) -> dict[int, str]:
    """Class names as list or as mapping from number. Numbers are names too; YAML's bare `no` is False, and is not."""
    pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else ()
    found = {}
    for key, name in pairs:
        if not isinstance(key, int) or isinstance(name, bool) or not isinstance(name, str | int):
            raise DataError(f"{where}: names: expected a name for each number, got {key!r}: {short(name)}; quote it")
        found[key] = str(name)
    if not found:
        raise DataError(f"{where}: names: expected a list or an object of names, got {short(names)}")
    return found


READER = Yolo
EXAMPLE = {
    "path": "labels",
    "images": {"kitchen.png": (640, 480)},
    "options": {"names": ("cup", "dog")},
    "files": {"labels/kitchen.txt": "0 0.125 0.15 0.05 0.1\n1 0.5 0.5 0.25 0.25\n"},
}
