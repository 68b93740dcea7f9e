"""What the image shows, in sentences: the record's notes of kind `caption`, in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..records import PrivilegedRecord, Sample
from . import Disclosure, PrivilegedBlock
from ._placed import one_line
from ._wording import header

FOOTER = "Answer the question as if you had only seen the image; do not mention these notes."


@dataclass(frozen=True, kw_only=True)
class Caption:
    discloses: ClassVar[Disclosure] = "derivable"

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Empty without a note of kind `caption`."""
        captions = tuple(note.text for note in record.notes if note.kind == "caption")
        if not captions:
            return PrivilegedBlock()
        text = "\n".join([header(len(sample.images) > 1), *map(one_line, captions), FOOTER])
        return PrivilegedBlock(parts=(text,), audit_text=captions)


BUILDER = Caption
EXAMPLE = {
    "question": "Where are they?",
    "image_size": (640, 480),
    "privileged": {"notes": [{"kind": "caption", "text": "Friends sit around the tables of a café in winter."}]},
}
