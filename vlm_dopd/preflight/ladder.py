"""The ladder: every check in its order, each asked once; what it raises is what it found.

All cheap checks are asked even if one fails: a person would rather fix three things at once. Those with a model need
it built, so what keeps it from being built is told once, and they are skipped.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from privileged.errors import DataError

from ..config import RunConfig
from ..errors import ConfigError, TrainingError
from ..roles import Policy
from ..scoring import ServedPolicy
from ..trainer import DopdTrainer
from . import answers, cost, prompts, scores, sight, surroundings, tokens
from .finding import Check, Finding, Rung, judged, skipped
from .trial import Trial
from .wiring import Wiring

logger = logging.getLogger(__name__)

CHEAP: tuple[Check, ...] = (*tokens.CHECKS, *prompts.CHECKS, *surroundings.CHECKS)
MODEL: tuple[Check, ...] = (*sight.CHECKS, *scores.CHECKS, *answers.CHECKS, *cost.CHECKS)


def climb(config: RunConfig, build: Callable[[RunConfig], DopdTrainer] | None) -> Iterator[Rung]:
    """One rung after the other, as they are found. `build` is `run.build_trainer`; None: the cheap checks only.

    Nothing is written into the run's folder, and no weight is moved.
    """
    wiring = Wiring(config)
    for number, check in enumerate(CHEAP, start=1):
        yield _asked(number, check, wiring)
    if build is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        trials: list[Trial] = []

        def built(_: None) -> Finding:
            trainer = build(replace(config, output_dir=folder))
            trials.append(Trial(wiring, trainer))
            names = ", ".join(f"{name} {_where(policy)}" for name, policy in trials[0].policies.items())
            return judged(names, "every model and the trainer built")

        yield _asked(len(CHEAP) + 1, Check("models", "model", built), None)
        for number, check in enumerate(MODEL, start=len(CHEAP) + 2):
            absent = Check(check.name, check.cost, lambda _: skipped("the models could not be built"))
            yield _asked(number, check if trials else absent, trials[0] if trials else None)


def refuse(config: RunConfig) -> None:
    """The cheap checks, before training: WARNs go to the log. Raises ConfigError with the first FAIL."""
    rungs = list(climb(config, None))
    if failed := next((rung for rung in rungs if rung.finding.status == "FAIL"), None):
        raise ConfigError(f"preflight: {failed.sentence} (preflight=false trains all the same)")
    for rung in rungs:
        if rung.finding.status == "WARN":
            logger.warning("preflight: %s", rung.sentence)
    logger.info("preflight: %s; `vlm-dopd preflight` asks the models too", summary(rungs))


def summary(rungs: Sequence[Rung]) -> str:
    """`12 PASS, 1 WARN`: how many rungs there are of each status."""
    counts = {status: sum(r.finding.status == status for r in rungs) for status in ("PASS", "WARN", "FAIL", "SKIP")}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _where(policy: Policy | ServedPolicy) -> str:
    return f"on {policy.device}" if isinstance(policy, Policy) else "served elsewhere"


def _asked(number: int, check: Check, subject: Any) -> Rung:
    began = time.perf_counter()
    finding = _found(check.find, subject)
    seconds = time.perf_counter() - began
    return Rung(number=number, name=check.name, cost=check.cost, seconds=seconds, finding=finding)


def _found(find: Callable[[Any], Finding], subject: Any) -> Finding:
    try:
        return find(subject)
    except (ConfigError, DataError, TrainingError) as error:
        return judged(_one_line(error), "", fail=True)
    except Exception as error:  # of a builder, a template, a model: training would meet it too
        figure = f"{type(error).__name__}: {_one_line(error)}"
        return judged(figure, "no error", fail=True, fix="training would stop here too")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
