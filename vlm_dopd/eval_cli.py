"""`vlm-dopd eval | compare | rescore`: parses and calls, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .errors import ConfigError

app = typer.Typer()


class View(StrEnum):
    """Values of `--view`."""

    plain = "plain"
    privileged = "privileged"


class Dtype(StrEnum):
    """Values of `--dtype`; `auto` is bfloat16 on a GPU and float32 on a CPU."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder, hub name, or server as http://host:8000/v1#NAME.")],
    data: Annotated[
        str | None,
        typer.Argument(help="Questions with answers (a file); with --benchmarks: hub, fixture, a file or folder."),
    ] = None,
    benchmarks: Annotated[str, typer.Option(help="Names with commas, as mmstar,mmmu; “all” for all there are.")] = "",
    protocol: Annotated[str, typer.Option(help="With --benchmarks: official, toolkit, or another it has.")] = "toolkit",
    view: Annotated[View, typer.Option(help="Prompt: the deployed one, or the one with p.")] = View.plain,
    builder: Annotated[str, typer.Option(help="How p is rendered, for --view privileged.")] = "boxes",
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Default: 1024, or what the protocol says.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N questions (of each source).", min=1)] = None,
    pixels: Annotated[str, typer.Option(metavar="MIN,MAX", help="Pixels of an image; default: the processor's.")] = "",
    dtype: Annotated[Dtype, typer.Option(help="auto: bfloat16 on a GPU, float32 on a CPU.")] = Dtype.auto,
    download: Annotated[bool, typer.Option("--download", help="Permit fetching model and data from the hub.")] = False,
    judge: Annotated[str, typer.Option(help="A server that reads replies which no rule could; reported apart.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="File of answers, or with --benchmarks the run folder; resumes if it exists.")
    ] = None,
) -> None:
    """Ask a model held-out questions or published benchmarks; accuracy with 95 % intervals."""
    from .quiet import quiet

    quiet()
    with _one_line():
        if benchmarks:
            from .benchmarks import BenchmarkRun, run_benchmarks

            asked = BenchmarkRun(
                model=model,
                names=benchmarks,
                protocol=protocol,
                data=data or "hub",
                limit=limit,
                max_new_tokens=max_new_tokens,
                pixels=_pixels(pixels),
                dtype=dtype.value,
                download=download,
                judge=judge,
                out=out,
            )
            typer.echo(run_benchmarks(asked))
        elif data is None:
            raise ConfigError("DATA: expected a file of questions, or --benchmarks NAMES; got neither")
        else:
            _held_out(model, Path(data), view, builder, max_new_tokens or 1024, limit, dtype, download, out)


def _held_out(
    model: str,
    data: Path,
    view: View,
    builder: str,
    max_new_tokens: int,
    limit: int | None,
    dtype: Dtype,
    download: bool,
    out: Path | None,
) -> None:
    import evals
    from privileged import get_builder

    from .data import SampleDataset
    from .evaluation import items, replier_of

    questions = items(SampleDataset(data, limit), get_builder(builder), view.value)
    replier = replier_of(model, dtype=dtype.value, allow_download=download)(max_new_tokens)
    result = evals.summarise(evals.evaluate(replier, questions, out, f"{model} {view.value}"))
    typer.echo(str(result))
    for kind, one in result.kinds.items():
        typer.echo(f"  {kind or 'all'}: {one}")


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="Run folder of `eval --benchmarks`, or one file of answers.")],
    after: Annotated[Path, typer.Argument(help="The same, of the model after training.")],
    teacher: Annotated[Path | None, typer.Option(help="The same, of the teacher: adds gap recovery.")] = None,
    data: Annotated[Path | None, typer.Option(help="Held-out file of the answers, for pictures on the page.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for compare.html and compare.json.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Differences with intervals between two runs on the same questions; writes a page with what has flipped."""
    with _one_line():
        from .comparing import write_comparison

        folder = out or (after.parent if after.is_file() else after)
        typer.echo(write_comparison(before, after, teacher, data, folder, seed))
        typer.echo(f"page: {folder / 'compare.html'}")


@app.command()
def rescore(
    file: Annotated[Path, typer.Argument(help="Answers (JSONL) of `eval`, or sample logs of other toolkits.")],
    benchmark: Annotated[str, typer.Option(help="Whose questions they answer.")],
    protocol: Annotated[str, typer.Option(help="How to score: official, toolkit, or another it has.")],
    out: Annotated[Path, typer.Option(help="JSONL to write: id, parsed, score, parse_ok, fate, method.")],
) -> None:
    """Score saved replies again, offline: no model, no network."""
    with _one_line():
        from evals.rescore import rescore_file

        verdicts = rescore_file(file, benchmark, protocol, out)
    read = sum(verdict["parse_ok"] for verdict in verdicts)
    mean = sum(verdict["score"] for verdict in verdicts) / len(verdicts)
    typer.echo(f"{benchmark}, {protocol}: mean score {mean:.1%} of n={len(verdicts)}, {read} with an answer; {out}")


def _pixels(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts) or int(parts[0]) > int(parts[1]):
        raise ConfigError(f"--pixels: expected MIN,MAX as in 65536,1048576, got {text!r}")
    return int(parts[0]), int(parts[1])


@contextmanager
def _one_line() -> Iterator[None]:
    """What `evals` finds wrong with a file or a row is the user's to fix, as the errors of our other packages are."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
