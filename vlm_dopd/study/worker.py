"""One task in a process of its own: `python -m vlm_dopd.study.worker FOLDER`, where `task.json` says what to do.

Whatever is finished stays finished: a stage's training (`trained.json`), answers one by one, and at the very end the
task (`result.json`). A worker whose parent is gone ends too: the pipe to it, its standard input, is closed then.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

import evals
from privileged import get_builder
from privileged.errors import DataError
from privileged.image_policy import ImagePolicy

from ..config import RunConfig, typed
from ..data import SampleDataset
from ..errors import ConfigError, TrainingError
from ..evaluation import items, open_model
from ..run import last_checkpoint, train, versions
from .plan import Exam, exam
from .records import write_json

KEPT = ("config.yaml", "versions.json", "metrics.jsonl", "trained.json")
"""What of a run folder stays when its student is not to be kept."""


def main(folder: Path) -> None:
    """Do what `folder/task.json` says and write `folder/result.json`."""
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    work = task["work"]
    if "exam" in work:
        measure(Exam(**work["exam"]), folder / "answers.jsonl", task["title"])
        result: dict[str, Any] = {}
    else:
        result = run_stages(work, folder, task["title"])
    write_json(folder / "result.json", {"digest": task["digest"], **result, "versions": versions()})
    if not task["keep_students"]:
        for run in folder.glob("stage-*/"):
            _strip(run)


def run_stages(work: dict[str, Any], folder: Path, title: str) -> dict[str, Any]:
    """Train and test, stage by stage; returns what it cost."""
    seconds: list[float | None] = []
    student = None
    for number, stage in enumerate(work["stages"], start=1):
        config: RunConfig = typed(RunConfig, stage["config"], "")
        run = folder / f"stage-{number}"
        model = config.model if student is None else replace(config.model, student=student)
        seeded = config.train | {"seed": work["seed"]}
        config = replace(config, model=model, train=seeded, output_dir=str(run), resume=True)
        seconds.append(_train(config, run))
        student = str(run)
        measure(exam(config, student, work["held_out"]), folder / f"stage-{number}.jsonl", title)
    return {"seconds": None if None in seconds else sum(s for s in seconds if s), "memory": _peak_memory()}


def measure(its: Exam, out: Path, title: str) -> list[evals.Prediction]:
    """The answers of a model to the held-out questions; those that `out` holds are not asked again."""
    rows = SampleDataset(its.data, its.held_out, ImagePolicy(**its.images))
    questions = items(rows, get_builder(its.builder, **its.builder_options), its.view, its.placement)
    model = open_model(its.model, dtype="float32", allow_download=its.allow_download, use_cpu=its.use_cpu)
    return model.ask(questions, its.max_new_tokens, title, out)


def _train(config: RunConfig, run: Path) -> float | None:
    """Seconds that the training took; None where a kill came between: nobody knows what it had cost by then."""
    done = run / "trained.json"
    if not done.is_file():
        resumed, began = last_checkpoint(run) is not None, time.perf_counter()
        train(config)
        write_json(done, {"seconds": None if resumed else time.perf_counter() - began})
    return json.loads(done.read_text(encoding="utf-8"))["seconds"]


def _peak_memory() -> dict[str, int]:
    """Bytes. On Linux of this program alone: `ru_maxrss` would start with what the parent had when it forked."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        peak = int(lines["VmHWM"].split()[0]) * 1024
    return {"host": peak} | ({"device": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {})


def _strip(run: Path) -> None:
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in KEPT:
            path.unlink()


def _end_with_parent() -> None:
    os.read(0, 1)  # not through sys.stdin, whose lock a thread must not hold when Python ends
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.disable_progress_bar()
    try:
        main(Path(sys.argv[1]))
    except (ConfigError, DataError, TrainingError) as error:
        sys.exit(str(error).splitlines()[-1])
