"""No p at all: the control. Every sample then falls back to vanilla on-policy distillation."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import PrivilegedRecord, Sample
from . import PrivilegedBlock


@dataclass(frozen=True, kw_only=True)
class NoPrivilege:
    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        return PrivilegedBlock()


BUILDER = NoPrivilege
EXAMPLE = {"question": "What is in the picture?", "privileged": {"regions": []}}
