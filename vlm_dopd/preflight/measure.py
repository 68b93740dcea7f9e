"""One micro-batch as training does it, with a clock and a gauge: roll out, score, route, forward and backward.

The gauge is the allocator's on a CUDA device, the process's resident memory elsewhere. Gradients are thrown away after
it; no weight is moved.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainingArguments

from ..collate import Batch
from ..packing import Packed
from ..roles import Policy
from ..trainer import DopdTrainer
from .wiring import spread

WARM = 2
"""Times that it is done: the first compiles and allocates, the last is timed."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One micro-batch, timed and weighed: what the plan of the whole run is checked against."""

    prompts: int
    sequences: int
    tokens: int
    """Of all responses."""
    longest: int
    """Response."""
    plain: int
    """Tokens of the longest plain prompt, images included."""
    privileged: int
    images: int
    """Of a prompt, at most."""
    image_tokens: int
    """Of one image, at most."""
    seconds: dict[str, float]
    """Of rollout, score and loss (forward and backward)."""
    peak: float
    """Bytes at the fullest moment, weights included."""
    room: float
    """Bytes that there are."""


def measure(trainer: DopdTrainer) -> Measured:
    """Rollout, scoring and loss of one micro-batch of rows spread over the file; no weight is moved."""
    micro = trainer.args.per_device_train_batch_size
    builder = trainer.window_builder
    model, dataset, collate = cast(Any, (trainer.model, trainer.train_dataset, trainer.data_collator))
    batch: Batch = collate([dataset[place] for place in spread(len(dataset), micro)])
    device = trainer.student.device
    gauge = Gauge(device, [p.model for p in builder.policies.values() if isinstance(p, Policy)])
    checkpoint(model, trainer.args)
    for _ in range(WARM):
        window = builder.build([batch], 0)
        began = time.perf_counter()
        model.train()
        for passed in window.batches[0]:
            with trainer.accelerator.autocast():
                loss = trainer.compute_loss(model, {"batch": passed}, num_items_in_batch=window.denominator)
            loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        loss_seconds = time.perf_counter() - began
        peak = gauge.peak()
        model.zero_grad(set_to_none=True)
    prompts = [prompt for group in batch.groups for prompt in (group.plain, group.privileged)]
    images = [image for prompt in prompts for image in prompt.images]
    merge = getattr(getattr(trainer.processing_class, "image_processor", None), "merge_size", 1)
    return Measured(
        prompts=len(batch.groups),
        sequences=int(window.figures["rollout/sequences"]),
        tokens=int(window.figures["rollout/tokens"]),
        longest=max((_longest(passed.packed) for passed in window.batches[0]), default=0),
        plain=max(group.plain.id_P.numel() for group in batch.groups),
        privileged=max(group.privileged.id_P.numel() for group in batch.groups),
        images=max(len(group.plain.images) for group in batch.groups),
        image_tokens=max((int(image.grid_thw.prod()) // merge**2 for image in images), default=0),
        seconds={
            "rollout": window.figures["time/rollout"],
            "score": window.figures["time/score"],
            "loss": loss_seconds,
        },
        peak=peak,
        room=gauge.room(),
    )


def checkpoint(model: Any, args: TrainingArguments) -> None:
    """As Trainer does when training begins, if the configuration asks for it."""
    if args.activation_checkpointing:
        options = dict(cast(dict[str, Any], args.activation_checkpointing_kwargs or {}))
        every, offload = options.pop("every_n_layers", 1), options.pop("offload", False)
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs=options or None, every_n_layers=every, offload=offload
        )


def _longest(packed: Packed) -> int:
    """Response of a pass, tokens."""
    row_BL = torch.arange(len(packed.group_BL), device=packed.group_BL.device)[:, None].expand_as(packed.group_BL)
    answered_BL = packed.segment_BL > 0
    place = torch.stack([t[answered_BL] for t in (row_BL, packed.group_BL, packed.segment_BL)])
    return int(place.unique(dim=1, return_counts=True)[1].max()) if place.numel() else 0


class Gauge:
    """The peak of memory since it was made: all that torch has on a CUDA device; elsewhere the models, whose size is
    known, and what the process has had on top of what it had then."""

    def __init__(self, device: torch.device, models: list[Any]) -> None:
        self.device = device
        parameters = {id(p): p.numel() * p.element_size() for model in models for p in model.parameters()}
        self.weights = float(sum(parameters.values()))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
            self.before = resident("VmRSS")

    def peak(self) -> float:
        """Bytes at the fullest moment since the gauge was made."""
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device))
        return self.weights + max(resident("VmHWM") - self.before, 0.0)

    def room(self) -> float:
        """Bytes that there are for all of it."""
        if self.device.type == "cuda":
            return float(torch.cuda.get_device_properties(self.device).total_memory)
        return resident("MemAvailable", "/proc/meminfo") + self.weights


def resident(key: str, file: str = "/proc/self/status") -> float:
    """Bytes, of a Linux process or machine."""
    line = next(line for line in Path(file).read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024.0 * int(line.split()[1])
