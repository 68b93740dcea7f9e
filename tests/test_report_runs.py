"""Run pages of training runs and of several runs, the page kept fresh, and the view in the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from privileged import DataError
from tests import tiny
from tests.test_report import Page, write_run
from tests.test_trainer import settings
from vlm_dopd import run as training
from vlm_dopd import watch
from vlm_dopd.report import write_report
from vlm_dopd.report.collect import collect
from vlm_dopd.report.page import headline
from vlm_dopd.report.several import draw_overlays, keys, settings_apart
from vlm_dopd.reporting import RunPage, held_out_of

CONFIG = "method:\n  name: dopd\ntrain:\n  seed: 3\n  max_steps: 100\n  lr: {lr}\noutput_dir: {name}\n"


def logged(folder, name="plain", lines=8, lr=1.0, **more):
    """A run that only trained: no summary and no replies."""
    run = folder / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG.format(lr=lr, name=name))
    rows = []
    for step in range(5, 5 * lines + 1, 5):
        line = {"step": step, "loss": 1 / step, "rollout/tokens": 100.0, "memory/peak_gib": 0.1 * step}
        line |= {"time/step": 2.0, "time/tokens_per_s": 50.0, "time/rollout": 1.0}
        rows.append(line | {"share/HT": 0.1, "share/HS": 0.2, "share/LH": 0.7} | more)
        if step % 20 == 0:
            rows.append({"step": step, "eval/accuracy": step / 100, "eval/low": step / 100 - 0.1, "eval/high": 0.9})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_a_run_that_only_trained_has_a_page(tmp_path):
    run = logged(tmp_path)
    page = Page(write_report(run, ()))
    figures = json.loads((run / "report.json").read_text())
    assert figures["measured"] is False and figures["method"] == "dopd" and figures["seed"] == 3
    assert [(row["name"], row["accuracy"]) for row in figures["rows"]] == [
        ("student, step 20", 0.2), ("student, step 40", 0.4),
    ]  # fmt: skip
    assert figures["headline"] == "DOPD: from 20.0\u00a0% to 40.0\u00a0% of the questions asked in training, step 40"
    assert (
        figures["headline"] in page.text and "held-out questions" not in page.text.lower().split("health and cost")[1]
    )
    assert figures["cost"] == {"seconds": 80.0, "steps": 40, "tokens": 4000.0, "tokens_per_s": 50.0, "peak_gib": 4.0}
    assert (
        "1\u00a0min 20\u00a0s" in page.text and "4,000 sampled tokens (50 a second), and 4.0 GiB at most" in page.text
    )
    assert figures["time"] == {"rollout": 0.5, "the rest": 0.5}


def test_cost_of_uneven_log_lines_is_the_sum_over_steps(tmp_path):
    run = logged(tmp_path, lines=1)
    lines = [
        {"step": 10, "time/step": 3.0, "rollout/tokens": 10.0},
        {"step": 12, "time/step": 5.0, "rollout/tokens": 20.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cost = collect(run).cost
    assert (cost.seconds, cost.tokens, cost.steps, cost.peak_gib) == (40.0, 140.0, 12, None)
    assert cost.tokens_per_s == 3.5


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    run = logged(tmp_path, lines=0)
    assert "DOPD, 0 steps" in Page(write_report(run, ())).text
    with pytest.raises(DataError, match=r"missing metrics\.jsonl$"):
        (run / "metrics.jsonl").unlink()
        collect(run)


def test_several_runs_stand_beside_each_other(tmp_path):
    first, second = write_run(tmp_path / "first"), logged(tmp_path, "second", lr=2.0)
    page = Page(write_report(first, (), [second]))
    figures = json.loads((first / "report.json").read_text())
    assert [run["run"] for run in figures["runs"]] == ["first", "second"]
    assert figures["runs"][1]["cost"]["tokens_per_s"] == 50.0
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["first"][:3] == ["dopd, seed 7", "53.2\u00a0%", "74.5\u00a0%"]
    assert rows["second"][:3] == ["dopd, seed 3", "20.0\u00a0%", "40.0\u00a0%"]
    assert {"name": "train.lr", "values": [None, "2.0"]} in figures["settings_apart"]
    assert rows["train.lr"] == ["not set", "2.0"] and "output_dir" not in rows and "method.name" not in rows
    ids = [value for _, attributes in page.tags if (value := attributes.get("id"))]
    assert len(ids) == len(set(ids))
    alone = json.loads((write_report(first, ()).with_name("report.json")).read_text())
    assert "runs" not in alone


def test_overlaid_curves_have_a_line_of_their_own(tmp_path):
    reports = [collect(logged(tmp_path, f"r{n}", lr=n)) for n in range(8)]
    assert len({(key.paint, key.dash) for key in keys(reports)}) == 8
    charts = {chart.name: chart for chart in draw_overlays(reports)}
    assert set(charts) == {"all-accuracy", "all-loss", "all-differ", "all-speed", "all-memory"}
    assert [key.label for key in charts["all-loss"].legend] == [f"r{n}" for n in range(8)]
    assert settings_apart(reports)[0]["values"] == [str(n) for n in range(8)]
    assert settings_apart(reports[:1]) == []


def test_training_writes_its_page_and_says_what_it_cost(pair, tmp_path):
    config = settings(pair, tmp_path, **{"train.max_steps": 2, "report.every": 1, "report.token_samples": 2})
    run = training.train(config)
    figures = json.loads((run / "report.json").read_text())
    assert (run / "tokens.html").is_file() and 'href="tokens.html"' in (run / "report.html").read_text()
    cost, curves = figures["cost"], figures["curves"]
    assert cost["steps"] == 2 and cost["seconds"] == pytest.approx(sum(curves["time/step"]["value"]))
    assert cost["peak_gib"] > 0.05
    phases = sum(curves[f"time/{name}"]["value"][1] for name in ("rollout", "score"))
    assert curves["time/step"]["value"][1] > phases > 0
    assert curves["time/tokens_per_s"]["value"][0] == pytest.approx(
        curves["rollout/tokens"]["value"][0] / curves["time/step"]["value"][0]
    )


def test_the_page_is_refreshed_within_its_share_of_the_time(tmp_path, monkeypatch):
    clock, written = [0.0], []
    monkeypatch.setattr("vlm_dopd.reporting.time.perf_counter", lambda: clock[0])

    def write(run, samples):
        written.append(clock[0])
        clock[0] += 2.0  # what a page takes

    monkeypatch.setattr("vlm_dopd.reporting.write_report", write)
    page, state = RunPage(tmp_path), type("State", (), {"is_world_process_zero": True})()
    page.on_train_begin(None, state, None)
    for second in range(1000):
        clock[0] = max(clock[0], float(second))
        page.on_log(None, state, None)
    assert written == [30.0, 232.0, 434.0, 636.0, 838.0]
    state.is_world_process_zero = False
    page.on_train_end(None, state, None)
    assert len(written) == 5


def test_a_page_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    RunPage(tmp_path / "nowhere").write()
    assert "run page: run" in caplog.text


def test_held_out_samples_of_a_run(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text(f"data:\n  eval: {tiny.ASSETS / 'text' / 'heldout.jsonl'}\n")
    assert len(held_out_of(run)) == 200
    (run / "config.yaml").write_text("data:\n  eval: gone.jsonl\n")
    assert held_out_of(run) == () and held_out_of(logged(tmp_path)) == ()


def shown(report, width=100):
    console = Console(width=width, record=True, file=open(os.devnull, "w"), color_system=None)  # noqa: SIM115
    console.print(watch.frame(report))
    return console.export_text()


def test_a_frame_tells_step_curves_regimes_and_time_left(tmp_path):
    text = shown(collect(logged(tmp_path)))
    assert "plain  dopd  step 40 of 100  about 2\u00a0min 00\u00a0s left" in text  # 60 steps of two seconds
    assert "held-out accuracy" in text and "40 %" in text and "50 tokens/s" in text and "▁" in text and "█" in text
    assert "LH 70 %  HT 10 %  HS 20 %" in text and "LH─" in text
    assert "health: " in text


def test_a_frame_tells_warnings_and_hides_nothing_strange(tmp_path):
    run = logged(tmp_path, lines=12, **{"rollout/truncated": 0.5, "rollout/length": 10.0})
    text = shown(collect(run), width=300)
    assert "! " in text and "truncated" in text and "\x1b" not in text
    (run / "config.yaml").write_text('method:\n  name: "a\\u202eb\\e[31m"\n')
    assert "\u202e" not in shown(collect(run)) and "[31m" in shown(collect(run))


def test_steps_are_told_from_epochs_too(tmp_path):
    run = logged(tmp_path, epoch=0.5)
    (run / "config.yaml").write_text("train:\n  num_train_epochs: 2\n")
    assert watch.total_steps(collect(run)) == 160
    assert watch.seconds_left(collect(run)) == 240.0
    (run / "metrics.jsonl").write_text('{"step": 5, "loss": 1}\n')
    assert watch.total_steps(collect(run)) is None and watch.seconds_left(collect(run)) is None


@pytest.mark.parametrize(
    ("values", "bars"), [([1, 2, 3], "▁▅█"), ([2, 2], "▁▁"), ([5], "▁"), ([0, 0, 1, 1], "▁█"), ([1, 1, 0, 0], "█▁")]
)
def test_sparklines(values, bars):
    assert watch.sparkline(values, width=3 if len(values) == 3 else 2) == bars


def test_watch_once_in_a_process_of_its_own(tmp_path):
    run = logged(tmp_path)
    words = [sys.executable, "-m", "vlm_dopd", "watch", str(run), "--once"]
    done = subprocess.run(words, cwd=tiny.ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0 and "step 40 of 100" in done.stdout, done.stderr
    words[-2] = str(tmp_path)
    done = subprocess.run(words, cwd=tiny.ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 2 and "expected the folder of a run, missing config.yaml" in done.stderr


def test_watch_ends_with_the_run(tmp_path, monkeypatch):
    run, seen = logged(tmp_path), []

    def later(seconds):
        seen.append(seconds)
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 40 + 30 * len(seen), "loss": 0.1, "time/step": 2.0}) + "\n")

    monkeypatch.setattr("vlm_dopd.watch.time.sleep", later)
    watch.watch(run, Console(file=open(os.devnull, "w")), every=0.5)  # noqa: SIM115
    assert seen == [0.5, 0.5]
    assert headline(collect(run)).startswith("DOPD: from 20.0")
