"""Models and processors: loading, and the checks that a teacher and a student can share token ids.

A role is weights × view (`methods.Role`). The weights are here; the views come from `privileged.views`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from .attention import ATTENTION
from .errors import ConfigError
from .head import Head
from .loading import Held, options, place
from .lora import base_of
from .vision import VisionOnce

Attention = Literal["auto", "sdpa", "flex"]


@dataclass(frozen=True)
class Policy:
    """A model, and how many rows of its LM head are real tokens (V); the rest pads to a round number."""

    model: Any
    vocab_size: int
    attention: Attention = "auto"
    """Of shared-prefix rows: FlexAttention where there is a CUDA device and SDPA elsewhere, or always one of them."""
    sees_with: Policy | None = None
    """Whose features of images these are too: of a copy that shares a frozen tower with what it is a copy of."""
    merged: tuple[int, ...] = ()
    """Ids that count as one token in scores and losses: `Head.merged`."""

    @cached_property
    def vision(self) -> VisionOnce:
        """The features of the images this model has seen in the present window."""
        return VisionOnce(self.model) if self.sees_with is None else self.sees_with.vision

    def forget(self) -> None:
        """To be called when a window begins."""
        self.vision.forget()

    def stops(self, tokenizer: Any) -> list[int]:
        """All ids that end a response for this model."""
        return eos_ids(self.model, tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the LM head lies, and so where hidden states are compared."""
        return self.model.get_output_embeddings().weight.device

    @property
    def flex(self) -> bool:
        """Whether shared-prefix rows get a block mask."""
        return self.attention == "flex" or (self.attention == "auto" and self.device.type == "cuda")

    def head(self, temperature: float = 1.0) -> Head:
        """The LM head with its gradient; whole on each rank (see `sharding`)."""
        config = self.model.config.get_text_config()
        return Head(
            self.model.get_output_embeddings().weight,
            self.vocab_size,
            scale=getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0),
            softcap=getattr(config, "final_logit_softcapping", None),
            temperature=temperature,
            merged=self.merged,
        )


def load_policy(
    path: str,
    tokenizer: Any,
    dtype: str = "float32",
    allow_download: bool = False,
    attention: Attention = "auto",
    held: Held = "full",
    device: torch.device | str = "cpu",
) -> Policy:
    """The model in folder `path`, from safetensors, without remote code, with the attention of shared-prefix rows.

    Of an adapter folder its base with the adapter beside it. Raises ConfigError if there is no such model here."""
    device, wanted = torch.device(device), getattr(torch, dtype)
    cls = AutoModelForImageTextToText if sees(path, allow_download) else AutoModelForCausalLM
    settings = {"dtype": wanted, "use_safetensors": True, "attn_implementation": ATTENTION}
    model = _load(cls, path, allow_download, **settings, **options(held, wanted, device))
    place(model, held, device)
    rows = model.get_output_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise ConfigError(
            f"{path}: expected an LM head of at least {len(tokenizer)} rows (the tokenizer's), got {rows}"
        )
    return Policy(model, len(tokenizer), attention)


def load_processor(path: str, allow_download: bool = False) -> Any:
    """The processor in folder `path`, or the tokenizer of a text-only model."""
    return _load(AutoProcessor if sees(path, allow_download) else AutoTokenizer, path, allow_download)


def tokenizer_of(processor: Any) -> Any:
    """A processor's tokenizer; a text-only model's tokenizer is its own processor."""
    return getattr(processor, "tokenizer", processor)


def check_pair(student: Any, teacher: Any) -> None:
    """Both processors must turn one view into one prompt, else the teacher scores tokens of another language.

    Raises ConfigError if tokens, chat template or image geometry differ.
    """
    check_vocabularies(student, teacher)
    check_templates(student, teacher)
    check_geometries(student, teacher)


def check_vocabularies(student: Any, teacher: Any) -> None:
    """Raises ConfigError unless both tokenizers have the same tokens under the same ids."""
    if tokenizer_of(student).get_vocab() != tokenizer_of(teacher).get_vocab():
        raise ConfigError("teacher and student: expected one tokenizer, got two vocabularies; distil within a family")


def check_templates(student: Any, teacher: Any) -> None:
    """Raises ConfigError unless both processors have the same chat template, byte for byte."""
    if student.chat_template != teacher.chat_template:
        raise ConfigError(
            "teacher and student: expected one chat template, got two; thinking and instruct models must not be mixed"
        )


def check_geometries(student: Any, teacher: Any) -> None:
    """Raises ConfigError unless both processors cut an image into the same patches, or neither sees any."""
    geometry = [getattr(p, "image_processor", None) for p in (student, teacher)]
    facts = [
        g and {k: v for k, v in g.to_dict().items() if k in ("size", "patch_size", "merge_size")} for g in geometry
    ]
    if facts[0] != facts[1]:
        raise ConfigError(f"teacher and student: expected one image geometry, got {facts[1]} and {facts[0]}")


def freeze_vision(model: Any) -> int:
    """Take the vision tower out of training; returns the number of parameters frozen (0 for a text-only model)."""
    tower = getattr(model.base_model, "visual", None)
    parameters = list(tower.parameters()) if tower is not None else []
    for parameter in parameters:
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in parameters)


def banned_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids a student must never sample: placeholders of media, which would make the scoring pass look for pixels."""
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ids = {getattr(model.config, name, None) for name in names}
    ids.add(tokenizer.get_vocab().get("<|vision_pad|>"))
    return sorted(i for i in ids if isinstance(i, int))


def eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """All ids that end a response: what the model's generation config says, and the tokenizer's own."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in [*listed, tokenizer.eos_token_id] if i is not None})


def with_merged_stops(policies: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The same, but that all ids that end a response for one of them are one token for each."""
    stops = {i for policy in policies.values() for i in policy.stops(tokenizer)}
    return {name: replace(policy, merged=tuple(sorted(stops))) for name, policy in policies.items()}


def sees(path: str, allow_download: bool) -> bool:
    """Whether it is a vision-language model; AutoProcessor guesses from files that a tokenizer may bring."""
    return (
        _load(AutoConfig, base_of(path) or path, allow_download).model_type
        in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    )


def _load(cls: Any, path: str, allow_download: bool, **options: Any) -> Any:
    try:
        return cls.from_pretrained(path, local_files_only=not allow_download, trust_remote_code=False, **options)
    except (OSError, ValueError, SafetensorError) as error:
        if Path(path).is_dir():
            raise ConfigError(
                f"{path}: expected a transformers checkpoint, got: {str(error).splitlines()[0]}"
            ) from None
        raise ConfigError(
            f"{path}: no such folder, and not in the local hub cache; check the path, or set "
            "model.allow_download=true to fetch it from the hub"
        ) from None
