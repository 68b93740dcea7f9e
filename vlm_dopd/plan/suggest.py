"""The fastest settings that fit, by trying them all. What is learnt stays the same: so do the prompts of a step.

Sharding is tried in the order none, zero2, fsdp2, zero3, and the first that fits at all is taken: each costs more
communication than the one before. The rest (micro-batch, tokens of a pass, sequences of a rollout, checkpointing) is
what makes the shortest step; among equals what changes least, and then what leaves most memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .gpus import GPU
from .job import Job, Sharding
from .memory import GIB, peak
from .times import times

ROOM = 0.92
"""Share of a GPU's memory that may be planned for; the rest is for the allocator's fragments and longer prompts."""
SHARDINGS: tuple[Sharding, ...] = ("none", "zero2", "fsdp2", "zero3")
PASS_TOKENS = (4096, 8192, 16_384, 32_768)
SEQUENCES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Suggestion:
    """A job that fits, and how a config says it."""

    job: Job
    overrides: tuple[str, ...]
    """`key=value` of what differs from the job it was made for."""


def fits(job: Job, gpu: GPU) -> bool:
    """Whether the step's peak leaves the share of memory free that ROOM asks for."""
    return peak(job) <= ROOM * gpu.memory_gib * GIB


def suggest(job: Job, gpu: GPU, shardings: Sequence[Sharding] = SHARDINGS) -> Suggestion | None:
    """None if nothing fits."""
    # A student in 4 bits is whole on each GPU: its matrices cannot be cut by rows.
    for sharding in shardings if job.gpus > 1 and job.base_held == "full" else ("none",):
        found = [option for option in _options(replace(job, sharding=sharding)) if fits(option, gpu)]
        if found:
            best = min(found, key=lambda option: _cost(job, option, gpu))
            return Suggestion(best, tuple(_overrides(job, best)))
    return None


def _cost(job: Job, option: Job, gpu: GPU) -> tuple[float, int, float]:
    """Times that agree in two digits are equal: the estimate is worth no more."""
    seconds = sum(times(option, gpu).values())
    changed = sum(before != after for _, before, after in _settings(job, option))
    return float(f"{seconds:.2g}"), changed, peak(option)


def _options(job: Job) -> Iterator[Job]:
    window = job.window
    for micro in (n for n in range(1, window + 1) if window % n == 0):
        for checkpointing in (False, True):
            for pass_tokens in sorted({*PASS_TOKENS, job.pass_tokens}):
                for sequences in sorted({*SEQUENCES, job.rollout_batch}):
                    yield replace(
                        job,
                        micro=micro,
                        accumulation=window // micro,
                        checkpointing=checkpointing,
                        pass_tokens=pass_tokens,
                        rollout_batch=sequences,
                    )


def _settings(old: Job, new: Job) -> tuple[tuple[str, int, int], ...]:
    return (
        ("train.per_device_train_batch_size", old.micro, new.micro),
        ("train.gradient_accumulation_steps", old.accumulation, new.accumulation),
        ("data.max_pass_tokens", old.pass_tokens, new.pass_tokens),
        ("rollout.batch_size", old.rollout_batch, new.rollout_batch),
        ("train.gradient_checkpointing", old.checkpointing, new.checkpointing),
    )


def _overrides(old: Job, new: Job) -> Iterator[str]:
    for key, before, after in _settings(old, new):
        if before != after or key.startswith(("train.per_device", "train.gradient_acc")):
            yield f"{key}={str(after).lower()}"
