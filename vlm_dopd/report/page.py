"""`Report` and examples -> `report.html` and `report.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from evals.printable import printable
from privileged import Sample

from .charts import draw_charts
from .collect import EVALS, Report, collect
from .examples import STORIES, Example, choose, count_stories
from .several import draw_overlays, keys, runs_of, settings_apart
from .tokens import write_tokens

LONGEST = 440  # characters of a reply on the page; report.json has all of it
FATES = {"unparsed": "✗ no answer found", "truncated": "✗ cut off", "error": "✗ no reply"}
MINUS, NARROW = "\u2212", "\u00a0"


def write_report(run: Path, samples: Sequence[Sample], others: Sequence[Path] = ()) -> Path:
    """Write `run/report.html`, one self-contained page, and `run/report.json`; return the path of the page. Where the
    run kept token samples, `run/tokens.html` as well.

    `samples` are the held-out samples of the run; those with replies can be shown. The curves, headline figures and
    settings of `others`, more run folders, stand beside the run's own. The same input gives the same bytes. Raises
    DataError if a file of a run is missing or malformed.
    """
    report = collect(run)
    examples = choose(report.evals, samples) if report.measured else []
    reports = [report, *map(collect, others)]
    figures = _figures(report, examples)
    if others:
        figures |= {"runs": runs_of(reports), "settings_apart": settings_apart(reports)}
    tokens = write_tokens(run)
    page = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            report=figures,
            examples=examples,
            stories=STORIES,
            tokens=tokens.name if tokens else "",
            judged=[check for check in report.health if check.status != "n.a."],
            unjudged=sum(check.status == "n.a." for check in report.health),
            warnings=sum(check.status == "WARN" for check in report.health),
            overlays=draw_overlays(reports) if others else [],
            keys=keys(reports),
            **_charts(report),
        )
    )
    _write(run / "report.json", json.dumps(figures, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    _write(run / "report.html", page)
    return run / "report.html"


def headline(report: Report) -> str:
    """What happened, in one or two sentences."""
    before, after = report.row("student before"), report.row("student after")
    method, change = report.method.upper(), report.difference
    if not report.measured:
        return _of_the_log(report)
    if before is None or after is None:
        return f"{method}, {report.n} held-out questions"
    span = f"from {percent(before.accuracy)} to {percent(after.accuracy)} on {report.n} held-out questions"
    if change.low is None or change.high is None or change.low <= 0 <= change.high:
        return f"{method} took the student {span}; a change of that size may be chance."
    if after.accuracy < before.accuracy:
        return f"{method} lowered the student {span}."
    recovered = report.gap_recovery.value
    if recovered is None:
        return f"{method} raised the student {span}."
    return f"{method} raised the student {span}; it recovered {percent(recovered, 0)} of the gap to the teacher."


def _of_the_log(report: Report) -> str:
    name = report.method.upper()
    if not report.rows:
        return f"{name}, {report.cost.steps} steps"
    first, last = report.rows[0], report.rows[-1]
    if first is last:
        return f"{name}: {percent(last.accuracy)} of the questions asked in training at {last.name.split(', ')[1]}"
    change = f"from {percent(first.accuracy)} to {percent(last.accuracy)}"
    return f"{name}: {change} of the questions asked in training, {last.name.split(', ')[1]}"


def percent(share: float | None, digits: int = 1) -> str:
    """`53.2 %`; a dash where the figure is undefined."""
    return "–" if share is None else f"{number(100 * share, digits)}{NARROW}%"


def number(value: float, digits: int = 1) -> str:
    """Fixed digits, with a real minus sign and no negative zero."""
    text = f"{value:.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text.removeprefix("-")


def points(value: float | None) -> str:
    """`+21.3`, with its sign."""
    return "–" if value is None else ("+" if value > 0 else "") + number(value)


def duration(seconds: float) -> str:
    """`42 s`, `3 min 30 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NARROW}s"
    if whole < 3600:
        return f"{whole // 60}{NARROW}min {whole % 60:02d}{NARROW}s"
    return f"{whole // 3600}{NARROW}h {whole % 3600 // 60:02d}{NARROW}min"


def shorten(text: str) -> str:
    """The start and the end of a long reply: the trace begins in the one, the answer stands in the other."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half].rstrip()}\n[… {len(text) - 2 * half:,} characters …]\n{text[-half:].lstrip()}"


def _figures(report: Report, examples: Sequence[Example]) -> dict[str, Any]:
    """The content of report.json. The template reads its figures from here and from nowhere else."""
    return {
        "headline": headline(report),
        "run": report.name,
        "measured": report.measured,
        "method": report.method,
        "seed": report.seed,
        "n": report.n,
        "seconds": report.seconds,
        "rows": [asdict(row) for row in report.rows],
        "difference": asdict(report.difference),
        "gap_recovery": asdict(report.gap_recovery),
        "kinds": [asdict(kind) for kind in report.kinds],
        "stories": count_stories(report.evals) if report.measured else None,
        "time": _time(report),
        "cost": asdict(report.cost),
        "health": [asdict(check) for check in report.health],
        "curves": {name: asdict(curve) for name, curve in report.curves.items()},
        "examples": [
            {
                "id": example.sample.id,
                "story": example.story,
                "kind": example.replies["before"].kind,
                "question": example.sample.question,
                "answer": example.replies["before"].answer,
                "boxes": [mark.label for picture in example.pictures for mark in picture.marks],
                "replies": {
                    name: {
                        "response": reply.response,
                        "parsed": reply.parsed,
                        "fate": reply.fate,
                        "correct": reply.correct,
                    }
                    for name, reply in example.replies.items()
                },
            }
            for example in examples
        ],
        "config": report.config,
        "versions": report.versions,
    }


def _charts(report: Report) -> dict[str, Any]:
    charts, absent = draw_charts(report)
    return {"charts": charts, "absent": absent}


def _time(report: Report) -> dict[str, float]:
    """Share of each logged phase in the time of all phases."""
    totals = {
        name.removeprefix("time/"): sum(curve.value)
        for name, curve in report.curves.items()
        if name.startswith("time/") and name not in ("time/step", "time/tokens_per_s")
    }
    if report.cost.seconds and (step := sum(report.curves["time/step"].value)) > sum(totals.values()):
        totals["the rest"] = step - sum(totals.values())  # of the pass with gradient: backward, the optimiser
    whole = sum(totals.values())
    return {phase: total / whole for phase, total in totals.items()} if whole > 0 else {}


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__ or "vlm_dopd.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_inert,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent, "points": points, "number": number, "duration": duration, "shorten": shorten,
    }  # fmt: skip
    environment.globals |= {"evals": EVALS, "fates": FATES}
    return environment


def _inert(value: Any) -> Any:
    """Every text that the template prints, before it is escaped: marks that reverse or hide others are written out."""
    return printable(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


def _write(path: Path, text: str) -> None:
    # A reply can hold half a surrogate pair, which no file can.
    path.write_text(text, encoding="utf-8", errors="replace", newline="\n")
