"""The charts of a run as inline SVG: drawn by matplotlib, coloured and lettered by the page.

Colours are drawn as placeholders and come out as CSS variables, so that one drawing serves light, dark and print, and
a regime has one colour everywhere. Text stays text, in the page's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .collect import Curve, Report

REGIMES = {
    "LH": "they agree, both sure",
    "LL": "they agree, both unsure",
    "HT": "they differ, teacher surer",
    "HS": "they differ, student surer",
    "NP": "no boxes, plain distillation",
}
OTHERS = ("other1", "other2", "other3")  # components of methods that have no regimes
TOKENS = ("ink", "muted", "rule", "page", "student", "teacher", *OTHERS, *REGIMES)
# Dark, distinct greys: no colour of matplotlib's own defaults can be mistaken for one of them.
PAINT = {token: f"#0{index:x}0{index:x}0{index:x}" for index, token in enumerate(TOKENS, 1)}

WIDTH, HEIGHT = 400, 225  # SVG units; one is 0.9 to 1.3 CSS px on the page
STYLE: Any = {  # matplotlib's own type of this is a literal of every key it knows
    "svg.fonttype": "none",
    "svg.hashsalt": "vlm-dopd",  # ids would be random otherwise
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib and is wide: what fits in it fits in the page's font
    "font.size": 10.5,
    "text.color": PAINT["muted"],
    "axes.titlecolor": PAINT["muted"],
    "axes.titlesize": 10.5,
    "axes.titlepad": 8,
    "axes.labelcolor": PAINT["muted"],
    "axes.labelsize": 10.5,
    "axes.edgecolor": PAINT["rule"],
    "axes.linewidth": 1,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": PAINT["rule"],
    "grid.linewidth": 0.8,
    "xtick.color": PAINT["rule"],
    "xtick.labelcolor": PAINT["muted"],
    "ytick.labelcolor": PAINT["muted"],
    "ytick.major.size": 0,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}
DASHES = {"solid": (0, ()), "dashed": (0, (5, 3)), "dotted": (0, (1.2, 2.2))}
BENCHMARK = "eval/benchmark/"
FEW = 16  # points up to which each gets a dot


@dataclass(frozen=True, kw_only=True)
class Key:
    """A legend entry. `dash` names a line; None is an area."""

    label: str
    paint: str
    dash: str | None = "solid"
    code: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure of the page. `name` is its id there, `svg` is drawn by us and safe to embed."""

    name: str
    title: str
    caption: str
    svg: Markup
    legend: tuple[Key, ...]


def draw_charts(report: Report) -> tuple[list[Chart], list[str]]:
    """The charts that the run has figures for, and the titles of those it has none for."""
    drawn, absent = [], []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the page
        matplotlib.rcParams.update(STYLE)
        for title, draw in CHARTS.items():
            if chart := draw(report, title):
                drawn.append(chart)
            elif draw not in (_benchmarks, _cost, _overlap):  # only runs that ask for them have those, or newer ones
                absent.append(title)
    return drawn, absent


def _accuracy(report: Report, title: str) -> Chart | None:
    curve = report.curves.get("eval/accuracy")
    if curve is None:
        return None
    figure, (axes,) = canvas("questions answered correctly (%)")
    low, high = report.curves.get("eval/low"), report.curves.get("eval/high")
    if low and high and low.step == high.step == curve.step:
        axes.fill_between(curve.step, _percent(low), _percent(high), color=PAINT["student"], alpha=0.16, linewidth=0)
    axes.plot(curve.step, _percent(curve), color=PAINT["student"], **dots(curve))
    legend = [Key(label="student, with 95 % interval", paint="student")]
    if with_p := report.curves.get("eval/accuracy_with_p"):
        axes.plot(with_p.step, _percent(with_p), color=PAINT["student"], linestyle=DASHES["dotted"], **dots(with_p))
        legend.append(Key(label="student, shown p", paint="student", dash="dotted"))
    if teacher := report.row("teacher"):
        axes.axhline(100 * teacher.accuracy, color=PAINT["teacher"], linestyle=DASHES["dashed"])
        legend.append(Key(label="teacher", paint="teacher", dash="dashed"))
    return Chart(
        name="accuracy",
        title=title,
        caption="The plain prompt, without boxes: what the deployed student sees.",
        svg=svg(figure, "accuracy", f"Chart over the optimiser steps: {title}"),
        legend=tuple(legend),
    )


def _benchmarks(report: Report, title: str) -> Chart | None:
    """A line a benchmark; beyond three, paints come again with another dash."""
    named = {name.removeprefix(BENCHMARK): its for name, its in report.curves.items() if name.startswith(BENCHMARK)}
    if not named:
        return None
    figure, (axes,) = canvas("headline number (%)")
    legend = []
    for place, (name, curve) in enumerate(named.items()):
        paint, dash = OTHERS[place % len(OTHERS)], list(DASHES)[place // len(OTHERS) % len(DASHES)]
        axes.plot(curve.step, _percent(curve), color=PAINT[paint], linestyle=DASHES[dash], **dots(curve))
        legend.append(Key(label=name, paint=paint, dash=dash))
    from_zero(axes, [value for curve in named.values() for value in _percent(curve)])
    return Chart(
        name="benchmarks",
        title=title,
        caption="A few questions of each: enough to see where it goes, too few for a result.",
        svg=svg(figure, "benchmarks", f"Chart over the optimiser steps: {title}"),
        legend=tuple(legend),
    )


def _entropy(report: Report, title: str) -> Chart | None:
    curve = report.curves.get("entropy/student")
    if curve is None:
        return None
    figure, (axes,) = canvas("mean entropy of a token (nats)")
    axes.plot(curve.step, curve.value, color=PAINT["student"], **dots(curve))
    from_zero(axes, curve.value)
    return Chart(
        name="entropy",
        title=title,
        caption="How undecided the student is between tokens; a fall to zero means it stopped exploring.",
        svg=svg(figure, "entropy", f"Chart over the optimiser steps: {title}"),
        legend=(),
    )


def _shares(report: Report, title: str) -> Chart | None:
    curves = {name: report.curves[key] for name in REGIMES if (key := f"share/{name}") in report.curves}
    steps = sorted({step for curve in curves.values() for step in curve.step})
    if len(steps) < 2:
        return None
    figure, (axes,) = canvas("share of response tokens (%)")
    floor, legend = [0.0] * len(steps), []
    for name, curve in curves.items():
        if not any(curve.value):
            continue
        at = dict(zip(curve.step, curve.value, strict=True))
        top = [below + 100 * at.get(step, 0.0) for below, step in zip(floor, steps, strict=True)]
        axes.fill_between(steps, floor, top, color=PAINT[name], linewidth=0)
        axes.plot(steps, top, color=PAINT["page"], linewidth=0.8)
        legend.append(Key(code=name, label=REGIMES[name], paint=name, dash=None))
        floor = top
    axes.margins(x=0)
    axes.set_ylim(0, 100)
    return Chart(
        name="shares",
        title=title,
        caption="“They”: teacher and student, both shown the boxes. Dark shades learn from the teacher, light ones "
        "from the student itself.",
        svg=svg(figure, "shares", f"Chart over the optimiser steps: {title}"),
        legend=tuple(legend),
    )


def _gap(report: Report, title: str) -> Chart | None:
    lines = (
        ("gap/p95", Key(label="95th percentile", paint="muted", dash="dotted")),
        ("gap/mean", Key(label="mean", paint="ink", dash="solid")),
        ("gap/p50", Key(label="median", paint="muted", dash="dashed")),
    )
    return _lines(
        report,
        title,
        name="gap",
        unit="|log q teacher − log q student| of a token (nats)",
        caption="Distance of teacher and student when both see the boxes: what is left is ability, not information.",
        lines=lines,
    )


def _loss(report: Report, title: str) -> Chart | None:
    parts = _components(report, "loss/")
    if len(parts) == 1 and parts[0][1].label == "component":  # one alone is the total again
        parts = []
    lines = [("loss", Key(label="total", paint="ink")), *parts]
    return _lines(
        report,
        title,
        name="loss",
        unit="mean divergence of a token (nats)",
        caption="The total as optimised, strengths included"
        + ("; each part before its strength is applied." if parts else "."),
        lines=lines,
    )


def _overlap(report: Report, title: str) -> Chart | None:
    return _lines(
        report,
        title,
        name="overlap",
        unit="probability of the top-K support under the target",
        caption="How much of what the target would write is among the tokens it is compared on; the rest is one bin.",
        lines=_components(report, "overlap/"),
    )


def _components(report: Report, prefix: str) -> list[tuple[str, Key]]:
    """The curves of `prefix`, regimes first, in their colours."""
    codes = [name.removeprefix(prefix) for name in sorted(report.curves) if name.startswith(prefix)]
    known = [code for code in REGIMES if code in codes and any(report.curves[prefix + code].value)]
    unknown = [code for code in codes if code not in REGIMES]
    paints = [OTHERS[index % len(OTHERS)] for index in range(len(unknown))]
    return [(prefix + code, Key(code=code, label=REGIMES[code], paint=code)) for code in known] + [
        (prefix + code, Key(code=code, label="component", paint=paint, dash="dashed"))
        for code, paint in zip(unknown, paints, strict=True)
    ]


def _length(report: Report, title: str) -> Chart | None:
    length, truncated = report.curves.get("rollout/length"), report.curves.get("rollout/truncated")
    if length is None:
        return None
    titles = ["mean response length (tokens)"] + (["cut off at the limit (%)"] if truncated else [])
    figure, panels = canvas(*titles)
    panels[0].plot(length.step, length.value, color=PAINT["student"], **dots(length))
    from_zero(panels[0], length.value)
    if truncated:
        panels[1].plot(truncated.step, _percent(truncated), color=PAINT["student"], **dots(truncated))
        from_zero(panels[1], [*_percent(truncated), 1.0])
    return Chart(
        name="length",
        title=title,
        caption="Responses the student wrote in training. Growing length with many cut off is a warning.",
        svg=svg(figure, "length", f"Chart over the optimiser steps: {title}"),
        legend=(),
    )


def _cost(report: Report, title: str) -> Chart | None:
    panels = {
        "sampled tokens a second (tokens)": report.curves.get("time/tokens_per_s"),
        "peak memory of the first process (GiB)": report.curves.get("memory/peak_gib"),
    }
    present = {unit: curve for unit, curve in panels.items() if curve}
    if not present:
        return None
    figure, axes = canvas(*present)
    for one, curve in zip(axes, present.values(), strict=True):
        one.plot(curve.step, curve.value, color=PAINT["ink"], **dots(curve))
        from_zero(one, curve.value)
    return Chart(
        name="cost",
        title=title,
        caption="Of whole steps: rollout, scoring and training together, without evaluations.",
        svg=svg(figure, "cost", f"Chart over the optimiser steps: {title}"),
        legend=(),
    )


CHARTS = {
    "Accuracy over training": _accuracy,
    "Benchmarks during training": _benchmarks,
    "Loss": _loss,
    "Regime shares": _shares,
    "Gap": _gap,
    "Overlap": _overlap,
    "Student entropy": _entropy,
    "Response length": _length,
    "Throughput and memory": _cost,
}


def _lines(
    report: Report, title: str, *, name: str, unit: str, caption: str, lines: Sequence[tuple[str, Key]]
) -> Chart | None:
    """A chart of the `lines` (metric, legend entry) that the run has; the first is drawn on top."""
    present = [(report.curves[metric], key) for metric, key in lines if metric in report.curves]
    if not present:
        return None
    figure, (axes,) = canvas(unit)
    for rank, (curve, key) in enumerate(present):
        style = DASHES[key.dash or "solid"]
        axes.plot(curve.step, curve.value, color=PAINT[key.paint], linestyle=style, zorder=9 - rank, **dots(curve))
    from_zero(axes, *(curve.value for curve, _ in present))
    legend = tuple(key for _, key in present)
    return Chart(
        name=name,
        title=title,
        caption=caption,
        svg=svg(figure, name, f"Chart over the optimiser steps: {title}"),
        legend=legend,
    )


def canvas(*units: str) -> tuple[Figure, list[Axes]]:
    """A figure with one panel a unit, one above the other, over the steps."""
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    panels = list(figure.subplots(len(units), 1, sharex=True, squeeze=False)[:, 0])
    left, right = 0.095, 0.985
    figure.subplots_adjust(left=left, right=right, top=0.9, bottom=0.18, hspace=0.55)
    for axes, unit in zip(panels, units, strict=True):
        axes.set_title(unit, loc="left", x=-left / (right - left))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5 if len(units) == 1 else 3))
    panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    panels[-1].set_xlabel("optimiser step")
    return figure, panels


def from_zero(axes: Axes, *values: Sequence[float]) -> None:
    """Limits that hold 0 and all `values`, with air above."""
    low, high = min(0.0, *map(min, values)), max(0.0, *map(max, values))
    axes.set_ylim(low, high + 0.08 * (high - low) if high > low else 1.0)


def dots(curve: Curve) -> dict[str, Any]:
    """Keywords that mark the points of a curve too short to be seen as a line."""
    return {"marker": "o", "markersize": 3.6} if len(curve.step) <= FEW else {}


def _percent(curve: Curve) -> list[float]:
    return [100 * value for value in curve.value]


def svg(figure: Figure, name: str, label: str) -> Markup:
    """`figure` for use inside HTML: no XML prolog, namespaces or style sheet, and ids of its own.

    `label` is what a screen reader says; `name` keeps the ids of several charts on a page apart.
    """
    stream = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=empty)
    root = ElementTree.fromstring(stream.getvalue())
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):
                element.remove(child)
        if element.tag == "g":
            element.attrib.pop("id", None)
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            element.set(key.rpartition("}")[2], _local(key, value, name))
    for key in ("width", "height", "version"):
        del root.attrib[key]
    root.set("role", "img")
    root.set("aria-label", label)
    text = ElementTree.tostring(root, encoding="unicode")
    for token, paint in PAINT.items():
        text = text.replace(paint, f"var(--{token})")
    return Markup(text)


def _local(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "style":
        return re.sub(r"font-family:[^;]*;? ?", "", value)
    return re.sub(r"^(url\()?#", rf"\g<0>{name}-", value) if "#" in value else value
