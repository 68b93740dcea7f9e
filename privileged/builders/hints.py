"""Step-wise hints as text: what the paper gives language models. Steps to take, without carrying them out.

The record's notes of kind `hint` are the steps, in their order.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..escape import escape
from ..records import PrivilegedRecord, Sample
from . import PrivilegedBlock

HEADER = "Steps that lead to the answer:"
FOOTER = "Work through them yourself. Answer the question as if you had not seen these steps; do not mention them."


@dataclass(frozen=True, kw_only=True)
class Hints:
    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        steps = tuple(note.text for note in record.notes if note.kind == "hint")
        if not steps:
            return PrivilegedBlock()
        numbered = [f"{number}. {escape(step)}" for number, step in enumerate(steps, start=1)]
        return PrivilegedBlock(parts=("\n".join([HEADER, *numbered, FOOTER]),), audit_text=steps)


BUILDER = Hints
EXAMPLE = {
    "question": "What is 4 plus 3 minus 2?",
    "privileged": {"notes": [{"kind": "hint", "text": "Add 3 to 4."}, {"kind": "hint", "text": "Take 2 away."}]},
}
