"""Rows of a file <-> samples. One question a row:

| column | what it holds |
|---|---|
| `question` | text, required |
| `images` | list of paths (relative to the data file) or of encoded bytes; `image` for a single one; may be missing |
| `answer` | reference answer, optional: evaluation needs it, distillation does not |
| `privileged` | a privileged record as JSON text, optional; JSON text, because Arrow fills nested rows with nulls |
| `kind` | type of question, optional: figures are given by it |
| `id` | optional; default is that of the record, or else the file's name and the row's number |

Instead of `question`, `images` and `answer` a row may have `messages`, the chat turns of Qwen's own tools.

Columns that other toolkits use for p are taken along, for the builder `column`: text in `privileged_context` or
`teacher_prompt` (text, or chat messages), pictures in `teacher_images` or `bbox_images`. So is the text of any other.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import DataError
from .image_policy import DEFAULT, ImagePolicy
from .images import image_source, load_image
from .qwen_messages import Turn, read_turn, turn_sources
from .records import PrivilegedRecord, Sample

Rows = Sequence[dict[str, Any]]

TEXT_COLUMNS = ("privileged_context", "teacher_prompt")
IMAGE_COLUMNS = ("teacher_images", "bbox_images")
OWN_COLUMNS = ("id", "question", "answer", "kind", "privileged", "image", "images", "messages", *IMAGE_COLUMNS)
SOURCE_COLUMNS = ("image", "images", "messages", *IMAGE_COLUMNS)
"""Columns that name or hold pictures."""


def read_rows(path: Path) -> Rows:
    """The rows of a .parquet, .jsonl or .json file; pictures in them stay encoded.

    Raises DataError, with the file's name, if it is missing, of another format, or holds no rows with questions.
    """
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: expected a file ending in {', '.join(FORMATS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such data file")
    rows = FORMATS[path.suffix](path)
    if not len(rows):
        raise DataError(f"{path}: expected rows, got an empty file")
    if not {"question", "messages"} & set(rows[0]):
        raise DataError(f"{path}: expected a column 'question' (or 'messages'), got: {', '.join(rows[0])}")
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write JSON lines, one a row, and say how many. The file appears when it is complete."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with part.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            try:
                line = json.dumps(row, ensure_ascii=False)
            except TypeError as error:
                raise DataError(
                    f"{path} row {count}: expected columns that JSON can hold, got others ({error})"
                ) from None
            file.write((line if _encodable(line) else json.dumps(row)) + "\n")
            count += 1
    part.replace(path)
    return count


def _encodable(text: str) -> bool:
    """JSON may hold half a surrogate pair; UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_sample(row: dict[str, Any], default_id: str, root: Path, policy: ImagePolicy = DEFAULT) -> Sample:
    """`row` as a sample, its images decoded; opened as `policy` allows, paths relative to `root`.

    Raises DataError for a row that is not what the table above says.
    """
    record = row.get("privileged")
    record = PrivilegedRecord.from_json(record) if record else None
    sample_id = _text("id", row.get("id")) or (record.sample_id if record else default_id)
    texts = {name: text for name, text in row.items() if name not in OWN_COLUMNS and text and isinstance(text, str)}
    texts |= {name: text for name in TEXT_COLUMNS if (text := _prompt_text(name, row.get(name)))}
    pictures = {name: _images(name, row[name], root, policy) for name in IMAGE_COLUMNS if row.get(name)}
    if texts or pictures:
        record = record or PrivilegedRecord(sample_id=sample_id)
        record = replace(record, extra=texts | record.extra)
    if row.get("messages") is not None:
        return _from_messages(row, sample_id, read_turn(row["messages"], root, policy), record, pictures)
    single, many = row.get("image"), row.get("images")
    if single is not None and many is not None:
        raise DataError("images: expected a column 'image' or 'images', got both")
    return Sample(
        id=sample_id,
        question=row.get("question", ""),
        images=_images("images", many, root, policy) if single is None else (_image("image", single, root, policy),),
        answer=_text("answer", row.get("answer")),
        privileged=record,
        privileged_images=pictures,
    )


def image_sources(row: dict[str, Any]) -> list[Any]:
    """The images of a row as it holds them, in the order of the sample's: of `image`, `images` or `messages`.

    Meant for rows that `to_sample` takes; raises DataError for messages it does not.
    """
    if row.get("messages") is not None:
        return turn_sources(row["messages"])
    return [row["image"]] if row.get("image") is not None else list(row.get("images") or ())


def stored_sources(row: dict[str, Any]) -> list[Any]:
    """All pictures that a row names or holds, those of p included. Never raises, whatever the row holds."""
    found: list[Any] = []
    try:
        found += image_sources(row)
    except (DataError, TypeError):
        found.append(repr(row)[:1000])
    for name in IMAGE_COLUMNS:
        value = row.get(name)
        found += value if isinstance(value, list) else () if value is None else [value]
    return found


def _from_messages(
    row: dict[str, Any], sample_id: str, turn: Turn, record: PrivilegedRecord | None, pictures: dict[str, Any]
) -> Sample:
    """A row of chat messages, which then hold question, images and answer alone."""
    if double := [name for name in ("question", "answer", "image", "images") if row.get(name) is not None]:
        raise DataError(f"messages: expected them instead of a column {double[0]!r}, got both")
    return Sample(
        id=sample_id,
        question=turn.question,
        images=turn.images,
        answer=turn.answer,
        privileged=record,
        privileged_images=pictures,
    )


def _images(name: str, sources: Any, root: Path, policy: ImagePolicy) -> tuple[Image.Image, ...]:
    if sources is None:
        return ()
    if not isinstance(sources, list):
        raise DataError(f"{name}: expected a list of paths or encoded bytes, got one {type(sources).__name__}")
    return tuple(_image(name, source, root, policy) for source in sources)


def _image(name: str, source: Any, root: Path, policy: ImagePolicy) -> Image.Image:
    return load_image(image_source(source, name), root, policy)


def _text(name: str, value: Any) -> str | None:
    """Ids and answers are text; files often hold them as numbers."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    raise DataError(f"{name}: expected text or a number, got {type(value).__name__}")


def _prompt_text(name: str, value: Any) -> str:
    """A prompt of another toolkit as text: as it is, or what its messages say one after the other."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        contents = [message["content"] for message in value]
        parts = [part for content in contents for part in ([content] if isinstance(content, str) else content)]
        texts = [part if isinstance(part, str) else part.get("text") for part in parts]
        return "\n\n".join(text for text in texts if text)
    except (TypeError, KeyError, AttributeError):
        raise DataError(f"{name}: expected text or chat messages, got {str(value)[:60]!r}") from None


def _read_parquet(path: Path) -> Rows:
    import datasets

    try:
        rows = datasets.load_dataset("parquet", data_files=glob.escape(str(path)), split="train")
    except Exception as error:  # of pyarrow, pandas, datasets: a bad file fails in many ways
        raise DataError(f"{path}: expected parquet rows, got: {_cause(error)}") from None
    for name, feature in rows.features.items():  # we decode ourselves: upright, bounded, within the folder
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            rows = rows.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return rows


def _read_jsonl(path: Path) -> Rows:
    """Not through Arrow, which would read the answer "2020-01-01" as a date and fill absent keys with nulls."""
    rows = []
    # Bytes, not str.splitlines(): JSON does not escape U+2028.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            rows.append(_object(line, f"{path} line {number}"))
    return rows


def _read_json(path: Path) -> Rows:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected json, got: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a list of objects, got {str(rows)[:60]!r}")
    return rows


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected jsonl, an object a line, got: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected jsonl, an object a line, got {str(row)[:60]!r}")
    return row


def _cause(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__


FORMATS = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".json": _read_json}
