"""What every annotation format is turned into: a sample, and the privileged record that may belong to it.

A record is one JSON object (`schema: privileged/1`); unknown keys are kept, so that a file survives a round trip.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, fields
from typing import Any

from PIL import Image

from .errors import DataError
from .geometry import Box, Point

SCHEMA = "privileged/1"


COORDS = {"unit": "px", "order": "xyxy", "space": "display"}
"""The only coordinates of a record; other conventions are converted when an annotation file is read."""


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """An image as a file names it (path under its root, or URL). The size is that of the upright image.

    What is not known is None. `exif_orientation` (1..8) is how the stored pixels lie.
    """

    path: str
    width: int | None = None
    height: int | None = None
    sha256: str | None = None
    exif_orientation: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"image {self.path!r}"
        if not isinstance(self.path, str) or not self.path:
            raise DataError(f"images: path: expected a non-empty string, got {self.path!r}")
        for name, low, high in (("width", 1, 10**6), ("height", 1, 10**6), ("exif_orientation", 1, 8)):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value == int(value) and low <= value <= high):
                raise DataError(f"{where}: {name}: expected a whole number from {low} to {high}, got {value!r}")
        if (self.width is None) != (self.height is None):
            raise DataError(f"{where}: expected width and height, got one of them")
        if not isinstance(self.sha256, str | None):
            raise DataError(f"{where}: sha256: expected hexadecimal digits, got {self.sha256!r}")


@dataclass(frozen=True, kw_only=True)
class Region:
    """A labelled place in one image of the sample, in px of the upright image.

    `box` is xyxy, half-open. `polygon` is the outline, `points` are named keypoints (no entry for one not labelled),
    `text` is what is written there, `caption` a sentence about it. `extra` holds the keys of the JSON object that are
    not ours, as they were.
    """

    label: str
    box: Box
    image: int = 0
    id: str = ""
    score: float | None = None
    polygon: tuple[Point, ...] | None = None
    points: dict[str, Point] = field(default_factory=dict)
    text: str | None = None
    caption: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"region {self.id!r}"
        if not isinstance(self.label, str) or not self.label.strip():
            raise DataError(f"{where}: label: expected a non-empty string, got {self.label!r}")
        if not isinstance(self.id, str):
            raise DataError(f"{where}: id: expected a string, got {self.id!r}")
        if not isinstance(self.image, int) or isinstance(self.image, bool) or self.image < 0:
            raise DataError(f"{where}: image: expected an index from 0, got {self.image!r}")
        edges = self.box if isinstance(self.box, list | tuple) else ()
        if len(edges) != 4 or not all(map(_is_number, edges)):
            raise DataError(f"{where}: box: expected four finite numbers [x0, y0, x1, y1], got {str(self.box)[:100]}")
        object.__setattr__(self, "box", tuple(map(float, edges)))
        if self.polygon is not None:
            if not isinstance(self.polygon, list | tuple):
                raise DataError(f"{where}: polygon: expected a list of [x, y], got {self.polygon!r}")
            object.__setattr__(self, "polygon", tuple(_point(where, "polygon", point) for point in self.polygon))
        if self.score is not None and not _is_number(self.score):
            raise DataError(f"{where}: score: expected a finite number, got {str(self.score)[:60]!r}")
        for name in ("points", "attributes"):
            if not isinstance(value := getattr(self, name) or {}, dict):
                raise DataError(f"{where}: {name}: expected an object, got {value!r}")
        points = {name: _point(where, f"points.{name}", point) for name, point in (self.points or {}).items()}
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "attributes", self.attributes or {})
        for name in ("text", "caption"):
            if not isinstance(value := getattr(self, name), str | None):
                raise DataError(f"{where}: {name}: expected a string, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Note:
    """A privileged sentence. `kind` says what it is (`hint`, `caption`, ...); notes of a kind keep their order."""

    text: str
    kind: str = "hint"
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str):
            raise DataError(f"note: kind: expected a word, got {self.kind!r}")
        if not isinstance(self.text, str) or not self.text.strip():
            raise DataError(f"note of kind {self.kind!r}: text: expected a non-empty string, got {self.text!r}")


@dataclass(frozen=True, kw_only=True)
class PrivilegedRecord:
    """p of one sample, independent of how it will be rendered. `extra` holds the JSON keys that are not ours."""

    sample_id: str
    regions: tuple[Region, ...] = ()
    notes: tuple[Note, ...] = ()
    relations: tuple[tuple[str, str, str], ...] = ()
    """(region id, predicate, region id)."""
    images: tuple[ImageRef, ...] = ()
    """The images that the regions were drawn on, in order, where the file says: what a sample is checked against."""
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str | dict[str, Any]) -> PrivilegedRecord:
        """Parse and validate one record.

        Raises DataError, with the sample id, if the schema is another one or a field has the wrong form.

        >>> cup = {"label": "cup", "box": [64, 48, 96.5, 88], "colour": "red"}
        >>> record = PrivilegedRecord.from_json({"schema": "privileged/1", "sample_id": 7, "regions": [cup]})
        >>> record.sample_id, record.regions[0].box, record.regions[0].extra
        ('7', (64.0, 48.0, 96.5, 88.0), {'colour': 'red'})
        >>> PrivilegedRecord.from_json(record.to_json()) == record
        True
        """
        try:
            row = dict(json.loads(text) if isinstance(text, str) else text)
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise DataError("privileged record: expected text, got half a character (a lone surrogate)") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"privileged record: expected a JSON object, got {str(text)[:60]!r} ({error})") from None
        if "sample_id" not in row:
            raise DataError("privileged record: sample_id: expected one, got nothing")
        sample_id = row.pop("sample_id")
        if sample_id == "" or not isinstance(sample_id, str | int | float) or isinstance(sample_id, bool):
            raise DataError(f"privileged record: sample_id: expected a name or a number, got {str(sample_id)[:60]!r}")
        where = f"privileged record {str(sample_id)[:60]!r}"
        if (schema := row.pop("schema", None)) != SCHEMA:
            raise DataError(f"{where}: schema: expected {SCHEMA!r}, got {str(schema)[:60]!r}")
        if (coords := row.pop("coords", COORDS)) != COORDS:
            raise DataError(
                f"{where}: coords: expected px, xyxy, display, got {str(coords)[:60]!r}; convert when reading"
            )
        try:
            return cls(
                sample_id=str(sample_id),
                regions=_parts(Region, "regions", row.pop("regions", ()), ("label", "box")),
                notes=_parts(Note, "notes", row.pop("notes", ()), ("text",)),
                relations=_triples(row.pop("relations", ())),
                images=_parts(ImageRef, "images", row.pop("images", ()), ("path",)),
                extra=row,
            )
        except DataError as error:
            raise DataError(f"{where}: {error}") from None

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back as an equal record."""
        regions = [_region_row(region) for region in self.regions]
        notes = [{"kind": n.kind, "text": n.text, **n.extra} for n in self.notes]
        row = {"schema": SCHEMA, "sample_id": self.sample_id, "coords": COORDS, "regions": regions, "notes": notes}
        if self.images:
            row["images"] = [_image_row(image) for image in self.images]
        if self.relations:
            row["relations"] = [list(triple) for triple in self.relations]
        return json.dumps(row | self.extra, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question with its images (upright RGB, possibly none) and, for training, its answer and its p.

    Raises DataError if the record was made for another sample, or for images of another number or size.
    """

    id: str
    question: str
    images: tuple[Image.Image, ...] = ()
    answer: str | None = None
    privileged: PrivilegedRecord | None = None
    privileged_images: dict[str, tuple[Image.Image, ...]] = field(default_factory=dict)
    """Ready pictures of p by the name of their column (`teacher_images`, `bbox_images`), for the builder `column`."""

    def __post_init__(self) -> None:
        if not isinstance(self.question, str) or not self.question.strip():
            raise DataError(f"sample {self.id!r}: question: expected a non-empty string, got {self.question!r}")
        if any("\ud800" <= character <= "\udfff" for character in self.question):  # JSON can spell it, UTF-8 cannot
            raise DataError(f"sample {self.id!r}: question: expected text, got half a character (a lone surrogate)")
        if self.privileged is None:
            return
        if self.privileged.sample_id != self.id:
            raise DataError(
                f"sample {self.id!r}: privileged: expected its own record, got {self.privileged.sample_id!r}"
            )
        if (refs := self.privileged.images) and len(refs) != len(self.images):
            raise DataError(f"sample {self.id!r}: privileged: made for {len(refs)} images, got {len(self.images)}")
        for ref, image in zip(refs, self.images, strict=bool(refs)):
            if ref.width is not None and (ref.width, ref.height) != image.size:
                raise DataError(
                    f"sample {self.id!r}: privileged: made for {ref.path} of {ref.width}x{ref.height}, got "
                    f"{image.width}x{image.height}; boxes of another size or orientation would lie elsewhere"
                )


def _parts(cls: type, name: str, rows: Any, required: tuple[str, ...]) -> tuple[Any, ...]:
    """`rows` of JSON objects as `cls`, their unknown keys kept in `extra`."""
    if not isinstance(rows, list | tuple) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{name}: expected a list of objects, got {str(rows)[:60]!r}")
    known = {f.name for f in fields(cls)} - {"extra"}
    parts = []
    for number, row in enumerate(rows):
        if missing := [key for key in required if key not in row]:
            raise DataError(f"{name}[{number}]: {missing[0]}: expected one, got nothing")
        ours = {key: value for key, value in row.items() if key in known}
        parts.append(cls(**ours, extra={key: value for key, value in row.items() if key not in known}))
    return tuple(parts)


def _is_number(value: Any) -> bool:
    # Compared, not converted: an int of 400 digits is no float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _point(where: str, name: str, value: Any) -> Point:
    fits = isinstance(value, list | tuple) and len(value) == 2
    if not fits or not all(map(_is_number, value)):
        raise DataError(f"{where}: {name}: expected two finite numbers [x, y], got {value!r}")
    return float(value[0]), float(value[1])


def _triples(rows: Any) -> tuple[tuple[str, str, str], ...]:
    if not isinstance(rows, list | tuple):
        raise DataError(f"relations: expected a list, got {str(rows)[:60]!r}")
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) != 3 or not all(isinstance(part, str) for part in row):
            raise DataError(f"relations: expected [region id, predicate, region id], got {str(row)[:60]!r}")
    return tuple((row[0], row[1], row[2]) for row in rows)


def _region_row(region: Region) -> dict[str, Any]:
    """The JSON object of `region`; what it does not have is left out."""
    row: dict[str, Any] = {"id": region.id, "image": region.image, "label": region.label}
    row["box"] = [*map(_tidy, region.box)]
    if region.polygon is not None:
        row["polygon"] = [[*map(_tidy, point)] for point in region.polygon]
    if region.points:
        row["points"] = {name: [*map(_tidy, point)] for name, point in region.points.items()}
    optional = {name: getattr(region, name) for name in ("score", "text", "caption", "attributes")}
    return row | {name: value for name, value in optional.items() if value not in (None, {})} | region.extra


def _image_row(image: ImageRef) -> dict[str, Any]:
    row = {name: getattr(image, name) for name in ("path", "sha256", "width", "height", "exif_orientation")}
    return {name: value for name, value in row.items() if value is not None} | image.extra


def _tidy(edge: float) -> float | int:
    return int(edge) if edge == int(edge) else edge
