"""p as other toolkits write it: a ready text, ready pictures, or both, in columns of the data file.

| column | of | what is shown |
|---|---|---|
| `privileged_context` | forks of verl | the text |
| `teacher_prompt` | TRL's self-distillation | the text without the question, which the privileged prompt has anyway |
| `teacher_images` | Vision-OPD | crops of the evidence instead of the sample's images |
| `bbox_images` | Vision-OPD | the images with boxes drawn on them, instead of the clean ones |

Text is escaped but otherwise as it is. It may also be a key of the record's JSON object, of any name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from ..errors import DataError
from ..escape import escape
from ..records import PrivilegedRecord, Sample
from ..rows import IMAGE_COLUMNS, TEXT_COLUMNS
from . import Disclosure, PrivilegedBlock
from ._options import check_choice

MODES = ("replace", "append")


@dataclass(frozen=True, kw_only=True)
class Column:
    """`column` and `images` are names; left empty, the one of the known columns that the sample has.

    `mode` says whether pictures take the place of the sample's own or follow them.
    """

    discloses: ClassVar[Disclosure] = "derivable"

    column: str = ""
    images: str = ""
    mode: str = "replace"

    def __post_init__(self) -> None:
        for option in ("column", "images"):
            if not isinstance(value := getattr(self, option), str):
                raise DataError(f"builder 'column': {option}: expected the name of one, got {value!r}")
        check_choice("column", "mode", self.mode, MODES)

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Raises DataError if the column holds no text, or if there are two known ones to choose from."""
        text = self._text(sample, record)
        name = _only(sample, "images", self.images, IMAGE_COLUMNS, sample.privileged_images)
        pictures = sample.privileged_images.get(name, ())
        if self.mode == "replace" and pictures:
            return PrivilegedBlock(
                parts=(escape(text),) if text else (), audit_text=(text,) if text else (), replace_images=pictures
            )
        return PrivilegedBlock(
            parts=(*pictures, escape(text)) if text else (*pictures,), audit_text=(text,) if text else ()
        )

    def _text(self, sample: Sample, record: PrivilegedRecord) -> str:
        name = _only(sample, "column", self.column, TEXT_COLUMNS, record.extra)
        text = record.extra.get(name)
        if text is None:
            return ""
        if not isinstance(text, str):
            raise DataError(f"sample {sample.id!r}: {name}: expected text, got {str(text)[:60]!r}")
        if name == "teacher_prompt":
            text = text.replace(sample.question, "", 1)
        return text.strip() if escape(text).strip() else ""


def _only(sample: Sample, option: str, chosen: str, known: Iterable[str], present: Iterable[str]) -> str:
    """The name of the one column to use; nothing if there is none."""
    names = [name for name in ((chosen,) if chosen else known) if name in present]
    if len(names) > 1:
        raise DataError(f"sample {sample.id!r}: expected one column, got {', '.join(names)}; set the option {option!r}")
    return names[0] if names else ""


BUILDER = Column
EXAMPLE = {
    "question": "Which cup is empty?",
    "privileged": {"privileged_context": "Look into the cups one by one, from left to right."},
}
