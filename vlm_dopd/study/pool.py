"""All tasks of a study, a few children at a time. What is finished is not run again; no child outlives its parent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..callbacks import read_metrics
from ..errors import ConfigError
from .plan import Study, Task
from .records import read_json, result_of, write_json

WAIT = 0.2
"""Seconds between two looks at the children."""
MEASUREMENT = 0.25
"""What a measurement counts on the bar, where a training counts 1."""
TESTING = 0.15
"""Share of a training's task that is left when its last step is done."""


class Child(NamedTuple):
    """A task under way; `slot` chooses its GPU, where there are several."""

    task: Task
    process: subprocess.Popen[bytes]
    slot: int


def run_study(study: Study, console: Console) -> list[str]:
    """Run what is not finished; returns one line a task that failed. Ctrl-C ends the children; nothing is lost.

    Raises ConfigError if another process is at it, or if a folder holds something else.
    """
    waiting = [task for task in study.tasks if result_of(task) is None]
    failed = []
    with _alone(study.folder), _bar(console) as bar:
        weights = [_weight(task) for task in study.tasks]
        whole = bar.add_task("", total=sum(weights), done=len(weights) - len(waiting), of=len(weights), now="")
        finished = sum(weights) - sum(map(_weight, waiting))
        bar.update(whole, completed=finished)
        children: list[Child] = []
        try:
            while waiting or children:
                for child in [child for child in children if child.process.poll() is not None]:
                    children.remove(child)
                    finished += _weight(child.task)
                    bar.update(whole, advance=0, done=bar.tasks[whole].fields["done"] + 1)
                    failure = _close(child)
                    failed += [f"{child.task.title}: {failure}"] if failure else []
                    console.print(f"{child.task.title}: {failure or 'done'}", markup=False, highlight=False)
                free = sorted(set(range(study.file.processes)) - {child.slot for child in children})
                for slot in free[: len(waiting)]:
                    children.append(_start(waiting.pop(0), slot, study.file.keep_students))
                running = sum(_weight(child.task) * _progress(child.task) for child in children)
                bar.update(whole, completed=finished + running, now="; ".join(child.task.title for child in children))
                time.sleep(WAIT)
        finally:
            for child in children:
                child.process.kill()
                child.process.wait()
    return failed


def _start(task: Task, slot: int, keep_students: bool) -> Child:
    folder = task.folder
    if folder.exists() and read_json(folder / "task.json").get("digest") != task.digest:
        if any(folder.iterdir()) and not (folder / "task.json").is_file():
            raise ConfigError(f"{folder}: expected a folder of this study, got other files; choose another output_dir")
        shutil.rmtree(folder)  # the study's file has changed: this was another task
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "failure.json").unlink(missing_ok=True)
    note = {"title": task.title, "digest": task.digest, "keep_students": keep_students, "work": task.work}
    write_json(folder / "task.json", note)
    command = [sys.executable, "-m", "vlm_dopd.study.worker", str(folder)]
    with (folder / "log.txt").open("wb") as log:
        # In a session of its own: Ctrl-C is for us, who then end it.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | _environment(slot),
            start_new_session=True,
        )
    return Child(task, process, slot)


def _environment(slot: int) -> dict[str, str]:
    """One thread, and one GPU where there are any: Trainer would split a batch over all that it sees."""
    variables = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if count := torch.cuda.device_count():
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = named.split(",") if named else [str(number) for number in range(count)]
        variables["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return variables


def _close(child: Child) -> str | None:
    """The error of a child that has ended, written down; None if it did what it should."""
    assert child.process.stdin is not None
    child.process.stdin.close()
    if child.process.returncode == 0 and result_of(child.task) is not None:
        return None
    lines = (child.task.folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    code = child.process.returncode
    error = f"killed by signal {-code}" if code < 0 else said[-1] if said else f"ended with code {code} and no word"
    write_json(child.task.folder / "failure.json", {"digest": child.task.digest, "error": error})
    return error


def _progress(task: Task) -> float:
    """Share of a running task that is done, by the steps that its trainings have logged."""
    metrics = (read_metrics(run / "metrics.jsonl") for run in task.folder.glob("stage-*/"))
    steps = sum(lines[-1]["step"] for lines in metrics if lines)
    return (1 - TESTING) * min(steps / task.steps, 1) if task.steps else 0


def _weight(task: Task) -> float:
    return 1 if task.steps else MEASUREMENT


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes at one study would train the same cell into the same folder."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"output_dir: {folder} is being worked at by another process; wait for it") from None
        yield


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.fields[done]} of {task.fields[of]} runs"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}", markup=False),
        console=console,
        speed_estimate_period=24 * 3600,  # runs are long, and a bar's usual half minute would see no end of one
        disable=not console.is_terminal,
        refresh_per_second=2,
    )
