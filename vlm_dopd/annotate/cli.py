"""`vlm-dopd annotate read | generate | audit | preview | formats`: parses and calls, nothing else."""

from __future__ import annotations

import json
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


@app.command()
def generate(
    data: Annotated[Path, typer.Argument(help="Data file of questions, with images for boxes.")],
    out: Annotated[Path, typer.Option(help="Data file to write (.jsonl), in the folder of the data.")],
    base_url: Annotated[str, typer.Option(help="OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1.")],
    model: Annotated[str, typer.Option(help="Model, as the endpoint names it.")],
    kind: Annotated[str, typer.Option(help="boxes (image questions) or hints (text questions).")] = "boxes",
    coords: Annotated[str, typer.Option(help="Convention of the model's boxes; proven by a probe.")] = "qwen3",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate calls, tokens and costs; send nothing.")] = False,
    allow_upload: Annotated[bool, typer.Option("--allow-upload", help="Let data leave this machine.")] = False,
    option: Options = None,
    shard: ShardOption = "1/1",
) -> None:
    """Have a strong model write p: boxes or step-wise hints, checked by a second call; killed runs go on.

    Prices, spend cap, concurrency, time-outs and more are fields of privileged.generate.Settings: -o KEY=VALUE.
    """
    from privileged.errors import DataError
    from privileged.generate import Settings
    from privileged.generate import generate as run
    from privileged.scale import Shard

    chosen: dict[str, Any] = {"base_url": base_url, "model": model, "kind": kind, "coords": coords}
    chosen |= {"dry_run": dry_run, "allow_upload": allow_upload}
    known = set(Settings.__dataclass_fields__) - set(chosen)
    options = _options(option)
    if unknown := sorted(set(options) - known):
        raise DataError(f"generate has no option {unknown[0]!r}: options: {', '.join(sorted(known))}")
    summary = run(data, _jsonl(out), Settings(**chosen, **options), shard=Shard.parse(shard))
    typer.echo("\n".join(summary.lines()))
    if not dry_run:
        file = out.with_suffix(".summary.json")
        file.write_text(json.dumps(summary.to_json(), indent=1) + "\n", encoding="utf-8")
        typer.echo(f"rows: {out}; summary: {file}")
    if summary.stopped:
        raise typer.Exit(1)


@app.command()
def audit(
    data: Annotated[list[Path], typer.Argument(help="Data files to audit; with --join, folders of shards' audits.")],
    out: Annotated[Path, typer.Option(help="Folder for audit.html, audit.json and rows.jsonl.")],
    builder: Annotated[str, typer.Option(help="How p is rendered.")] = "boxes",
    option: Options = None,
    eval_data: Annotated[
        list[Path] | None, typer.Option("--eval", help="Data file that must share no image or question; repeatable.")
    ] = None,
    kept: Annotated[Path | None, typer.Option(help="Data file for the rows that are not dropped.")] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="KEY=ACTION", help="stated, derivable, empty, …=keep, warn or drop."),
    ] = None,
    processor: Annotated[str | None, typer.Option(help="Model folder whose processor counts prompt tokens.")] = None,
    model: Annotated[str | None, typer.Option(help="Model folder for the blind test and the citation check.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of that model's answers.")] = 256,
    instruction: Annotated[str, typer.Option(help="How that model shall write its answer.")] = "",
    joined: Annotated[bool, typer.Option("--join", help="Make one audit of those of all shards, in order.")] = False,
    shard: ShardOption = "1/1",
    workers: Workers = CORES,
) -> None:
    """What is in the data, what p gives away, and which rows are fit to train on."""
    from omegaconf import OmegaConf

    from privileged import get_builder
    from privileged.audit import DropPolicy
    from privileged.errors import DataError
    from privileged.scale import Shard

    from .audit import audit as run
    from .audit import join, lines
    from .counting import TokenCounter, asker

    actions: Any = OmegaConf.to_container(OmegaConf.from_dotlist(policy or []))
    if unknown := sorted(set(actions) - set(DropPolicy.__dataclass_fields__)):
        known = ", ".join(DropPolicy.__dataclass_fields__)
        raise DataError(f"drop policy has no entry {unknown[0]!r}: entries: {known}")
    made = get_builder(builder, **_options(option))
    if joined:
        typer.echo("\n".join(lines(join(data, builder=made, out=out))))
        return
    report = run(
        data,
        builder=made,
        builder_name=builder,
        out=out,
        eval_data=eval_data or (),
        kept=kept,
        shard=Shard.parse(shard),
        workers=workers,
        policy=DropPolicy(**actions),
        count_tokens=TokenCounter(processor) if processor else None,
        counted_by=processor or "",
        model=asker(model, max_new_tokens) if model else None,
        model_name=model or "",
        instruction=instruction,
    )
    typer.echo("\n".join(lines(report)))
    typer.echo(f"page: {out / 'audit.html'}" + (f"; kept rows: {kept}" if kept else ""))


@app.command()
def preview(
    data: Annotated[Path, typer.Argument(help="Data file.")],
    out: Annotated[Path, typer.Option(help="Folder for preview.html and one PNG a sample.")] = Path("preview"),
    sample: Annotated[
        list[str] | None, typer.Option("--sample", help="Id or row number, from 0; repeatable. Default: the first 3.")
    ] = None,
    builder: Annotated[str, typer.Option(help="How p is rendered.")] = "boxes",
    option: Options = None,
    student: Annotated[str, typer.Option(help="Folder of the student, for its processor.")] = "assets/student",
    teacher: Annotated[str | None, typer.Option(help="Folder of the teacher; default: the student's.")] = None,
    placement: Annotated[str, typer.Option(help="before_question, after_question or system.")] = "before_question",
    max_prompt_tokens: Annotated[int, typer.Option(min=1)] = 4096,
    png: Annotated[bool, typer.Option(help="Also draw a picture of each sample.")] = True,
) -> None:
    """What each policy really sees of a sample: three prompts with images and token counts, as a page and pictures."""
    from privileged import get_builder

    from ..data import SampleDataset
    from .counting import encoder_of
    from .preview import preview as look
    from .preview_page import write_page
    from .preview_picture import write_picture

    samples = _chosen(SampleDataset(data), sample or ["0", "1", "2"], default=not sample)
    encoders = {"student": encoder_of(student), "teacher": encoder_of(teacher or student)}
    made = get_builder(builder, **_options(option))
    previews = [look(one, made, encoders, max_prompt_tokens, placement) for one in samples]
    out.mkdir(parents=True, exist_ok=True)
    typer.echo(f"page: {write_page(previews, out / 'preview.html')}")
    for number, one in enumerate(previews if png else [], start=1):
        file = out / f"preview-{number}.png"
        if missing := write_picture(one, file):
            typer.echo(missing, err=True)
        typer.echo(f"picture: {file}")


@app.command("formats")
def list_formats(
    names: Annotated[list[str] | None, typer.Argument(help="Readers or builders to show with their examples.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    gallery: Annotated[
        Path | None, typer.Option(help="Bring the gallery in this README, and its pictures, up to date.")
    ] = None,
) -> None:
    """All readers and builders, with their options and an example each."""
    from rich.console import Console

    from . import formats

    if gallery:
        changed = formats.write_gallery(gallery)
        typer.echo("\n".join(map(str, changed)) or "nothing has changed")
        return
    entries = formats.formats(names or ())
    if as_json:
        typer.echo(json.dumps(formats.as_json(entries), indent=1, ensure_ascii=False))
    else:
        formats.print_formats(entries, Console(), examples=bool(names))


def _chosen(data: Any, wanted: list[str], default: bool) -> list[Any]:
    """The samples with these ids or row numbers."""
    from privileged.errors import DataError

    if default:
        return [data[int(place)] for place in wanted if int(place) < len(data)]
    found = []
    for word in wanted:
        place = next((i for i, row in enumerate(data.rows) if str(row.get("id")) == word), None)
        if place is None and word.isdigit() and int(word) < len(data):
            place = int(word)
        if place is None:
            raise DataError(f"{data.path}: expected the id or number of a row, got {word!r}; it has {len(data)} rows")
        found.append(data[place])
    return found


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
