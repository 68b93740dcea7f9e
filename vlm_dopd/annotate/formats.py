"""Every reader and builder there is, those of other packages included, with one worked example each.

Four forms of the same list: dataclasses (`formats`), JSON (`as_json`), a terminal (`print_formats`), and the gallery
of the README (`write_gallery`), which holds the formats that we ship.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pkgutil
import re
import tempfile
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image, ImageDraw

from privileged import builders, readers
from privileged.builders import get_builder
from privileged.checks import Report
from privileged.draw import PALETTE
from privileged.errors import DataError
from privileged.records import SCHEMA, PrivilegedRecord, Sample
from privileged.views import build_views

if TYPE_CHECKING:
    from rich.console import Console

BEGIN, END = "<!-- formats -->", "<!-- /formats -->"
PICTURES = "assets/gallery"
"""Folder of the gallery's pictures, beside the README."""
SIDE, COLOURS = 320, 32
"""Longest side (px) and number of colours of a gallery picture: one is a few kB."""
WIDTH, LINES = 110, 6
"""An example file is shown up to so many lines of so many characters."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A field of the options dataclass, type and default as Python writes them; None: the option is required."""

    name: str
    type: str
    default: str | None


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """What a builder makes of its example."""

    given: dict[str, str]
    """`question`, `answer` if there is one, and `privileged` (the record's JSON)."""
    parts: tuple[str | Image.Image, ...]
    """What the privileged prompt holds besides the sample's own images and its question, in order."""


@dataclass(frozen=True, kw_only=True)
class Understood:
    """What a reader makes of its example."""

    files: dict[str, str]
    """Name -> its first lines."""
    rows: tuple[dict[str, str], ...]
    """`record` (JSON) and, if the format holds them, `question` and `answer`."""
    report: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One format. Of one that cannot be used, `error` is the line that says why."""

    kind: Literal["reader", "builder"]
    name: str
    shipped: bool
    """Part of this package, not found through an entry point."""
    summary: str = ""
    options: tuple[Option, ...] = ()
    discloses: str = ""
    """A builder's grade; empty if it declares none."""
    example: Rendered | Understood | None = None
    error: str = ""


def formats(names: Iterable[str] = ()) -> list[Entry]:
    """All readers, then all builders, or those with these `names`. A broken one is listed with its error.

    Raises DataError for a name that there is not.
    """
    wanted = set(names)
    found = [("reader", name) for name in readers.available()] + [("builder", name) for name in builders.available()]
    if unknown := sorted(wanted - {name for _, name in found}):
        listed = ", ".join(sorted({name for _, name in found}))
        raise DataError(f"format {unknown[0]!r} is unknown: available: {listed}")
    return [_entry(kind, name) for kind, name in found if not wanted or name in wanted]  # type: ignore[arg-type]


def as_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The entries as JSON has them; of pictures only the size."""
    return [
        dataclasses.asdict(dataclasses.replace(entry, example=None)) | {"example": _example_json(entry.example)}
        for entry in entries
    ]


def print_formats(entries: Sequence[Entry], console: Console, examples: bool = False) -> None:
    """A table of the entries, or with `examples` all that is known of each. Texts are never read as markup."""
    from rich.table import Table
    from rich.text import Text

    if examples:
        for entry in entries:
            console.print(Text(_details(entry)), soft_wrap=True)
        return
    for kind, group in itertools.groupby(entries, lambda entry: entry.kind):
        table = Table(title=f"{kind}s", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column in ("name", "what it is", "discloses" if kind == "builder" else "", "options"):
            table.add_column(column, overflow="fold")
        for entry in group:
            note = Text(f"cannot be used: {entry.error}", style="red") if entry.error else Text(entry.summary)
            options = ", ".join(option.name for option in entry.options)
            table.add_row(Text(entry.name, style="bold"), note, Text(entry.discloses), Text(options))
        console.print(table)
        console.print()


def gallery_markdown(entries: Sequence[Entry], folder: str = PICTURES) -> str:
    """The README's block of `entries`, without its markers; pictures are links into `folder`."""
    shared = _shared([entry for entry in entries if entry.kind == "reader"])
    blocks = []
    for kind, title in (("builder", "Builders: what p looks like"), ("reader", "Readers: what becomes a record")):
        group = [entry for entry in entries if entry.kind == kind]
        blocks.append(f"**{title}**")
        if kind == "reader" and shared:
            blocks.append(f"All readers also have the options {_option_list(shared)}.")
        blocks += [_gallery_entry(entry, shared if kind == "reader" else (), folder) for entry in group]
    return "\n\n".join(blocks)


def gallery_pictures(entries: Sequence[Entry]) -> dict[str, Image.Image]:
    """File name -> picture, small and of few colours."""
    return {
        _picture_name(entry, number): _small(part)
        for entry in entries
        for number, part in enumerate(_images(entry), start=1)
    }


def write_gallery(readme: Path) -> list[Path]:
    """Bring the block between the markers of `readme`, and the pictures beside it, up to date; says what changed.

    Raises DataError if the markers are not there.
    """
    entries = [entry for entry in formats() if entry.shipped]
    text = readme.read_text(encoding="utf-8")
    new = replace_block(text, gallery_markdown(entries), readme.name)
    folder = readme.parent / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    changed = [readme] if new != text else []
    readme.write_text(new, encoding="utf-8", newline="\n")
    pictures = gallery_pictures(entries)
    for old in sorted(folder.glob("*.png")):
        if old.name not in pictures:
            old.unlink()
            changed.append(old)
    for name, picture in pictures.items():
        before = (folder / name).read_bytes() if (folder / name).exists() else b""
        picture.save(folder / name, format="PNG", optimize=True)
        changed += [folder / name] if (folder / name).read_bytes() != before else []
    return changed


def replace_block(text: str, block: str, name: str) -> str:
    """`text` with `block` between the markers. Raises DataError unless each marker is there once, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise DataError(f"{name}: expected the markers {BEGIN} and {END} once, each on a line of its own; put them in")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{rest.split(END)[1]}"


def _entry(kind: Literal["reader", "builder"], name: str) -> Entry:
    package = readers if kind == "reader" else builders
    own = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}
    entry = Entry(kind=kind, name=name, shipped=name in own)
    try:
        module = package.find(name)
        cls = getattr(module, kind.upper())
        options = tuple(_option(field) for field in dataclasses.fields(cls) if field.init)
        grade = str(getattr(cls, "discloses", "")) if kind == "builder" else ""
        entry = dataclasses.replace(entry, summary=_summary(module, cls), options=options, discloses=grade)
        example = _understood(name, module) if kind == "reader" else _rendered(name, module)
        return dataclasses.replace(entry, example=example)
    except Exception as error:  # somebody else's package may fail in any way
        line = " ".join(str(error).split())
        return dataclasses.replace(
            entry, error=line if isinstance(error, DataError) else f"{type(error).__name__}: {line}"
        )


def _summary(module: ModuleType, cls: type) -> str:
    """The first line of the file's docstring, to the end of its sentence; or else of the class's, where `dataclass`
    writes a signature if there is none."""
    written = (cls.__doc__ or "").startswith(f"{cls.__name__}(")
    paragraph = (module.__doc__ or ("" if written else cls.__doc__) or "").strip().split("\n\n")[0]
    return " ".join(re.split(r"(?<=\.)\n", paragraph)[0].split())


def _option(field: dataclasses.Field[Any]) -> Option:
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    return Option(name=field.name, type=kind, default=None if default is dataclasses.MISSING else repr(default))


def _rendered(name: str, module: ModuleType) -> Rendered:
    fields = dict(module.EXAMPLE)
    size = fields.pop("image_size", None)
    record = PrivilegedRecord.from_json({"schema": SCHEMA, "sample_id": name} | fields.pop("privileged"))
    images = (_drawing(record, size),) if size else ()
    sample = Sample(id=name, privileged=record, images=images, **fields)
    view = build_views(sample, get_builder(name)).privileged
    pictures = iter(view.images)
    parts: list[str | Image.Image] = []
    for part in view.messages[0]["content"][:-1]:  # the last one is the question
        shown = part["text"].strip() if part["type"] == "text" else next(pictures)
        parts += [] if any(shown is image for image in images) else [shown]
    given = {"question": sample.question} | ({"answer": sample.answer} if sample.answer else {})
    given["privileged"] = json.dumps(module.EXAMPLE["privileged"], ensure_ascii=False)
    return Rendered(given=given, parts=tuple(parts))


def _understood(name: str, module: ModuleType) -> Understood:
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        reader, path = readers.write_example(name, Path(folder))
        found = list(reader.read(path, report))
    if not found:
        raise DataError(
            f"reader {name!r}: EXAMPLE: expected at least one sample, got none: {'; '.join(report.lines())}"
        )
    rows = [
        {"record": row.record.to_json()} | {key: text for key in ("question", "answer") if (text := getattr(row, key))}
        for row in found
    ]
    files = {name: _first_lines(content) for name, content in module.EXAMPLE["files"].items()}
    return Understood(files=files, rows=tuple(rows), report=tuple(report.lines()))


def _first_lines(content: str | list[dict[str, Any]]) -> str:
    """Of a text file, or of a table as JSON lines; what is cut ends in `…`."""
    text = content if isinstance(content, str) else "\n".join(json.dumps(row, ensure_ascii=False) for row in content)
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, WIDTH, drop_whitespace=False) or [""]]
    return "\n".join(lines[:LINES]) + ("\n…" if len(lines) > LINES else "")


def _drawing(record: PrivilegedRecord, size: tuple[int, int]) -> Image.Image:
    """A picture for an example that has only a size: a plain shape where the record says that something is."""
    image = Image.new("RGB", size, (236, 233, 226))
    canvas = ImageDraw.Draw(image)
    for number, region in enumerate(record.regions):
        colour = tuple((2 * part + 3 * 200) // 5 for part in PALETTE[number % len(PALETTE)])
        if region.polygon:
            canvas.polygon(region.polygon, fill=colour)
        else:
            canvas.ellipse(region.box, fill=colour)
    return image


def _example_json(example: Rendered | Understood | None) -> dict[str, Any] | None:
    if example is None:
        return None
    if isinstance(example, Understood):
        rows = [{**row, "record": json.loads(row["record"])} for row in example.rows]
        return {"files": example.files, "rows": rows, "report": list(example.report)}
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "width": part.width, "height": part.height}
        for part in example.parts
    ]
    return {**example.given, "privileged": json.loads(example.given["privileged"]), "parts": parts}


def _details(entry: Entry) -> str:
    """All that is known of one entry, as plain text."""
    lines = [f"{entry.kind} {entry.name}{'' if entry.shipped else ' (of another package)'}: {entry.summary}"]
    if entry.error:
        return "\n".join([*lines, f"  cannot be used: {entry.error}", ""])
    lines += [f"  discloses: {entry.discloses or '?'}"] if entry.kind == "builder" else []
    lines += [f"  {_option_text(option)}" for option in entry.options]
    if isinstance(entry.example, Understood):
        for name, text in entry.example.files.items():
            lines += [f"  {name}:", textwrap.indent(text, "    ")]
        lines += ["  becomes:", *(f"    {key}: {text}" for row in entry.example.rows for key, text in row.items())]
    elif entry.example:
        shown = [p if isinstance(p, str) else f"[image {p.width}×{p.height}]" for p in entry.example.parts]
        lines += [*(f"  {key}: {text}" for key, text in entry.example.given.items()), "  becomes:"]
        lines += [textwrap.indent(text, "    ") for text in shown or ["nothing"]]
    return "\n".join([*lines, ""])


def _gallery_entry(entry: Entry, shared: Sequence[Option], folder: str) -> str:
    grade = f" Discloses: {entry.discloses or 'not declared'}." if entry.kind == "builder" else ""
    lines = ["<details>", f"<summary><code>{entry.name}</code>: {_html(entry.summary)}{grade}</summary>", ""]
    if options := _option_list([option for option in entry.options if option not in shared]):
        lines += [f"Options: {options}.", ""]
    if isinstance(entry.example, Understood):
        for name, text in entry.example.files.items():
            lines += [f"`{name}`", "", _fenced(text), ""]
        lines += ["becomes", ""]
        for row in entry.example.rows:
            lines += [_fenced(_lines(row)), ""]
    elif entry.example:
        lines += [_fenced(_lines(entry.example.given)), "", "becomes", ""]
        number = 0
        for part in entry.example.parts:
            if isinstance(part, str):
                lines += [_fenced(part), ""]
            else:
                number += 1
                lines += [f"![picture {number} of {entry.name}]({folder}/{_picture_name(entry, number)})", ""]
        lines += [] if entry.example.parts else ["nothing.", ""]
    return "\n".join([*lines, "</details>"])


def _lines(fields: dict[str, str]) -> str:
    return "\n".join(f"{key}: {text}" for key, text in fields.items())


def _option_list(options: Iterable[Option]) -> str:
    return ", ".join(f"`{_option_text(option)}`" for option in options)


def _option_text(option: Option) -> str:
    return f"{option.name}: {option.type}" + ("" if option.default is None else f" = {option.default}")


def _shared(entries: Sequence[Entry]) -> tuple[Option, ...]:
    """The options that all of `entries` have alike."""
    usable = [entry for entry in entries if not entry.error]
    return tuple(o for o in usable[0].options if all(o in entry.options for entry in usable)) if usable else ()


def _fenced(text: str) -> str:
    """A block of code that nothing within `text` can end."""
    longest = max([2, *map(len, re.findall(r"`+", text))])
    fence = "`" * (longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _html(text: str) -> str:
    """For a place where Markdown reads HTML: escaped, and backticks as code."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)


def _images(entry: Entry) -> list[Image.Image]:
    parts = entry.example.parts if isinstance(entry.example, Rendered) else ()
    return [part for part in parts if isinstance(part, Image.Image)]


def _picture_name(entry: Entry, number: int) -> str:
    return f"{entry.name}-{number}.png"


def _small(image: Image.Image) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return small.quantize(COLOURS)
