"""How a model's weights lie in memory: whole on the device, quantised by bitsandbytes, in host memory, or in shards.

Whatever is done to the layers of the language model, the LM head stays one dense matrix on the device, which chunked
losses need (`head.py`), and so do the embedding, which may be the same matrix, and the vision tower, whose features are
worth their bytes.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
from accelerate import cpu_offload
from torch import nn

from .errors import ConfigError
from .sharding import shard

Held = Literal["full", "int8", "nf4", "offload", "sharded"]
"""full: in `dtype` on the device. int8, nf4: matrices of the language model quantised, the rest in `dtype`. offload:
its layers in host memory; each comes to the device for its forward pass. sharded: each rank has a part of each layer,
which are gathered for its forward pass."""
DENSE = ["lm_head", r"(.*\.)?visual"]
"""Names of modules that are never quantised."""


def options(held: Held, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` needs beside `dtype`. Raises ConfigError if bitsandbytes is not installed."""
    if held in ("full", "offload", "sharded"):
        return {}
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"{held}: expected bitsandbytes, which is not installed: pip install 'vlm-dopd[quantize]'")
    from transformers import BitsAndBytesConfig

    four_bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    own = four_bits if held == "nf4" else {"load_in_8bit": True}
    config = BitsAndBytesConfig(**own, llm_int8_skip_modules=DENSE)  # of both, whatever its name says
    return {"quantization_config": config, "device_map": {"": device}}


def place(model: Any, held: Held, device: torch.device) -> None:
    """Bring a model that was loaded with `options` to where it is used. It must be frozen for `offload`."""
    if held == "offload":
        for layer in _layers(model):
            kept = {name: tensor.cpu() for name, tensor in layer.state_dict().items()}
            # One copy for the whole layer, not one for each of its matrices.
            cpu_offload(layer, device, state_dict=kept, preload_module_classes=[type(layer).__name__])
        model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))  # `to` stumbles over the layers
    else:
        if held == "sharded":
            shard(model)
        model.to(device)
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or not head.weight.is_floating_point() or head.weight.is_meta:
        raise ConfigError(f"{held}: expected the LM head as a dense matrix, got {type(head).__name__}; load it full")


def _layers(model: Any) -> nn.ModuleList:
    decoder = getattr(model.base_model, "language_model", model.base_model)
    return decoder.layers
