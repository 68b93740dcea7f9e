"""The student's weights as a checkpoint that another program reads: whole, plain, in one dtype."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import TrainingError
from ..sharding import whole


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
        weight = whole(parameter)
        if not weight.is_floating_point():  # QLoRA
            weight = _spelt_out(model.get_submodule(module))
        if module in adapted and leaf == "weight":
            pairs = adapted[module]
            weight = weight.float() + sum(pairs.get_delta_weight(a).float() for a in pairs.active_adapters)
        yield name.replace(".base_layer.", "."), weight.to("cpu", dtype).contiguous()


def _spelt_out(layer: Any) -> Tensor:
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer)


def write_weights(model: Any, folder: Path, dtype: torch.dtype, write: bool) -> None:
    """`whole_weights` into `folder`; called on all ranks, one of which writes."""
    tensors = {name: weight for name, weight in whole_weights(model, dtype) if write}
    if write:
        folder.mkdir(parents=True)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
