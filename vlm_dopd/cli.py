"""`vlm-dopd demo | train | preflight | plan | study`, and what `eval_cli` and `annotate` add: parses, imports late."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .annotate.cli import app as annotate
from .eval_cli import app as evaluation
from .quiet import quiet
from .report_cli import app as reports


def _leave_ranks(*_: Any, **__: Any) -> None:
    """After a command that ended well. A rank that ends with its process group open may abort in gloo's threads, and
    torchrun would call a complete run failed."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


app = typer.Typer(
    name="vlm-dopd",
    help="Distil a large vision-language model into a small one, on-policy, with privileged annotations (DOPD).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    result_callback=_leave_ranks,
)
app.add_typer(annotate)
app.add_typer(evaluation)
app.add_typer(reports)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings that replace the file's, as dotted key=value.", metavar="KEY=VALUE")
]


@app.command()
def demo(
    overrides: Overrides = None,
    method: Annotated[str, typer.Option(help="Method: dopd, opd (vanilla on-policy distillation), …")] = "dopd",
    seed: Annotated[int, typer.Option(help="Seed of rollouts and data order.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/demo-METHOD-SEED.")] = None,
) -> None:
    """Distil the bundled Qwen3-VL pair: minutes on two CPU cores, nothing to download."""
    quiet()
    from .config import load_config
    from .demo import RECIPE, demo

    folder = out or Path("runs") / f"demo-{method}-{seed}"
    own = [f"method.name={method}", f"train.seed={seed}", f"output_dir={folder}"]
    summary = demo(load_config(RECIPE, own + (overrides or [])))
    _print_summary(summary, folder)


@app.command()
def train(config: Annotated[Path, typer.Argument(help="YAML file of the run.")], overrides: Overrides = None) -> None:
    """Train a student as CONFIG says."""
    quiet()
    from .config import load_config

    settings = load_config(config, overrides)
    from .run import train  # slow to import: a wrong setting is said before

    run = train(settings)
    typer.echo(f"student, metrics and checkpoints: {run}; page: {run / 'report.html'}")


@app.command("serve-teacher")
def serve_teacher(
    model: Annotated[str, typer.Argument(help="Folder or hub name.")],
    address: Annotated[str, typer.Option(help="tcp://host:port or ipc://file.")] = "tcp://127.0.0.1:5555",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, as the run's model.teacher_dtype.")] = "bfloat16",
    load: Annotated[str, typer.Option(help="full, int8 or nf4, as the run's model.teacher_load.")] = "full",
    device: Annotated[str | None, typer.Option(help="As cuda:1; default: a GPU if there is one.")] = None,
    attention: Annotated[str, typer.Option(help="auto, sdpa or flex.")] = "auto",
    image_store: Annotated[float, typer.Option(help="GB of pixels to keep; features take about as much.")] = 4.0,
    allow_download: Annotated[bool, typer.Option("--allow-download", help="Permit fetching it from the hub.")] = False,
) -> None:
    """Score for trainers that set model.teacher to ADDRESS; on GPUs or a node of its own. No authentication."""
    quiet()
    from .served.server import serve

    serve(
        model,
        address,
        dtype=dtype,
        load=load,  # type: ignore[arg-type]  # checked there
        device=device,
        attention=attention,  # type: ignore[arg-type]  # checked there
        allow_download=allow_download,
        image_bytes=int(image_store * 1e9),
    )


@app.command("rollout-server")
def rollout_server(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")], overrides: Overrides = None
) -> None:
    """Print what starts the vLLM servers on which the run of CONFIG rolls out (rollout.engine=vllm)."""
    quiet()
    from .config import load_config
    from .engines import server_commands

    for command in server_commands(load_config(config, overrides)):
        typer.echo(command)


@app.command()
def preflight(
    recipe: Annotated[Path, typer.Argument(help="YAML file of the run, or the name of a shipped recipe.")],
    overrides: Overrides = None,
    cheap: Annotated[bool, typer.Option("--cheap", help="Only what files can tell; no model is loaded.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the findings to this file too.")] = None,
) -> None:
    """Prove the wiring of a training job in minutes, check by check. Exit code 1 if one fails."""
    quiet()
    from .config import load_config

    settings = load_config(recipe, overrides)
    from rich.console import Console

    from .preflight import climb, show, write_json
    from .run import build_trainer

    rungs = show(climb(settings, None if cheap else build_trainer), Console())
    if json is not None:
        write_json(rungs, json)
    if any(rung.finding.status == "FAIL" for rung in rungs):
        raise typer.Exit(1)


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="YAML file of the run, or the name of a shipped recipe.")],
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="GPUs in all.")] = 8,
    gpu: Annotated[str, typer.Option(help="Their kind, as h100-80g.")] = "h100-80g",
    batch: Annotated[int | None, typer.Option(help="Prompts a step over all GPUs; default: the recipe's.")] = None,
    sharding: Annotated[str, typer.Option(help="none, fsdp2, zero2 or zero3.")] = "none",
    lora_rank: Annotated[int, typer.Option(help="As if adapters of this rank were trained; 0: all weights.")] = 0,
    images: Annotated[int, typer.Option(help="Images of a prompt.")] = 1,
    image_tokens: Annotated[int, typer.Option(help="Tokens of an image.")] = 1024,
    text_tokens: Annotated[int, typer.Option(help="Tokens of a question.")] = 150,
    privileged_tokens: Annotated[int, typer.Option(help="Tokens of p.")] = 250,
    response_tokens: Annotated[int | None, typer.Option(help="Of a response; default: the recipe's most.")] = None,
) -> None:
    """Memory and time of a step on GPUs that need not be here, from config files alone, and settings that fit."""
    quiet()
    from rich.console import Console

    from .plan import find_gpu, read_job, show, suggest

    work = {
        "images": images,
        "image_tokens": image_tokens,
        "text_tokens": text_tokens,
        "privileged_tokens": privileged_tokens,
    }
    if response_tokens is not None:
        work["response_tokens"] = response_tokens
    kind = find_gpu(gpu)
    job = read_job(
        recipe,
        overrides or [],
        work=work,
        gpus=gpus,
        batch=batch,
        sharding=sharding,  # type: ignore[arg-type]  # checked there
        lora_rank=lora_rank,
    )
    show(job, kind, suggest(job, kind), Console())


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="Run folder with model.lora, or one of its checkpoints.")],
    out: Annotated[Path, typer.Option(help="New folder for the checkpoint.")],
    base: Annotated[str | None, typer.Option(help="The base model, if it is not where the run had it.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; default: the base's.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Permit fetching the base from the hub.")] = False,
) -> None:
    """Add the adapter of a LoRA run to its base: a plain transformers checkpoint with its processor."""
    quiet()
    from .merging import merge

    typer.echo(f"student: {merge(run, out, base=base, dtype=dtype, allow_download=download)}")


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="YAML file of the study.")],
    overrides: Overrides = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only rebuild table and page.")] = False,
) -> None:
    """Train and test all cells of FILE with all seeds; then one table and one page. Goes on where it was."""
    quiet()
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
