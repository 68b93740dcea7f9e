"""Step-wise hints as text: what the paper gives language models. Steps to take, without carrying them out.

The notes of one kind are written, in their order:

| mode | kind of note | what it holds |
|---|---|---|
| `steps` | `hint` | steps to take, not carried out: the paper's best p for language models |
| `summary` | `summary` | the way to the answer in a few sentences |
| `executed` | `executed` | the steps with their results; the last one often is the answer |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..escape import escape
from ..records import PrivilegedRecord, Sample
from . import Disclosure, PrivilegedBlock
from ._options import check_choice

HEADER = "Steps that lead to the answer:"
HEADER_SUMMARY = "A way to the answer, in short:"
HEADER_EXECUTED = "Steps towards the answer, carried out:"
FOOTER = "Work through them yourself. Answer the question as if you had not seen these steps; do not mention them."
FOOTER_SUMMARY = "Work it out yourself. Answer the question as if you had not seen this; do not mention it."

MODES = {
    "steps": ("hint", HEADER, FOOTER),
    "summary": ("summary", HEADER_SUMMARY, FOOTER_SUMMARY),
    "executed": ("executed", HEADER_EXECUTED, FOOTER),
}
"""mode -> kind of note, line above, line below"""


@dataclass(frozen=True, kw_only=True)
class Hints:
    """`mode` chooses the kind of note; samples without notes of that kind have no p."""

    discloses: ClassVar[Disclosure] = "derivable"

    mode: str = "steps"

    def __post_init__(self) -> None:
        check_choice("hints", "mode", self.mode, MODES)

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Numbered lines, but for `summary`; empty without a note of the mode's kind."""
        kind, header, footer = MODES[self.mode]
        notes = tuple(note.text for note in record.notes if note.kind == kind)
        if not notes:
            return PrivilegedBlock()
        lines = [escape(note) for note in notes]
        if self.mode != "summary":
            lines = [f"{number}. {line}" for number, line in enumerate(lines, start=1)]
        return PrivilegedBlock(parts=("\n".join([header, *lines, footer]),), audit_text=notes)


BUILDER = Hints
EXAMPLE = {
    "question": "What is 4 plus 3 minus 2?",
    "privileged": {"notes": [{"kind": "hint", "text": "Add 3 to 4."}, {"kind": "hint", "text": "Take 2 away."}]},
}
