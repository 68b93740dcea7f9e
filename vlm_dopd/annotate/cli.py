"""`vlm-dopd annotate read | generate | audit | preview | formats`: parses and calls, nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="annotate",
    help="Privileged annotations: read what you have, generate what you lack, look at it, and prove it does not leak.",
    no_args_is_help=True,
)

Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the format; may be given many times."),
]
ShardOption = Annotated[str, typer.Option(metavar="I/N", help="Only part I of N, for arrays of jobs.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes; default: one a core.")]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@app.command()
def read(
    format: Annotated[str, typer.Argument(help="A reader, for example coco; `annotate formats` lists them.")],
    paths: Annotated[list[Path], typer.Argument(help="Annotation files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Data file to write (.jsonl), beside or above the images.")],
    image_root: Annotated[Path | None, typer.Option(help="Folder that the annotations' image names refer to.")] = None,
    questions: Annotated[Path | None, typer.Option(help="Data file of questions about the same images.")] = None,
    question: Annotated[str, typer.Option(help="One question for all, for formats that hold none.")] = "",
    option: Options = None,
    shard: ShardOption = "1/1",
    workers: Workers = CORES,
) -> None:
    """Turn annotation files into a data file for training; every object has a counted fate."""
    from privileged.reading import Reading, read_annotations
    from privileged.scale import Shard

    options = _options(option) | ({"image_root": str(image_root)} if image_root else {})
    reading = Reading(
        format=format,
        paths=tuple(paths),
        options=options,
        questions=questions,
        question=question,
        shard=Shard.parse(shard),
        workers=workers,
    )
    report = read_annotations(reading, _jsonl(out))
    file = out.with_suffix(".report.json")
    file.write_text(report.to_json() + "\n", encoding="utf-8")
    typer.echo("\n".join(report.lines()))
    typer.echo(f"rows: {out}; report: {file}")


def _options(words: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE words as a dict, values as YAML reads them."""
    from omegaconf import OmegaConf

    from ..errors import ConfigError

    if bad := [word for word in words or [] if "=" not in word or word.startswith("=")]:
        raise ConfigError(f"--option {bad[0]!r}: expected KEY=VALUE")
    found: Any = OmegaConf.to_container(OmegaConf.from_dotlist(words or []))
    return found


def _jsonl(path: Path) -> Path:
    from ..errors import ConfigError

    if path.suffix != ".jsonl":
        raise ConfigError(f"--out {path}: expected a name ending in .jsonl")
    return path
