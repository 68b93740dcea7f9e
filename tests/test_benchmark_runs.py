"""The bundled pair on the eight benchmarks' fixtures, as `vlm-dopd eval --benchmarks` and `compare` run them.

What is locked: 1) every benchmark runs from data to summary, images and videos included; 2) a run killed at any moment
and started again ends with the same bytes; 3) two runs and a teacher become a table and a page; 4) the student is asked
benchmarks while it learns, and the curve is in the metrics.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import evals
from evals import suite
from evals.benchmarks import available, find
from vlm_dopd.benchmarks import BenchmarkRun, run_benchmarks
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.comparing import write_comparison
from vlm_dopd.config import load_config
from vlm_dopd.run import train

from .fake_endpoint import FakeEndpoint, Say
from .predicted import predicted

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"
TOKENS = 12


def ask(model, out, **told):
    settings = {"names": "all", "protocol": "toolkit", "data": "fixture", "max_new_tokens": TOKENS}
    return run_benchmarks(BenchmarkRun(model=str(ASSETS / model), out=out, **settings | told))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder, {model: ask(model, folder / model) for model in ("student", "teacher")}


def test_the_pair_runs_through_all_eight_fixtures(runs):
    folder, tables = runs
    assert len(available()) == 8
    for model in ("student", "teacher"):
        found = suite.read_run(folder / model)
        assert set(found) == set(available())
        summary = json.loads((folder / model / "summary.json").read_text())
        for name, rows in found.items():
            its = summary["benchmarks"][name]
            assert sum(its["fates"]["run"].values()) == its["n"] == len(rows)
            assert {row.protocol for row in rows} == {its["protocol"]}
            assert its["fates"]["run"]["error"] == 0
            assert name in tables[model]
    assert "No published number has been reproduced" in tables["student"]


def test_a_finished_run_is_not_asked_again(runs, monkeypatch):
    folder, tables = runs
    before = {path: path.read_bytes() for path in sorted((folder / "student").iterdir())}

    def asked(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr("evals.model.HFModel.generate", asked)
    assert ask("student", folder / "student") == tables["student"]
    assert {path: path.read_bytes() for path in sorted((folder / "student").iterdir())} == before


def test_rows_of_a_run_can_be_rescored(runs, tmp_path):
    from evals.rescore import rescore_file

    folder, _ = runs
    for name in available():
        rows = evals.read(folder / "student" / f"{name}.jsonl")
        again = rescore_file(folder / "student" / f"{name}.jsonl", name, "toolkit", tmp_path / f"{name}.jsonl")
        assert [(one["id"], one["score"], one["fate"]) for one in again] == [(r.id, r.score, r.fate) for r in rows]


def test_two_runs_and_the_teacher_become_a_page(runs, tmp_path):
    folder, _ = runs
    text = write_comparison(folder / "student", folder / "teacher", folder / "teacher", None, tmp_path)
    figures = json.loads((tmp_path / "compare.json").read_text())
    page = (tmp_path / "compare.html").read_text()
    assert set(figures["benchmarks"]) == set(available())
    for name in available():
        assert name in text and find(name).title in page
    assert "https://" not in page and "<script src" not in page


def test_the_three_files_of_a_demo_are_compared(tmp_path):
    """`before`, `after` and `teacher` of the run folder, with gap recovery."""
    right = {"before": 40, "after": 80, "teacher": 90}
    for name, count in right.items():
        rows = [predicted(f"q{n}", "correct" if n < count else "wrong", group={"kind": "sum"}) for n in range(100)]
        (tmp_path / f"{name}.jsonl").write_text("".join(row.to_json() + "\n" for row in rows))
    before, after, teacher = (tmp_path / f"{name}.jsonl" for name in right)
    text = write_comparison(before, after, teacher, None, tmp_path / "page")
    assert "+40.0" in text and "80 %" in text
    figures = json.loads((tmp_path / "page" / "compare.json").read_text())
    entry = figures["benchmarks"]["held-out"]["headlines"]["accuracy"]
    assert entry["recovery"]["value"] == pytest.approx(0.8) and entry["difference"]["value"] == pytest.approx(0.4)


SLOW = """
import sys, time
from pathlib import Path
import evals.model
from vlm_dopd.benchmarks import BenchmarkRun, run_benchmarks
generate = evals.model.HFModel.generate
def slowly(self, items):
    print("asking", flush=True)
    return generate(self, items)
evals.model.HFModel.generate = slowly
run_benchmarks(BenchmarkRun(model=sys.argv[1], names="vsibench,mmstar,mmmu_pro", protocol="toolkit", data="fixture",
                            max_new_tokens=12, out=Path(sys.argv[2])))
"""


@pytest.mark.parametrize(("asked", "pause"), [(1, 0.2), (3, 0.05)])
def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(runs, tmp_path, asked, pause):
    folder, _ = runs
    out = tmp_path / "run"
    words = [sys.executable, "-c", SLOW, str(ASSETS / "student"), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    for _ in range(asked):
        child.stdout.readline()
    time.sleep(pause)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    ask("student", out, names="vsibench,mmstar,mmmu_pro")
    for name in ("vsibench", "mmstar", "mmmu_pro"):
        assert (out / f"{name}.jsonl").read_bytes() == (folder / "student" / f"{name}.jsonl").read_bytes()


def test_a_server_answers_and_another_judges(tmp_path):
    """Over HTTP: replies that no rule reads go to the judge, whose numbers stand beside those of the rules."""

    def script(call):
        if "Report the answer" in str(call.body["messages"][0]["content"]):
            return Say(json.dumps({"answer": ["A"]}))
        return Say("Well. On the whole, it is hard to see.")

    with FakeEndpoint(script).serving() as server:
        table = run_benchmarks(
            BenchmarkRun(
                model=f"{server.url}#small",
                names="mmstar",
                protocol="toolkit",
                data="fixture",
                limit=4,
                judge=f"{server.url}#wise",
                out=tmp_path,
            )
        )
        asked = [call.body["model"] for call in server.calls]
    rows = evals.read(tmp_path / "mmstar.jsonl")
    assert asked.count("small") == len(rows) == 4
    assert asked.count("wise") == len({row.question for row in rows})  # what is the same is asked once
    assert {row.fate for row in rows} == {"unparsed"} and {row.run for row in rows} == {"small"}
    judged = json.loads((tmp_path / "mmstar.judge.json").read_text())
    golds = [row.answer for row in rows]
    assert (judged["accuracy_by_rule"], judged["accuracy_with_judge"]) == (0, golds.count("A") / 4)
    assert "by rule 0.0%, with judge" in table and suite.read_run(tmp_path).keys() == {"mmstar"}


def test_the_student_is_asked_benchmarks_while_it_learns(tmp_path):
    settings = [
        "train.max_steps=2",
        "train.eval_steps=1",
        "train.warmup_steps=0",
        "train.per_device_train_batch_size=1",
    ]
    settings += ["rollout.siblings=2", "rollout.max_new_tokens=8", "data.eval=null", f"output_dir={tmp_path / 'run'}"]
    settings += ["benchmarks.names=[mmstar,vsibench]", "benchmarks.data=fixture", "benchmarks.limit=3"]
    settings += ["benchmarks.max_new_tokens=8", "train.save_steps=100"]
    run = train(load_config(ROOT / "vlm_dopd" / "recipes" / "demo.yaml", settings))
    curve = {line["step"]: line for line in read_metrics(run / "metrics.jsonl") if "eval/benchmark/mmstar" in line}
    assert set(curve) == {0, 1, 2}
    for step, line in curve.items():
        rows = suite.read_run(run / "evals" / f"step-{step:06d}")
        assert {len(its) for its in rows.values()} == {3}
        assert line["eval/benchmark/mmstar"] == sum(row.score for row in rows["mmstar"]) / 3
