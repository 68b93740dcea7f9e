"""The models of a run as it begins: the student, and those that never change, loaded here or served elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from .config import ModelConfig, RunConfig
from .errors import ConfigError
from .lora import add_adapter
from .roles import Policy, check_pair, freeze_vision, load_policy, load_processor, tokenizer_of
from .served import is_address, is_url, topk

logger = logging.getLogger(__name__)


def load_pair(config: RunConfig, processor: Any, device: Any) -> tuple[Policy, dict[str, Any]]:
    """The student, and by role the models that never change. Raises ConfigError for models that do not fit."""
    names = {"teacher": config.model.teacher, "teacher_base": config.model.teacher_base}
    wanted = {role: path for role, path in names.items() if path is not None and not is_address(path)}
    for path in wanted.values():
        check_pair(processor, load_processor(path, config.model.allow_download))
    where, tokenizer = config.model, tokenizer_of(processor)
    load = partial(load_policy, tokenizer=tokenizer, allow_download=where.allow_download, attention=where.attention)
    student = _student(load, where, device)
    frozen = {
        role: load(path, dtype=where.teacher_dtype, held=where.teacher_load, device=device)
        for role, path in wanted.items()
    }
    for policy in frozen.values():
        policy.model.requires_grad_(False).eval()
    if "teacher" in frozen:
        logger.info("attention of scoring and training passes: %s", _attention(config, frozen["teacher"]))
    served = {role: name for role, name in names.items() if name is not None and is_address(name)}
    return student, frozen | _connect(served, config, processor, device)


def _student(load: Callable[..., Policy], config: ModelConfig, device: Any) -> Policy:
    """With what is not trained frozen. Only quantised weights go to the device at once: Trainer moves the others."""
    lora = config.lora
    if lora is None:
        student = load(config.student)
        if config.freeze_vision:
            logger.info("vision tower frozen: %d parameters", freeze_vision(student.model))
        return student
    kept = {"held": lora.quantize, "device": device} if lora.quantize else {}
    student = load(config.student, dtype=lora.dtype, **kept)
    logger.info("LoRA: %d parameters are trained, all others frozen", add_adapter(student.model, lora))
    return student


def _connect(served: dict[str, str], config: RunConfig, processor: Any, device: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    as_set = {"dtype": config.model.teacher_dtype, "load": config.model.teacher_load}
    for role, name in served.items():
        if is_url(name):
            found[role] = topk.connect(name, config.model.teacher_top_k or 0, processor, device, f"model.{role}")
            continue
        try:
            from .served.policy import connect
        except ModuleNotFoundError:
            raise ConfigError(f"model.{role}: an address needs pyzmq: pip install 'vlm-dopd[serve]'") from None
        found[role] = connect(name, processor, as_set, device, f"model.{role}")
    return found


def _attention(config: RunConfig, policy: Policy) -> str:
    if policy.flex:
        return "FlexAttention, block masks"
    return "SDPA, dense masks" + ("" if config.model.attention == "sdpa" else f" (the device is {policy.device.type})")
