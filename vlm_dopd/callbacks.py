"""Small observers of the loop: the metrics file, what they say of a run's health, the stop before a non-finite step."""

from __future__ import annotations

import json
import logging
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import ProgressCallback, TrainerCallback, TrainerState

from .errors import TrainingError
from .health import Watch

logger = logging.getLogger(__name__)


class StopOnNonFiniteGradient(TrainerCallback):
    """The loss was finite, the gradient is not: stop before the optimizer takes it in."""

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Raises TrainingError, naming the first parameter whose gradient is NaN or infinite."""
        for name, parameter in kwargs["model"].named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise TrainingError(
                    f"step {state.global_step + 1}: expected a finite gradient, got one that is not in {name}; the "
                    "weights are those of the step before. Lower train.learning_rate or set train.max_grad_norm"
                )


class StepTime(TrainerCallback):
    """Tells `add` the seconds from when a window was asked for (`began`) to the end of its step."""

    def __init__(self, add: Callable[[str, float, float], None]) -> None:
        self.add = add
        self.began: float | None = None

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Tell the seconds, once a step; nothing for a step whose window was not asked for."""
        if self.began is not None:
            self.add("time/step", time.perf_counter() - self.began, 1)
            self.began = None


def peak_memory() -> float:
    """GiB: what tensors took at most on this process's GPU; without one, what the process took of the host's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


class MetricsFile(TrainerCallback):
    """`metrics.jsonl`: one object a log event. After a resume, lines past the checkpoint go: they will come again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.watch = Watch([])

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the file anew, or cut it back to the step the run goes on from."""
        if not state.is_world_process_zero:
            return
        kept = (
            [line for line in read_metrics(self.path) if line["step"] <= state.global_step] if state.global_step else []
        )
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self.watch = Watch(kept)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Append the line, and log what it says of the run's health, if that is news."""
        if not state.is_world_process_zero:
            return
        named = {name.replace("eval_", "eval/", 1): value for name, value in logs.items()}
        line = {"step": state.global_step} | named
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for found in self.watch.add(line):
            logger.warning("health: %s", found.sentence)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a torn last line, left by a kill, is no line."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Progress(ProgressCallback):
    """Trainer's bar with the few figures a person watches; all of them are in the metrics file."""

    SHOWN = ("loss", "entropy/student", "rollout/length", "eval_accuracy")

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, str] = {}

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the last of the figures beside the bar."""
        if self.training_bar is not None:
            self.shown |= {name.split("/")[-1]: f"{logs[name]:.3g}" for name in self.SHOWN if name in logs}
            self.training_bar.set_postfix(self.shown)
