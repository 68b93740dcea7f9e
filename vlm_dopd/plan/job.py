"""What is planned: a run's configuration, the sizes of its models, and what its data are expected to look like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from ..config import RunConfig, read_settings, typed
from ..copies import KINDS
from ..errors import ConfigError, closest
from ..loading import Held
from ..lora import LoraConfig
from ..methods import Method, Role
from ..served import is_address
from .shapes import Shape, find_shape

Sharding = Literal["none", "zero2", "fsdp2", "zero3"]
TAKES_RESPONSE = ("sibling", "reference", "rollout")
"""Views whose prompt shows a response."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One prompt and its responses. Memory is planned for responses that all have the full length."""

    text_tokens: int = 150
    """Of the question and the chat template."""
    image_tokens: int = 1024
    """Of one image: 1024 are 1024 × 1024 pixels."""
    images: int = 1
    privileged_tokens: int = 250
    response_tokens: int = 512
    """On average; a rollout waits for the longest of its batch."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One rank's share of a step, and how it is computed."""

    student: Shape
    frozen: Mapping[str, Shape]
    """Models that never change, by `Role.weights`."""
    method: Method
    work: Work
    gpus: int = 1
    sharding: Sharding = "none"
    """Of the student; other models are whole on every rank."""
    micro: int = 1
    """Prompts of a micro-batch: `per_device_train_batch_size`."""
    accumulation: int = 1
    pass_tokens: int = 16_384
    siblings: int = 4
    max_new_tokens: int = 1024
    rollout_batch: int = 64
    freeze_vision: bool = True
    checkpointing: bool = False
    bf16: bool = False
    """Autocast; the student's weights are float32 all the same."""
    tf32: bool = False
    flex: bool = True
    """FlexAttention; else SDPA with dense masks, as on a CPU."""
    frozen_bytes: int = 2
    """Of a parameter of the models that never change, unless it is quantised."""
    frozen_held: Held = "full"
    """How the matrices of their layers lie on the GPU."""
    lora_rank: int = 0
    """0: all of the text model is trained. Adapters are taken to be on all seven matrices of a layer."""
    base_bytes: int = 4
    """Of a parameter of the student, unless it is quantised: 2 under LoRA with `model.lora.dtype=bfloat16`."""
    base_held: Held = "full"
    """nf4 under QLoRA."""
    cpu: bool = False
    """Device and host are one: pixels count, no CUDA context does."""

    @cached_property
    def copies(self) -> tuple[str, ...]:
        """Kinds of student copies that the method's roles need, each one more set of trained weights."""
        return tuple(kind for kind in KINDS if kind in {role.weights for role in self.method.roles})

    @cached_property
    def targets(self) -> tuple[Role, ...]:
        """Roles whose hidden states are kept for the loss."""
        return tuple(dict.fromkeys(c.target for c in self.method.components if c.target is not None))

    @property
    def window(self) -> int:
        """Prompts of a step on one rank."""
        return self.micro * self.accumulation

    @property
    def images(self) -> int:
        """Images of a prompt; 0 for a student without a vision tower, whatever the data hold."""
        return self.work.images if self.student.vision else 0

    @property
    def compute_bytes(self) -> int:
        """Of an output of a matrix product."""
        return 2 if self.bf16 else 4

    @property
    def trained(self) -> int:
        """Parameters of the student that a step moves."""
        if self.lora_rank:
            return self.student.text.lora_parameters(self.lora_rank)
        return self.student.text.parameters if self.freeze_vision else self.student.parameters

    def shape(self, weights: str) -> Shape:
        """Of a role's weights; copies of the student have its shape."""
        return self.frozen.get(weights, self.student)

    def seeing(self, roles: Iterable[Role]) -> tuple[str, ...]:
        """Whose features of images a window holds once `roles` and the student have seen them.

        A copy of the student sees with its tower, unless that is trained.
        """
        own = (role.weights if role.weights in self.frozen or not self.freeze_vision else "student" for role in roles)
        return tuple(dict.fromkeys(("student", *own)))

    def prompt(self, view: str) -> int:
        """Tokens of a prompt in `view`."""
        plain = self.images * self.work.image_tokens + self.work.text_tokens
        if view in TAKES_RESPONSE:
            return plain + self.work.response_tokens
        return plain + (self.work.privileged_tokens if view == "privileged" else 0)

    def group(self, view: str, response: int) -> int:
        """Tokens of a prompt with all its responses."""
        return self.prompt(view) + self.siblings * response

    def rows(self, view: str, response: int) -> int:
        """Groups that one forward pass holds."""
        return min(self.micro, max(1, self.pass_tokens // self.group(view, response)))


def read_job(
    recipe: str | Path, overrides: Sequence[str] = (), *, work: Mapping[str, int], gpus: int, batch: int | None,
    sharding: Sharding = "none", lora_rank: int = 0,
) -> Job:  # fmt: skip
    """The job of a recipe on `gpus` GPUs with `batch` prompts a step over all of them (None: as the recipe has it).

    Nothing but the recipe and config files is read: neither data nor weights need be there. Raises ConfigError.
    """
    settings = read_settings(recipe, list(overrides))
    settings["data"] = {**(settings.get("data") or {}), "train": ""}
    config = typed(RunConfig, settings, "")
    for key in ("student", "teacher"):
        if not getattr(config.model, key):
            raise ConfigError(f"model.{key}: expected a model folder or hub name, got nothing")
    config.check_training_arguments()
    return job_of(config, work=work, gpus=gpus, batch=batch, sharding=sharding, lora_rank=lora_rank)


def job_of(
    config: RunConfig, *, work: Mapping[str, int], gpus: int = 1, batch: int | None = None,
    sharding: Sharding = "none", lora_rank: int = 0,
) -> Job:  # fmt: skip
    """The same of a configuration that is read already."""
    if sharding not in get_args(Sharding):
        raise ConfigError(f"--sharding {sharding}: no such sharding; {closest(sharding, get_args(Sharding))}")
    if gpus < 1:
        raise ConfigError(f"--gpus {gpus}: expected at least 1")
    wrong = next((f"{name} {value}" for name, value in work.items() if value < 0), None)
    if wrong:
        raise ConfigError(f"--{wrong.replace('_', '-')}: expected 0 or more")
    micro = _number(config.train, "per_device_train_batch_size", 8)
    accumulation = _number(config.train, "gradient_accumulation_steps", 1)
    if batch is not None:
        if batch < 1 or batch % gpus:
            raise ConfigError(f"--batch {batch}: expected a multiple of --gpus {gpus}: every GPU has whole prompts")
        micro = max(n for n in range(1, min(micro, batch // gpus) + 1) if (batch // gpus) % n == 0)
        accumulation = batch // gpus // micro
    allow, paths = config.model.allow_download, {"teacher": config.model.teacher}
    if config.model.teacher_base:
        paths["teacher_base"] = config.model.teacher_base
    if served := [role for role, path in paths.items() if is_address(path)]:
        raise ConfigError(f"model.{served[0]}: a plan reads its config file: give a folder or hub name, not an address")
    rollout = config.rollout
    lora = config.model.lora or (LoraConfig(r=lora_rank) if lora_rank else None)
    return Job(
        student=find_shape(config.model.student, allow),
        frozen={role: find_shape(path, allow) for role, path in paths.items()},
        method=config.build_method(),
        work=Work(**{"response_tokens": max(rollout.max_new_tokens // 2, 1), **work}),
        gpus=gpus,
        sharding=sharding if gpus > 1 else "none",
        micro=micro,
        accumulation=accumulation,
        pass_tokens=config.data.max_pass_tokens,
        siblings=rollout.siblings,
        max_new_tokens=rollout.max_new_tokens,
        rollout_batch=rollout.batch_size,
        freeze_vision=config.model.freeze_vision,
        checkpointing=bool(config.train.get("gradient_checkpointing", False)),
        bf16=bool(config.train.get("bf16", False)),
        tf32=bool(config.train.get("tf32", False)),
        flex=config.model.attention != "sdpa",
        frozen_bytes=2 if config.model.teacher_dtype == "bfloat16" else 4,
        frozen_held=config.model.teacher_load,
        lora_rank=lora_rank or (lora.r if lora else 0),
        base_bytes=2 if lora and lora.dtype == "bfloat16" else 4,
        base_held=(lora and lora.quantize) or "full",
    )


def _number(settings: Mapping[str, Any], name: str, default: int) -> int:
    value = settings.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"train.{name}: expected a whole number of at least 1, got {value!r}")
    return value
