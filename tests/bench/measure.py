"""Timing and memory of steps: every variant is a process of its own, and they take turns.

A worker is a child process that loads its models, then makes one step each time it is told to. Taking turns (A, B, A,
B, …) puts whatever else the machine does on all variants alike; the figure is the median. Memory is `ru_maxrss` at
the end, and what of it was resident before the first step, when models were loaded and nothing else had happened.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from transformers import TrainerCallback

MIB = 2**20
PACKAGES = ("torch", "transformers", "accelerate", "trl", "numpy")


class Worker:
    """The parent's end of a child that runs `python -m MODULE SPEC`."""

    def __init__(self, module: str, spec: Mapping[str, Any], python: str = sys.executable) -> None:
        self.name = f"{module} {json.dumps(spec)}"
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  it lives as long as the child
        self.process = subprocess.Popen(
            [python, "-m", module, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.loaded = self._read()

    def step(self) -> dict[str, Any]:
        """Seconds of one step, and what the child has to say about it."""
        return self._tell("step")

    def close(self) -> dict[str, Any]:
        """Memory of the child's whole life."""
        told = self._tell("stop")
        self.process.wait()
        return told

    def _tell(self, word: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"{self.name}: the worker ended:\n{self.errors.read()[-3000:]}")
        return json.loads(line)


class Child:
    """The child's end: says when it is ready, and waits to be told."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")  # stdout is the line to the parent: what libraries print goes elsewhere
        os.dup2(2, 1)

    def ready(self, models: Sequence[Any]) -> bool:
        """Called once models are loaded. True if a step is wanted."""
        for parameter in (parameter for model in models for parameter in model.parameters()):
            parameter.detach().sum()  # a checkpoint is mapped, not read: its pages become resident when touched
        self.resident = psutil.Process().memory_info().rss
        return self._say({"loaded_mib": self.resident / MIB})

    def stepped(self, seconds: float, **facts: Any) -> bool:
        """True if another step is wanted."""
        return self._say({"seconds": seconds, **facts})

    def stop(self) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self._write({"peak_mib": peak, "loaded_mib": self.resident / MIB})

    def _say(self, facts: dict[str, Any]) -> bool:
        self._write(facts)
        return sys.stdin.readline().strip() == "step"

    def _write(self, facts: dict[str, Any]) -> None:
        self.out.write(json.dumps(facts) + "\n")
        self.out.flush()


class Metronome(TrainerCallback):
    """Lets a `transformers.Trainer` make one step at a time; a step is from one `on_step_end` to the next."""

    def __init__(self, child: Child, models: Sequence[Any], facts: Callable[[], dict[str, Any]]) -> None:
        self.child, self.models, self.facts = child, models, facts

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._goes_on(self.child.ready(self.models), control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._goes_on(self.child.stepped(time.perf_counter() - self.began, **self.facts()), control)

    def _goes_on(self, wanted: bool, control: Any) -> None:
        control.should_training_stop = not wanted
        self.began = time.perf_counter()


def interleaved(makers: Mapping[str, Callable[[], Worker]], steps: int) -> dict[str, dict[str, Any]]:
    """Median seconds, memory and the last step's facts of each variant; the first step of each warms up.

    Memory's rise is over two or more steps, so that gradients and the optimizer's states are in it.
    """
    workers = {name: make() for name, make in makers.items()}
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for _ in range(steps + 1):
        for name, worker in workers.items():
            told[name].append(worker.step())
    results = {}
    for name, worker in workers.items():
        seconds = [one["seconds"] for one in told[name][1:]]
        memory = worker.close()
        results[name] = told[name][-1] | {
            "seconds": statistics.median(seconds),
            "all_seconds": seconds,
            "peak_mib": memory["peak_mib"],
            "rise_mib": memory["peak_mib"] - memory["loaded_mib"],
        }
    return results


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(": ")[2] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load_before": os.getloadavg()[0],
        "dtype": "float32",
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
