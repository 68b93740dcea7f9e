"""A study for real: random models, children that train one step or two.

What is locked: 1) every cell and seed ends with answers, metrics and a result; 2) what is finished is not run again,
what was killed goes on from its checkpoint and ends like one never killed, what is another task starts anew; 3) a cell
that fails is named and stops no other; 4) no child outlives its parent; 5) stages start from the former's student.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import yaml
from rich.console import Console

import evals
from tests import tiny
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.errors import ConfigError
from vlm_dopd.run import last_checkpoint
from vlm_dopd.study import pool
from vlm_dopd.study.page import write_study
from vlm_dopd.study.plan import load_study
from vlm_dopd.study.pool import run_study
from vlm_dopd.study.records import failure_of, result_of

SILENT = Console(quiet=True)


def write_files(folder, pair, **changes):
    """A recipe and a study of two cells on the random pair; returns the study's path."""
    recipe = {
        "model": {"student": str(pair[0]), "teacher": str(pair[1]), "teacher_dtype": "float32"},
        "data": {"train": str(tiny.SCENES), "eval": str(tiny.ASSETS / "scenes" / "heldout.parquet"), "eval_limit": 4},
        "rollout": {"siblings": 2, "max_new_tokens": 4},
        "train": {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "use_cpu": True,
                  "learning_rate": 1e-2, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1},
    }  # fmt: skip
    study = {
        "title": "Two cells", "base": str(folder / "recipe.yaml"), "seeds": [0, 1], "held_out": 6, "baseline": "opd",
        "cells": {"opd": ["method.name=opd"], "dopd, again": ["method.name=dopd"]},
        "output_dir": str(folder / "study"),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "study.yaml").write_text(yaml.safe_dump(study | changes))
    return folder / "study.yaml"


def run(path, *overrides):
    study = load_study(path, list(overrides))
    return study, run_study(study, SILENT), write_study(study)


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory):
    return run(write_files(tmp_path_factory.mktemp("whole"), pair))


def results(study):
    return {task.title: task.folder / "result.json" for task in study.tasks}


def test_every_cell_and_seed_is_trained_and_tested(whole):
    """Answers to all held-out questions, metrics, a result with its cost; the weights are gone, the page is there."""
    study, failed, page = whole
    assert failed == []
    for cell in study.cells.values():
        for task in cell.tasks.values():
            assert len(evals.read(task.folder / "stage-1.jsonl")) == 6
            assert {line["step"] for line in read_metrics(task.folder / "stage-1" / "metrics.jsonl")} == {1, 2}
            result = json.loads((task.folder / "result.json").read_text())
            assert result["seconds"] > 0 and 2**25 < result["memory"]["host"] < 2**33
            left = {path.name for path in (task.folder / "stage-1").iterdir()}
            assert left == {"config.yaml", "versions.json", "metrics.jsonl", "trained.json"}
            assert yaml.safe_load((task.folder / "stage-1" / "config.yaml").read_text())["train"]["seed"] in (0, 1)
    assert len(study.tasks) == 3 + 4  # student, student with p, teacher
    figures = json.loads((study.folder / "study.json").read_text())
    assert figures["runs"] == {"all": 7, "done": 7}
    assert figures["cells"]["opd"]["curves"]["eval/accuracy"]["step"] == [0, 1, 2]
    assert figures["cells"]["opd"]["cost"]["tokens"] > 0
    assert "dopd, again" in page.read_text() and "dopd, again" in (study.folder / "study.md").read_text()


def test_what_is_finished_is_not_run_again(whole):
    """A second start touches nothing; the files it writes are the same to the byte."""
    study, _, page = whole
    before = {name: path.stat().st_mtime_ns for name, path in results(study).items()}
    text = page.read_bytes()
    assert run_study(study, SILENT) == []
    assert write_study(study).read_bytes() == text
    assert {name: path.stat().st_mtime_ns for name, path in results(study).items()} == before


def test_a_killed_cell_goes_on_and_another_one_starts_anew(whole, pair, tmp_path):
    """SIGKILL of parent after the first checkpoint: the child ends too, and the cell ends with the answers and metrics
    of one never killed; of a cell whose settings have changed nothing is left."""
    reference = whole[0].cells["dopd, again"].tasks[0].folder
    cells = {"dopd, again": ["method.name=dopd"]}
    path = write_files(tmp_path, pair, cells=cells, baseline="dopd, again", seeds=[0], processes=1)
    study = load_study(path)
    shutil.copytree(whole[0].folder / "references", study.folder / "references")
    folder = study.cells["dopd, again"].tasks[0].folder
    command = [sys.executable, "-m", "vlm_dopd", "study", str(path)]
    parent = subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while last_checkpoint(folder / "stage-1") is None and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert not (folder / "result.json").exists(), "the run ended before it was killed"
    deadline = time.monotonic() + 20
    while running(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(folder)
    trained = (folder / "stage-1" / "trained.json").exists()
    assert run_study(study, SILENT) == []
    assert (folder / "stage-1.jsonl").read_bytes() == (reference / "stage-1.jsonl").read_bytes()
    lines = [read_metrics(f / "stage-1" / "metrics.jsonl") for f in (folder, reference)]
    losses = [[line["loss"] for line in its if "loss" in line] for its in lines]
    assert losses[0] == losses[1]
    if not trained:  # else the kill came after the last step, and what training had cost is known
        assert json.loads((folder / "result.json").read_text())["seconds"] is None
    other = load_study(path, ["settings=[train.max_steps=1]"]).cells["dopd, again"].tasks[0]
    assert (other.folder, result_of(other)) == (folder, None)
    (folder / "mine").touch()
    child = pool._start(other, 0, keep_students=True)
    assert not (folder / "mine").exists() and not (folder / "result.json").exists()
    child.process.kill()
    child.process.wait()
    assert "killed by signal 9" in pool._close(child) == failure_of(other)


def running(folder):
    """Whether a worker of this folder is alive."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return any("vlm_dopd.study.worker" in line and str(folder) in line for line in listed.splitlines())


def test_a_failing_cell_is_named_and_stops_no_other(whole, pair, tmp_path):
    """The last line of its error in result, table and page; exit code 1; the next start tries it again."""
    cells = {"broken <b>": ["method.name=opd", "data.train_kinds=[nothing]"], "opd": ["method.name=opd"]}
    path = write_files(tmp_path, pair, cells=cells, seeds=[0])
    study = load_study(path)
    shutil.copytree(whole[0].folder, study.folder)
    done = subprocess.run(
        [sys.executable, "-m", "vlm_dopd", "study", str(path)], cwd=tiny.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("vlm-dopd: 1 runs failed, among them broken <b>, seed 0: ")
    why = failure_of(study.cells["broken <b>"].tasks[0])
    assert "expected rows of kind 'nothing'" in why
    figures = json.loads((study.folder / "study.json").read_text())
    assert figures["cells"]["broken <b>"]["failed"] == {"0": why}
    assert figures["cells"]["opd"]["seeds"] == [0]
    assert "failed: " in (study.folder / "study.html").read_text()
    assert "broken &lt;b>" in (study.folder / "study.md").read_text()


def test_stages_start_from_the_student_of_the_one_before(pair, tmp_path):
    """And are tested one by one; the table tells the kinds of each and what became of the old ones."""
    stages = [{"name": "a", "settings": ["data.train_kinds=[which]"]},
              {"name": "b", "settings": ["data.train_kinds=[sum]", "train.max_steps=1"]}]  # fmt: skip
    path = write_files(tmp_path, pair, cells={"opd": ["method.name=opd"]}, seeds=[3], stages=stages)
    study, failed, _ = run(path, "keep_students=true")
    assert failed == []
    folder = study.cells["opd"].tasks[3].folder
    second = yaml.safe_load((folder / "stage-2" / "config.yaml").read_text())
    assert second["model"]["student"] == str(folder / "stage-1")
    assert (second["train"]["seed"], second["data"]["train_kinds"]) == (3, ["sum"])
    assert (folder / "stage-1" / "model.safetensors").is_file()
    cell = json.loads((study.folder / "study.json").read_text())["cells"]["opd"]
    assert [stage["trained"] for stage in cell["stages"]] == [["which"], ["sum"]]
    assert cell["forgetting"]["kinds"] == ["which"]
    assert cell["transfer"]["kinds"] == ["sum", "which"] and "untrained" in cell["transfer"]
    assert cell["curves"]["rollout/length"]["step"] == [1, 2, 3]


def test_two_at_one_study_and_foreign_folders_are_refused(whole, pair, tmp_path):
    """One line each; what is in the way stays."""
    study = whole[0]
    with pool._alone(study.folder), pytest.raises(ConfigError, match="worked at by another process"):
        run_study(study, SILENT)
    task = replace(study.tasks[0], folder=tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="mine: expected a folder of this study, got other files"):
        pool._start(task, 0, keep_students=False)
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_one_thread_and_one_gpu_a_child(monkeypatch):
    """The children of four slots on two GPUs of three that the user has chosen."""
    assert pool._environment(0)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setattr(pool.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert [pool._environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["2", "0", "2", "0"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [pool._environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "1", "0"]
