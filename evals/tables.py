"""Files of rows: .parquet, .tsv, .jsonl, .json. Texts are read at once, images when they are asked for.

A cell of an image column is a `Cell`, which knows where its bytes are and reads them each time: a data set of
gigabytes takes the memory of its texts. Raises ValueError with one line that names the file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

FORMS = (".parquet", ".jsonl", ".json", ".tsv")
"""In the order in which they are preferred where a folder holds the same rows in several forms."""


class Cell(Mapping[str, Any]):
    """An image in a file of rows, in the hub's form: `bytes`, or `path` (which may also be base64), read on demand."""

    def __init__(self, read: Callable[[], Any], place: str) -> None:
        self._read = read
        self.place = place
        """File, row and column, for messages."""

    def __getitem__(self, key: str) -> Any:
        if key not in ("bytes", "path"):
            raise KeyError(key)
        value = self._read()
        if isinstance(value, Mapping):
            return value.get(key)
        return value if isinstance(value, bytes) == (key == "bytes") else None

    def __iter__(self) -> Iterator[str]:
        return iter(("bytes", "path"))

    def __len__(self) -> int:
        return 2


@dataclass(frozen=True)
class Table:
    """The rows of one file, or of one split of the hub."""

    name: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    digest: str
    """sha256 of the file, or the revision on the hub."""


def read_table(path: Path, images: Collection[str]) -> Table:
    """The rows of `path`, with a `Cell` for what is not null in the columns `images`."""
    readers = {".parquet": _parquet, ".tsv": _tsv, ".jsonl": _jsonl, ".json": _json}
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a file ending in {', '.join(FORMS)}")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        columns, rows = readers[path.suffix](path, frozenset(images))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not rows:
        raise ValueError(f"{path}: expected rows, got an empty file")
    return Table(path.name, tuple(columns), rows, digest)


Read = tuple[list[str], list[dict[str, Any]]]


def _parquet(path: Path, images: frozenset[str]) -> Read:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, memory_map=True)
        columns = list(file.schema_arrow.names)
        texts = file.read(_texts(file.schema_arrow, images)).to_pylist()
        rows = texts or [{} for _ in range(file.metadata.num_rows)]
        heavy = [name for name in columns if name in images]
        start = 0
        for number in range(file.num_row_groups):
            group = RowGroup(file, number, heavy)
            for name in heavy:
                there = file.read_row_group(number, [_validity(file, name)]).column(name).is_valid().to_pylist()
                for place, valid in enumerate(there):
                    where = f"{path.name} row {start + place}, column {name!r}"
                    rows[start + place][name] = group.cell(name, place, where) if valid else None
            start += file.metadata.row_group(number).num_rows
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: expected a parquet file, got one that cannot be read: {reason}") from None
    return columns, rows


def _texts(schema: Any, images: Collection[str]) -> list[str]:
    """Columns to read at once: not those that hold bytes, be they asked for or not."""
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return plain or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)

    return [name for name in schema.names if name not in images and not holds_bytes(schema.field(name).type)]


def _validity(file: Any, name: str) -> str:
    """What to read of an image column to learn which cells are null: not the bytes, if it has a path beside them."""
    import pyarrow as pa

    kind = file.schema_arrow.field(name).type
    return f"{name}.path" if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 else name


class RowGroup:
    """Image columns of one row group of a parquet file.

    The group that was read last is kept, its neighbours in the file being likely next; one for all files, because the
    30 files of MMMU would otherwise end up in memory.
    """

    _lock = threading.Lock()
    _last: tuple[RowGroup, Any] | None = None

    def __init__(self, file: Any, number: int, images: list[str]) -> None:
        self._file, self._number, self._images = file, number, images

    def value(self, name: str, row: int) -> Any:
        """The cell of column `name` in `row`, counted from the start of the group."""
        import pyarrow as pa

        with RowGroup._lock:
            if RowGroup._last is None or RowGroup._last[0] is not self:
                RowGroup._last = None  # before the next is read: never two at a time
                try:  # threads would keep parts of it for a while after it is let go
                    RowGroup._last = self, self._file.read_row_group(self._number, self._images, use_threads=False)
                except (pa.ArrowException, OSError) as error:
                    raise ValueError(f"cannot be read: {' '.join(str(error).split())[:200]}") from None
            return RowGroup._last[1].column(name)[row].as_py()

    def cell(self, name: str, row: int, place: str) -> Cell:
        """The same, on demand."""
        return Cell(lambda: self.value(name, row), place)


def arrow_rows(table: Any, images: Collection[str], name: str) -> list[dict[str, Any]]:
    """The rows of an Arrow table that lies on disk, as the hub's cache does; images are looked up in it on demand."""
    heavy = [column for column in table.column_names if column in images]
    texts = table.select(_texts(table.schema, images)).to_pylist()
    rows = texts or [{} for _ in range(table.num_rows)]
    for column in heavy:
        cells = table.column(column)
        for place, there in enumerate(cells.is_valid().to_pylist()):
            rows[place][column] = _arrow_cell(cells, place, f"{name} row {place}, column {column!r}") if there else None
    return rows


def _arrow_cell(cells: Any, place: int, where: str) -> Cell:
    return Cell(lambda: cells[place].as_py(), where)


def _jsonl(path: Path, images: frozenset[str]) -> Read:
    rows: list[dict[str, Any]] = []
    columns: dict[str, None] = {}
    with path.open("rb") as file:
        start = 0
        for number, line in enumerate(file, start=1):
            if line.strip():
                row = _object(path, number, line, len(rows))
                columns.update(dict.fromkeys(row))
                rows.append(_held(path, row, images, number, (start, len(line)), _from_json))
            start += len(line)
    return list(columns), rows


def _object(path: Path, number: int, line: bytes, whole: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        if not line.endswith(b"\n"):
            raise ValueError(
                f"{path}: line {number} is torn: the file ends inside it, {whole} rows are whole; copy the file again, "
                "or delete that line"
            ) from None
        raise ValueError(f"{path}: line {number}: expected a JSON object, got {line[:60]!r} ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}: line {number}: expected a JSON object, got {line[:60]!r}")
    return row


def _json(path: Path, images: frozenset[str]) -> Read:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a JSON list of objects: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a JSON list of objects, got {type(rows).__name__}")
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _tsv(path: Path, images: frozenset[str]) -> Read:
    csv.field_size_limit(1 << 30)  # base64 images; the default refuses fields above 128 kB
    with path.open("rb") as file:
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter="\t")
        try:
            columns = next(reader, [])
            if len(set(columns)) != len(columns):
                raise ValueError(f"{path}: expected a header of different columns, got {', '.join(columns)}")
            rows: list[dict[str, Any]] = []
            start = lines.read
            for cells in reader:
                number = len(rows) + 1
                if cells and len(cells) != len(columns):
                    raise ValueError(
                        f"{path}: row {number} has {len(cells)} of {len(columns)} columns: torn or not tab-separated; "
                        f"{len(rows)} rows before it are whole"
                    )
                if cells:
                    row = dict(zip(columns, cells, strict=True))
                    rows.append(_held(path, row, images, number, (start, lines.read - start), _from_tsv(columns)))
                start = lines.read
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected tab-separated UTF-8 text: {error}") from None
    return columns, rows


class _Lines:
    """Lines of a file as text, counting the bytes that were read: where a row of a TSV file starts and ends."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        text = line.decode("utf-8-sig" if not self.read else "utf-8")
        self.read += len(line)
        return text


def _from_json(piece: bytes) -> dict[str, Any]:
    return json.loads(piece)


def _from_tsv(columns: list[str]) -> Callable[[bytes], dict[str, Any]]:
    def row(piece: bytes) -> dict[str, Any]:
        cells = next(csv.reader(io.StringIO(piece.decode(), newline="\n"), delimiter="\t"))
        return dict(zip(columns, cells, strict=True))

    return row


def _held(
    path: Path,
    row: dict[str, Any],
    images: frozenset[str],
    number: int,
    piece: tuple[int, int],
    parse: Callable[[bytes], dict[str, Any]],
) -> dict[str, Any]:
    """`row` with cells for its images, which are read again from `piece` (start, length) of the file."""

    def cell(name: str) -> Cell:
        def read() -> Any:
            with path.open("rb") as file:
                file.seek(piece[0])
                return parse(file.read(piece[1]))[name]

        return Cell(read, f"{path.name} row {number}, column {name!r}")

    return {name: cell(name) if name in images and value not in (None, "") else value for name, value in row.items()}
