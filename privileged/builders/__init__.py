"""Builders: one file a rendering. `get_builder("boxes", style="lines")` imports `builders/boxes.py`.

A builder file has two names: `BUILDER`, a frozen dataclass whose fields are the options, and `EXAMPLE`, the facts of
one sample (question, image size, record) to show it with. Outside the tree the same file is found through the
entry-point group `vlm_dopd.builders`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, Protocol

from PIL import Image

from ..errors import DataError
from ..records import PrivilegedRecord, Sample

ENTRY_POINTS = "vlm_dopd.builders"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivilegedBlock:
    """What a builder made of one record: text and images, in the order in which the policy shall see them."""

    parts: tuple[str | Image.Image, ...] = ()
    audit_text: tuple[str, ...] = ()
    """The fields of the record that the parts disclose, without coordinates: what a leak audit reads."""

    @property
    def empty(self) -> bool:
        """Nothing to say: the sample is then trained without p."""
        return not self.parts


class Builder(Protocol):
    """A pure function of sample and record. It never sees the answer, the network or another sample."""

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock: ...


def available() -> list[str]:
    """Names of all builders, those of other packages included."""
    own = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    return sorted({*own, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def find(name: str) -> ModuleType:
    """The module of builder `name`. Raises DataError with the close matches if there is none."""
    if name in (module.name for module in pkgutil.iter_modules(__path__)):
        return importlib.import_module(f"{__name__}.{name}")
    for point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            return point.load()
        except Exception as error:  # somebody else's package may fail in any way
            raise DataError(f"builder {name!r} of {point.value!r} cannot be loaded: {error}") from None
    close = difflib.get_close_matches(name, available(), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise DataError(f"builder {name!r} is unknown: {hint}available: {', '.join(available())}")


def get_builder(name: str, **options: Any) -> Builder:
    """Builder `name` with its options. Raises DataError if the name or an option is unknown."""
    cls = find(name).BUILDER
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(options) - known):
        raise DataError(f"builder {name!r} has no option {unknown[0]!r}: options: {', '.join(sorted(known)) or 'none'}")
    return cls(**options)
