"""The reference answer itself. On purpose: the control that shows what p is worth beyond the answer.

In the paper it is the weakest p for vision-language models and worse than none for language models. Naming this
builder is the opt-in: no other one is handed the answer, and `compose` refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..escape import escape
from ..records import PrivilegedRecord, Sample
from . import Disclosure, PrivilegedBlock

HEADER = "Somebody else's answer to the question below:"
FOOTER = "Work it out yourself. Answer the question as if you had not seen this; do not mention it."


@dataclass(frozen=True, kw_only=True)
class Answer:
    discloses: ClassVar[Disclosure] = "answer"

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Empty without an answer; the record is not looked at."""
        if not sample.answer or not sample.answer.strip():
            return PrivilegedBlock()
        text = "\n".join([HEADER, escape(sample.answer), FOOTER])
        return PrivilegedBlock(parts=(text,), audit_text=(sample.answer,))


BUILDER = Answer
EXAMPLE = {"question": "What is 4 plus 3 minus 2?", "answer": "5", "privileged": {}}
