"""Opening annotation files of strangers: capped, no entities, no pickle, and every failure a DataError of one line."""

from __future__ import annotations

import json
import math
import re
import reprlib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import DataError

_REQUIRED: Any = object()


def short(value: Any) -> str:
    """`value` for an error message: one line, a few dozen characters."""
    return reprlib.repr(value)


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of `path`. Raises DataError if it cannot be read, is longer than `max_bytes`, or is a pickle."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise DataError(
                f"{path.name}: expected at most {max_bytes:,} bytes, got {size:,}; raise max_bytes or split"
            )
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name}: expected a readable file ({error.strerror or error})") from None
    if path.suffix in (".p", ".pkl", ".pickle") or re.match(rb"\x80[\x02-\x05]", data):
        raise DataError(
            f"{path.name}: expected text, got a pickle, which may run code when opened; export it as JSON "
            "where you trust it"
        )
    return data


def read_text(path: Path, max_bytes: int) -> str:
    """The content of `path` as UTF-8, without a byte order mark."""
    try:
        return read_bytes(path, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: expected UTF-8 text, got byte {error.start} that is not") from None


def parse_json(text: str, where: str) -> Any:
    """`text` as JSON. NaN and infinities, which many tools write, come through: the checks of boxes see them."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected JSON, got something else ({_line(error)})") from None


def load_json(path: Path, max_bytes: int, kind: type | tuple[type, ...] = dict) -> Any:
    """The JSON document in `path`, whose top level is of `kind`."""
    data = parse_json(read_text(path, max_bytes), path.name)
    return expect(data, kind, path.name)


def json_rows(path: Path, max_bytes: int) -> Iterator[tuple[str, Any]]:
    """(where, row) of a JSON list, or of JSON lines in a file named `.jsonl`. A bad line comes as a DataError value,
    so that one line does not end the file."""
    if path.suffix != ".jsonl":
        for number, row in enumerate(load_json(path, max_bytes, list)):
            yield f"{path.name}[{number}]", row
        return
    for number, line in enumerate(read_text(path, max_bytes).split("\n"), start=1):
        if line.strip():
            try:
                row = parse_json(line, f"{path.name}:{number}")
            except DataError as error:
                row = error
            yield f"{path.name}:{number}", row


def load_xml(path: Path, max_bytes: int, root: str) -> ET.Element:
    """The root element of `path`, which must be named `root`; name spaces are removed from all names.

    Raises DataError for a DOCTYPE or ENTITY: no format here needs one, and they make bombs and read other files.
    """
    data = read_bytes(path, max_bytes)
    if b"\0" in data:  # UTF-16 would hide a DOCTYPE from the search below
        raise DataError(f"{path.name}: expected XML in UTF-8, got NUL bytes")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise DataError(f"{path.name}: expected plain XML, got a DOCTYPE or ENTITY; remove it")
    try:
        tree = ET.fromstring(data)
    except (ET.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that Python does not know
        raise DataError(f"{path.name}: expected XML, got something else ({_line(error)})") from None
    for element in tree.iter():
        element.tag = element.tag.rpartition("}")[2]
    if tree.tag != root:
        raise DataError(f"{path.name}: expected the root element <{root}>, got <{tree.tag[:40]}>")
    return tree


def expect(value: Any, kind: type | tuple[type, ...], where: str) -> Any:
    """`value` if it is of `kind`. A bool is no number. Raises DataError naming `where`."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, DataError):
        raise value
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(_NAMES.get(k, k.__name__) for k in kinds)
        raise DataError(f"{where}: expected {names}, got {short(value)}")
    return value


_NAMES = {dict: "an object", list: "a list", str: "a string", int: "an integer", float: "a number"}


def get(row: Any, key: str, kind: type | tuple[type, ...], where: str, default: Any = _REQUIRED) -> Any:
    """`row[key]`, of `kind`; `default`, where given, for a key that is missing or null.

    >>> get({"id": 7}, "id", int, "row 1"), get({"id": 7, "name": None}, "name", str, "row 1", "cup")
    (7, 'cup')
    >>> get({"id": "7"}, "id", int, "row 1")
    Traceback (most recent call last):
    privileged.errors.DataError: row 1: id: expected an integer, got '7'
    """
    value = expect(row, dict, where).get(key)
    if value is None and default is not _REQUIRED:
        return default
    if value is None:
        raise DataError(f"{where}: {key}: expected a value, got nothing")
    return expect(value, kind, f"{where}: {key}")


def numbers(values: Any, count: int, where: str) -> tuple[float, ...]:
    """`count` numbers, NaN and infinity among them. Raises DataError for anything else."""
    if not isinstance(values, list | tuple) or len(values) != count:
        raise DataError(f"{where}: expected {count} numbers, got {short(values)}")
    return tuple(number(value, where) for value in values)


def number(value: Any, where: str) -> float:
    """An int or float, or for text (XML, txt) the number it spells, as a float; beyond the range of floats: inf."""
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        pass
    raise DataError(f"{where}: expected a number, got {short(value)}")


def whole(value: Any, where: str) -> int:
    """A number from 0 without fraction, or the text that spells one."""
    found = number(value, where)
    if not (0 <= found < 1e15 and found == int(found)):
        raise DataError(f"{where}: expected a whole number from 0, got {short(value)}")
    return int(found)


def score(value: Any) -> float | None:
    """A finite score as a float, None for none. Raises DataError for anything else."""
    if value is None:
        return None
    if not math.isfinite(found := number(value, "score")):
        raise DataError(f"score: expected a finite number, got {value!r}")
    return found


def size(width: Any, height: Any, where: str) -> tuple[int, int] | None:
    """(width, height) if both are given. Raises DataError if they are no size of an image."""
    if width is None and height is None:
        return None
    w, h = number(width, f"{where}: width"), number(height, f"{where}: height")
    if not (1 <= w < 1e6 and 1 <= h < 1e6 and w == int(w) and h == int(h)):
        raise DataError(f"{where}: expected the size of an image in whole pixels, got {short(width)} x {short(height)}")
    return int(w), int(h)


def points(values: Any, where: str) -> tuple[tuple[float, float], ...]:
    """A list of [x, y], or a flat list x, y, x, y, as points."""
    flat = expect(values, (list, tuple), where)
    if flat and not isinstance(flat[0], list | tuple):
        if len(flat) % 2:
            raise DataError(f"{where}: expected pairs x, y, got {len(flat)} numbers")
        flat = list(zip(flat[::2], flat[1::2], strict=True))
    pairs = [numbers(pair, 2, where) for pair in flat]
    return tuple((x, y) for x, y in pairs)


def spelled_points(text: str, where: str) -> tuple[tuple[float, float], ...]:
    """The points of an XML attribute: `x,y x,y` or `x,y;x,y`."""
    return points([pair.split(",") for pair in re.split(r"[;\s]+", text.strip())], where)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or error.__class__.__name__
