"""The same work on every row of a file: by several processes, cached, and by shards for arrays of jobs.

Rows do not depend on each other, shards are contiguous, and results come in the order of the rows. So the results of
shards 1/n to n/n, one after the other, are those of the whole file, whatever n and however many processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DataError
from .rows import SOURCE_COLUMNS, read_rows, stored_sources

BLOCK = 4096
"""Rows of one map: what a kill loses at most. Finished blocks are found in the cache."""

Work = Callable[[dict[str, Any], str, Path], Any]
"""(row, default id, folder that its image paths are relative to) -> a value for JSON."""


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count` contiguous parts, as even as can be."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise DataError(f"shard: expected i/n with 1 <= i <= n, got {self.index}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`2/8` as a shard. Raises DataError for anything else."""
        if not (match := re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())):
            raise DataError(f"shard: expected i/n, for example 2/8, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    def slice(self, total: int) -> range:
        """The places of this shard in `total` rows."""
        return range(total * (self.index - 1) // self.count, total * self.index // self.count)


def map_rows(
    path: Path, work: Work, *, key: str, shard: Shard | None = None, workers: int = 1, desc: str = ""
) -> list[Any]:
    """`work` of each row of `path`, or of one shard of it, in order.

    Cached by the content and the stem of the file (default ids hold it), the sizes and times of the images it names,
    `key` and place: change `key` with whatever else the result depends on. `work` goes to other processes if
    `workers` > 1, so it must be picklable. An error of `work` ends the map.
    """
    rows = read_rows(path)
    wanted = (shard or Shard()).slice(len(rows))
    digest = hashlib.sha256(f"{file_digest(path)} {path.stem} {key}".encode()).hexdigest()
    facts: list[Any] = []
    # Blocks start at multiples of BLOCK, so that shards and the whole file share what is in the cache.
    for start in range(wanted.start - wanted.start % BLOCK, wanted.stop, BLOCK):
        places = range(max(start, wanted.start), min(start + BLOCK, wanted.stop))
        facts += _map_block(path, rows, places, work, digest, workers, desc)
    return facts


def file_digest(path: Path) -> str:
    """sha256 of a file, or of the names, sizes and times of everything below a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    entries = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(path.rglob("*")) if p.is_file()]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def cache_folder() -> Path:
    """Where finished blocks lie: below the cache of `datasets`, which HF_DATASETS_CACHE moves."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "vlm_dopd"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _map_block(
    path: Path, rows: Any, places: range, work: Work, digest: str, workers: int, desc: str
) -> list[Any]:  # fmt: skip
    import datasets

    if isinstance(rows, datasets.Dataset):
        block = rows.select(places)
    else:  # as text: Arrow would fill the keys that a row lacks with nulls
        block = datasets.Dataset.from_dict({"json": [json.dumps(rows[place]) for place in places]})
    stamps = _stamps(rows, places, path.parent)
    name = hashlib.sha256(f"{digest} {places.start} {places.stop} {stamps}".encode()).hexdigest()[:32]
    result = block.map(
        _facts,
        with_indices=True,
        fn_kwargs={"work": work, "stem": path.stem, "first": places.start, "root": path.parent},
        remove_columns=block.column_names,
        features=datasets.Features({"facts": datasets.Value("large_string")}),
        num_proc=min(workers, len(places)) if workers > 1 else None,
        cache_file_name=str(cache_folder() / f"{name}.arrow"),
        new_fingerprint=name,
        desc=desc or None,
    )
    return [json.loads(text) for text in result["facts"]]


def _stamps(rows: Any, places: range, root: Path) -> str:
    """A digest of when the image files of these rows were written, since their pixels are part of the input."""
    stamps = hashlib.sha256()
    named = rows
    if hasattr(rows, "features"):  # encoded pixels are in the data file itself, and stay there
        columns = [name for name in SOURCE_COLUMNS if "string" in str(rows.features.get(name, ""))]
        named = rows.select_columns(columns) if columns else ()
    for place in places if len(named) else ():
        for source in map(_named, stored_sources(named[place])):
            try:
                status = os.stat(root / source)
                stamps.update(f"{place} {source} {status.st_size} {status.st_mtime_ns}".encode())
            except (OSError, TypeError, ValueError):  # missing, or no path: `work` will say so
                stamps.update(f"{place} {source!r:.200}".encode())
    return stamps.hexdigest()


def _named(source: Any) -> Any:
    """The path of a source; None for encoded pixels, which are in the data file itself."""
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    return None if isinstance(source, bytes) else source


def _facts(row: dict[str, Any], place: int, *, work: Work, stem: str, first: int, root: Path) -> dict[str, str]:
    row = json.loads(row["json"]) if row.keys() == {"json"} else row
    return {"facts": json.dumps(work(row, f"{stem}-{first + place}", root))}
