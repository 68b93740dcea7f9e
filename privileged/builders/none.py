"""No p at all: the control. Every sample then falls back to vanilla on-policy distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..records import PrivilegedRecord, Sample
from . import Disclosure, PrivilegedBlock


@dataclass(frozen=True, kw_only=True)
class NoPrivilege:
    discloses: ClassVar[Disclosure] = "none"

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Always empty."""
        return PrivilegedBlock()


BUILDER = NoPrivilege
EXAMPLE = {"question": "What is in the picture?", "privileged": {"regions": []}}
