"""A run in the terminal while it trains: from the files of its folder alone, so it may run on another machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from evals.printable import printable

from .report.charts import REGIMES
from .report.collect import Report, collect
from .report.page import duration

LINES = {
    "eval/accuracy": ("held-out accuracy", 100, "%"),
    "loss": ("loss", 1, "nats"),
    "gap/p50": ("median gap", 1, "nats"),
    "entropy/student": ("entropy", 1, "nats"),
    "rollout/length": ("response length", 1, "tokens"),
    "time/tokens_per_s": ("throughput", 1, "tokens/s"),
    "memory/peak_gib": ("peak memory", 1, "GiB"),
}
"""Metric: its name, what it is multiplied with, and the unit then."""
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40
COLOURS = {"LH": "#0072b2", "LL": "#6db9e8", "HT": "#d55e00", "HS": "#efae3c", "NP": "#8b877f"}
RECENT = 5
"""Log lines from which the time of a step is told."""


def watch(run: Path, console: Console, once: bool = False, every: float = 2.0) -> None:
    """Show `run` until its last step or Ctrl-C, looking every so many seconds; `once` prints one frame.

    Raises DataError if it is no run folder.
    """
    report = collect(run)
    if once:
        console.print(frame(report))
        return
    try:
        with Live(frame(report), console=console, auto_refresh=False) as live:
            while not _done(report):
                time.sleep(every)
                report = collect(run)
                live.update(frame(report), refresh=True)
    except KeyboardInterrupt:
        pass


def frame(report: Report) -> RenderableType:
    """What is shown at one moment."""
    total = total_steps(report)
    step = report.cost.steps
    head = Text(printable(report.name), "bold")
    head.append(f"  {printable(report.method)}  step {step:,}" + (f" of {total:,}" if total else ""), "not bold")
    if (left := seconds_left(report)) is not None:
        head.append(f"  about {duration(left)} left" if left else "  finished", "bold")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, (label, scale, unit) in LINES.items():
        if curve := report.curves.get(name):
            values = [scale * value for value in curve.value]
            table.add_row(label, Text(sparkline(values), "green"), f"{values[-1]:.4g} {unit}")
    warnings = [check for check in report.health if check.status == "WARN"]
    health: list[RenderableType] = [Text(f"! {check.sentence}", "bold yellow") for check in warnings]
    judged = sum(check.status != "n.a." for check in report.health)
    if not warnings:
        health = [Text(f"health: {judged} rules pass" if judged else "health: too early to say")]
    return Group(head, table, *_regimes(report), *health)


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """`values` from the lowest to the highest bar; of more than `width`, means of neighbours."""
    parts = min(width, len(values))
    cut = [values[len(values) * i // parts : len(values) * (i + 1) // parts] for i in range(parts)]
    means = [sum(part) / len(part) for part in cut]
    low, high = min(means), max(means)
    return "".join(BARS[round((mean - low) / (high - low) * (len(BARS) - 1)) if high > low else 0] for mean in means)


def total_steps(report: Report) -> int | None:
    """Steps of the whole run, as far as settings and log tell."""
    if (fixed := int(_number(report, "train.max_steps") or 0)) > 0:
        return fixed
    epochs, done = _number(report, "train.num_train_epochs") or 3.0, report.curves.get("epoch")  # Trainer's default
    if not done or not done.value[-1]:
        return None
    return max(report.cost.steps, round(done.step[-1] * epochs / done.value[-1]))


def seconds_left(report: Report) -> float | None:
    """Without evaluations; None where there is nothing to tell it from."""
    total, curve = total_steps(report), report.curves.get("time/step")
    if total is None or curve is None:
        return None
    recent = curve.value[-RECENT:]
    return max(0, total - report.cost.steps) * sum(recent) / len(recent)


def _regimes(report: Report) -> list[RenderableType]:
    shares = {name: report.curves[key].value[-1] for name in REGIMES if (key := f"share/{name}") in report.curves}
    if not shares:
        return []
    bar = Text()
    for name, share in shares.items():
        cells = round(share * 2 * WIDTH)
        # The letters are a second cue beside the colour.
        bar.append(f"{name:─^{cells}}" if cells > 2 else " " * cells, f"bold white on {COLOURS[name]}")
    told = "  ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    return [bar, Text(told)]


def _number(report: Report, name: str) -> float | None:
    try:
        return float(report.settings.get(name, ""))
    except ValueError:
        return None


def _done(report: Report) -> bool:
    total = total_steps(report)
    return report.measured or (total is not None and report.cost.steps >= total)
