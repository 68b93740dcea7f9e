"""Annotation files in any format -> rows for training, with a fate for everything that was in them.

A format without questions (boxes, mostly) needs them from elsewhere: a file of questions about the same images, or one
question for all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .checks import Dropped, Report
from .errors import DataError
from .reader_base import SUFFIXES
from .readers import Annotated, find, get_reader
from .records import ImageRef, Note, PrivilegedRecord, Region
from .rows import read_rows, write_rows
from .scale import Shard, cache_folder, file_digest

VERSION = 1
"""Part of the cache's key: raise it when the same files would read as other rows."""
COLUMNS = ("id", "record", "question", "answer", "report", "error")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What to read and how. `questions` is a data file whose rows name the same images; `question` is for all."""

    format: str
    paths: tuple[Path, ...]
    options: dict[str, Any] = field(default_factory=dict)
    """Those of the reader; `image_root` among them."""
    questions: Path | None = None
    question: str = ""
    shard: Shard = field(default_factory=Shard)
    workers: int = 1

    def __post_init__(self) -> None:
        get_reader(self.format, **self.options)  # a wrong name or option is told before anything is read
        if self.questions and self.question:
            raise DataError("read: expected a file of questions or one question for all, got both")
        if missing := [path for path in self.paths if not path.exists()]:
            raise DataError(f"{missing[0]}: no such file or folder")
        if not self.paths:
            raise DataError("read: expected a file or folder to read, got none")


def read_annotations(reading: Reading, out: Path) -> Report:
    """Write the rows of one shard to `out` and say what became of everything.

    Image paths are written relative to the folder of `out`. Raises DataError for files that are not of the format, for
    samples without a question, and for images that lie outside that folder.
    """
    sources = (*reading.paths, *([reading.questions] if reading.questions else []))
    if out.resolve() in {source.resolve() for source in sources}:
        raise DataError(f"{out}: expected a new file, got one of those that are read")
    found = _annotated(reading)
    report = Report()
    if reading.questions is None:
        rows = _own_rows(reading, found, out, report)
    else:
        rows = _asked_rows(reading, found, out, report)
    write_rows(out, rows)
    return report


def _annotated(reading: Reading) -> Any:
    """A data set of all samples of all paths, in order, from the cache if nothing changed.

    Columns: `id`, `record`, `question`, `answer`; `report`: what happened up to this sample since the last one, so that
    counts go with the rows, through the cache and into shards; `error`: why a file ends there.
    """
    import datasets

    told = [reading.format, reading.options, [file_digest(path) for path in reading.paths], _around(reading), VERSION]
    digest = hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()
    text = datasets.Value("large_string")
    found = datasets.Dataset.from_generator(
        _generate,
        features=datasets.Features(dict.fromkeys(COLUMNS, text)),
        gen_kwargs={"paths": list(reading.paths), "name": reading.format, "options": reading.options},
        num_proc=min(reading.workers, len(reading.paths)) if reading.workers > 1 else None,
        cache_dir=str(cache_folder() / digest[:32]),
    )
    if error := next(filter(None, found["error"]), None):
        raise DataError(error)
    return found


def _around(reading: Reading) -> list[str]:
    """Digests of what samples depend on besides `paths`: the reader's own file, files that options name, images."""
    named = [Path(value) for value in reading.options.values() if isinstance(value, str) and value]
    digests = [file_digest(path) for path in named if path.is_file()]
    if (root := Path(str(reading.options.get("image_root") or ""))) != Path():
        pictures = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
        stamps = [(str(p), s.st_size, s.st_mtime_ns) for p in pictures if p.is_file() and (s := p.stat())]
        digests.append(hashlib.sha256(json.dumps(stamps).encode()).hexdigest())
    source = find(reading.format).__file__
    return digests + ([file_digest(Path(source))] if source else [])


def _generate(paths: list[Path], name: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in paths:
        try:
            yield from _samples(path, name, options)
        except DataError as error:  # as a row: an exception would lose its text between processes
            yield dict.fromkeys(COLUMNS) | {"error": str(error)}
        except Exception as error:  # of somebody else's reader
            told = f"{path}: reader {name!r} failed: {type(error).__name__}: {' '.join(str(error).split())}"
            yield dict.fromkeys(COLUMNS) | {"error": told}


def _samples(path: Path, name: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    reader, root = get_reader(name, **options), options.get("image_root") or ""
    report = Report()
    held: dict[str, Any] | None = None  # back by one, so that what follows the last sample is counted with it
    for sample in reader.read(path, report):
        if held is not None:
            yield held
        held = _columns(sample, root) | {"report": report.take().to_json()}
    if held is None:
        raise DataError(f"{path}: expected samples, got none; {'; '.join(report.lines())[:300]}")
    rest = Report.from_json(held["report"])
    rest.merge(report)
    yield held | {"report": rest.to_json()}


def _columns(sample: Annotated, root: str) -> dict[str, Any]:
    record = sample.record
    if root:
        record = replace(record, images=tuple(_hashed(ref, Path(root)) for ref in record.images))
    return {
        "id": record.sample_id,
        "record": record.to_json(),
        "question": sample.question,
        "answer": sample.answer,
        "error": None,
    }


def _hashed(ref: ImageRef, root: Path) -> ImageRef:
    """With the sha256 of the file, so that a later run can tell that it is another picture."""
    with (root / ref.path).open("rb") as file:
        return replace(ref, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _own_rows(reading: Reading, found: Any, out: Path, report: Report) -> Iterator[dict[str, Any]]:
    """Rows of formats that hold questions, or with one question for all."""
    first: dict[str, int] = {}
    for place, key in enumerate(found["id"]):
        first.setdefault(key, place)
    for place in reading.shard.slice(len(found)):
        entry = found[place]
        fates = Report.from_json(entry["report"])
        question = entry["question"] or reading.question
        if not question:
            raise DataError(
                f"format {reading.format!r} holds no question for sample {entry['id']!r}: give a file of questions "
                "about the same images, or one question for all"
            )
        record = PrivilegedRecord.from_json(entry["record"])
        if first[entry["id"]] != place:
            fates.images["kept"] -= 1
            fates.drop_image(Dropped("same id", f"sample {entry['id']!r} again"))
            fates.lose(record.regions, Dropped("same id", f"sample {entry['id']!r} again"))
            report.merge(fates)
            continue
        report.merge(fates)
        images = _moved(record.images, reading, out)
        if not reading.options.get("image_root"):
            for image in images:
                if not (out.parent / image).is_file():
                    report.note("image not found from the folder of the output: give image_root", image)
        yield _row(record, question, entry["answer"], images)


def _asked_rows(reading: Reading, found: Any, out: Path, report: Report) -> Iterator[dict[str, Any]]:
    """The rows of the file of questions, each with the regions of the images it names."""
    assert reading.questions is not None
    rows = read_rows(reading.questions)
    by_image: dict[str, list[tuple[int, int]]] = defaultdict(list)  # path -> (place in `found`, image of its record)
    root = Path(str(reading.options.get("image_root") or reading.questions.parent)).resolve()
    for place, text in enumerate(found["record"]):
        for number, ref in enumerate(PrivilegedRecord.from_json(text).images):
            by_image[str((root / ref.path).resolve())].append((place, number))
    wanted = reading.shard.slice(len(rows))
    if reading.shard.index == 1:
        for text in found["report"]:
            report.merge(Report.from_json(text))
        asked = {str(path) for place, row in enumerate(rows) for path in _paths(row, reading.questions, place)}
        for image in sorted(set(by_image) - asked):
            report.note("annotated image without a question", Path(image).name)
    first: dict[str, int] = {}
    for place, row in enumerate(rows):
        first.setdefault(_asked_id(row, reading.questions, place), place)
    for place in wanted:
        row = dict(rows[place])
        where = f"{reading.questions} row {place}"
        question = row.get("question")
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"{where}: question: expected a non-empty string, got {question!r}")
        sample_id = _asked_id(row, reading.questions, place)
        if first[sample_id] != place:
            report.note("question with the id of an earlier one", f"{where}: {sample_id!r}")
        paths = _paths(row, reading.questions, place)
        parts = [
            [(PrivilegedRecord.from_json(found[i]["record"]), n) for i, n in by_image.get(str(p), [])] for p in paths
        ]
        if not all(parts):
            report.note("question about an image without annotations", where)
        if any(len(part) > 1 for part in parts):
            report.note("question about an image that was annotated several times: all are joined", where)
        record = _joined(sample_id, paths, root, parts)
        row.pop("image", None)  # `images` says it
        yield row | _row(record, question, row.get("answer"), _moved(record.images, reading, out))


def _asked_id(row: dict[str, Any], file: Path, place: int) -> str:
    return f"{file.stem}-{place}" if row.get("id") in (None, "") else str(row["id"])


def _paths(row: dict[str, Any], file: Path, place: int) -> list[Path]:
    """The images of a row of questions, resolved."""
    sources = row.get("images") or ([row["image"]] if row.get("image") else [])
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        raise DataError(f"{file} row {place}: images: expected a list of paths, got others; annotations name files")
    return [(file.parent / source).resolve() for source in sources]


def _joined(
    sample_id: str, paths: Sequence[Path], root: Path, parts: Sequence[Sequence[tuple[PrivilegedRecord, int]]]
) -> PrivilegedRecord:
    """One record for a question about several images. `parts` are, for each, the (record, which of its images)."""
    regions: list[Region] = []
    refs: list[ImageRef] = []
    notes: list[Note] = []
    relations: list[tuple[str, str, str]] = []
    for number, (path, own) in enumerate(zip(paths, parts, strict=True)):
        refs.append(own[0][0].images[own[0][1]] if own else ImageRef(path=os.path.relpath(path, root)))
        for again, (part, index) in enumerate(own):
            prefix = (f"{number + 1}." if len(paths) > 1 else "") + (f"{again + 1}." if again else "")
            here = {r.id for r in part.regions if r.image == index}
            regions += [replace(r, image=number, id=prefix + r.id) for r in part.regions if r.image == index]
            relations += [(prefix + a, name, prefix + b) for a, name, b in part.relations if {a, b} <= here]
            notes += [note for note in part.notes if note not in notes]
    return PrivilegedRecord(
        sample_id=sample_id,
        regions=tuple(regions),
        notes=tuple(notes),
        relations=tuple(relations),
        images=tuple(refs),
    )


def _row(record: PrivilegedRecord, question: str, answer: Any, images: list[str]) -> dict[str, Any]:
    refs = tuple(replace(ref, path=path) for ref, path in zip(record.images, images, strict=True))
    row = {"id": record.sample_id, "images": images, "question": question}
    row |= {} if answer is None else {"answer": answer}
    return row | {"privileged": replace(record, images=refs).to_json()}


def _moved(refs: tuple[ImageRef, ...], reading: Reading, out: Path) -> list[str]:
    """Paths of the images as seen from the folder of `out`, which must hold them."""
    root = reading.options.get("image_root") or (reading.questions.parent if reading.questions else None)
    if root is None:
        return [ref.path for ref in refs]
    home = out.parent.resolve()
    moved = []
    for ref in refs:
        path = (Path(root) / ref.path).resolve()
        if not path.is_relative_to(home):
            raise DataError(f"{out}: expected a place beside or above the images, got {path} outside of {home}")
        moved.append(path.relative_to(home).as_posix())
    return moved
