"""`vlm-dopd demo | train | eval | study | annotate`: parses and calls, nothing else. Heavy imports wait."""

from __future__ import annotations

import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .annotate.cli import app as annotate

app = typer.Typer(
    name="vlm-dopd",
    help="Distil a large vision-language model into a small one, on-policy, with privileged annotations (DOPD).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(annotate)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings that replace the file's, as dotted key=value.", metavar="KEY=VALUE")
]


class View(StrEnum):
    plain = "plain"
    privileged = "privileged"


@app.command()
def demo(
    overrides: Overrides = None,
    method: Annotated[str, typer.Option(help="Method: dopd, opd (vanilla on-policy distillation), …")] = "dopd",
    seed: Annotated[int, typer.Option(help="Seed of rollouts and data order.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/demo-METHOD-SEED.")] = None,
) -> None:
    """Distil the bundled Qwen3-VL pair: minutes on two CPU cores, nothing to download."""
    _quiet()
    from .config import load_config
    from .demo import RECIPE, demo

    folder = out or Path("runs") / f"demo-{method}-{seed}"
    own = [f"method.name={method}", f"train.seed={seed}", f"output_dir={folder}"]
    summary = demo(load_config(RECIPE, own + (overrides or [])))
    _print_summary(summary, folder)


@app.command()
def train(config: Annotated[Path, typer.Argument(help="YAML file of the run.")], overrides: Overrides = None) -> None:
    """Train a student as CONFIG says."""
    _quiet()
    from .config import load_config

    settings = load_config(config, overrides)
    from .run import train  # slow to import: a wrong setting is said before

    run = train(settings)
    typer.echo(f"student, metrics and checkpoints: {run}")


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder of the model, with its processor.")],
    data: Annotated[Path, typer.Argument(help="Questions with answers: .parquet, .jsonl or .json.")],
    view: Annotated[View, typer.Option(help="Prompt: the deployed one, or the one with p.")] = View.plain,
    builder: Annotated[str, typer.Option(help="How p is rendered, for --view privileged.")] = "boxes",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 1024,
    limit: Annotated[int | None, typer.Option(help="Only the first N questions.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="File for one JSON row a question; resumes if it exists.")] = None,
) -> None:
    """Exact-match accuracy of a model's final answers, with a 95 % interval."""
    _quiet()
    import evals
    from privileged import get_builder

    from .data import SampleDataset
    from .evaluation import ask, items
    from .roles import load_policy, load_processor, tokenizer_of

    processor = load_processor(model)
    policy = load_policy(model, tokenizer_of(processor))
    questions = items(SampleDataset(data, limit), get_builder(builder), view.value)
    result = evals.summarise(ask(policy.model, processor, questions, max_new_tokens, f"{model} {view.value}", out))
    typer.echo(str(result))
    for kind, one in result.kinds.items():
        typer.echo(f"  {kind or 'all'}: {one}")


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="YAML file of the study.")],
    overrides: Overrides = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only rebuild table and page.")] = False,
) -> None:
    """Train and test all cells of FILE with all seeds; then one table and one page. Goes on where it was."""
    _quiet()
    from rich.console import Console

    from .errors import TrainingError
    from .study.page import write_study
    from .study.plan import load_study
    from .study.pool import run_study

    plan = load_study(file, overrides)
    failed = [] if report_only else run_study(plan, Console())
    page = write_study(plan)
    typer.echo((plan.folder / "study.md").read_text(encoding="utf-8"))
    typer.echo(f"page: {page}")
    if failed:
        raise TrainingError(f"{len(failed)} runs failed, among them {failed[0]}; the same command tries them again")


def main() -> None:
    """Console entry: an error that is the user's to fix is one line on stderr and exit code 2."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from privileged.errors import DataError

    from .errors import ConfigError, TrainingError

    try:
        with logging_redirect_tqdm():  # log lines above the bars, not through them
            app()
    except (ConfigError, DataError) as error:
        sys.exit(_fail(error, 2))
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        sys.exit(_fail(error, 2))
    except TrainingError as error:
        sys.exit(_fail(error, 1))


def _fail(error: Exception, code: int) -> int:
    # From a data loader's worker the message comes wrapped in that worker's traceback: its last line is ours.
    line = str(error).splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")
    typer.echo(f"vlm-dopd: {line}", err=True)
    return code


def _quiet() -> None:
    """Our bars and lines only: loading bars and advice of the libraries would bury them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("vlm_dopd").setLevel(logging.INFO)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{summary['method']}, seed {summary['seed']}: {summary['n']} held-out questions")
    table.add_column("")
    table.add_column("accuracy", justify="right")
    table.add_column("95 % interval", justify="right")
    for row in summary["rows"]:
        table.add_row(row["name"], f"{row['accuracy']:.1%}", f"{row['low']:.1%} – {row['high']:.1%}")
    console = Console()
    console.print(table)
    gain, recovery = summary["difference"], summary["gap_recovery"]
    console.print(
        f"gain {gain['points']:+.1f} points, 95 % interval {gain['low']:+.1f} to {gain['high']:+.1f} (paired)"
    )
    if recovery["value"] is not None:
        low, high = recovery["low"], recovery["high"]
        console.print(f"gap recovery {recovery['value']:.0%}, 95 % interval {low:.0%} to {high:.0%}")
    console.print(f"{summary['seconds']:.0f} s; page: {folder / 'report.html'}", highlight=False)
