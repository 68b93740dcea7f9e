"""Published benchmarks, asked of a checkpoint, a hub model or a server, or of the student while it learns."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from evals import suite, text
from evals.benchmarks import available
from evals.run_table import run_table
from evals.server import is_server, split_server
from privileged.errors import DataError
from privileged.images import load_image

from .config import BenchmarkConfig
from .errors import ConfigError
from .evaluation import Dtype, OpenModel, replier_of
from .roles import sees


@dataclass(frozen=True, kw_only=True)
class BenchmarkRun:
    """What `vlm-dopd eval --benchmarks` was told."""

    model: str
    names: str
    protocol: str
    data: str
    limit: int | None = None
    max_new_tokens: int | None = None
    pixels: tuple[int, int] | None = None
    dtype: Dtype = "auto"
    download: bool = False
    judge: str = ""
    out: Path | None = None


def run_benchmarks(told: BenchmarkRun) -> str:
    """Ask them and write the run folder; returns the table of its numbers. A killed run goes on.

    Data are read, and whatever is wrong with them is said, before a model is opened. Raises ValueError with one line.
    """
    names = available() if told.names == "all" else [name.strip() for name in told.names.split(",")]
    out = told.out or Path("runs") / f"eval-{_slug(told.model)}-{told.protocol}"
    visual = [name for name in names if name not in text.TASKS]
    tasks = [name for name in names if name in text.TASKS]
    if tasks and is_server(told.model):
        raise ConfigError(f"{told.model}: expected a checkpoint for {tasks[0]}: text benchmarks run inside lm-eval")
    figures = None
    if visual:
        asking = suite.Asking(max_new_tokens=told.max_new_tokens, pixels=told.pixels)
        plan = suite.plan(
            visual, told.protocol, told.data, load_image, limit=told.limit, asking=asking, allow_download=told.download
        )
        replier = replier_of(told.model, dtype=told.dtype, pixels=told.pixels, allow_download=told.download)
        # Not the address: a killed run may go on with the server on another port.
        who = split_server(told.model)[1] or told.model if is_server(told.model) else told.model
        figures = suite.run_all(plan, replier, out, who=who, judged_by=told.judge)
    if tasks:
        text.run(told.model, tasks, out, text.TextAsking(limit=told.limit, vision=sees(told.model, told.download)))
        figures = None  # those of the visual ones alone
    return f"{run_table(figures or suite.write_summary(out))}\nrun folder: {out}"


class BenchmarkCurves:
    """Benchmarks during training: few questions, often. Answers are kept in `evals/step-N` of the run folder."""

    def __init__(self, config: BenchmarkConfig, run: Path) -> None:
        """Reads their data. Raises DataError with one line for whatever cannot be asked."""
        asking = suite.Asking(max_new_tokens=config.max_new_tokens)
        self.folder = run / "evals"
        try:
            self.plan = suite.plan(
                config.names, config.protocol, config.data, load_image, limit=config.limit, asking=asking
            )
        except ValueError as error:
            raise DataError(f"benchmarks: {error}") from None

    def ask(self, student: OpenModel, step: int) -> dict[str, float]:
        """The headline number of each benchmark, as `benchmark/NAME`; one that cannot be formed is left out."""
        out = self.folder / f"step-{step:06d}"
        shutil.rmtree(out, ignore_errors=True)  # of a run that was here before, or of this one before a kill
        figures = suite.run_all(self.plan, student.replier, out, who=f"step {step}")
        firsts = {
            name: its["headlines"][its["headline"]]["run"]["value"] for name, its in figures["benchmarks"].items()
        }
        return {f"benchmark/{name}": value for name, value in firsts.items() if value is not None}


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[-60:].lower()
