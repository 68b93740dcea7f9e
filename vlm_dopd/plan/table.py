"""A plan as text: memory by part and phase, seconds by part, settings to paste."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.table import Table

from .gpus import GPU
from .job import Job
from .memory import GIB, PHASES, memory, peak
from .suggest import ROOM, Suggestion, fits
from .times import times


def memory_table(job: Job, gpu: GPU) -> Table:
    """GiB at the fullest moment of each phase; the last line is compared with what the GPU has."""
    found = memory(job)
    names = list(dict.fromkeys(name for parts in found.values() for name in parts))
    table = Table(title="memory of one GPU at the fullest moment of each phase, GiB")
    table.add_column("part")
    for phase in PHASES:
        table.add_column(phase, justify="right")
    for name in names:
        if any(parts.get(name) for parts in found.values()):
            table.add_row(name, *(_gib(found[phase].get(name, 0.0)) for phase in PHASES))
    table.add_section()
    table.add_row("sum", *(_gib(sum(found[phase].values())) for phase in PHASES))
    return table


def verdict(job: Job, gpu: GPU) -> str:
    """One line: whether the job fits, with its peak and the GPU's memory in GiB."""
    word = "fits" if fits(job, gpu) else "DOES NOT FIT"
    return (
        f"{word}: {peak(job) / GIB:.1f} GiB of the {gpu.memory_gib:.1f} that {gpu.name} has "
        f"({ROOM:.0%} may be planned for)"
    )


def time_table(job: Job, gpu: GPU) -> Table:
    """Seconds of each part of a step, and its share of the sum."""
    parts = times(job, gpu)
    total = sum(parts.values())
    table = Table(title="seconds of a step")
    table.add_column("part")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in parts.items():
        table.add_row(name, f"{seconds:.2f}", f"{seconds / total:.0%}")
    table.add_section()
    table.add_row("sum", f"{total:.1f}", "")
    return table


def describe(job: Job) -> str:
    """One line: sharding, and how the prompts of a step are spread over GPUs and micro-batches."""
    sharding = "student whole on each" if job.sharding == "none" else f"student sharded by {job.sharding}"
    prompts = f"{job.gpus} × {job.micro} × {job.accumulation} = {job.gpus * job.window} prompts a step"
    return f"{sharding}{_forms(job)}, GPUs × prompts × accumulation: {prompts}"


def _forms(job: Job) -> str:
    """What is trained and how weights lie, where it is not all of them and whole."""
    said = ""
    if job.lora_rank:
        base = {2: "bfloat16", 4: "float32"}[job.base_bytes] if job.base_held == "full" else job.base_held
        said += f", LoRA of rank {job.lora_rank} beside {base} weights"
    if job.frozen_held != "full":
        said += ", teacher " + {"offload": "offloaded", "sharded": "sharded"}.get(
            job.frozen_held, f"in {job.frozen_held}"
        )
    return said


def show(job: Job, gpu: GPU, suggestion: Suggestion | None, console: Any) -> None:
    """The job as it is and, where something fits, the settings that are suggested and their tables."""
    sizes = [f"{job.student.name} ({job.student.parameters / 1e9:.2f} B)"]
    sizes += [f"{role} {shape.name} ({shape.parameters / 1e9:.2f} B)" for role, shape in job.frozen.items()]
    console.print(f"student {', '.join(sizes)}", highlight=False)
    work = job.work
    console.print(
        f"planned for {job.images} × {work.image_tokens} image tokens, {work.text_tokens} of text, "
        f"{work.privileged_tokens} of p; {job.siblings} responses of {work.response_tokens} tokens on average, at most "
        f"{job.max_new_tokens}",
        highlight=False,
    )
    _show_one(job, gpu, console)
    if note := tf32_note(job, gpu):
        console.print(note, highlight=False)
    if suggestion is None:
        console.print(
            "nothing tried fits: take more or larger GPUs, a shorter rollout.max_new_tokens, or LoRA", highlight=False
        )
        return
    if suggestion.job != job:
        new = suggestion.job
        console.print("\nsuggested; the prompts of a step stay the same:", highlight=False)
        console.print(*(f"  {line}" for line in suggestion.overrides), sep="\n", highlight=False)
        if new.sharding != job.sharding:
            console.print(f"  and an accelerate config with {new.sharding}", highlight=False)
        _show_one(new, gpu, console)


def tf32_note(job: Job, gpu: GPU) -> str:
    """Nothing if it is on already, or saves nothing to speak of."""
    now, then = (sum(times(replace(job, tf32=on), gpu).values()) for on in (job.tf32, True))
    if now - then < 0.05:
        return ""
    return (
        f"train.tf32=true would save {now - then:.1f} s a step: products with the student's LM head, which is float32, "
        "would round their inputs to 10 bits of mantissa"
    )


def _show_one(job: Job, gpu: GPU, console: Any) -> None:
    console.print(f"\n{job.gpus} × {gpu.name}, {describe(job)}", highlight=False)
    console.print(memory_table(job, gpu), verdict(job, gpu), time_table(job, gpu), sep="\n", highlight=False)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size else ""
