"""The figures of an audit and a contact sheet as one self-contained HTML page. Whatever a data set says is escaped."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from privileged import PrivilegedRecord, Sample
from privileged.audit.figures import ASPECTS, FEW, SHARES
from privileged.builders import Builder, PrivilegedBlock
from privileged.draw import draw_boxes
from privileged.escape import escape
from privileged.geometry import Box, check_box, clamp_box
from privileged.leaks import RULES, Grade
from vlm_dopd.report.charts import HEIGHT, PAINT, STYLE, WIDTH, svg
from vlm_dopd.report.page import number, percent, points

SIDE = 420
"""px of a picture's longer side: boxes and numbers are drawn at this size, so they stay sharp."""
BOXES = 40
"""Drawn in one picture; more cannot be told apart."""
TEXTS = 12
LONGEST = 320
"""Characters of a question or of a text of p in a card."""
GRADES = {
    "stated": "the answer itself",
    "derivable": "the answer follows from it",
    "cue": "one of several candidates, or a weak hit",
    "none": "nothing found",
}
BARS = {"none": "NP", "cue": "LL", "derivable": "HS", "stated": "HT"}
"""Grade -> colour of `vlm_dopd.report`, from harmless to bad."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A data URI, its size in px, and the labels of the boxes drawn in it by their number."""

    uri: str
    width: int
    height: int
    labels: tuple[tuple[int, str], ...]
    more: int
    """Boxes that were not drawn: beyond BOXES, or not on the image."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One row of the contact sheet."""

    row: Mapping[str, Any]
    question: str
    pictures: tuple[Picture, ...]
    texts: tuple[str, ...]
    """What p says, without coordinates; empty where it only repeats the labels beside the picture."""
    more: int


def write_page(
    path: Path,
    report: Mapping[str, Any],
    sheet: Mapping[str, Sequence[Mapping[str, Any]]],
    builder: Builder,
    load: Callable[[Any], Sample],
) -> None:
    """Write the page of `report` (what `audit.json` holds) with a card for each row of `sheet`, which `load` reads.

    The same input gives the same bytes.
    """
    cards = {name: [_card(row, load(row), builder) for row in rows] for name, rows in sheet.items()}
    charts = _charts(report["figures"])
    template = _environment().get_template("audit.html.jinja")
    page = template.render(report=report, figures=report["figures"], cards=cards, charts=charts)
    part = path.with_name(path.name + ".part")
    # A label can hold half a surrogate pair, which no file can.
    part.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    part.replace(path)


def readable(text: Any) -> str:
    """`text` as the page shows it: without control characters and marks that reverse what is around them."""
    text = escape(str(text))
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} […]"


def _card(row: Mapping[str, Any], sample: Sample, builder: Builder) -> Card:
    pictures = tuple(_picture(sample, index) for index in range(len(sample.images)))
    shown = {label for picture in pictures for _, label in picture.labels}
    texts = [text for text in _texts(sample, builder) if readable(text) not in shown]
    return Card(
        row=row,
        question=readable(sample.question),
        pictures=pictures,
        texts=tuple(map(readable, texts[:TEXTS])),
        more=max(0, len(texts) - TEXTS),
    )


def _texts(sample: Sample, builder: Builder) -> tuple[str, ...]:
    """The words of p. A row that cannot be built has none: its card tells why."""
    record = sample.privileged or PrivilegedRecord(sample_id=sample.id)
    try:
        block: PrivilegedBlock = builder.build(sample, record)
    except Exception:
        return ()
    return block.audit_text


def _picture(sample: Sample, index: int) -> Picture:
    image = sample.images[index]
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    own = [region for region in (sample.privileged.regions if sample.privileged else ()) if region.image == index]
    drawable = [region for region in own if check_box(region.box, *image.size) is None]
    boxes = [_scaled(clamp_box(region.box, *image.size), image.size, size) for region in drawable[:BOXES]]
    numbers = list(range(1, len(boxes) + 1))
    drawn = draw_boxes(image.resize(size, Image.Resampling.BICUBIC), boxes, numbers)
    stream = io.BytesIO()
    drawn.save(stream, format="JPEG", quality=82, optimize=True)
    return Picture(
        uri="data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii"),
        width=size[0],
        height=size[1],
        labels=tuple((number, readable(region.label)) for number, region in zip(numbers, drawable, strict=False)),
        more=len(own) - len(boxes),
    )


def _scaled(box: Box, old: tuple[int, int], new: tuple[int, int]) -> Box:
    sx, sy = new[0] / old[0], new[1] / old[1]
    return box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy


def _charts(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where leaks are, and what boxes look like. A chart without any figures is left out."""
    regions = figures["regions"]
    charts: list[dict[str, Any]] = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the page
        matplotlib.rcParams.update(STYLE)
        if kinds := {
            name: group["grades"] for name, group in figures["kinds"].items() if any(group["grades"].values())
        }:
            charts.append(_stacked("Leaks by kind of question", kinds))
        for name, title, unit, bins in (
            ("per_row", "Regions of a row", "rows", FEW),
            ("area", "Size of boxes", "boxes, by their share of the image", SHARES),
            ("aspect", "Shape of boxes", "boxes, by width to height", ASPECTS),
        ):
            if any(regions[name].values()):
                charts.append(_histogram(name, title, unit, {key: regions[name][key] for key in bins}))
    return charts


def _histogram(name: str, title: str, unit: str, counts: Mapping[str, int]) -> dict[str, Any]:
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.02, right=0.98, top=0.88, bottom=0.13)
    bars = axes.bar(range(len(counts)), list(counts.values()), color=PAINT["student"], width=0.72)
    axes.bar_label(bars, labels=[f"{count:,}" if count else "" for count in counts.values()], padding=2, fontsize=9.5)
    axes.set_xticks(range(len(counts)), list(counts), fontsize=9)
    axes.tick_params(axis="x", length=0)
    axes.set_title(unit, loc="left", x=-0.02)
    axes.yaxis.set_visible(False)  # each bar has its number
    axes.grid(visible=False)
    axes.set_ylim(0, 1.15 * max(counts.values()))
    return {"name": name, "title": title, "svg": _drawn(figure, name, title), "legend": []}


def _stacked(title: str, kinds: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """A bar a kind, as shares of its rows; the dozen largest kinds."""
    largest = sorted(kinds, key=lambda kind: (-sum(kinds[kind].values()), kind))[:12]
    figure = Figure(figsize=(WIDTH / 72, max(90, 44 + 17 * len(largest)) / 72))
    axes = figure.subplots()
    figure.subplots_adjust(
        left=0.3, right=0.97, top=1 - 22 / figure.get_figheight() / 72, bottom=22 / figure.get_figheight() / 72
    )
    left = [0.0] * len(largest)
    for grade, paint in BARS.items():
        shares = [100 * kinds[kind][grade] / sum(kinds[kind].values()) for kind in largest]
        axes.barh(range(len(largest)), shares, left=left, color=PAINT[paint], height=0.7)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    # SVG cannot hold half surrogate pairs and the like.
    names = ["".join(filter(str.isprintable, readable(kind))) or "no kind" for kind in largest]
    axes.set_yticks(range(len(largest)), [name if len(name) <= 18 else f"{name[:17]}…" for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(visible=False)
    axes.set_title("share of rows (%), by the worst grade", loc="left", x=-0.43)
    legend = [{"paint": paint, "label": f"{grade}: {GRADES[grade]}"} for grade, paint in BARS.items()]
    return {"name": "grades", "title": title, "svg": _drawn(figure, "grades", title), "legend": legend}


def _drawn(figure: Figure, name: str, title: str) -> Markup:
    with warnings.catch_warnings():  # text stays text, and the page's fonts know more letters than matplotlib's
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        return svg(figure, name, f"Chart: {title}")


def _environment() -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("vlm_dopd.annotate", "."), PackageLoader("vlm_dopd.report", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "number": number, "readable": readable}
    environment.globals |= {
        "grades": GRADES,
        "rules": RULES,
        "grade_name": {grade.value: grade.name.lower() for grade in Grade},
    }
    return environment
