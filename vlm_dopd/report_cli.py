"""`vlm-dopd report | watch`: parses and calls, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders; the pages are written into the first.", metavar="RUN…")
    ],
) -> None:
    """Write the run page and the token page of RUN, with the curves and settings of further runs beside its own."""
    from .quiet import quiet

    quiet()
    from .report import write_report
    from .reporting import held_out_of

    first, *others = runs
    page = write_report(first, held_out_of(first), others)
    tokens = page.with_name("tokens.html")
    typer.echo(f"page: {page}" + (f"; tokens: {tokens}" if tokens.is_file() else ""))


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="Folder of a run that is training, or has been.")],
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 2.0,
) -> None:
    """Step, curves, regimes, time left and health of a run in the terminal."""
    from rich.console import Console

    from .watch import watch

    watch(run, Console(), once, every)
