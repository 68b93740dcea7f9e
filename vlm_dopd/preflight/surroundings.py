"""Is everything there that a run will ask for? Packages, columns, room on the disk; and what does p give away?"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from privileged.audit import DropPolicy, audit_row, decide
from privileged.builders import discloses
from privileged.leaks import Grade

from .. import rewards
from ..errors import ConfigError
from ..wiring import builder_of
from .finding import Check, Finding, judged, skipped
from .wiring import Wiring

GIB = 2**30
TRACKERS = {"azure_ml": "azureml", "flyte": "flytekit"}
"""Names of `train.report_to` whose package is called otherwise."""
OPTIMIZERS = {
    "torch_8bit": "torchao",
    "torch_4bit": "torchao",
    "8bit": "bitsandbytes",
    "paged": "bitsandbytes",
    "bnb": "bitsandbytes",
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "schedule_free": "schedulefree",
}
"""A word in `train.optim`, the first that fits, and the package it needs."""
LEFT = DropPolicy(empty="keep", over_budget="keep", overlap="keep")
"""Of the audit's findings, those on leaks: the others have checks of their own."""


def leaks(wiring: Wiring) -> Finding:
    """The audit's rules on the words of p: does it give the answer away?"""
    if not wiring.shows_p:
        return skipped(f"{wiring.config.method['name']} shows p to nobody")
    builder, data = builder_of(wiring.config), wiring.dataset
    facts = [
        audit_row(
            data.rows[data.places[place]],
            f"{data.path.stem}-{data.places[place]}",
            data.path.parent,
            builder=builder,
            placement=wiring.config.data.placement,
        )
        for place in wiring.places
    ]
    fates = [decide(one, LEFT, discloses(builder)) for one in facts]
    grades = Counter(Grade(one["grade"]).name for one in facts if "grade" in one)
    dropped = [fate["rules"][0] for fate in fates if fate["fate"] == "dropped"]
    figure = ", ".join(f"{grade.name} {grades[grade.name]}" for grade in Grade)
    if dropped:
        figure += f"; {len(dropped)} of {len(facts)} the audit would drop ({dropped[0]})"
    fix = "`vlm-dopd annotate audit --kept` leaves such rows out, and its blind test measures what the rules only guess"
    return judged(
        figure, f"nothing above {discloses(builder)!r}, which the builder discloses", warn=bool(dropped), fix=fix
    )


def dependencies(wiring: Wiring) -> Finding:
    """What the configuration asks for beyond the base packages."""
    train, wanted = wiring.config.train, {}
    for tracker in _list(train.get("report_to")):
        if tracker not in ("none", "all"):
            wanted[f"train.report_to={tracker}"] = TRACKERS.get(tracker, tracker)
    optimizer = str(train.get("optim", ""))
    if package := next((needed for word, needed in OPTIMIZERS.items() if word in optimizer), None):
        wanted[f"train.optim={optimizer}"] = package
    if train.get("deepspeed") or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        wanted["DeepSpeed"] = "deepspeed"
    if train.get("use_liger_kernel"):
        wanted["train.use_liger_kernel"] = "liger_kernel"
    absent = {who: package for who, package in wanted.items() if importlib.util.find_spec(package) is None}
    problems = [f"{who} needs {package}" for who, package in absent.items()]
    if wiring.method.needs_reward:
        try:
            rewards.find(wiring.config.rollout.reward)
        except ConfigError as error:
            problems.append(str(error))
    figure = "; ".join(problems) or (", ".join(sorted(wanted.values())) or "nothing beyond the base packages")
    fix = f"pip install {' '.join(sorted(absent.values()))}" if absent else "name a function that can be imported"
    return judged(figure, "all of it installed", fail=bool(problems), fix=fix)


def references(wiring: Wiring) -> Finding:
    """Rewards compare with an answer, and reference completions may be a column of the data."""
    config, method = wiring.config, wiring.method
    column = config.rollout.reference if method.wants_references and config.rollout.reference != "teacher" else ""
    if method.needs_reward and config.rollout.reward == "answer":
        column = column or "answer"
    if not column:
        return skipped(f"{config.method['name']} needs neither rewards nor a column of completions")
    held = [
        s.answer if column == "answer" else (s.privileged and s.privileged.extra.get(column)) for s in wiring.samples
    ]
    lacking = sum(not value for value in held)
    fix = "choose another rollout.reward or rollout.reference, or fill the column"
    return judged(f"{lacking} of {len(held)} rows without {column!r}", "none", fail=lacking > 0, fix=fix)


def output_folder(wiring: Wiring) -> Finding:
    """Writable, with room for the checkpoints that will lie there at one time."""
    folder = Path(wiring.config.output_dir)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        fix = "choose another output_dir"
        return judged(f"{existing}: {error.strerror}", "a folder to write to", fail=True, fix=fix)
    one, many = _checkpoints(wiring)
    student = 4 * sum(wiring.tensors["student"].values())
    free = shutil.disk_usage(existing).free
    figure = f"{free / GIB:.1f} GiB free; a checkpoint has {one / GIB:.2g} GiB, {many} at one time and the student"
    needed = (many * one + student) / GIB
    fix = "choose another output_dir, lower train.save_total_limit, or raise train.save_steps"
    return judged(
        figure,
        f"{needed:.2g} GiB free",
        fail=free < min(many, 1) * one + student,
        warn=free < needed * GIB,
        fix=fix,
    )


def _checkpoints(wiring: Wiring) -> tuple[float, int]:
    """Bytes of one: weights, AdamW's two states and moving copies in float32; and how many lie there at one time."""
    train, tensors, lora = wiring.config.train, wiring.tensors["student"], wiring.config.model.lora
    total = sum(tensors.values())
    trained = total
    if lora:  # both sides of every matrix, as if all had adapters and were as wide as high
        trained = round(sum(2 * lora.r * count**0.5 for name, count in tensors.items() if "visual" not in name))
    elif wiring.config.model.freeze_vision:
        trained = sum(count for name, count in tensors.items() if "visual" not in name)
    moving = {role.weights for role in wiring.method.roles} & {"ema", "snapshot"}
    size = 4.0 * (trained if lora else total) + (8 + 4 * len(moving)) * trained
    if str(train.get("save_strategy", "steps")) == "no":
        return size, 0
    steps, every = train.get("max_steps", -1), train.get("save_steps", 500)
    whole = isinstance(every, int) and isinstance(steps, int) and steps > 0 and every > 0
    count = -(-steps // every) if whole else 3
    limit = train.get("save_total_limit")
    return size, min(count, limit + 1 if limit else count)  # a new one is written before the oldest goes


def _list(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)] if value else []


CHECKS = (
    Check("leaks", "cheap", leaks),
    Check("references", "cheap", references),
    Check("dependencies", "cheap", dependencies),
    Check("output folder", "cheap", output_folder),
)
