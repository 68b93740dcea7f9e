"""One figure a cell: accuracy, entropy and length over the steps, on axes that the cells of a group share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..report.charts import DASHES, PAINT, STYLE, WIDTH, Key, svg

HEIGHT = 118  # SVG units, of which a figure is WIDTH wide
PANELS = {
    "eval/accuracy": ("correct (%)", 100),
    "entropy/student": ("entropy (nats)", 1),
    "rollout/length": ("length (tokens)", 1),
}
LEGEND = (
    Key(label="mean of the seeds", paint="student"),
    Key(label="from the lowest to the highest seed", paint="other3", dash=None),
    Key(label="baseline of the section", paint="muted", dash="dashed"),
)

Curves = Mapping[str, Mapping[str, list[float]]]


def draw_group(number: int, curves: Mapping[str, Curves], baseline: str) -> dict[str, Markup]:
    """A figure for every cell that has curves, by its name. `number` keeps the ids of groups apart."""
    present = {name: its for name, its in curves.items() if its}
    spans = {metric: _span(present, metric) for metric in PANELS}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the page
        matplotlib.rcParams.update(STYLE)
        return {
            name: _draw(f"g{number}c{index}", name, its, curves.get(baseline, {}) if name != baseline else {}, spans)
            for index, (name, its) in enumerate(present.items())
        }


def _draw(id_: str, name: str, curves: Curves, baseline: Curves, spans: dict[str, Any]) -> Markup:
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    panels = figure.subplots(1, len(PANELS))
    figure.subplots_adjust(left=0.065, right=0.995, top=0.82, bottom=0.2, wspace=0.3)
    for axes, (metric, (title, scale)) in zip(panels, PANELS.items(), strict=True):
        _panel(axes, curves.get(metric), baseline.get(metric), scale)
        axes.set_title(title, loc="left", x=-0.16)
        if spans[metric]:
            axes.set_xlim(*spans[metric][0])
            axes.set_ylim(*spans[metric][1])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
    return svg(figure, id_, f"Charts over the optimiser steps of {name}: accuracy, entropy, length")


def _panel(axes: Axes, curve: Mapping[str, Any] | None, baseline: Mapping[str, Any] | None, scale: float) -> None:
    if baseline:
        axes.plot(baseline["step"], _scaled(baseline["mean"], scale), color=PAINT["muted"], linestyle=DASHES["dashed"],
                  linewidth=1.1)  # fmt: skip
    if curve:
        low, high = (_scaled(curve[end], scale) for end in ("low", "high"))
        axes.fill_between(curve["step"], low, high, color=PAINT["student"], alpha=0.22, linewidth=0)
        dot = {"marker": "o", "markersize": 3} if len(curve["step"]) < 8 else {}
        axes.plot(curve["step"], _scaled(curve["mean"], scale), color=PAINT["student"], **dot)  # type: ignore[arg-type]


def _span(cells: Mapping[str, Curves], metric: str) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Limits of steps and values that hold every cell's curve; values from 0."""
    found = [curves[metric] for curves in cells.values() if metric in curves]
    if not found:
        return None
    scale = PANELS[metric][1]
    top = scale * max(max(curve["high"]) for curve in found)
    last = max(max(curve["step"]) for curve in found)
    return (-0.02 * last, 1.02 * max(last, 1)), (min(0, scale * min(min(c["low"]) for c in found)), 1.08 * top or 1.0)


def _scaled(values: list[float], scale: float) -> list[float]:
    return [scale * value for value in values]
