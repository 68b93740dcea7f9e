"""Whole optimiser steps of ours and of the straightforward implementation: rollout, scoring, routing, loss, AdamW.

parts   plain    (a) DOPD: ours against `tests.bench.plain`, time and peak memory
        methods  (e) DOPD against vanilla OPD, both ours
        growth   (f) siblings, image size and response length varied one at a time: seconds, tokens, padding
        padding  (f) share of padding in the passes over prompts and responses of very different lengths
As a worker (`python -m tests.bench.step SPEC`) it makes the steps of one variant; see `measure.py`.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from tests.bench.measure import Child, Metronome, Worker, interleaved, table

STEPS = 1_000_000
"""More than anyone waits for: the parent ends a worker."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What one worker does."""

    variant: str = "ours"
    method: str = "dopd"
    folder: str
    """Of the pair."""
    data: str
    prompts: int = 4
    siblings: int = 4
    response: int = 96
    """Tokens of every response."""
    uneven: bool = False
    """Cut every response to a random length: for the share of padding, not for time."""


def train_settings(spec: Spec) -> dict[str, Any]:
    """`TrainingArguments` that all variants share."""
    return {
        "max_steps": STEPS,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_steps": STEPS,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }


def build_ours(spec: Spec) -> Any:
    """The trainer as a user's configuration builds it."""
    from vlm_dopd import run
    from vlm_dopd.config import load_config

    run_folder = Path(spec.data).parent / f"run-{spec.method}-{time.time_ns()}"
    run_folder.mkdir()
    values = {
        "model": {
            "student": f"{spec.folder}/student",
            "teacher": f"{spec.folder}/teacher",
            "teacher_dtype": "float32",
        },
        "data": {"train": spec.data, "builder": "boxes", "max_prompt_tokens": 8192},
        "rollout": {"siblings": spec.siblings, "max_new_tokens": spec.response},
        "method": {"name": spec.method},
        "train": train_settings(spec) | {"per_device_train_batch_size": spec.prompts},
        "output_dir": str(run_folder),
    }
    OmegaConf.save(OmegaConf.create(values), run_folder / "bench.yaml")
    return run.build_trainer(load_config(run_folder / "bench.yaml"))


def ours(spec: Spec, child: Child) -> None:
    trainer = build_ours(spec)
    completions = trainer.window_builder.completions
    counted = Counted(completions.engine, spec.uneven)
    trainer.window_builder.completions = replace(completions, engine=counted)
    models = [policy.model for policy in trainer.window_builder.policies.values()]
    for model in models:
        model.base_model.register_forward_pre_hook(counted.passes, with_kwargs=True)
    trainer.add_callback(Metronome(child, models, counted.facts))
    trainer.train()


class Counted:
    """An engine around an engine: counts response tokens, and the padding of scoring and training passes."""

    def __init__(self, engine: Any, uneven: bool) -> None:
        self.engine, self.uneven, self.random = engine, uneven, random.Random(0)
        self.response_tokens = self.computed = self.padding = 0
        self.rolling_out = False

    def __call__(self, groups: Sequence[Any], step: int) -> list[list[Any]]:
        self.rolling_out = True
        responses = self.engine(groups, step)
        self.rolling_out = False
        if self.uneven:
            responses = [
                [replace(r, id_T=r.id_T[: self.random.randint(1, len(r.id_T))]) for r in siblings]
                for siblings in responses
            ]
        self.response_tokens += sum(len(response.id_T) for siblings in responses for response in siblings)
        self.pad_id = getattr(self.engine, "pad_id", None)
        return responses

    def passes(self, model: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        if not self.rolling_out and inputs.get("input_ids") is not None:
            self.computed += inputs["input_ids"].numel()
            self.padding += int((inputs["input_ids"] == self.pad_id).sum())

    def facts(self) -> dict[str, Any]:
        """Of the step that ended; counting begins anew."""
        facts = {"response_tokens": self.response_tokens, "positions": self.computed, "padding": self.padding}
        self.response_tokens = self.computed = self.padding = 0
        return facts


def plain(spec: Spec, child: Child) -> None:
    """The same step from `plain.py`, in the shortest loop there is."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from privileged import get_builder
    from tests.bench.plain import PlainStep
    from vlm_dopd.data import SampleDataset
    from vlm_dopd.methods import find
    from vlm_dopd.roles import banned_ids, freeze_vision

    torch.manual_seed(0)
    student, teacher = (
        AutoModelForImageTextToText.from_pretrained(f"{spec.folder}/{name}", dtype=torch.float32)
        for name in ("student", "teacher")
    )
    teacher.requires_grad_(False)
    freeze_vision(student)
    processor = AutoProcessor.from_pretrained(f"{spec.folder}/student")
    banned = banned_ids(student, processor.tokenizer)
    step = PlainStep(
        student=student,
        teacher=teacher,
        processor=processor,
        method=find(spec.method)(),
        builder=get_builder("boxes"),
        special_ids=[*banned, processor.tokenizer.eos_token_id],
        siblings=spec.siblings,
    )
    learning = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-6, weight_decay=0.0, fused=True)
    data = SampleDataset(spec.data)
    wanted, at = child.ready([student, teacher]), 0
    while wanted:
        began = time.perf_counter()
        samples = [data[(at + i) % len(data)] for i in range(spec.prompts)]
        at += spec.prompts
        responses = step.rollout(samples, spec.response, banned)
        optimizer.zero_grad()
        step.loss(samples, responses).total.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        tokens = sum(len(response) for siblings in responses for response in siblings)
        wanted = child.stepped(time.perf_counter() - began, response_tokens=tokens)


def worker(spec: Spec) -> Worker:
    return Worker("tests.bench.step", asdict(spec))


def measure_plain(spec: Spec, steps: int) -> dict[str, Any]:
    """(a)"""
    variants = {name: replace(spec, variant=name) for name in ("ours", "plain")}
    measured = interleaved({name: partial(worker, s) for name, s in variants.items()}, steps)
    same_tokens(measured)
    return {**measured, **ratios(measured["ours"], measured["plain"])}


def measure_methods(spec: Spec, steps: int) -> dict[str, Any]:
    """(e)"""
    variants = {name: replace(spec, method=name) for name in ("dopd", "opd")}
    measured = interleaved({name: partial(worker, s) for name, s in variants.items()}, steps)
    same_tokens(measured)
    return {**measured, **ratios(measured["dopd"], measured["opd"])}


def measure_growth(spec: Spec, steps: int, images: dict[int, str]) -> dict[str, Any]:
    """(f): along each axis, the slope of log seconds over the log of what is varied; 1 is linear, more is worse.

    Two prompts a step: growth takes less to see than a ratio does.
    """
    spec = replace(spec, prompts=2)
    axes = {  # what is varied, as a number of siblings, pixels or tokens
        "siblings": {str(n): replace(spec, siblings=n) for n in (1, 2, 4)},
        "pixels of an image": {str(side**2): replace(spec, data=file) for side, file in images.items()},
        "response tokens": {str(n): replace(spec, response=n) for n in (48, 96, 192)},
    }
    grown = {}
    for axis, points in axes.items():
        measured = interleaved({name: partial(worker, s) for name, s in points.items()}, steps)
        (least, first), *_, (most, last) = measured.items()
        slope = math.log(last["seconds"] / first["seconds"]) / math.log(int(most) / int(least))
        grown[axis] = {"points": measured, "slope": slope}
    return grown


def measure_padding(spec: Spec) -> dict[str, Any]:
    """(f): prompts of very different lengths, responses of 1 to the full number of tokens."""
    child = worker(replace(spec, uneven=True))
    told = [child.step() for _ in range(2)]
    child.close()
    positions, padding = (sum(one[key] for one in told) for key in ("positions", "padding"))
    return {"positions": positions, "padding": padding, "share": padding / positions}


def same_tokens(measured: dict[str, dict[str, Any]]) -> None:
    """Variants that generated different numbers of tokens are not compared."""
    tokens = {name: one["response_tokens"] for name, one in measured.items()}
    assert len(set(tokens.values())) == 1, f"expected equal numbers of response tokens, got {tokens}"


def ratios(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    return {
        "time_ratio": one["seconds"] / other["seconds"],
        "peak_ratio": one["peak_mib"] / other["peak_mib"],
        "rise_ratio": one["rise_mib"] / other["rise_mib"],
    }


def rows(results: dict[str, Any]) -> str:
    """The parts that were measured, as Markdown."""
    found = []
    for part, title in (("plain", "(a)"), ("trl", "(c)"), ("methods", "(e)")):
        if part in results:
            found += [
                [f"{title} {name}", f"{m['seconds']:.1f}", f"{m['peak_mib']:,.0f}", f"{m['rise_mib']:,.0f}"]
                for name, m in results[part].items()
                if isinstance(m, dict)
            ]
            ratio = [f"{results[part][key]:.2f}" for key in ("time_ratio", "peak_ratio", "rise_ratio")]
            found.append([f"{title} ratio", *ratio])
    text = [table(["step", "seconds", "peak, MiB", "above loaded models, MiB"], found)] if found else []
    if "growth" in results:
        grown = [
            [axis, value, f"{m['seconds']:.1f}", f"{m['positions']:,}", f"{100 * m['padding'] / m['positions']:.1f} %"]
            for axis, one in results["growth"].items()
            for value, m in one["points"].items()
        ]
        text.append(table(["(f) varied", "to", "seconds", "positions in the passes", "padding"], grown))
        slopes = [[axis, f"{one['slope']:.2f}"] for axis, one in results["growth"].items()]
        text.append(table(["(f) growth with", "slope, log seconds over log of it"], slopes))
    if "padding" in results:
        text.append(f"(f) padding over uneven prompts and responses: {100 * results['padding']['share']:.1f} %")
    if "share" in results:
        text += share_rows(results["share"])
    if "loss" in results:
        text.append(loss_rows(results["loss"]))
    return "\n\n".join(text)


def share_rows(share: dict[str, Any]) -> list[str]:
    phases = dict(share["phases"])
    rate = phases.pop("gemm_gflops")
    told = [
        [name, f"{p['seconds']:.1f}", f"{p['tflop']:.2f}", f"{p['gflops']:.0f}", f"{100 * p['share']:.0f} %"]
        for name, p in phases.items()
    ]
    header = ["(d) phase", "seconds", "TFLOP", "GFLOP/s", f"of {rate:.0f} GFLOP/s"]
    spent = [[name, f"{100 * part:.1f} %"] for name, part in share["operators"].items()]
    return [table(header, told), table(["operator", "CPU time of a step"], spent)]


def loss_rows(loss: dict[str, Any]) -> str:
    told = [
        [
            name,
            f"{m['seconds']:.2f}",
            f"{100 * m['gemm_share']:.0f} %",
            f"{m['memory_mb']:,.0f}",
            f"{m['plain_seconds']:.2f}" if "plain_seconds" in m else "",
            f"{m['plain_memory_mb']:,.0f}" if "plain_memory_mb" in m else "",
        ]
        for name, m in loss.items()
        if isinstance(m, dict) and "seconds" in m
    ]
    header = ["(b, d) loss", "CPU seconds", "of its products' rate", "MiB above gradients", "plainly: seconds", "MiB"]
    return table(header, told)


def main() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    child = Child()
    {"ours": ours, "plain": plain}[spec.variant](spec, child)
    child.stop()


if __name__ == "__main__":
    main()
