"""The training file of the rows that an audit keeps: as they were, with ids, and with images that are still found."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..rows import IMAGE_COLUMNS, Rows, write_rows

Row = dict[str, Any]


def check_kept(kept: Path, data: Sequence[Path]) -> None:
    """Raises DataError for a `kept` from which the images of `data` could not be found, or of another format.

    Paths in a data file are looked up, and must stay, below its own folder.
    """
    for path in data:
        if kept.resolve() == path.resolve():
            raise DataError(f"{kept}: expected a new file for the rows that are kept, got the data itself")
        if not path.resolve().parent.is_relative_to(kept.resolve().parent):
            raise DataError(f"{kept}: images are found below a data file's folder; put it beside {path}")
        wanted = ".parquet" if path.suffix == ".parquet" else ".jsonl"
        if kept.suffix != wanted:
            raise DataError(f"{kept}: expected a file ending in {wanted} for the rows of {path.name}")


def write_kept(kept: Path, data: Mapping[Path, Rows], chosen: Mapping[Path, Mapping[int, str]]) -> None:
    """Write the rows of `data` whose places `chosen` names, with the ids it gives them, to a file that is checked."""
    if kept.suffix == ".jsonl":
        moved = (
            _moved(rows[place], name, path, kept) for path, rows in data.items() for place, name in chosen[path].items()
        )
        write_rows(kept, moved)
        return
    import datasets

    tables = []
    for path, rows in data.items():
        table: Any = rows
        table = table.select(list(chosen[path]))
        if (inside := _inside(path, kept)) != Path():
            table = table.map(functools.partial(_paths_below, inside=inside), features=table.features)
        table = table.remove_columns([name for name in ("id",) if name in table.column_names])
        ids = datasets.Dataset.from_dict(
            {"id": list(chosen[path].values())}, datasets.Features({"id": datasets.Value("string")})
        )
        tables.append(datasets.concatenate_datasets([ids, table], axis=1))
    part = kept.with_name(kept.name + ".part")
    datasets.concatenate_datasets(tables).to_parquet(str(part))
    part.replace(kept)


def _moved(row: Row, sample_id: str, path: Path, kept: Path) -> Row:
    """`row` with its id, and with paths that lead from the folder of `kept` to the images of `path`."""
    return _paths_below(row, inside=_inside(path, kept)) | {"id": sample_id}


def _inside(path: Path, kept: Path) -> Path:
    """The folder of `path` as seen from that of `kept`."""
    return path.resolve().parent.relative_to(kept.resolve().parent)


def _paths_below(row: Row, inside: Path) -> Row:
    moved = dict(row)
    for column in ("image", "images", *IMAGE_COLUMNS):
        if (value := row.get(column)) is not None:
            moved[column] = [_below(one, inside) for one in value] if isinstance(value, list) else _below(value, inside)
    if row.get("messages") is not None:
        moved["messages"] = [_message_below(message, inside) for message in row["messages"]]
    return moved


def _message_below(message: Any, inside: Path) -> Any:
    content = message["content"]
    if isinstance(content, str):
        return message
    return message | {"content": [_part_below(part, inside) for part in content]}


def _part_below(part: Any, inside: Path) -> Any:
    moved = dict(part)
    for key in ("image", "image_url"):
        if (value := part.get(key)) is not None:
            named = isinstance(value, dict) and isinstance(value.get("url"), str)
            moved[key] = value | {"url": _below(value["url"], inside)} if named else _below(value, inside)
    return moved


def _below(source: Any, inside: Path) -> Any:
    if isinstance(source, dict):
        return source | {"path": _below(source["path"], inside)} if source.get("path") else source
    if isinstance(source, str):
        source = source.removeprefix("file://")
    is_path = isinstance(source, str) and not source.startswith("data:") and "://" not in source
    return (inside / source).as_posix() if is_path else source
