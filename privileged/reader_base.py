"""What all readers share: common options, sizes of images, and the way from a raw object to a checked region."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import checks, geometry
from .checks import KEEPABLE, Dropped, Report
from .errors import DataError, ImageError
from .geometry import SPACES, Box, Coords, Point
from .images import inspect_image
from .reader_files import numbers, points, short
from .readers import Annotated
from .records import ImageRef, Note, PrivilegedRecord, Region

PX = Coords()
DIGITS = 6
"""Boxes are rounded to a millionth of a pixel, so that the noise of a conversion does not make records unequal."""
MAX_SHOWN = 40
"""So many characters of a label appear in a message."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True, kw_only=True)
class Options:
    """With `image_root` the headers of the images are read (no pixels): sizes are compared, missing ones filled in."""

    image_root: str = ""
    space: str = "display"
    """`stored` if the annotations were made without regard to the EXIF orientation. Needs `image_root`."""
    keep: tuple[str, ...] = ()
    """Reasons of `checks.KEEPABLE` for which objects are not dropped but kept with a note."""
    max_bytes: int = 1 << 29

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_root", str(self.image_root))
        if self.space not in SPACES:
            raise DataError(f"reader: space: expected one of {', '.join(SPACES)}, got {self.space!r}")
        if self.space == "stored" and not self.image_root:
            raise DataError("reader: space 'stored': expected image_root, got none; orientations are in the images")
        if isinstance(self.keep, str) or not set(self.keep) <= set(KEEPABLE):
            raise DataError(f"reader: keep: expected a list out of {', '.join(KEEPABLE)}, got {self.keep!r}")
        if not isinstance(self.max_bytes, int) or self.max_bytes < 1:
            raise DataError(f"reader: max_bytes: expected a number from 1, got {self.max_bytes!r}")

    def samples(
        self, rows: Iterable[tuple[str, Any]], make: Callable[[Any, str, Report], Annotated | None], report: Report
    ) -> Iterator[Annotated]:
        """`make(row, where, report)` of each (where, row). A DataError is counted as the fate of that image alone."""
        for where, row in rows:
            try:
                sample = make(row, where, report)
            except DataError as error:
                report.drop_image(error)
                continue
            if sample is not None:
                yield sample

    def documents(
        self,
        path: Path,
        suffixes: tuple[str, ...],
        make: Callable[[Path, str, Report], Annotated | None],
        report: Report,
    ) -> Iterator[Annotated]:
        """`make(file, sample id, report)` of the file `path`, or of each such file below the folder `path`.

        A file that cannot be read is a DataError if it was asked for by name, and counted if it is one of a folder.
        """
        if not path.is_dir():
            try:
                sample = make(path, path.stem, report)
            except Dropped as error:  # the file is fine, its image is not
                report.drop_image(error)
                return
            yield from () if sample is None else (sample,)
            return
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
        if not files:
            raise DataError(f"{path.name}: expected files ending in {' or '.join(suffixes)}, got none")
        names = {file: file.relative_to(path).with_suffix("").as_posix() for file in files}
        yield from self.samples(((names[f], f) for f in files), make, report)

    def scope(self, report: Report, where: str, *images: tuple[str, tuple[int, int] | None]) -> Scope:
        """A Scope for a sample with these (name, declared size or None) images."""
        return Scope(self, report, where, images)

    def image_of_stem(self, stem: str) -> str | None:
        """The name of the image `stem` under image_root (`a/b` finds `a/b.jpg`), None if there is none."""
        names = (stem + suffix for suffix in (*SUFFIXES, *(s.upper() for s in SUFFIXES)))
        return next((name for name in names if image_header(self.image_root, name)), None) if self.image_root else None


def image_header(root: str, name: str) -> tuple[int, int, int] | None:
    """(stored width, stored height, EXIF orientation) of an image under `root`; None if there is no usable one."""
    try:
        facts = inspect_image(name, Path(root))
    except ImageError:
        return None
    return *facts.stored_size, facts.orientation


@dataclass(frozen=True)
class _Frame:
    """One image of a sample: its upright size, how stored pixels turn into it, or why it cannot take boxes."""

    ref: ImageRef
    orientation: int = 1
    problem: tuple[str, str] | None = None
    """Reason and message of the Dropped to raise."""


class Scope:
    """The objects of one sample on their way into a record: converted to px of the upright image, checked, counted."""

    def __init__(
        self, options: Options, report: Report, where: str, images: tuple[tuple[str, tuple[int, int] | None], ...]
    ) -> None:
        self._options, self._report, self._where = options, report, where
        self._frames = [_frame(options, where, name, declared) for name, declared in images]
        self._seen = [checks.Duplicates() for _ in images]
        self._ids: set[str] = set()
        self.regions: list[Region] = []
        self.objects = 0

    @contextmanager
    def entry(self) -> Iterator[None]:
        """Around the reading of one object: gives it a fate whatever happens. `add` must be called at most once."""
        self.objects += 1
        try:
            yield
        except DataError as error:
            error.args = (f"{self._where}: object {self.objects}: {error}",)
            self._report.drop_object(error)

    def declared(self, image: int = 0) -> tuple[int, int]:
        """(width, height) that coordinates of the file refer to. Raises Dropped if nothing tells."""
        frame = self._frame(image)
        if frame.problem is not None:
            raise Dropped(*frame.problem)
        width, height = frame.ref.width or 0, frame.ref.height or 0
        return geometry.display_size(width, height, frame.orientation)  # its own inverse

    def add(
        self,
        *,
        label: Any,
        box: Any = None,
        outline: Any = None,
        keypoints: dict[str, Any] | None = None,
        coords: Coords = PX,
        image: int = 0,
        id: str = "",
        any_order: bool = False,
        crowd: bool = False,
        **fields: Any,
    ) -> None:
        """Check one object and keep it as a region. Raises Dropped or DataError, which `entry` turns into its fate.

        `box`, `outline` and `keypoints` are in `coords`. The box is that of the outline, or else the pixels of the
        points, if None. `any_order` admits corners in any order. `fields` are further fields of Region.
        """
        name = checks.check_label(label)
        size = self.declared(image)
        frame = self._frames[image]
        polygon = tuple(coords.point_to_px(point, *size) for point in points(outline, "outline")) if outline else None
        found = {key: coords.point_to_px(_pair(point), *size) for key, point in (keypoints or {}).items()}
        found = {key: point for key, point in found.items() if _is_number(point)}
        if box is not None or polygon:  # the object is drawn without them
            found = {key: (x, y) for key, (x, y) in found.items() if 0 <= x <= size[0] and 0 <= y <= size[1]}
        if box is not None:
            x0, y0, x1, y1 = numbers(box, 4, "box")
            pixels = coords.to_px((x0, y0, x1, y1), *size)
        elif polygon:
            pixels = geometry.enclosing_box(polygon)
        elif found:
            x0, y0, x1, y1 = geometry.enclosing_box(found.values())
            pixels = (x0 - 0.5, y0 - 0.5, x1 + 0.5, y1 + 0.5)
        else:
            raise DataError("expected a box, an outline or a point, got none of them")
        if any_order and _is_number(pixels):
            pixels = geometry.enclosing_box([pixels[:2], pixels[2:]])
        checks.check_placement(pixels, *size)
        if polygon and not all(map(_is_number, polygon)):
            raise Dropped("not a number", "outline: expected finite numbers, got others")
        fields["polygon"] = None if polygon is None else _rounded(self._turn(polygon, size, frame))
        fields["points"] = dict(zip(found, _rounded(self._turn(tuple(found.values()), size, frame)), strict=True))
        self._keep(name, pixels, size, frame, image, id, crowd, box is None and not polygon, fields)

    def finish(
        self,
        sample_id: str,
        *,
        notes: tuple[Note, ...] = (),
        relations: tuple[tuple[str, str, str], ...] = (),
        question: str | None = None,
        answer: str | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Annotated | None:
        """The sample, counted as kept; relations of dropped regions are left out.

        Raises the Dropped of its image if there is one that stands in the way: an image of unknown size does so only
        if there were objects on it.
        """
        for frame in self._frames:
            if frame.problem and (frame.problem[0] != "no image size" or self.objects):
                self._report.lose(self.regions, Dropped(*frame.problem))
                raise Dropped(*frame.problem)
        ids = {region.id for region in self.regions}
        record = PrivilegedRecord(
            sample_id=sample_id,
            regions=tuple(self.regions),
            notes=notes,
            relations=tuple(r for r in relations if r[0] in ids and r[2] in ids),
            images=tuple(frame.ref for frame in self._frames),
            extra=extra or {},
        )
        if lost := len(relations) - len(record.relations):
            self._report.note("relation of a dropped object", f"{self._where}: {lost}")
        if not self.objects and not notes:
            self._report.note("image without annotations", self._where)
        self._report.images["kept"] += 1
        return Annotated(record=record, question=question, answer=answer)

    def note(self, what: str) -> None:
        """Count something about this sample that changes no fate."""
        self._report.note(what, self._where)

    def turned(self, image: int = 0) -> bool:
        """Whether the file's coordinates are turned on the way to the upright image."""
        return self._frame(image).orientation != 1

    def _frame(self, image: int) -> _Frame:
        if not 0 <= image < len(self._frames):
            raise DataError(f"image: expected an index below {len(self._frames)}, got {image}")
        return self._frames[image]

    def _turn(self, spots: tuple[Point, ...], size: tuple[int, int], frame: _Frame) -> tuple[Point, ...]:
        return tuple(geometry.point_to_display(spot, *size, frame.orientation) for spot in spots)

    def _keep(
        self,
        label: str,
        pixels: Box,
        size: tuple[int, int],
        frame: _Frame,
        image: int,
        id: str,
        crowd: bool,
        only_points: bool,
        fields: dict[str, Any],
    ) -> None:
        """From a drawable box in the file's space to a region of the record."""
        display = geometry.display_size(*size, frame.orientation)
        placed = geometry.box_to_display(pixels, *size, frame.orientation)
        x0, y0, x1, y1 = (round(edge, DIGITS) for edge in geometry.clamp_box(placed, *display))
        cut = (x0, y0, x1, y1) != tuple(round(edge, DIGITS) for edge in placed)
        checks.check_placement((x0, y0, x1, y1), *display)  # rounding may have emptied it
        doubts = checks.doubts(label, (x0, y0, x1, y1), *display) + (["crowd"] if crowd else [])
        doubts = [doubt for doubt in doubts if not (only_points and doubt == "tiny")]
        for doubt in doubts:
            if doubt not in self._options.keep:
                raise Dropped(doubt, f"{label[:MAX_SHOWN]!r} {[x0, y0, x1, y1]}: {doubt}")
        if self._seen[image].add(label, (x0, y0, x1, y1)):
            if "duplicate" not in self._options.keep:
                raise Dropped("duplicate", f"{label[:MAX_SHOWN]!r} {[x0, y0, x1, y1]}: duplicate")
            doubts.append("duplicate")
        if cut:
            full = (placed[2] - placed[0]) * (placed[3] - placed[1])
            fields["extra"] = fields.get("extra", {}) | {"clipped": round(1 - (x1 - x0) * (y1 - y0) / full, 4)}
            fields["polygon"] = geometry.clip_polygon(fields["polygon"], *display) if fields["polygon"] else None
        region = Region(
            label=label, box=(x0, y0, x1, y1), image=image, id=id or f"r{self.objects}",
            **(fields | {"polygon": fields["polygon"] or None}),
        )  # fmt: skip
        if region.id in self._ids:
            raise DataError(f"id {region.id!r}: expected one of its own, got that of an earlier object")
        self._ids.add(region.id)
        self.regions.append(region)
        self._report.objects["clamped" if cut else "kept"] += 1
        for doubt in doubts:
            self._report.note(f"kept in spite of: {doubt}", f"{self._where}: {region.id}")


def _frame(options: Options, where: str, name: str, declared: tuple[int, int] | None) -> _Frame:
    """The declared size against that of the image header, if images were given."""
    if not options.image_root:
        if declared is None:
            problem = ("no image size", f"{where}: {short(name)}: expected a size, got none; give image_root")
            return _Frame(ImageRef(path=name), 1, problem)
        return _Frame(ImageRef(path=name, width=declared[0], height=declared[1]))
    header = image_header(options.image_root, name)
    if header is None:
        problem = ("image not found", f"{where}: expected an image {short(name)} under image_root, got none")
        return _Frame(ImageRef(path=name), 1, problem)
    width, height, exif = header
    display = geometry.display_size(width, height, exif)
    expected = (width, height) if options.space == "stored" else display
    ref = ImageRef(path=name, width=display[0], height=display[1], exif_orientation=exif)
    if declared is not None and declared != expected:
        swapped = declared == (expected[1], expected[0])
        sizes = f"{where}: {short(name)}: declared {declared[0]}x{declared[1]}, image {expected[0]}x{expected[1]}"
        return _Frame(ref, 1, ("size swapped" if swapped else "size mismatch", sizes))
    return _Frame(ref, exif if options.space == "stored" else 1)


def _pair(value: Any) -> Point:
    x, y = numbers(value, 2, "point")
    return x, y


def _is_number(values: tuple[float, ...]) -> bool:
    return all(value - value == 0 for value in values)  # neither NaN nor infinite


def _rounded(spots: tuple[Point, ...]) -> tuple[Point, ...]:
    return tuple((round(x, DIGITS), round(y, DIGITS)) for x, y in spots)
