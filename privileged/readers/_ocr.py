"""Names that the OCR readers share."""

from __future__ import annotations

from ..errors import DataError

LABELS = {"line": "text line", "word": "word"}
"""The label of a region by `level`; what is written there is its `text`."""


def check_level(reader: str, level: str) -> None:
    """Raises DataError for a level that is none."""
    if level not in LABELS:
        raise DataError(f"reader {reader!r}: level: expected one of {', '.join(LABELS)}, got {level!r}")
