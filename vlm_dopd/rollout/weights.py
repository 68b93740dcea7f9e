"""The student's weights as a checkpoint that another program reads: whole, plain, in one dtype."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..errors import TrainingError


@torch.no_grad()
def whole_weights(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a plain checkpoint of `model`, on the CPU; tied ones once, adapters of LoRA added to their
    base. `model` stays as it is, to the bit.

    A collective where ranks hold a shard of each (FSDP2). Raises TrainingError under DeepSpeed's ZeRO-3.
    """
    adapted = {f"{name}.base_layer": m for name, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        if hasattr(parameter, "ds_id"):
            raise TrainingError("rollout.engine=vllm: expected weights that can be read, ZeRO-3 keeps them; take FSDP2")
        module, _, leaf = name.rpartition(".")
        weight = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if module in adapted and leaf == "weight":
            weight = _merged(adapted[module], weight)
        yield name.replace(".base_layer.", "."), weight.to("cpu", dtype).contiguous()


def _merged(layer: Any, weight: Tensor) -> Tensor:
    if not weight.is_floating_point():  # QLoRA
        from peft.utils.integrations import dequantize_module_weight

        weight = dequantize_module_weight(layer.get_base_layer())
    return weight.float() + sum(layer.get_delta_weight(adapter).float() for adapter in layer.active_adapters)


def write_weights(model: Any, folder: Path, dtype: torch.dtype, write: bool) -> None:
    """`whole_weights` into `folder`; called on all ranks, one of which writes."""
    tensors = {name: weight for name, weight in whole_weights(model, dtype) if write}
    if write:
        folder.mkdir(parents=True)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
