"""The health table: each rule warns about the run that it is for, is silent about sound ones, and never breaks a run.

What is locked: 1) a sound run passes every rule that it has figures for; 2) one thing gone wrong is one WARN, by name,
with advice; 3) partial, torn or absurd metrics never raise; 4) worse figures never turn a WARN into a PASS. What is
told during training, and the table: `test_health_watch.py`.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_dopd.health import (
    CERTAIN,
    ENTROPY_FALL,
    ENTROPY_RISE,
    EVAL_STEPS,
    GAP_SPREAD,
    GRADIENT_GROWTH,
    LINES,
    RULES,
    Watch,
    check,
    table,
)

SOUND = {
    "loss": 0.3,
    "grad_norm": 1.5,
    "entropy/student": 0.5,
    "entropy/teacher_privileged": 0.4,
    "rollout/length": 200.0,
    "rollout/truncated": 0.02,
    "rollout/sequences": 256.0,
    "share/LH": 0.6,
    "share/LL": 0.15,
    "share/HT": 0.15,
    "share/HS": 0.1,
    "share/NP": 0.0,
    "gap/p95": 2.0,
    "guard/certain_in_HS": 0.03,
    "data/padding": 0.05,
    "data/dropped": 0.0,
    "share/kept": 0.8,
    "ratio/mean": 0.99,
    "rollout/mismatch": 0.01,
}
HELD_OUT = {"eval/accuracy": 0.6, "eval/low": 0.55, "eval/high": 0.65, "eval/accuracy_with_p": 0.9}


def made(start=None, end=None, steps=30, every=10, held_out=None):
    """Lines of a run whose figures stay at `start` (of SOUND) for half of it, and are at `end` for the last lines;
    evaluated `every` steps."""
    first = SOUND | (start or {})
    last = first | (end or {})
    lines = []
    for step in range(1, steps + 1):
        share = min(max(0.0, (2 * step - steps) / max(steps - 2 * LINES, 1)), 1.0)
        lines.append({"step": step} | {name: first[name] + share * (last[name] - first[name]) for name in first})
        if every and step % every == 0:
            lines.append({"step": step} | HELD_OUT | (held_out or {}))
    return lines


def by_name(lines):
    return {one.name: one for one in check(lines)}


def warned(lines):
    return [one.name for one in check(lines) if one.status == "WARN"]


def test_a_sound_run_passes_every_rule():
    """And every rule has its figures there, so that the cases below start from PASS."""
    checks = check(made())
    assert [one.name for one in checks] == list(RULES)
    assert {one.status for one in checks} == {"PASS"}
    assert all(one.figure and one.reference and not one.advice for one in checks)


CASES = {
    "entropy falls": ({}, {"entropy/student": 0.0}, "entropy"),
    "entropy rises": ({}, {"entropy/student": 2.0 * ENTROPY_RISE}, "entropy"),
    "length doubles": ({}, {"rollout/length": 600.0}, "response length"),
    "length halves": ({}, {"rollout/length": 50.0}, "response length"),
    "truncated": ({}, {"rollout/truncated": 0.5}, "truncated responses"),
    "regimes": ({}, {"share/LH": 0.1, "share/HT": 0.65}, "regime drift"),
    "same model": ({"gap/p95": 1e-5}, {}, "gap spread"),
    "all learned": ({}, {"gap/p95": 0.0}, "gap spread"),
    "engine": ({}, {"rollout/mismatch": 0.3}, "rollout mismatch"),
    "gradient": ({}, {"grad_norm": 100.0}, "gradient"),
    "no gradient": ({"grad_norm": 0.0}, {}, "gradient"),
    "padding": ({"data/padding": 0.5}, {}, "padding"),
    "no p": ({"share/LH": 0.0, "share/LL": 0.0, "share/HT": 0.0, "share/HS": 0.0, "share/NP": 1.0}, {}, "rows with p"),
    "dropped": ({"data/dropped": 30.0}, {}, "dropped samples"),
    "nothing kept": ({"share/kept": 0.0}, {}, "tokens with a loss"),
}


@pytest.mark.parametrize(("start", "end", "name"), CASES.values(), ids=CASES)
def test_what_goes_wrong_is_named_and_nothing_else(start, end, name):
    """With a figure, the reference and advice, each on one line."""
    lines = made(start, end)
    if end:  # the start was sound, and so is the run until it is not
        assert warned(lines[: 2 * LINES]) == []
    assert warned(lines) == [name]
    found = by_name(lines)[name]
    assert found.advice and found.figure and found.reference
    assert not any("\n" in text for text in (found.advice, found.figure, found.reference, found.sentence))


def test_a_student_that_comes_down_to_its_teacher_is_sound():
    """From 10 to 1.0 nats is a collapse alone, and learning beside a teacher of 1.0."""
    alone = [{k: v for k, v in line.items() if "teacher" not in k} for line in made({"entropy/student": 10.0}, {})]
    alone += [line | {"entropy/student": 1.0, "step": line["step"] + 30} for line in alone if "loss" in line]
    assert "entropy" in warned(alone)
    beside = [line | ({"entropy/teacher_plain": 1.0} if "loss" in line else {}) for line in alone]
    assert "entropy" not in warned(beside)
    below = [line | {"entropy/student": 0.9 * ENTROPY_FALL} if line["step"] > 30 else line for line in beside]
    assert "entropy" in warned(below)


def test_a_student_may_rise_to_its_teacher():
    """Five times its own start is no loss of form where the teacher is as unsure."""
    lines = made({"entropy/student": 0.1, "entropy/teacher_privileged": 0.5}, {"entropy/student": 0.5})
    assert warned(lines) == []


def test_the_targets_entropy_counts_where_both_are_logged():
    """The privileged teacher teaches; a plain one that is logged beside it does not matter."""
    lines = [line | ({"entropy/teacher_plain": 0.001} if "loss" in line else {}) for line in made()]
    assert by_name(lines)["entropy"].figure == by_name(made())["entropy"].figure


def test_two_causes_of_a_small_gap_have_their_own_advice():
    same = by_name(made({"gap/p95": GAP_SPREAD / 2}))["gap spread"]
    learned = by_name(made({}, {"gap/p95": 0.0}))["gap spread"]
    assert same.status == learned.status == "WARN"
    assert "model.teacher" in same.advice and "model.teacher" not in learned.advice
    assert by_name(made({"gap/p95": 2 * GAP_SPREAD}))["gap spread"].status == "PASS"


def test_drift_is_the_share_of_tokens_that_moved():
    """Half of the sum of differences: what leaves one regime arrives in another."""
    lines = made()
    for line in lines[-LINES - 1 :]:
        if "loss" in line:
            line |= {"share/LH": 0.4, "share/HT": 0.2, "share/HS": 0.25}
    found = by_name(lines)["regime drift"]
    assert (found.status, found.figure) == ("PASS", "20 % of the tokens; share/LH by -20 points")
    lost = by_name(made({}, {"share/LH": 0.2, "share/NP": 0.4}))["regime drift"]  # rows without p count too
    assert (lost.status, lost.figure[:4]) == ("WARN", "40 %")


def test_one_odd_line_is_no_alarm():
    """Nor are two of five: a window's figure is its median."""
    lines = made(every=0)
    for line in lines[-2:]:
        line |= {"grad_norm": 1e6, "entropy/student": 0.0, "rollout/length": 1e5, "gap/p95": 0.0, "data/padding": 1.0}
    assert warned(lines) == []
    for line in lines[-3:]:
        line |= {"grad_norm": 1e6}
    assert warned(lines) == ["gradient"]


def test_a_gradient_is_compared_with_what_came_before_it():
    """A run whose gradients shrink over hundreds of steps has a right to shrink; one that grows tenfold has not."""
    assert warned(made({"grad_norm": 100.0}, {"grad_norm": 0.01}, steps=300)) == []
    lines = made(every=0, steps=300)
    for line in lines[-LINES:]:
        line["grad_norm"] *= 0.9 * GRADIENT_GROWTH
    assert warned(lines) == ["held-out figures"]
    for line in lines[-LINES:]:
        line["grad_norm"] *= 1.3
    assert warned(lines) == ["gradient", "held-out figures"]
    assert warned(made({"grad_norm": 0.0}, {"grad_norm": 1.0})) == []  # out of nothing is not tenfold
    old = made({"grad_norm": 1000.0}, {}, every=10, steps=100)  # long ago it was large
    new = [line | {"step": line["step"] + 100} for line in made(steps=60)]
    spike = [line | {"grad_norm": 30.0, "step": 170 + i} for i, line in enumerate(made(every=0, steps=LINES))]
    assert warned(old + new) == [] and warned(old + new + spike) == ["gradient"]


@pytest.mark.parametrize(
    ("done", "now", "status"),
    [
        pytest.param([], EVAL_STEPS, "n.a.", id="not yet"),
        pytest.param([], EVAL_STEPS + 1, "WARN", id="never"),
        pytest.param([0], EVAL_STEPS, "PASS", id="once, before training"),
        pytest.param([0], EVAL_STEPS + 1, "WARN", id="once, long ago"),
        pytest.param([0, 20], 60, "PASS", id="two intervals"),
        pytest.param([0, 20], 61, "WARN", id="more than two"),
        pytest.param([0, 20, 20, 30], 70, "PASS", id="the longest interval counts"),
        pytest.param([0, 0], 50, "PASS", id="twice at once has no interval"),
        pytest.param([200, 400], 700, "PASS", id="seldom is not stale"),
    ],
)
def test_held_out_figures_that_are_missing_or_stale(done, now, status):
    lines = [{"step": step} | HELD_OUT for step in done] + [{"step": now, "loss": 1.0}]
    assert by_name(lines)["held-out figures"].status == status


def test_a_benchmark_alone_is_a_held_out_figure():
    lines = [{"step": 90, "eval/benchmark/mmstar": 0.5}, {"step": EVAL_STEPS, "loss": 1.0}]
    assert by_name(lines)["held-out figures"].status == "PASS"


def test_accuracy_that_falls_out_of_the_best_interval():
    """Against the best, not the first; overlapping intervals are chance."""

    def lines(*accuracies):
        return [
            {"step": 10 * i, "eval/accuracy": a, "eval/low": a - 0.05, "eval/high": a + 0.05}
            for i, a in enumerate(accuracies)
        ]

    for accuracies, status in (
        ((0.5,), "n.a."),
        ((0.5, 0.7), "PASS"),
        ((0.7, 0.61), "PASS"),
        ((0.7, 0.59), "WARN"),
        ((0.5, 0.7, 0.55), "WARN"),
        ((0.7, 0.3, 0.7), "PASS"),
    ):
        assert by_name(lines(*accuracies))["held-out accuracy"].status == status, accuracies


@pytest.mark.parametrize(
    ("certain", "with_p", "status"),
    [
        pytest.param(0.3, 0.61, "WARN", id="p does not help, and HS holds mistakes"),
        pytest.param(0.3, 0.9, "PASS", id="p cures the student"),
        pytest.param(CERTAIN / 2, 0.61, "PASS", id="the teacher is not certain there"),
        pytest.param(0.3, 0.5, "WARN", id="p does harm"),
        pytest.param(0.3, 0.649, "WARN", id="within the interval"),
        pytest.param(0.3, 0.651, "PASS", id="out of it"),
    ],
)
def test_confident_mistakes(certain, with_p, status):
    lines = made({"guard/certain_in_HS": certain}, held_out={"eval/accuracy_with_p": with_p})
    assert by_name(lines)["confident mistakes"].status == status
    assert warned(lines) == (["confident mistakes"] if status == "WARN" else [])


def test_rules_without_figures_say_what_is_missing():
    """Nothing is judged by an empty or half-full window."""
    assert {one.status for one in check([])} == {"n.a."}
    early = by_name(made(steps=LINES - 1, every=0))
    assert early["gap spread"].figure == f"{LINES - 1} of {LINES} log lines"
    half = by_name(made(steps=2 * LINES - 1, every=0))
    assert half["gap spread"].status == "PASS"
    assert half["entropy"].figure == f"{2 * LINES - 1} of {2 * LINES} log lines"
    assert half["held-out accuracy"].figure == "not logged"
    opd = [{k: v for k, v in line.items() if not k.startswith(("share", "gap", "guard"))} for line in made()]
    missing = {one.name for one in check(opd) if one.status == "n.a."}
    assert missing == {"regime drift", "gap spread", "rows with p", "tokens with a loss", "confident mistakes"}


def test_methods_that_name_their_share_with_p_otherwise():
    """`share/privileged` of OPSD and OPCD is the share of tokens with p, `share/NP` of DOPD that without."""
    assert warned([{"step": i, "share/privileged": 0.2} for i in range(LINES)]) == ["rows with p"]
    assert warned([{"step": i, "share/privileged": 0.8} for i in range(LINES)]) == []


def test_the_importance_ratio_stands_in_for_a_mismatch():
    """On both sides of 1; an engine that logs its mismatch is believed."""
    for ratio, status in ((1.0, "PASS"), (0.9, "WARN"), (1.1, "WARN")):
        lines = [{"step": i, "ratio/mean": ratio} for i in range(LINES)]
        assert by_name(lines)["rollout mismatch"].status == status
        assert by_name([line | {"rollout/mismatch": 0.0} for line in lines])["rollout mismatch"].status == "PASS"


def test_figures_that_are_not_finite_are_left_out():
    """NaN is no figure, nor is True; the window is filled by the lines that have one."""
    assert by_name([{"step": 1, "rollout/truncated": True}])["truncated responses"].figure == "not logged"
    lines = made()
    broken = [
        line | {"entropy/student": math.nan, "grad_norm": math.inf, "step": 31 + i} for i, line in enumerate(lines)
    ]
    assert by_name(lines + broken)["entropy"] == by_name(lines)["entropy"]
    assert by_name(lines + broken)["gradient"] == by_name(lines)["gradient"]


NAMES = st.sampled_from(["step", "share/privileged", "entropy/teacher_plain", *SOUND, *HELD_OUT, "eval/benchmark/x"])
ANYTHING = st.one_of(st.none(), st.booleans(), st.text(max_size=3), st.integers(), st.floats(), st.just(10**400))
LINE = st.dictionaries(NAMES, ANYTHING, max_size=8)


@settings(max_examples=60)
@given(st.lists(LINE, max_size=30))
def test_no_metrics_ever_raise(lines):
    """Partial, torn, infinite, of another type, out of order: each rule has a row, and the table is text."""
    checks = check(lines)
    assert [one.name for one in checks] == list(RULES)
    assert all((one.status == "WARN") == bool(one.advice) for one in checks)
    assert table(checks).count("\n") <= 2 * len(RULES)
    watch = Watch()
    for line in lines:
        watch.add(line)
    assert check(lines) == check(iter(lines))


@given(st.lists(st.fixed_dictionaries({name: st.floats(-1e308, 1e308) for name in SOUND | HELD_OUT}), max_size=25))
def test_no_finite_figures_ever_raise(lines):
    assert len(check([{"step": step} | line for step, line in enumerate(lines)])) == len(RULES)


WORSE = {
    "rollout/truncated": (0.0, 1.0, "truncated responses"),
    "data/padding": (0.0, 1.0, "padding"),
    "data/dropped": (0.0, 300.0, "dropped samples"),
    "share/NP": (0.0, 1.0, "rows with p"),
    "gap/p95": (5.0, 0.0, "gap spread"),
    "share/kept": (1.0, 0.0, "tokens with a loss"),
    "rollout/mismatch": (0.0, 1.0, "rollout mismatch"),
}


@given(st.sampled_from(sorted(WORSE)), st.floats(0, 1), st.floats(0, 1))
def test_worse_never_turns_a_warn_into_a_pass(metric, one, other):
    """A constant figure between the best and the worst: there is one border."""
    best, worst, name = WORSE[metric]
    statuses = [
        by_name(made({metric: best + share * (worst - best)}, steps=LINES))[name].status
        for share in (0.0, *sorted((one, other)), 1.0)
    ]
    assert statuses == sorted(statuses)  # PASS before WARN
    assert statuses[0] == "PASS" and statuses[-1] == "WARN"


@given(st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.5, 100), st.floats(0.5, 100))
def test_entropy_further_from_its_start_is_never_better(low, lower, high, higher):
    def status(end):
        lines = made()
        for line in lines[-LINES - 1 :]:
            line |= {"entropy/student": end} if "loss" in line else {}
        return by_name(lines)["entropy"].status

    for near, far in ((max(low, lower), min(low, lower)), (min(high, higher), max(high, higher))):
        assert [status(near), status(far)] == sorted([status(near), status(far)])
