"""Does it fit, and how long will it take? Measured on one micro-batch; the rest is the plan's."""

from __future__ import annotations

import os
from dataclasses import replace

from ..errors import ConfigError
from ..plan.job import Job, job_of
from ..plan.memory import memory
from ..plan.suggest import ROOM
from .finding import Check, Finding, judged
from .trial import Trial

GIB = 2**30


def fits(trial: Trial) -> Finding:
    """What was measured, and what the plan's formulas add for full-length prompts and responses and the optimizer."""
    measured = trial.measured
    figure = f"{_gib(measured.peak)} on {measured.prompts} prompts, responses of up to {measured.longest} tokens"
    try:
        small, full = _jobs(trial)
    except ConfigError as error:  # of a family whose sizes the plan does not know
        return judged(f"{figure}; {error}", "less than there is", fail=measured.peak > measured.room)
    planned, at_most = _peak(small, optimizer=False), _peak(full)
    expected = measured.peak + max(at_most - planned, 0.0)
    figure += f" (planned {_gib(planned)}); {_gib(expected)} with responses of {full.max_new_tokens} and the optimizer"
    limit = f"at most {ROOM:.0%} of the {_gib(measured.room)} that there are, on one process"
    fix = "`vlm-dopd plan` finds settings that fit and keep the batch"
    return judged(figure, limit, fail=expected > measured.room, warn=expected > ROOM * measured.room, fix=fix)


def duration(trial: Trial) -> Finding:
    """Seconds of a step, part by part, and hours of the run. Optimizer, evaluations and checkpoints come on top.

    A window's rollouts are made together, so with accumulation that part is an upper bound.
    """
    measured, args = trial.measured, trial.trainer.args
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    step = sum(measured.seconds.values()) * args.gradient_accumulation_steps
    window = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    steps = args.max_steps if args.max_steps > 0 else -(-len(trial.wiring.dataset) * args.num_train_epochs // window)
    parts = ", ".join(f"{name} {seconds:.2g} s" for name, seconds in measured.seconds.items())
    speed = measured.tokens / max(sum(measured.seconds.values()), 1e-9)
    figure = f"{parts} a micro-batch, {speed:.0f} tokens/s; {steps:.0f} steps of {step:.2g} s: {_long(steps * step)}"
    return judged(figure, "a time you have; evaluations and checkpoints come on top")


def _jobs(trial: Trial) -> tuple[Job, Job]:
    """The micro-batch that was measured, and the largest that the configuration allows."""
    measured, config = trial.measured, trial.wiring.config
    device = trial.student.device
    text = max(measured.plain - measured.images * measured.image_tokens, 1)
    work = {
        "images": measured.images,
        "image_tokens": measured.image_tokens,
        "text_tokens": text,
        "privileged_tokens": measured.privileged - measured.plain,
        "response_tokens": max(measured.longest, 1),
    }
    # A served teacher's weights are not here: the student stands in for its sizes, and none are counted.
    here = replace(config, model=replace(config.model, teacher=trial.wiring.paths.get("teacher", config.model.student)))
    job = job_of(here, work=work, lora_rank=config.model.lora.r if config.model.lora else 0)
    job = replace(job, frozen={role: shape for role, shape in job.frozen.items() if role in trial.wiring.paths})
    job = replace(job, cpu=device.type != "cuda", flex=trial.student.flex)
    longest = config.rollout.max_new_tokens
    room = max(config.data.max_prompt_tokens - measured.privileged, 0)
    more = replace(job.work, response_tokens=longest, text_tokens=text + room)
    small = replace(job, micro=measured.prompts, accumulation=1, max_new_tokens=max(measured.longest, 1))
    return small, replace(job, work=more)


def _peak(job: Job, optimizer: bool = True) -> float:
    phases = memory(job).values()
    return max(sum(size for name, size in parts.items() if optimizer or name != "optimizer") for parts in phases)


def _gib(size: float) -> str:
    return f"{size / GIB:.3g} GiB"


def _long(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


CHECKS = (
    Check("memory", "model", fits),
    Check("time", "model", duration),
)
