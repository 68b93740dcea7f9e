"""Where the rows of a benchmark come from: its fixture, the hub, or files that hold the hub's fields.

Rows become `Record`s at once, so that a bad row stops a run before it starts and not in its second hour; images stay
where they are. Nothing is downloaded unless asked for. Raises ValueError with one line.
"""

from __future__ import annotations

import ast
import glob
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import fixtures
from .benchmarks import Benchmark, Source
from .questions import Record, options_in
from .tables import FORMS, Table, arrow_rows, read_table

FIXTURE, HUB = "fixture", "hub"

# Columns that say the same under another name, tried in order where the benchmark's own is missing.
ALIASES = {
    "decoded_image": ("image", "image_path"),
    "image": ("image_path",),
    "ground_truth": ("answer",),
    "l2_category": ("l2-category",),
}
# Data sets whose options stand in the question. VLMEvalKit's TSV files keep them apart, in columns A, B, ...
SPELLED = {
    "mmstar": ("{}\nOptions: ", "{}: {}", ", ", ""),
    "realworldqa": (
        "{}\n\n",
        "{}. {}",
        "\n",
        "\nPlease answer directly with only the letter of the correct option and nothing else.",
    ),
}
# DynaMath's files are named otherwise than its splits: sample3-… holds sample_variant3.
_FILE_OF = ("sample_variant", "sample")
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")
_SPLIT = re.compile(r"\w[\w .()-]*")


@dataclass(frozen=True)
class Loaded:
    """The questions of a benchmark."""

    records: Sequence[Record]
    """In a fixed order: source by source, as the files have them; of videos, scene by scene. No image is read yet."""
    root: Path
    """What paths of images and videos are relative to."""
    origin: str
    """What was read, with the digest of the files or the revision on the hub."""
    notes: tuple[str, ...] = ()
    """What is special about these rows: fewer than the benchmark has, or adapted from another form."""


def load(
    benchmark: Benchmark,
    data: str,
    *,
    limit: int | None = None,
    sources: tuple[str, ...] | None = None,
    split: str | None = None,
    allow_download: bool = False,
) -> Loaded:
    """The questions of `benchmark` from `data`: "fixture", "hub", or the path of a file or folder.

    `limit` takes the first rows of each source. `sources` picks some by name, configuration or split; `split` another
    split than the one the benchmark reports. Without `allow_download`, "hub" means the hub's cache on this machine.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"{benchmark.name}: limit: expected at least 1, got {limit}")
    among = _of_split(benchmark, split)
    wanted = _chosen(benchmark, among, sources, split)
    if data == HUB:
        parts, root, origin = _from_hub(benchmark, wanted, allow_download)
    else:
        path = fixtures.folder(benchmark.name) if data == FIXTURE else Path(data)
        parts = _from_path(benchmark, among, wanted, path)
        root = path if path.is_dir() else path.parent
        origin = _origin(path, list({id(part.table): part.table for part in parts}.values()))
        if data == FIXTURE:
            origin = f"synthetic fixture of {benchmark.name}, made by this package"
    records, notes = _records(benchmark, parts, limit)
    return Loaded(records, root, origin, (*_counted(benchmark, wanted, parts, len(records), limit), *notes))


@dataclass(frozen=True)
class _Part:
    """Rows of one table that belong to one source."""

    source: Source
    table: Table
    rows: Sequence[Mapping[str, Any]]


def _of_split(benchmark: Benchmark, split: str | None) -> list[Source]:
    """All sources, or where the benchmark reports no such split, the same configurations of that one."""
    if split is None or any(source.split == split for source in benchmark.sources):
        return list(benchmark.sources)
    if not _SPLIT.fullmatch(split):
        raise ValueError(f"{benchmark.name}: split: expected a name, got {split!r}")
    # How many rows it has is not known.
    return [Source(config, split, 0) for config in dict.fromkeys(source.config for source in benchmark.sources)]


def _chosen(
    benchmark: Benchmark, among: list[Source], names: tuple[str, ...] | None, split: str | None
) -> list[Source]:
    """The sources that are asked for, in the benchmark's order."""
    chosen = [source for source in among if split in (None, source.split)]
    for name in names or ():
        if not any(name in (source.name, source.config, source.split) for source in chosen):
            raise ValueError(f"{benchmark.name}: source {name!r} is unknown: known: {_few(s.name for s in chosen)}")
    return [s for s in chosen if names is None or {s.name, s.config, s.split} & set(names)]


def _few(names: Iterable[str], most: int = 8) -> str:
    listed = list(dict.fromkeys(names))
    return ", ".join(listed[:most]) + (" …" if len(listed) > most else "")


def _from_path(benchmark: Benchmark, among: list[Source], wanted: list[Source], path: Path) -> list[_Part]:
    images = {name for name, kind in benchmark.columns.items() if kind.startswith("image")}
    images |= {alias for name in images for alias in ALIASES.get(name, ())} - set(benchmark.columns)
    if path.is_file():
        return _of_one_file(benchmark, among, wanted, path, read_table(path, images))
    if not path.is_dir():
        raise ValueError(f"{benchmark.name}: expected 'fixture', 'hub', a file or a folder, got {str(path)!r}")
    for form in FORMS:
        found = {source: _files(path, source, form) for source in wanted}
        lacking = [source.name for source in wanted if not found[source]]
        if not lacking:
            tables = [(source, read_table(file, images)) for source in wanted for file in found[source]]
            return [_Part(source, table, table.rows) for source, table in tables]
        if len(lacking) < len(wanted):
            raise ValueError(
                f"{benchmark.name}: {path}: {form} files of {len(lacking)} of {len(wanted)} sources are missing: "
                f"{_few(lacking)}; add them, or ask for those there are"
            )
        whole = [file for file in sorted(path.glob(f"*{form}")) if _plain(file.stem) == _plain(benchmark.name)]
        if whole:
            return _of_one_file(benchmark, among, wanted, whole[0], read_table(whole[0], images))
    there = [str(file.relative_to(path)) for file in sorted(path.glob("**/*")) if file.suffix in FORMS]
    raise ValueError(
        f"{benchmark.name}: {path}: expected rows of {_few(source.name for source in wanted)}, as the hub lays them "
        f"out or in one file {benchmark.name}.*; got {_few(there) or 'no ' + ', '.join(FORMS) + ' file'}"
    )


def _files(folder: Path, source: Source, form: str) -> list[Path]:
    """The files of a source in `folder`, in the layouts of the hub; its first layout that is there counts."""
    homes = [source.config, f"data/{source.config}"] if source.config else ["data", ".", "default"]
    for home in map(glob.escape, homes):
        for split in map(glob.escape, _file_names(source)):
            for pattern in (f"{split}-*{form}", f"{split}{form}", f"{split}/*{form}"):
                if found := sorted(folder.glob(f"{home}/{pattern}")):
                    return found
    return []


def _file_names(source: Source) -> list[str]:
    return list(dict.fromkeys((source.split, source.split.replace(*_FILE_OF))))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _of_one_file(
    benchmark: Benchmark, among: list[Source], wanted: list[Source], path: Path, table: Table
) -> list[_Part]:
    """The rows of one file by source: told by its name, else by columns `config` and `split`, else by the row's id."""
    shard = _SHARD.fullmatch(path.stem)
    stem = shard[1] if shard else path.stem
    named = [s for s in among if stem in _file_names(s) and s.config in (None, path.parent.name)]
    if shard and not any(stem in _file_names(source) for source in among):
        splits = _few(source.split for source in wanted)
        raise ValueError(f"{path}: expected rows of split {splits}, got a file of split {stem!r}; name the split")
    told = [name for name in ("config", "split") if name in table.columns and name not in benchmark.columns]
    rows: dict[Source, list[Mapping[str, Any]]] = {source: [] for source in among}
    for number, row in enumerate(table.rows, start=1):
        fits = named or [s for s in among if all(row.get(name) == getattr(s, name) for name in told)]
        if len(fits) > 1:
            # The longest: "_Art_" is in the ids of Art_Theory too.
            fits = [source for source in fits if source.config and f"_{source.config}_" in str(row.get("id"))]
            fits = sorted(fits, key=lambda source: -len(source.name))[:1]
            if not fits:
                raise ValueError(
                    f"{path}: row {number}: cannot tell which of {len(among)} sources it is of "
                    f"({_few((source.name for source in among), 2)}): expected columns config or split, or a folder "
                    "with a file for each"
                )
        for source in fits:
            rows[source].append(row)
    parts = [_Part(source, table, rows[source]) for source in wanted if rows[source]]
    absent = [source.name for source in wanted if not rows[source]]
    # A file of one configuration is asked for by naming it; but what is asked for by its own name has to be there.
    if not parts or (absent and wanted != among):
        got = [source.name for source in among if rows[source]]
        got = got or sorted({"/".join(str(row.get(name)) for name in told) for row in table.rows})
        raise ValueError(f"{path}: expected rows of {_few(absent)}, got none; it has {_few(got)}")
    return parts


def _from_hub(benchmark: Benchmark, wanted: list[Source], download: bool) -> tuple[list[_Part], Path, str]:
    if benchmark.needs_video:
        raise ValueError(
            f"{benchmark.name}: the hub's table holds no videos: download the files of {benchmark.hub}, unpack the "
            "videos next to the table, and give that folder"
        )
    import datasets

    name, _, pinned = benchmark.hub.partition("@")
    images = {column for column, kind in benchmark.columns.items() if kind.startswith("image")}
    parts: list[_Part] = []
    revisions: dict[str, None] = {}
    for source in wanted:
        try:
            with _offline(not download):
                found = datasets.load_dataset(name, source.config, split=source.split, revision=pinned or None)
        except Exception as error:  # the library and its clients raise many types
            reason = " ".join(str(error).split())[:200]
            fix = "" if download else " from the cache; allow the download, or give a file or folder"
            raise ValueError(f"{benchmark.name}: {source.name} of {name} cannot be loaded{fix}: {reason}") from None
        # The cache keeps a data set in a folder named by its revision.
        places = [Path(file["filename"]).parent.name for file in found.cache_files]
        revision = next((place for place in places if re.fullmatch(r"[0-9a-f]{40}", place)), "")
        if pinned and revision and revision != pinned:
            raise ValueError(f"{benchmark.name}: expected revision {pinned} of {name}, got {revision} in the cache")
        table = found.data
        rows = arrow_rows(table, images, f"{name} {source.name}")
        if not rows:
            raise ValueError(f"{benchmark.name}: {source.name} of {name}: expected rows, got none")
        parts.append(_Part(source, Table(f"{name} {source.name}", tuple(table.column_names), rows, revision), rows))
        revisions[revision or pinned or "unknown"] = None
    return parts, Path(name), f"{name} on the hub, revision {', '.join(revisions)}"


@contextmanager
def _offline(on: bool) -> Iterator[None]:
    """Within, `datasets` looks no further than its cache."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = on or before
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _origin(path: Path, tables: list[Table]) -> str:
    if len(tables) == 1:
        return (
            f"{path} ({tables[0].name}, sha256 {tables[0].digest[:12]})"
            if path.is_dir()
            else (f"{path} (sha256 {tables[0].digest[:12]})")
        )
    told = json.dumps([[table.name, table.digest] for table in tables])
    return f"{path} ({len(tables)} files, sha256 of all {hashlib.sha256(told.encode()).hexdigest()[:12]})"


def _records(benchmark: Benchmark, parts: list[_Part], limit: int | None) -> tuple[tuple[Record, ...], list[str]]:
    """Records, and what had to be adapted."""
    records: dict[str, Record] = {}
    notes: dict[str, None] = {}
    counts: dict[Source, int] = {}
    for part in parts:
        adapt = _Adapter(benchmark, part.table)
        notes.update(dict.fromkeys(adapt.notes))
        for row in part.rows:
            index = counts.get(part.source, 0)
            if limit is not None and index >= limit:
                break
            counts[part.source] = index + 1
            try:
                record = benchmark.record(adapt(row), part.source, index)
                if record.id in records:
                    raise ValueError(f"row {index}: expected ids that differ, got {record.id!r} twice")
            except ValueError as error:
                raise ValueError(f"{part.table.name}: {error}") from None
            records[record.id] = record
    taken = list(records.values())
    if benchmark.needs_video:  # one after the other, a video is decoded once for all its questions
        taken.sort(key=lambda record: record.cluster)
    return tuple(taken), list(notes)


class _Adapter:
    """Rows of a table in the benchmark's own columns. Raises ValueError for a column that nothing stands for."""

    def __init__(self, benchmark: Benchmark, table: Table) -> None:
        self.benchmark = benchmark
        self.from_text = table.name.endswith(".tsv")
        self.notes: list[str] = []
        self.taken: dict[str, str] = {}
        self.letters = [letter for letter in "ABCDEFGHIJ" if letter in table.columns]
        for name, kind in benchmark.columns.items():
            known = [other for other in (name, *ALIASES.get(name, ())) if other in table.columns]
            if known:
                self.taken[name] = known[0]
                if known[0] != name:
                    self.notes.append(f"column {known[0]!r} of {table.name} was read as {name!r}")
            elif not kind.endswith("?") and not (name == "options" and self.letters):  # see __call__
                raise ValueError(
                    f"{table.name}: expected a column {name!r} ({kind}), got no such column; it has "
                    f"{', '.join(table.columns)}"
                )
        self.spells = bool(self.letters) and benchmark.name in SPELLED
        if self.spells:
            self.notes.append(
                "options of columns A, B, … were put into the question: its text is not the data set's own"
            )

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        taken = {name: row.get(other) for name, other in self.taken.items()}
        if self.from_text:
            taken = {name: _typed(value, self.benchmark.columns[name], name) for name, value in taken.items()}
        options = {letter: str(row[letter]) for letter in self.letters if row.get(letter) not in (None, "")}
        if "options" not in taken and self.letters and not self.benchmark.columns.get("options", "?").endswith("?"):
            taken["options"] = list(options.values())
        if self.spells and options and options_in(str(taken["question"])) is None:
            head, form, between, tail = SPELLED[self.benchmark.name]
            spelled = between.join(form.format(letter, text) for letter, text in options.items())
            taken["question"] = head.format(taken["question"]) + spelled + tail
        return taken


def _typed(value: Any, kind: str, name: str) -> Any:
    """A cell of a TSV file, all of which are text, as the type that the column has on the hub."""
    bare = kind.rstrip("?")
    if value == "" and (kind != bare or bare == "image"):
        return None
    try:
        if bare == "integer":
            return int(value)
        if bare in ("list", "mapping"):
            return _literal(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"column {name!r}: expected the text of a {bare}, got {value!r:.60}") from None
    return value


def _literal(text: str) -> Any:
    """JSON, or a literal as Python prints it. Nothing in it is executed."""
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text)


def _counted(
    benchmark: Benchmark, wanted: list[Source], parts: list[_Part], taken: int, limit: int | None
) -> Iterator[str]:
    """What is to be said where these are not all rows of the benchmark."""
    expected = sum(source.count for source in wanted)
    if not all(source.count for source in wanted):
        yield f"{taken:,} rows of split {wanted[0].split!r}, not the one that {benchmark.title} is reported on"
    elif taken != expected:
        kept = f", the first {limit:,} of each source" if limit is not None else ""
        yield f"{taken:,} of {expected:,} rows{kept}"
    found = list(dict.fromkeys(part.source.name for part in parts))
    if len(found) < len(benchmark.sources):
        yield f"{len(found)} of {len(benchmark.sources)} sources: {_few(found)}"
