"""Is the run healthy? PASS or WARN for what its metrics can say, against reference windows, with what to do.

Figures are medians over windows of log lines, so that one odd step is no alarm. The limits are wide: they are to catch
runs that go wrong, not to rank runs that go right. Where a source gives no number, the constant says what it was set
by; "our study" are some 60 short runs of the bundled pair with every method of the comparison.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any, Literal

LINES = 5
"""Log lines of a window. A line is the mean over `train.logging_steps` steps."""
BEFORE = 50
"""Lines that a gradient norm is compared with, at most."""
QUIET = 20
"""Lines without a WARN after which the same one is news again."""

ENTROPY_FALL = 0.5
"""Of the smaller of the student's start and the teacher's entropy. A student that learns comes down to its teacher; one
that collapses goes on (the paper's Fig. 3 and Fig. 8). In our study no sound run was below 0.6."""
ENTROPY_RISE = 3.0
"""Of the larger of the two. The paper's rises a little, then settles (Fig. 8). Our study: 4.4 in a run that failed."""
LENGTH_RATIO = 2.0
"""Of the start, up or down. Stop tokens that differ double it (METHODS.md d.12, PITFALLS.md 22). Ours: 0.85 to 1.36."""
TRUNCATED = 0.1
"""A truncated response has no end to learn from. Our study: to 0.06 in sound runs, 0.23 and 0.49 in spoiled ones."""
REGIME_DRIFT = 0.25
"""Share of the tokens; the mean thresholds drift with the student (METHODS.md d.4). Our study: at most 0.11."""
GAP_SPREAD = 0.01
"""Nats. If 95 % of the gaps are below it, rounding routes (PITFALLS.md 2). Our study: only where all was learned."""
MISMATCH = 0.05
"""Nats a token between the engine that samples and the trainer (PITFALLS.md 36); bfloat16 alone is 0.01 to 0.03."""
RATIO = 0.05
"""Distance of the mean importance ratio from 1, its expectation where both are the same policy."""
GRADIENT_GROWTH = 10.0
"""Of the lines before. Our study: at most 4.2."""
GRADIENT_ZERO = 1e-8
"""No loss reaches a weight (PITFALLS.md 3 and 12)."""
PADDING = 0.25
"""Share of the tokens of the passes with gradient. Packing lets in a tenth a pass; our study: at most 0.09."""
PRIVILEGED = 0.5
"""Share of the tokens whose row has p. Below it the run is mostly another method (the paper's Table 8)."""
DROPPED = 0.02
"""Samples dropped a response: 8 % of them at four responses each. It is the long ones that go (PITFALLS.md 31)."""
KEPT = 0.01
"""Share of the tokens that a selecting method gives a loss."""
EVAL_STEPS = 100
"""A third of the paper's longest run, without a held-out figure (PITFALLS.md 38)."""
CERTAIN = 0.1
"""Share of HS's tokens on which the teacher is certain (METHODS.md d.15). Our study, guarded: 0.3, then below 0.05."""

Status = Literal["PASS", "WARN", "n.a."]
Value = float | None
Show = Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the table. Every field is one line."""

    name: str
    status: Status
    figure: str
    """What was found; of `n.a.`, why there is nothing."""
    reference: str
    """What a sound run has."""
    advice: str = ""
    """What to do about a WARN."""

    @property
    def sentence(self) -> str:
        """A WARN for the log."""
        return f"{self.name}: {self.figure} (expected {self.reference}): {self.advice}"


class History:
    """The finite figures of the lines so far, by name."""

    def __init__(self, metrics: Iterable[Mapping[str, Any]] = ()) -> None:
        self.curves: dict[str, list[float]] = defaultdict(list)
        self.eval_steps: list[float] = []
        self.step = 0.0
        for line in metrics:
            self.add(line)

    def add(self, line: Mapping[str, Any]) -> None:
        """NaN, infinities and what is no number are left out."""
        numbers = {name: value for name, raw in line.items() if (value := _number(raw)) is not None}
        self.step = numbers.pop("step", self.step)
        for name, value in numbers.items():
            self.curves[name].append(value)
        if any(name.startswith("eval/") for name in numbers):
            self.eval_steps.append(self.step)

    def count(self, name: str) -> int:
        """How many finite values of `name` there are."""
        return len(self.curves.get(name, ()))

    def start(self, name: str) -> Value:
        """Median of the first window; None until it is full and the last one does not overlap it."""
        return median(self.curves[name][:LINES]) if self.count(name) >= 2 * LINES else None

    def now(self, name: str) -> Value:
        """Median of the last window; None until it is full."""
        return median(self.curves[name][-LINES:]) if self.count(name) >= LINES else None

    def before(self, name: str) -> Value:
        """Median of what came before the last window; None if that is less than a window."""
        values = self.curves[name][-LINES - BEFORE : -LINES] if self.count(name) >= 2 * LINES else []
        return median(values) if values else None

    def last(self, name: str) -> Value:
        """The latest value; None if there is none."""
        return self.curves[name][-1] if self.count(name) else None


def _figure(value: float, unit: str = "") -> str:
    return f"{value:.3g}{unit}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


NATS, TOKENS, STEPS = (partial(_figure, unit=unit) for unit in (" nats", " tokens", " steps ago"))


def check(metrics: Iterable[Mapping[str, Any]]) -> list[Check]:
    """One row a rule, from the lines of a metrics file (`callbacks.read_metrics`) in their order.

    >>> [(one.name, one.figure) for one in check([{"gap/p95": 0.001}] * LINES) if one.status == "WARN"]
    [('gap spread', '95 % of the gaps below 0.001 nats')]
    """
    return _judge(History(metrics))


def table(checks: Sequence[Check]) -> str:
    """Text for the log: a row for every rule that had its figures, advice below a WARN, the rest in one line."""
    judged = [one for one in checks if one.status != "n.a."]
    widths = [max((len(getattr(one, name)) for one in judged), default=0) for name in ("name", "figure")]
    lines = []
    for one in judged:
        row = f"{one.status}  {one.name:<{widths[0]}}  {one.figure:<{widths[1]}}  expected {one.reference}"
        lines += [row, *([f"      → {one.advice}"] if one.advice else [])]
    if left := [f"{one.name} ({one.figure})" for one in checks if one.status == "n.a."]:
        lines.append(f"n.a.  {', '.join(left)}")
    return "\n".join(lines)


class Watch:
    """`check` during training: one line at a time, and only news."""

    def __init__(self, metrics: Iterable[Mapping[str, Any]] = ()) -> None:
        """`metrics`: the lines of the run so far, if it is resumed. What they would have told is told once more."""
        self.history = History(metrics)
        self._quiet: dict[tuple[str, str], int] = {}
        """Name and advice of what was told -> lines since it last held."""

    def add(self, line: Mapping[str, Any]) -> list[Check]:
        """The WARNs that hold now and were not told, or not since a long time without them."""
        self.history.add(line)
        warned = {(one.name, one.advice): one for one in _judge(self.history) if one.status == "WARN"}
        news = [one for key, one in warned.items() if self._quiet.get(key, QUIET) >= QUIET]
        self._quiet = {key: lines + 1 for key, lines in self._quiet.items()} | dict.fromkeys(warned, 0)
        return news


def _judge(history: History) -> list[Check]:
    return [rule(name, history) for name, rule in RULES.items()]


def _entropy(name: str, history: History) -> Check:
    teacher_name = next((n for n in TEACHERS if history.count(n)), "")
    start, now = history.start("entropy/student"), history.now("entropy/student")
    teacher = history.now(teacher_name)
    if start is None or now is None:
        return _early(name, history, "entropy/student", 2 * LINES)
    known = [start] if teacher is None else [start, teacher]
    low, high = ENTROPY_FALL * min(known), ENTROPY_RISE * max(known)
    beside = "" if teacher is None else f", the teacher's {_figure(teacher)}"
    return _within(
        name,
        now,
        low,
        high,
        f"{NATS(now)}, at the start {_figure(start)}{beside}",
        below="the student collapses: take an earlier checkpoint, lower train.learning_rate; do both policies see p?",
        above="the student loses its form: lower train.learning_rate; with a target that moves, lower method.ema_rate",
        show=NATS,
    )


def _length(name: str, history: History) -> Check:
    start, now = history.start("rollout/length"), history.now("rollout/length")
    if start is None or now is None:
        return _early(name, history, "rollout/length", 2 * LINES)
    return _within(
        name,
        now,
        start / LENGTH_RATIO,
        start * LENGTH_RATIO,
        f"{TOKENS(now)}, at the start {_figure(start)}",
        below="responses shrink: see whether p gives answers away (`vlm-dopd annotate audit`)",
        above="responses grow: do student and teacher stop with the same token? method.merge_stops of dopd_plus",
        show=TOKENS,
    )


def _regime_drift(name: str, history: History) -> Check:
    pairs = [(history.start(share), history.now(share)) for share in SHARES]
    moved = [now - start for start, now in pairs if start is not None and now is not None]
    if len(moved) < len(SHARES):
        return _early(name, history, SHARES[0], 2 * LINES)
    drift = sum(map(abs, moved)) / 2
    most = max(range(len(SHARES)), key=lambda i: abs(moved[i]))
    advice = "thresholds follow the student: method.gap_quantile or threshold_rate of dopd_plus hold them"
    figure = f"{_percent(drift)} of the tokens; {SHARES[most]} by {100 * moved[most]:+.3g} points"
    return _within(name, drift, None, REGIME_DRIFT, figure, above=advice, show=_percent)


def _gap_spread(name: str, history: History) -> Check:
    now = history.now("gap/p95")
    if now is None:
        return _early(name, history, "gap/p95", LINES)
    first = median(history.curves["gap/p95"][:LINES])
    same = "the teacher scores as the student does: is model.teacher the model you mean?"
    learned = "the student scores as the teacher does and rounding routes: stop here, or go on with harder data"
    advice = same if first < GAP_SPREAD else learned
    return _within(name, now, GAP_SPREAD, None, f"95 % of the gaps below {NATS(now)}", below=advice, show=NATS)


def _mismatch(name: str, history: History) -> Check:
    advice = "the engine samples from other weights or kernels: compare its log-probabilities with the trainer's"
    if history.count("rollout/mismatch"):
        return _single(name, history, metric="rollout/mismatch", high=MISMATCH, above=advice)
    return _single(name, history, metric="ratio/mean", low=1 - RATIO, high=1 + RATIO, below=advice, above=advice)


def _gradient(name: str, history: History) -> Check:
    now, before = history.now("grad_norm"), history.before("grad_norm")
    if now is None:
        return _early(name, history, "grad_norm", LINES)
    high = None if before is None or before <= GRADIENT_ZERO else GRADIENT_GROWTH * before
    return _within(
        name,
        now,
        GRADIENT_ZERO,
        high,
        f"norm {_figure(now)}" + ("" if before is None else f", before {_figure(before)}"),
        below="no loss reaches the weights: look at the shares of tokens with a loss, and at what is frozen",
        above="the run blows up: take an earlier checkpoint, lower train.learning_rate or train.max_grad_norm",
    )


def _privilege(name: str, history: History) -> Check:
    without = history.now("share/NP")
    now = history.now("share/privileged") if without is None else 1 - without
    if now is None:
        return _early(name, history, "share/NP" if history.count("share/NP") else "share/privileged", LINES)
    advice = "rows lack p or exceed data.max_prompt_tokens: `vlm-dopd annotate preview` shows what the builder finds"
    return _within(name, now, PRIVILEGED, None, f"{_percent(now)} of the tokens", below=advice, show=_percent)


def _dropped(name: str, history: History) -> Check:
    dropped, responses = history.now("data/dropped"), history.now("rollout/sequences")
    if dropped is None or responses is None:
        return _early(name, history, "data/dropped", LINES)
    share = dropped / max(responses, 1.0)
    advice = "raise data.max_prompt_tokens, or shrink the images of the data; the log names the samples"
    return _within(name, share, None, DROPPED, f"{_figure(share)} a response", above=advice)


def _evaluated(name: str, history: History) -> Check:
    done = history.eval_steps
    since = history.step - (done[-1] if done else 0)
    if not done and since <= EVAL_STEPS:
        return Check(name=name, status="n.a.", figure="none yet", reference="")
    intervals = [b - a for a, b in pairwise(done) if b > a]
    limit = 2 * max(intervals, default=EVAL_STEPS // 2)
    last = f"last at step {done[-1]:.0f}, now" if done else "none by step"
    advice = "set data.eval or benchmarks.names, train.eval_strategy=steps and train.eval_steps"
    return _within(name, since, None, limit, f"{last} {history.step:.0f}", above=advice, show=STEPS)


def _accuracy(name: str, history: History) -> Check:
    """Two intervals of 95 % that do not overlap: hardly by chance, even though the best one was picked."""
    accuracy, low, high = (history.curves.get(f"eval/{n}", []) for n in ("accuracy", "low", "high"))
    if min(map(len, (accuracy, low, high))) < 2:
        return _early(name, history, "eval/accuracy", 2)
    figure = f"{_percent(accuracy[-1])}, best {_percent(max(accuracy))}"
    advice = "the student gets worse: take the best checkpoint; is p sound, and the learning rate not too high?"
    return _row(name, high[-1] < max(low), figure, f"an interval that reaches {_percent(max(low))}", advice)


def _confident_mistakes(name: str, history: History) -> Check:
    certain = history.now("guard/certain_in_HS")
    plain, with_p = history.last("eval/accuracy"), history.last("eval/accuracy_with_p")
    if certain is None:
        return _early(name, history, "guard/certain_in_HS", LINES)
    if plain is None or with_p is None:
        return _early(name, history, "eval/accuracy_with_p", 1)
    low, high = history.last("eval/low"), history.last("eval/high")
    margin = 0.0 if low is None or high is None else (high - low) / 2
    figure = f"teacher certain on {_percent(certain)}; held-out {_percent(plain)}, with p {_percent(with_p)}"
    reference = f"at most {_percent(CERTAIN)}, or p to be worth more than {_percent(margin)}"
    advice = "p does not cure the student, and HS holds it to its mistakes: method.name=dopd_plus method.guard=true"
    return _row(name, certain > CERTAIN and with_p - plain <= margin, figure, reference, advice)


def _single(name: str, history: History, *, metric: str, low: Value = None, high: Value = None, **words: Any) -> Check:
    """The metric's last window against fixed limits. `words`: those of `_within`."""
    now = history.now(metric)
    if now is None:
        return _early(name, history, metric, LINES)
    return _within(name, now, low, high, words.get("show", _figure)(now), **words)


def _within(
    name: str,
    value: float,
    low: Value,
    high: Value,
    figure: str,
    *,
    below: str = "",
    above: str = "",
    show: Show = _figure,
) -> Check:
    """WARN outside of the window, with the advice of that side."""
    limits = [f"{word} {show(limit)}" for word, limit in (("at least", low), ("at most", high)) if limit is not None]
    under, over = low is not None and value < low, high is not None and value > high
    return _row(name, under or over, figure, " and ".join(limits), below if under else above)


def _row(name: str, warned: bool, figure: str, reference: str, advice: str) -> Check:
    status: Status = "WARN" if warned else "PASS"
    return Check(name=name, status=status, figure=figure, reference=reference, advice=advice if warned else "")


def _early(name: str, history: History, metric: str, needed: int) -> Check:
    found = history.count(metric)
    figure = f"{found} of {needed} log lines" if found else "not logged"
    return Check(name=name, status="n.a.", figure=figure, reference="")


def _number(value: object) -> Value:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


TEACHERS = ("entropy/teacher_privileged", "entropy/teacher_plain")
"""The target's entropy: with p if the method shows it p."""
SHARES = ("share/LH", "share/LL", "share/HT", "share/HS", "share/NP")
RULES: dict[str, Callable[[str, History], Check]] = {
    "entropy": _entropy,
    "response length": _length,
    "truncated responses": partial(
        _single,
        metric="rollout/truncated",
        high=TRUNCATED,
        above="raise rollout.max_new_tokens, or see in the responses why they do not stop",
        show=_percent,
    ),
    "regime drift": _regime_drift,
    "gap spread": _gap_spread,
    "rollout mismatch": _mismatch,
    "gradient": _gradient,
    "padding": partial(
        _single,
        metric="data/padding",
        high=PADDING,
        above="compute for nothing: more prompts a micro-batch, or a larger data.max_pass_tokens, pack tighter",
        show=_percent,
    ),
    "rows with p": _privilege,
    "dropped samples": _dropped,
    "tokens with a loss": partial(
        _single,
        metric="share/kept",
        low=KEPT,
        below="the method finds nothing to train on: see its settings, and rollout/reward if it needs rewards",
        show=_percent,
    ),
    "held-out figures": _evaluated,
    "held-out accuracy": _accuracy,
    "confident mistakes": _confident_mistakes,
}
