"""What every annotation format is turned into: a sample, and the privileged record that may belong to it.

A record is one JSON object (`schema: privileged/1`); unknown keys are kept, so that a file survives a round trip.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from .errors import DataError
from .geometry import Box

SCHEMA = "privileged/1"


@dataclass(frozen=True, kw_only=True)
class Region:
    """A labelled place in one image of the sample. `box` is px, xyxy, half-open, upright image."""

    label: str
    box: Box
    image: int = 0
    id: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.label, str) or not self.label.strip():
            raise DataError(f"region {self.id!r}: label: expected a non-empty string, got {self.label!r}")
        if not isinstance(self.image, int) or self.image < 0:
            raise DataError(f"region {self.id!r}: image: expected an index from 0, got {self.image!r}")
        try:
            box = tuple(float(edge) for edge in self.box)
        except (TypeError, ValueError):
            box = ()
        if len(box) != 4:
            raise DataError(f"region {self.id!r}: box: expected four numbers [x0, y0, x1, y1], got {self.box!r}")
        object.__setattr__(self, "box", box)


@dataclass(frozen=True, kw_only=True)
class Note:
    """A privileged sentence. `kind` says what it is (`hint`, `caption`, ...); notes of a kind keep their order."""

    text: str
    kind: str = "hint"

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise DataError(f"note of kind {self.kind!r}: text: expected a non-empty string, got {self.text!r}")


@dataclass(frozen=True, kw_only=True)
class PrivilegedRecord:
    """p of one sample, independent of how it will be rendered."""

    sample_id: str
    regions: tuple[Region, ...] = ()
    notes: tuple[Note, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str | dict[str, Any]) -> PrivilegedRecord:
        """Parse and validate one record.

        Raises DataError, with the sample id, if the schema is another one or a field has the wrong form.
        """
        try:
            row = dict(json.loads(text) if isinstance(text, str) else text)
        except (ValueError, TypeError) as error:
            raise DataError(f"privileged record: expected a JSON object, got {str(text)[:60]!r} ({error})") from None
        where = f"privileged record {row.get('sample_id')!r}"
        if (schema := row.pop("schema", None)) != SCHEMA:
            raise DataError(f"{where}: schema: expected {SCHEMA!r}, got {schema!r}")
        coords = row.pop("coords", {"unit": "px", "order": "xyxy", "space": "display"})
        if coords != {"unit": "px", "order": "xyxy", "space": "display"}:
            raise DataError(f"{where}: coords: expected px, xyxy, display, got {coords}; convert when reading")
        try:
            return cls(
                sample_id=str(row.pop("sample_id")),
                regions=tuple(Region(**region) for region in row.pop("regions", ())),
                notes=tuple(Note(**note) for note in row.pop("notes", ())),
                extra=row,
            )
        except (DataError, TypeError, KeyError) as error:
            raise DataError(f"{where}: {error}") from None

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back as an equal record."""
        row = {
            "schema": SCHEMA,
            "sample_id": self.sample_id,
            "coords": {"unit": "px", "order": "xyxy", "space": "display"},
            "regions": [
                {"id": r.id, "image": r.image, "label": r.label, "box": [*map(_tidy, r.box)]} for r in self.regions
            ],
            "notes": [{"kind": n.kind, "text": n.text} for n in self.notes],
            **self.extra,
        }
        return json.dumps(row, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question with its images (upright RGB, possibly none) and, for training, its answer and its p."""

    id: str
    question: str
    images: tuple[Image.Image, ...] = ()
    answer: str | None = None
    privileged: PrivilegedRecord | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.question, str) or not self.question.strip():
            raise DataError(f"sample {self.id!r}: question: expected a non-empty string, got {self.question!r}")


def _tidy(edge: float) -> float | int:
    return int(edge) if edge == int(edge) else edge
