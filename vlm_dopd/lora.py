"""LoRA: pairs of small trained matrices beside the frozen ones of the language model. Everything of peft is here.

The pairs are put into the student in place (`PeftAdapterMixin` of transformers), so that rollout, scoring, packing and
the LM head see the model they always see. Neither the vision tower nor the LM head gets any: a window's image features
stay what they were, and the head stays one dense matrix. What a run writes is an adapter folder of peft.

peft is an optional extra: nothing here imports it before a run asks for LoRA.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from .errors import ConfigError, closest

ADAPTER = "default"
"""peft's name of an adapter that has none of its own."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft writes before the name of every tensor."""


@dataclass(kw_only=True)
class LoraConfig:
    """`model.lora`: given at all, adapters are trained and nothing else."""

    r: int = 16
    """Rank of each pair."""
    alpha: float = 32.0
    """A pair adds alpha / r · B·A to its matrix."""
    dropout: float = 0.0
    """Of the pairs' inputs in the pass with gradient; rollouts and scores have none."""
    target_modules: list[str] | None = None
    """Last words of module names, as q_proj; null: every linear layer of the language model but the LM head."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the frozen weights; adapters are float32 always. Checkpoints come in bfloat16, so nothing is lost by it."""
    quantize: Literal["nf4"] | None = None
    """QLoRA: frozen matrices of the language model in 4 bits, through bitsandbytes."""


def add_adapter(model: Any, config: LoraConfig) -> int:
    """Freeze `model` and put fresh pairs into it, B = 0: it answers as before. Returns how many numbers are trained.

    Raises ConfigError if peft is not installed or a target is no linear layer of the language model.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft.tuners.tuners_utils import cast_adapter_dtype
    except ImportError:
        raise ConfigError("model.lora: expected peft, which is not installed: pip install 'vlm-dopd[lora]'") from None
    known = linear_layers(model)
    targets = config.target_modules or sorted(known)
    if unknown := [name for name in targets if name not in known]:
        raise ConfigError(
            f"model.lora.target_modules: {unknown[0]} is no linear layer of the language model; "
            f"{closest(unknown[0], known)}"
        )
    tower = _tower(model)
    excluded = rf"{re.escape(tower)}\..*" if tower else None
    settings = PeftConfig(
        r=config.r,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # annotated as int, used as a number
        lora_dropout=config.dropout,
        target_modules=targets,
        exclude_modules=excluded if tower and _inside(model, tower, targets) else None,
    )
    model.requires_grad_(False)
    model.add_adapter(settings, ADAPTER)
    # As peft's own PeftModel does: steps of a learning rate vanish in bfloat16.
    cast_adapter_dtype(model, ADAPTER)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def has_adapter(model: Any) -> bool:
    """Whether adapters are in `model`, by the mark that transformers leaves. Does not import peft."""
    return getattr(model, "_hf_peft_config_loaded", False)


def load_adapter(model: Any, folder: Path) -> None:
    """The weights in `folder` into the adapter that `model` has. Raises ConfigError if they are another one's."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    file = folder / WEIGHTS
    if not file.is_file():
        raise ConfigError(f"{file}: not found; this checkpoint was not written by a run with model.lora")
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(file).items()}
    mine = {name: tensor.shape for name, tensor in get_peft_model_state_dict(model, adapter_name=ADAPTER).items()}
    if mine != {name: tensor.shape for name, tensor in tensors.items()}:
        raise ConfigError(f"{file}: expected the adapter of this run; model.lora.r or target_modules were others then")
    set_peft_model_state_dict(model, tensors, adapter_name=ADAPTER)


def remove_adapter(model: Any) -> None:
    """Leave the base alone, with none of the pairs' memory."""
    model.delete_adapter(ADAPTER)


def base_of(path: str | Path) -> str | None:
    """What the adapter in folder `path` was trained on; None if there is a whole model, or no folder.

    Raises ConfigError if the folder says nothing of it.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    try:
        base = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{folder / CONFIG}: expected base_model_name_or_path, the model it was trained on")
    return base


def trained_as(folder: Path) -> LoraConfig | None:
    """`model.lora` of the run whose adapter lies in `folder`; None if there is none, or no config.yaml of a run."""
    if base_of(folder) is None:
        return None
    file = next((f for f in (folder / "config.yaml", folder.parent / "config.yaml") if f.is_file()), None)
    section = OmegaConf.select(OmegaConf.load(file), "model.lora") if file else None
    if section is None:
        return None
    return cast(LoraConfig, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LoraConfig), section)))


def linear_layers(model: Any) -> set[str]:
    """Last words of the names of all linear layers of the language model, without the LM head."""
    tower, head = _tower(model), model.get_output_embeddings()
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and not (tower and name.startswith(f"{tower}."))
    }


def _tower(model: Any) -> str:
    """Name of the vision tower, nothing for a text-only model."""
    tower = getattr(model.base_model, "visual", None)
    return next((name for name, module in model.named_modules() if module is tower), "") if tower is not None else ""


def _inside(model: Any, tower: str, targets: list[str]) -> bool:
    """Whether the tower has layers of these names too; peft warns of an exclusion that excludes nothing."""
    names = [name for name, _ in model.get_submodule(tower).named_modules()]
    return any(name.rpartition(".")[2] in targets for name in names)


def merged(model: Any, folder: Path) -> Any:
    """`model`, a plain base, with the adapter in `folder` added to its matrices.

    Raises ConfigError if the base is quantised: its matrices have no place for a sum.
    """
    from peft import PeftModel

    dtypes = {parameter.dtype for parameter in model.parameters()}
    if not dtypes <= {torch.float32, torch.bfloat16}:
        got = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ConfigError(f"merge: expected a base in float32 or bfloat16, got {got}; load it without quantisation")
    return PeftModel.from_pretrained(model, folder).merge_and_unload(safe_merge=True)
