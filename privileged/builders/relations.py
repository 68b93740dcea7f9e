"""How the regions stand to one another: the objects as numbered boxes, then `1 cup on 2 table`.

Only regions that a relation names are written, numbered in reading order. A relation that names a region that is not
in the record is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import DataError
from ..records import PrivilegedRecord, Sample
from . import Disclosure, PrivilegedBlock
from ._options import check_count
from ._placed import Placed, one_line, placed
from ._wording import BOXES, FOOTER, header


@dataclass(frozen=True, kw_only=True)
class Relations:
    """`max_relations` keeps the first ones, in the order of the record."""

    discloses: ClassVar[Disclosure] = "derivable"

    max_relations: int = 20

    def __post_init__(self) -> None:
        check_count("relations", "max_relations", self.max_relations)

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Raises DataError, with the sample, for a bad box, a region that is not there or an id that two have."""
        by_id: dict[str, Placed] = {}
        named = {id for subject, _, object in record.relations for id in (subject, object)}
        for place in placed(sample, record):
            id = place.region.id
            if id in named and by_id.setdefault(id, place) is not place:
                raise DataError(f"sample {sample.id!r}: relations: expected one region {id!r}, got several")
        if missing := sorted(named - set(by_id)):
            raise DataError(f"sample {sample.id!r}: relations: expected a region {missing[0]!r}, got none with this id")
        shown = record.relations[: self.max_relations]
        if not shown:
            return PrivilegedBlock()
        used = {id for subject, _, object in shown for id in (subject, object)}
        numbers = {id: number for number, id in enumerate((id for id in by_id if id in used), start=1)}
        names = {id: f"{number} {one_line(by_id[id].region.label)}" for id, number in numbers.items()}
        many = len(sample.images) > 1
        lines = [_line(name, by_id[id], many) for id, name in names.items()]
        lines += [f"{names[subject]} {one_line(predicate)} {names[object]}" for subject, predicate, object in shown]
        return PrivilegedBlock(
            parts=("\n".join([header(many, BOXES), *lines, FOOTER]),),
            audit_text=(*(by_id[id].region.label for id in names), *(predicate for _, predicate, _ in shown)),
            left_out=len(record.relations) - len(shown),
        )


def _line(name: str, place: Placed, many: bool) -> str:
    return f"{name}: {f'image {place.region.image + 1}, ' if many else ''}{place.rel1000}"


BUILDER = Relations
EXAMPLE = {
    "question": "Where is the cup?",
    "image_size": (640, 480),
    "privileged": {
        "regions": [
            {"id": "r1", "label": "cup", "box": [292, 240, 330, 282]},
            {"id": "r2", "label": "table", "box": [40, 270, 600, 470]},
        ],
        "relations": [["r1", "on", "r2"]],
    },
}
