"""A study file -> every task that follows from it, checked before the first one starts.

```yaml
base: vlm_dopd/recipes/demo.yaml          # the recipe that all cells share
settings: [train.max_steps=60]            # and what they all change in it
cells:                                    # a name -> what this cell changes
  opd: [method.name=opd]
  "opd, p to teacher": [method.name=opd, method.teacher_view=privileged]
baseline: opd                             # differences are to this cell, seed by seed
seeds: [0, 1, 2]
```
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..config import RunConfig, load_config, read_settings, typed
from ..errors import ConfigError, closest


@dataclass(kw_only=True)
class Stage:
    """One of several trainings in a row: each starts from the student that the one before left."""

    name: str
    settings: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Group:
    """Cells that are shown together."""

    name: str
    cells: list[str]
    note: str = ""
    baseline: str | None = None
    """Of this group; else the study's."""
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    """Published figures to show beside ours: title of the column -> cell -> figure."""


@dataclass(kw_only=True)
class StudyFile:
    """The keys of a study file, as they stand in it."""

    base: str
    """A recipe; relative to the working directory, as paths of recipes are."""
    cells: dict[str, list[str]]
    baseline: str
    title: str = "Study"
    settings: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    stages: list[Stage] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    """Sections of table and page; none is one section with all cells."""
    held_out: int | None = None
    """Test on the first N rows of data.eval; null: on all of them."""
    processes: int = 2
    """Children at once; each has one thread, so that results do not depend on the machine's number of cores."""
    keep_students: bool = False
    """Keep every cell's weights after they have been tested."""
    output_dir: str = "runs/study"


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Who is asked the held-out questions, and how."""

    model: str
    view: Literal["plain", "privileged"]
    data: str
    held_out: int | None
    images: dict[str, Any]
    builder: str = "none"
    builder_options: dict[str, Any] = field(default_factory=dict)
    placement: str = "before_question"
    max_new_tokens: int
    allow_download: bool
    use_cpu: bool


@dataclass(frozen=True, kw_only=True)
class Task:
    """One child process: its folder, and what it is to do there."""

    folder: Path
    title: str
    work: dict[str, Any]
    """JSON; all that the result depends on."""
    steps: int = 0
    """Of all its trainings; 0 for a measurement."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits: a result with another one is of other work, and is made again."""
        return hashlib.sha256(json.dumps(self.work, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One line of the table: its settings, and a task for every seed."""

    name: str
    settings: list[str]
    stages: tuple[RunConfig, ...]
    tasks: dict[int, Task]
    """By seed."""
    references: dict[str, Task]
    """Accuracies that do not depend on training: `before`, `with_p`, `teacher`."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study file with everything that follows from it."""

    file: StudyFile
    folder: Path
    cells: dict[str, Cell]
    groups: list[Group]

    @property
    def tasks(self) -> list[Task]:
        """In the order in which they run: a study that was stopped early has whole seeds, not whole cells."""
        references = {task.folder: task for cell in self.cells.values() for task in cell.references.values()}
        cells = [cell.tasks[seed] for seed in self.file.seeds for cell in self.cells.values()]
        return [*references.values(), *cells]


def load_study(path: str | Path, overrides: list[str] | None = None) -> Study:
    """The study of a file, every cell's configuration checked. Raises ConfigError with one line."""
    file: StudyFile = typed(StudyFile, read_settings(path, overrides), "")
    groups = file.groups or [Group(name="All cells", cells=list(file.cells))]
    _check(file, groups)
    folder = Path(file.output_dir)
    slugs = _slugs(file.cells)
    cells = {name: _cell(file, name, folder, slugs[name]) for name in file.cells}
    return Study(file=file, folder=folder, cells=cells, groups=groups)


def _check(file: StudyFile, groups: list[Group]) -> None:
    if not file.cells:
        raise ConfigError("cells: expected at least one, got none")
    if not file.seeds or len(set(file.seeds)) < len(file.seeds):
        raise ConfigError(f"seeds: expected different numbers, got {file.seeds}")
    for name, value in (("processes", file.processes), ("held_out", file.held_out)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: expected at least 1, got {value}")
    if not file.output_dir:
        raise ConfigError("output_dir: expected a folder, got nothing")
    _known("baseline", [file.baseline], file.cells)
    for group in groups:
        where = f"group {group.name!r}"
        _known(f"{where}: cells", group.cells, file.cells)
        _known(f"{where}: baseline", [group.baseline or file.baseline], file.cells)
        for column, figures in group.paper.items():
            _known(f"{where}: paper: {column!r}", figures, group.cells)
    if missing := [name for name in file.cells if not any(name in group.cells for group in groups)]:
        raise ConfigError(f"groups: expected every cell in at least one, got none with {missing[0]!r}")


def _known(where: str, names: Iterable[str], cells: Iterable[str]) -> None:
    if unknown := [name for name in names if name not in cells]:
        raise ConfigError(f"{where}: no such cell {unknown[0]!r}; {closest(unknown[0], cells)}")


def _slugs(names: Iterable[str]) -> dict[str, str]:
    """A folder's name for each cell, whatever it is called."""
    slugs: dict[str, str] = {}
    for name in names:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:60].strip("-")
        slug = slug or f"cell-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"
        if twin := [other for other, its in slugs.items() if its == slug]:
            raise ConfigError(f"cells: {twin[0]!r} and {name!r} would share the folder {slug!r}; rename one of them")
        slugs[name] = slug
    return slugs


def _cell(file: StudyFile, name: str, folder: Path, slug: str) -> Cell:
    stages = file.stages or [Stage(name="")]
    try:
        configs = tuple(
            load_config(file.base, [*file.settings, *file.cells[name], *stage.settings]) for stage in stages
        )
    except ConfigError as error:
        raise ConfigError(f"cell {name!r}: {error}") from None
    if any(config.data.eval is None for config in configs):
        raise ConfigError(f"cell {name!r}: data.eval: expected a file of held-out questions, got nothing")
    settings = [{"name": stage.name, "config": _settings(its)} for stage, its in zip(stages, configs, strict=True)]
    steps = sum(max(int(config.train.get("max_steps", 0)), 0) for config in configs)
    return Cell(
        name=name,
        settings=file.cells[name],
        stages=configs,
        tasks={
            seed: Task(
                folder=folder / "cells" / slug / f"seed-{seed}",
                title=f"{name}, seed {seed}",
                work={"stages": settings, "seed": seed, "held_out": file.held_out},
                steps=steps,
            )
            for seed in file.seeds
        },
        references=_references(file, configs[-1], folder / "references"),
    )


def _settings(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration without what the worker decides: a method's defaults are part of what is hashed."""
    method = {"name": config.method["name"], **asdict(config.build_method())}  # type: ignore[call-overload]
    values = asdict(config) | {"method": method}
    return {key: value for key, value in values.items() if key not in ("output_dir", "resume")}


def exam(config: RunConfig, model: str, held_out: int | None) -> Exam:
    """The plain prompt, as deployed."""
    return Exam(
        model=model,
        view="plain",
        data=config.data.eval or "",
        held_out=held_out,
        images=config.data.images,
        max_new_tokens=config.rollout.max_new_tokens,
        allow_download=config.model.allow_download,
        use_cpu=bool(config.train.get("use_cpu", False)),
    )


def _references(file: StudyFile, config: RunConfig, folder: Path) -> dict[str, Task]:
    data = config.data
    before = exam(config, config.model.student, file.held_out)
    exams = {
        "before": ("student before", before),
        "with_p": (
            f"student before, with p ({data.builder})",
            replace(
                before,
                view="privileged",
                builder=data.builder,
                builder_options=data.builder_options,
                placement=data.placement,
            ),
        ),
        "teacher": ("teacher", replace(before, model=config.model.teacher)),
    }
    tasks = {}
    for name, (title, its) in exams.items():
        task = Task(folder=folder, title=title, work={"exam": asdict(its)})
        tasks[name] = replace(task, folder=folder / f"{name.replace('_', '-')}-{task.digest[:8]}")
    return tasks
