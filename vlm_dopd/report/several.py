"""Several runs on one page: their curves over each other, their headline figures, and where their settings differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import matplotlib
from matplotlib.ticker import MaxNLocator

from .charts import DASHES, PAINT, STYLE, Chart, Key, canvas, dots, from_zero, svg
from .collect import Curve, Report

PAINTS = ("student", "teacher", "HT", "LH", "other1", "HS")
"""Of runs; beyond six they come again with another dash."""
SAME = ("output_dir", "resume")
"""Settings that differ from run to run and mean nothing."""


@dataclass(frozen=True)
class Overlay:
    """One chart: a curve of every run that has it."""

    title: str
    unit: str
    curve: Callable[[Report], Curve | None]
    scale: float = 1.0


def _logged(name: str) -> Callable[[Report], Curve | None]:
    return lambda report: report.curves.get(name)


def _differ(report: Report) -> Curve | None:
    """Share of the tokens in HT or HS."""
    high = [report.curves[name] for name in ("share/HT", "share/HS") if name in report.curves]
    if len(high) < 2 or high[0].step != high[1].step:
        return None
    return Curve(step=high[0].step, value=tuple(a + b for a, b in zip(high[0].value, high[1].value, strict=True)))


OVERLAYS = {
    "accuracy": Overlay("Accuracy over training", "questions answered correctly (%)", _logged("eval/accuracy"), 100),
    "loss": Overlay("Loss", "mean divergence of a token (nats)", _logged("loss")),
    "differ": Overlay("Regimes HT and HS", "share of response tokens (%)", _differ, 100),
    "gap": Overlay("Median gap", "|log q teacher − log q student| (nats)", _logged("gap/p50")),
    "gap95": Overlay("Large gaps", "95th percentile of the gap (nats)", _logged("gap/p95")),
    "entropy": Overlay("Student entropy", "mean entropy of a token (nats)", _logged("entropy/student")),
    "length": Overlay("Response length", "mean response length (tokens)", _logged("rollout/length")),
    "speed": Overlay("Throughput", "sampled tokens a second (tokens)", _logged("time/tokens_per_s")),
    "memory": Overlay("Memory", "peak of the first process (GiB)", _logged("memory/peak_gib")),
}


def draw_overlays(reports: Sequence[Report]) -> list[Chart]:
    """The charts that at least one of the runs has a curve for."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the page
        matplotlib.rcParams.update(STYLE)
        drawn = [_draw(f"all-{name}", overlay, reports) for name, overlay in OVERLAYS.items()]
    return [chart for chart in drawn if chart is not None]


def keys(reports: Sequence[Report]) -> list[Key]:
    """The line of every run, the same in all charts."""
    return [
        Key(label=report.name, paint=PAINTS[place % len(PAINTS)], dash=list(DASHES)[place // len(PAINTS) % len(DASHES)])
        for place, report in enumerate(reports)
    ]


def _draw(name: str, overlay: Overlay, reports: Sequence[Report]) -> Chart | None:
    present = [
        (curve, key) for report, key in zip(reports, keys(reports), strict=True) if (curve := overlay.curve(report))
    ]
    if not present:
        return None
    figure, (axes,) = canvas(overlay.unit)
    scaled = [[overlay.scale * value for value in curve.value] for curve, _ in present]
    for (curve, key), values in zip(present, scaled, strict=True):
        axes.plot(curve.step, values, color=PAINT[key.paint], linestyle=DASHES[key.dash or "solid"], **dots(curve))
    from_zero(axes, *scaled)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    return Chart(
        name=name,
        title=overlay.title,
        caption="",
        svg=svg(figure, name, f"Chart over the optimiser steps of several runs: {overlay.title}"),
        legend=tuple(key for _, key in present),
    )


def runs_of(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """The headline figures of every run, as `report.json` holds them."""
    return [
        {
            "run": report.name,
            "method": report.method,
            "seed": report.seed,
            "n": report.n,
            "rows": [asdict(row) for row in report.rows],
            "difference": asdict(report.difference),
            "gap_recovery": asdict(report.gap_recovery),
            "cost": asdict(report.cost),
            "warnings": [check.name for check in report.health if check.status == "WARN"],
        }
        for report in reports
    ]


def settings_apart(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Settings that are not the same in all runs: name, and a value a run; None where a run has no such setting."""
    names = sorted({name for report in reports for name in report.settings if name not in SAME})
    found = [{"name": name, "values": [report.settings.get(name) for report in reports]} for name in names]
    return [one for one in found if len(set(one["values"])) > 1]
