"""(d) Where a step's time goes, and what share of the machine's GEMM rate each phase reaches.

phases      seconds (medians) of rollout, score, training (forward, loss, backward, AdamW), with the floating-point
            operations of their matrix products, counted by torch, and attention
operators   share of CPU time by operator, from torch's profiler, over one step
The machine's rate is that of a product of two 2048 × 2048 matrices, measured between the steps.
As a worker (`python -m tests.bench.share SPEC`) it prints one JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula
from transformers import TrainerCallback

from tests.bench.step import Spec, build_ours

OPERATORS = 8
PHASES = ("rollout", "score", "training")


def measure(spec: Spec, steps: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.share", json.dumps({"spec": asdict(spec), "steps": steps})]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


class Clock(TrainerCallback):
    """Times the phases of every step by wrapping the two calls that a window makes, and what is left is training."""

    def __init__(self, trainer: Any, steps: int, rates: list[float]) -> None:
        self.trainer, self.steps, self.rates = trainer, steps, rates
        self.seconds: list[dict[str, float]] = []
        self.flops: dict[str, float] = {}
        builder = trainer.window_builder
        engine = self.phase("rollout", builder.completions.engine)
        builder.completions = replace(builder.completions, engine=engine)
        builder._score = self.phase("score", builder._score)
        trainer.training_step = self.phase("training", trainer.training_step)
        self.counter: FlopCounterMode | None = None
        self.now = dict.fromkeys(PHASES, 0.0)

    def phase(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            with self.counted(name):
                value = call(*args, **options)
            self.now[name] += time.perf_counter() - began
            self.ended = time.perf_counter()
            return value

        return timed

    @contextmanager
    def counted(self, name: str) -> Iterator[None]:
        if len(self.seconds) != self.steps:  # the step after the timed ones: counting takes time of its own
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self.flops[name] = self.flops.get(name, 0) + counter.get_total_flops()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.now["training"] += time.perf_counter() - self.ended  # clipping and AdamW
        if state.global_step > 1 and len(self.seconds) < self.steps:
            self.seconds.append(self.now)
        self.now = dict.fromkeys(PHASES, 0.0)
        self.rates.append(gemm_gflops())
        control.should_training_stop = bool(self.flops)


@register_flop_formula(torch.ops.aten.addmm_)  # the gradient of the head; torch counts only `addmm`
def _addmm_flop(out: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def gemm_gflops(size: int = 2048) -> float:
    a, b, out = torch.randn(3, size, size)
    torch.mm(a, b, out=out)
    began = time.perf_counter()
    for _ in range(5):
        torch.mm(a, b, out=out)
    return 5 * 2 * size**3 / (time.perf_counter() - began) / 1e9


def phases(spec: Spec, steps: int) -> dict[str, Any]:
    trainer = build_ours(spec)
    rates: list[float] = []
    clock = Clock(trainer, steps, rates)
    trainer.add_callback(clock)
    trainer.train()
    rate = median(rates)
    found: dict[str, Any] = {"gemm_gflops": rate}
    for name in PHASES:
        seconds = median(one[name] for one in clock.seconds)
        gflops = clock.flops[name] / seconds / 1e9
        found[name] = {"seconds": seconds, "tflop": clock.flops[name] / 1e12, "gflops": gflops, "share": gflops / rate}
    return found


def operators(spec: Spec) -> dict[str, float]:
    """The largest shares of CPU time, and that of all others."""
    trainer = build_ours(spec)
    trainer.args.max_steps = 1
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        trainer.train()
    spent = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    total = sum(spent.values())
    largest = sorted(spent, key=lambda name: -spent[name])[:OPERATORS]
    return {name: spent[name] / total for name in largest} | {
        "all others": 1 - sum(spent[name] for name in largest) / total
    }


def main() -> None:
    told = json.loads(sys.argv[1])
    spec = Spec(**told["spec"])
    print(json.dumps({"phases": phases(spec, told["steps"]), "operators": operators(spec)}))


if __name__ == "__main__":
    main()
