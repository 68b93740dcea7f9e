"""Copies of the student that methods ask for: as it was at the beginning, some steps ago, or its moving average.

A copy shares every parameter that is not trained with the student: a frozen vision tower, or the base weights under
LoRA, exist once. Copies that move (`ema`, `snapshot`) are saved with every checkpoint, so that a resumed run goes on
with the ones it had; `initial` is what the run starts from.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from .errors import ConfigError
from .lora import has_adapter, remove_adapter
from .methods import Method
from .roles import Policy
from .sharding import like, whole

KINDS = ("ema", "initial", "snapshot")
STATE = "method_state.json"


class StudentCopies(TrainerCallback):
    """Makes the copies that `method` names, and moves them after every step."""

    def __init__(self, student: Policy, method: Method) -> None:
        wanted = {role.weights for role in method.roles}
        self.student, self.method = student, method
        self.policies: dict[str, Policy] = {kind: copy_of(student) for kind in KINDS if kind in wanted}
        if "initial" in self.policies and has_adapter(student.model):
            remove_adapter(self.policies["initial"].model)  # a fresh one adds nothing: what is left is the base
        self.state: dict[str, float] = {}
        """Numbers that the method keeps from one window to the next."""

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move `ema` a share `ema_rate` towards the student; renew `snapshot` every `snapshot_steps`."""
        for kind, policy in self.policies.items():
            pairs = zip(_trained(policy.model), _trained(self.student.model), strict=True)
            if kind == "ema":
                for mine, live in pairs:
                    mine.lerp_(like(live, mine), self.method.ema_rate)
            elif (
                kind == "snapshot"
                and self.method.snapshot_steps
                and state.global_step % self.method.snapshot_steps == 0
            ):
                for mine, live in pairs:
                    mine.copy_(like(live, mine))

    def save(self, checkpoint: Path, write: bool = True) -> None:
        """Write the copies that move, and the state, into `checkpoint`. All ranks call it: each may hold a part."""
        for kind in self._moving():
            tensors = {str(i): whole(p.detach()).cpu() for i, p in enumerate(_trained(self.policies[kind].model))}
            if write:
                save_file(tensors, checkpoint / f"{kind}.safetensors")
        if self.state and write:
            (checkpoint / STATE).write_text(json.dumps(self.state), encoding="utf-8")

    @torch.no_grad()
    def load(self, checkpoint: Path) -> None:
        """What `save` wrote. Raises ConfigError if it is not there."""
        for kind in self._moving():
            file = checkpoint / f"{kind}.safetensors"
            if not file.exists():
                raise ConfigError(f"{file}: not found; this checkpoint was not written by a run of this method")
            tensors = load_file(file)
            for i, parameter in enumerate(_trained(self.policies[kind].model)):
                parameter.copy_(like(tensors[str(i)], parameter))
        if (checkpoint / STATE).exists():
            self.state.update(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))

    def _moving(self) -> list[str]:
        return [kind for kind in self.policies if kind != "initial"]


def copy_of(student: Policy) -> Policy:
    """A policy of its own weights where the student is trained, and of the student's where it is not."""
    shared: dict[int, Any] = {id(p): p for p in student.model.parameters() if not p.requires_grad}
    tables = [module.quant_state for module in student.model.modules() if hasattr(module, "quant_state")]
    shared |= {id(table): table for table in tables}  # what bitsandbytes needs to read its 4-bit matrices
    model = copy.deepcopy(student.model, shared).eval()
    tower = getattr(student.model.base_model, "visual", None)
    frozen = tower is not None and not any(p.requires_grad for p in tower.parameters())
    copied = replace(student, model=model, sees_with=student if frozen else None)
    for parameter in _trained(model):
        parameter.grad = None
    return copied


def _trained(model: Any) -> Iterable[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
