"""The rollout engine that a configuration asks for, what watches over it, and how its server is started."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch

from .config import RunConfig
from .importance import Importance
from .methods import Method, Role
from .roles import Policy
from .rollout import Engine
from .rollout.hf import HFRollout
from .rollout.mismatch import MismatchCheck


def dtype_of(config: RunConfig) -> str:
    """What the trainer computes in: the engine should, too."""
    return "bfloat16" if config.train.get("bf16") else "float16" if config.train.get("fp16") else "float32"


def max_length(config: RunConfig) -> int:
    """Tokens of the longest prompt with the longest response."""
    return config.data.max_prompt_tokens + config.rollout.max_new_tokens


def server_commands(config: RunConfig) -> list[str]:
    """What starts each of `rollout.vllm.urls`."""
    from .rollout.server import serve_command

    model = shlex.quote(config.model.student)
    return [serve_command(model, url, max_length(config), dtype_of(config)) for url in config.rollout.vllm.urls]


def engine_of(
    config: RunConfig, method: Method, student: Policy, pad_id: int, eos: list[int], banned: list[int], seed: int
) -> Engine:
    """Raises ConfigError if there is no such engine: no server, or one that cannot do what is needed."""
    rollout, view = config.rollout, method.rollout_view
    if rollout.engine == "hf":
        return HFRollout(student, rollout, pad_id, eos, banned, seed, view)
    from .rollout.vllm import Backend, VLLMRollout

    backend: Backend
    if rollout.vllm.mode == "server":
        from .rollout.server import Servers

        backend = Servers(rollout.vllm.urls, rollout.vllm.timeout, server_commands(config)[0])
    else:
        from .rollout.colocated import Colocated

        backend = Colocated(config.model.student, max_length(config), dtype_of(config), rollout.vllm.memory_share)
    folder = Path(rollout.vllm.weights or config.output_dir)
    dtype: torch.dtype = getattr(torch, dtype_of(config))
    return VLLMRollout(backend, student, rollout, eos, banned, seed, folder, dtype, view)


def watching(config: RunConfig, method: Method, student: Policy, pad_id: int, banned: list[int]) -> dict[str, Any]:
    """`check` and `importance` of a `WindowBuilder`; nothing for an engine that samples with the trainer's weights."""
    rollout = config.rollout
    if rollout.engine == "hf":
        return {}
    check = MismatchCheck(student, rollout, banned, pad_id, method.rollout_view, config.data.max_pass_tokens)
    of, cap = rollout.vllm.importance, rollout.vllm.importance_cap
    role = Role("student", method.rollout_view)
    return {"check": check, "importance": None if of == "none" else Importance(role=role, of=of, cap=cap)}
