"""Files that hold one row a reply: JSON lines, a JSON list, a table of tab-separated values, a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

MAX_CELL = 2**24
"""Characters of a cell; the csv module stops at 131,072 unless told otherwise, which a long reply can pass."""


def rows(path: Path) -> list[Row]:
    """Rows of `path`, its form told by its first bytes. A torn last line, as a kill leaves it, is left out.

    Raises ValueError with one line naming the line that cannot be read, and OSError if the file cannot be.
    """
    data = path.read_bytes()
    if data.startswith(b"PK\x03\x04"):
        return _spreadsheet(data)
    head = data[:100_000].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"["):
        return _list(data) or _lines(data)
    if b"\t" in head.partition(b"\n")[0] and not head.startswith(b"{"):
        return _table(data)
    return _lines(data)


def listed(text: str, mark: str) -> list[str]:
    """Options that stand one below the other with their letters, "A. …" for the mark ".": the last such list of `text`.

    An option may have several lines, the last one has one: behind it comes an instruction.
    """
    labels = list(re.finditer(rf"^([A-Z]){re.escape(mark)}(?: |$)", text, flags=re.MULTILINE))
    first = max((place for place, label in enumerate(labels) if label[1] == "A"), default=len(labels))
    found: list[re.Match[str]] = []
    for label in labels[first:]:
        if label[1] == chr(ord("A") + len(found)):
            found.append(label)
    ends = [label.start() for label in found[1:]]
    texts = [text[label.end() : end] for label, end in zip(found, ends, strict=False)]
    texts += [text[label.end() :].partition("\n")[0] for label in found[-1:]]
    return [option.strip() for option in texts]


def _lines(data: bytes) -> list[Row]:
    # Bytes, not str.splitlines(): a reply may hold U+2028, which JSON does not escape.
    *lines, last = data.split(b"\n")
    found: list[Row] = []
    for number, line in enumerate([*lines, last], start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines) + 1:
                break  # torn by a kill
            raise ValueError(f"line {number}: expected a JSON object, got {line[:60]!r} ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: expected a JSON object, got {line[:60]!r}")
        found.append(row)
    return found


def _list(data: bytes) -> list[Row]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return []
    return value if isinstance(value, list) and all(isinstance(row, dict) for row in value) else []


def _table(data: bytes) -> list[Row]:
    if not data.endswith(b"\n"):
        raise ValueError("expected a table that ends with a line break, got one that ends in the middle of a row")
    before = csv.field_size_limit(MAX_CELL)
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter="\t", strict=True)
        found: list[Row] = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"expected a table of tab-separated values in UTF-8, got a damaged one ({error})") from None
    finally:
        csv.field_size_limit(before)
    for number, row in enumerate(found, start=1):
        if None in row or None in row.values():
            raise ValueError(f"row {number}: expected {len(reader.fieldnames or ())} cells, got another number")
    return found


def _spreadsheet(data: bytes) -> list[Row]:
    try:
        import openpyxl
    except ImportError:
        raise ValueError(
            "a spreadsheet needs openpyxl: `pip install openpyxl`, or save the table as .tsv (PRED_FORMAT=tsv)"
        ) from None
    try:
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True)
        header, *cells = book.worksheets[0].iter_rows(values_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError, IndexError, OSError) as error:
        raise ValueError(f"expected a spreadsheet, got a damaged file ({error})") from None
    return [dict(zip(map(str, header), row, strict=False)) for row in cells]
