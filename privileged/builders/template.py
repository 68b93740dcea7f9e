"""A format of your own without code: one line a region or note, with the record's fields in braces.

```yaml
builder: template
builder_options: {region: "{number}. {label}: {caption} [{x1} {y1} {x2} {y2}]", header: "What to look at:"}
```

Fields of a region: `number` (from 1), `image` (from 1), `id`, `label`, `caption`, `text`, `score`, `attributes`
(`colour: red, open: no`), `x1`, `y1`, `x2`, `y2` (0..1000). Fields of a note: `number`, `kind`, `text`. Braces are
doubled to write one. There is nothing else: no attributes, indices, conversions or format specifications, and no
control tokens of the chat template. A region or note that lacks a field which the template names is left out.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import ClassVar

from ..errors import DataError
from ..escape import escape
from ..records import Note, PrivilegedRecord, Sample
from . import Disclosure, PrivilegedBlock
from ._options import check_count
from ._placed import Placed, one_line, placed
from ._wording import BOXES, FOOTER
from ._wording import header as header_line

REGION_FIELDS = (
    *("number", "image", "id", "label", "caption", "text", "score", "attributes"),
    *("x1", "y1", "x2", "y2"),
)
NOTE_FIELDS = ("number", "kind", "text")
TEXTS = ("id", "label", "caption", "text", "attributes", "kind")
"""Fields that are words of the record: what a leak audit reads."""

Parsed = list[tuple[str, str]]
"""(text, the field after it or nothing), in order"""
Row = tuple[Parsed, dict[str, str]]
"""A template and its fields"""


@dataclass(frozen=True, kw_only=True)
class Template:
    """`region` and `note` are the lines; empty leaves regions or notes out. `header` and `footer` are written as they
    are, if there is a line at all.
    """

    discloses: ClassVar[Disclosure] = "derivable"

    region: str = "- {label} ({x1},{y1},{x2},{y2})"
    note: str = ""
    header: str = header_line(False, BOXES)
    footer: str = FOOTER
    max_regions: int = 20

    def __post_init__(self) -> None:
        check_count("template", "max_regions", self.max_regions)
        for option in ("region", "note", "header", "footer"):
            value = getattr(self, option)
            if not isinstance(value, str) or escape(value) != value:
                raise DataError(f"builder 'template': {option}: expected text without control tokens, got {value!r}")
        _parsed("region", self.region, REGION_FIELDS)
        _parsed("note", self.note, NOTE_FIELDS)
        if not (self.region or self.note):
            raise DataError("builder 'template': expected a template for regions or notes, got two empty ones")

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Raises DataError, with the sample and region, for a box that is not on its image."""
        region, note = _parsed("region", self.region, REGION_FIELDS), _parsed("note", self.note, NOTE_FIELDS)
        places = placed(sample, record) if region else []
        rows = [(region, _region_fields(place)) for place in places]
        rows = [row for row in rows if _complete(*row)]
        shown = _numbered(rows[: self.max_regions])
        shown += _numbered([(note, _note_fields(item)) for item in record.notes if note])
        if not shown:
            return PrivilegedBlock()
        lines = [_filled(template, fields) for template, fields in shown]
        return PrivilegedBlock(
            parts=("\n".join(line for line in [self.header, *lines, self.footer] if line),),
            audit_text=tuple(fields[name] for template, fields in shown for _, name in template if name in TEXTS),
            left_out=max(len(rows) - self.max_regions, 0),
        )


def _parsed(option: str, template: str, known: tuple[str, ...]) -> Parsed:
    """Raises DataError for anything in braces that is not one of the `known` fields, word by word."""
    where = f"builder 'template': {option}"
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"{where}: expected a template such as '- {{label}}', got {template!r} ({error})") from None
    for _, name, spec, conversion in pieces:
        if name is not None and (name not in known or spec or conversion):
            got = "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
            raise DataError(f"{where}: expected one of {{{'}, {'.join(known)}}}, got {got}")
    return [(literal, name or "") for literal, name, _, _ in pieces]


def _region_fields(place: Placed) -> dict[str, str]:
    region, box = place.region, place.rel1000
    fields = {
        "image": str(region.image + 1),
        "id": str(region.id),
        "label": region.label,
        "caption": region.caption or "",
        "text": region.text or "",
        "attributes": ", ".join(f"{name}: {value}" for name, value in region.attributes.items()),
        "score": "" if region.score is None else f"{region.score:.2f}",
    }
    return fields | {name: str(edge) for name, edge in zip(("x1", "y1", "x2", "y2"), box, strict=True)}


def _note_fields(note: Note) -> dict[str, str]:
    return {"kind": note.kind, "text": note.text}


def _complete(template: Parsed, fields: dict[str, str]) -> bool:
    return all(one_line(fields[name]) for _, name in template if name and name != "number")


def _numbered(rows: list[Row]) -> list[Row]:
    return [(template, fields | {"number": str(number)}) for number, (template, fields) in enumerate(rows, start=1)]


def _filled(template: Parsed, fields: dict[str, str]) -> str:
    line = "".join(literal + (one_line(fields[name]) if name else "") for literal, name in template)
    return escape(line)  # once more: "<" at the end of one field and "|im_end|>" in the next


BUILDER = Template
EXAMPLE = {
    "question": "Which cup is empty?",
    "image_size": (640, 480),
    "privileged": {
        "regions": [
            {"id": "r1", "label": "cup", "box": [292, 240, 330, 282]},
            {"id": "r2", "label": "cup", "box": [492, 240, 530, 282]},
        ]
    },
}
