"""What the health rules tell while a run goes on, their table, and that they read what training logs.

What is locked: 1) news is told once, and again only after a long quiet; 2) watching tells what checking finds; 3) the
table is aligned and leaves nothing out; 4) real lines of training give every rule its figures.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests import tiny
from tests.test_health import by_name, made, warned
from tests.test_trainer import settings
from vlm_dopd import run
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.health import LINES, QUIET, TRUNCATED, Watch, check, table

GOLDEN = Path(__file__).parent / "golden" / "five_steps.json"


def test_news_is_told_once_and_again_after_a_long_quiet():
    """Not at every line, and not when a figure flutters about its border."""
    bad, good = {"rollout/truncated": 2 * TRUNCATED}, {"rollout/truncated": 0.0}

    def told(watch, values, count):
        return [one.name for _ in range(count) for one in watch.add({"step": 1} | values)]

    watch = Watch()
    assert told(watch, bad, LINES - 1) == []
    assert told(watch, bad, 10) == ["truncated responses"]
    for _ in range(3):
        assert told(watch, good, LINES) == told(watch, bad, LINES) == []
    assert told(watch, good, QUIET) == []
    assert told(watch, bad, LINES - 3) == []  # the last QUIET lines began with some that still warned
    assert told(watch, good, QUIET + LINES) == []
    assert told(watch, bad, LINES) == ["truncated responses"]


def test_another_cause_of_the_same_rule_is_news():
    watch = Watch(made()[:20])
    length = [one.sentence for _ in range(LINES) for one in watch.add({"rollout/length": 10_000.0})]
    short = [one.sentence for _ in range(LINES) for one in watch.add({"rollout/length": 1.0})]
    assert len(length) == len(short) == 1
    assert "grow" in length[0] and "shrink" in short[0]


def test_watching_is_checking():
    """What was told over a run is what the table of any of its beginnings would have shown."""
    lines = made({}, {"rollout/truncated": 0.5, "grad_norm": 100.0, "entropy/student": 0.0}, steps=40)
    watch, seen = Watch(), []
    for count, line in enumerate(lines, 1):
        news = watch.add(line)
        assert all(one in check(lines[:count]) for one in news)
        seen += [one.name for one in news]
    assert sorted(seen) == sorted(set(warned(lines)) | {"truncated responses"})


def test_a_resumed_run_goes_on_with_its_lines():
    """The old lines count, and a WARN that still holds is told in the new log."""
    lines = made({}, {"rollout/truncated": 0.5}, steps=40)
    assert [one.name for one in Watch(lines[:-1]).add(lines[-1])] == ["truncated responses"]


def test_the_table_is_aligned_and_complete():
    lines = made({}, {"rollout/truncated": 0.5, "entropy/student": 0.0})
    checks = check([{k: v for k, v in line.items() if k != "share/kept"} for line in lines])
    text = table(checks)
    rows = [row for row in text.split("\n") if row.startswith(("PASS", "WARN"))]
    assert len({row.index("expected") for row in rows}) == 1
    for one in checks:
        assert one.name in text and one.figure in text and one.advice in text
    assert text.count("→") == 2 and text.split("\n")[-1] == "n.a.  tokens with a loss (not logged)"
    assert table([]) == ""


def test_recorded_figures_of_a_random_pair():
    """The golden five steps of training, as a file would hold them: judged, and with nothing to complain of."""
    lines = [{"step": step} | figures for step, figures in enumerate(json.loads(GOLDEN.read_text()), 1)]
    found = by_name(lines)
    assert found["gradient"].status == "PASS" and found["gradient"].figure == "norm 0.919"
    assert warned(lines) == []


def test_the_rules_read_what_training_logs(pair, tmp_path):
    """Ten real steps of DOPD: every rule has its figures, but two whose figures this method does not log."""
    config = settings(
        pair,
        tmp_path,
        **{"train.max_steps": 10, "train.learning_rate": 1e-3, "data.eval": tiny.SCENES},
        **{"data.eval_limit": 2, "train.eval_strategy": "steps", "train.eval_steps": 5},
    )
    folder = run.train(config)
    checks = check(read_metrics(folder / "metrics.jsonl"))
    assert {one.name for one in checks if one.status == "n.a."} == {"rollout mismatch", "tokens with a loss"}
    assert [one.name for one in checks if one.name == "truncated responses" and one.status == "WARN"]  # of 8 tokens
