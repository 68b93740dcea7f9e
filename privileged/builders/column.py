"""p as other toolkits write it: a ready text in a column of the record, shown as it is (but escaped).

Known columns are `privileged_context` and `teacher_prompt`; they are keys of the record's JSON object. The text is put
before the question, so it must not hold the question itself. Columns of images (`teacher_images`, `bbox_images`) are
not read: keep the regions they were cut from in the record, and use `crops` or `overlay`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import DataError
from ..escape import escape
from ..records import PrivilegedRecord, Sample
from . import Disclosure, PrivilegedBlock

KNOWN = ("privileged_context", "teacher_prompt")


@dataclass(frozen=True, kw_only=True)
class Column:
    """`column` is its name; left empty, the one of the known columns that the record has."""

    discloses: ClassVar[Disclosure] = "derivable"

    column: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.column, str):
            raise DataError(f"builder 'column': column: expected the name of one, got {self.column!r}")

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Raises DataError if the column holds no text, or if there are two known ones to choose from."""
        names = [name for name in ((self.column,) if self.column else KNOWN) if record.extra.get(name) is not None]
        if len(names) > 1:
            raise DataError(
                f"sample {sample.id!r}: expected one column, got {', '.join(names)}; set the option 'column'"
            )
        if not names:
            return PrivilegedBlock()
        text = record.extra[names[0]]
        if not isinstance(text, str):
            raise DataError(f"sample {sample.id!r}: {names[0]}: expected text, got {str(text)[:60]!r}")
        text = text.strip()
        return PrivilegedBlock(parts=(escape(text),), audit_text=(text,)) if escape(text) else PrivilegedBlock()


BUILDER = Column
EXAMPLE = {
    "question": "Which cup is empty?",
    "privileged": {"privileged_context": "Look into the cups one by one, from left to right."},
}
