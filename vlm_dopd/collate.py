"""From samples to encoded prompts: the only place where a text-only model differs from a vision-language model.

Shape letters: P prompt tokens, C position channels (3 for M-RoPE: time, height, width; 1 for plain RoPE).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privileged import Sample, View, build_views
from privileged.builders import Builder
from privileged.errors import DataError

from .roles import tokenizer_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """One view, encoded. It ends with the bytes after which the assistant's first token is sampled."""

    id_P: Tensor
    type_P: Tensor
    """`mm_token_type_ids`: 0 text, 1 image."""
    position_CP: Tensor
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None


@dataclass(frozen=True)
class Group:
    """One sample's two prompts: the unit that is rolled out, scored, packed and trained together."""

    sample_id: str
    plain: Prompt
    privileged: Prompt
    has_privilege: bool


@dataclass(frozen=True)
class Batch:
    """The groups of one micro-batch, and what became of the samples whose prompts were too long."""

    groups: tuple[Group, ...]
    dropped: int = 0
    """Samples whose plain prompt is over budget."""
    without_privilege: int = 0
    """Samples whose privileged prompt is over budget: they are trained without p. p itself is never truncated."""


class Encoder:
    """View -> Prompt, with the models' own processor (or tokenizer) and position scheme."""

    def __init__(self, processor: Any, model: Any) -> None:
        self.processor = processor
        self.sees = hasattr(processor, "image_processor")
        self.rope_index: Callable[..., Any] | None = getattr(model.base_model, "get_rope_index", None)

    def encode(self, view: View) -> Prompt:
        """Raises DataError for a view with images if the model has no eyes."""
        text = self.render(view)
        if not self.sees:
            encoded = self.processor([text], return_tensors="pt")
        else:
            encoded = self.processor(text=[text], images=list(view.images) or None, return_tensors="pt")
        ids = encoded["input_ids"]
        types = encoded.get("mm_token_type_ids", torch.zeros_like(ids))
        grid = encoded.get("image_grid_thw")
        if self.rope_index is not None:
            position_CP = self.rope_index(ids, types, image_grid_thw=grid)[0][:, 0]
        else:
            position_CP = torch.arange(ids.shape[1])[None]
        return Prompt(ids[0], types[0], position_CP, encoded.get("pixel_values"), grid)

    def render(self, view: View) -> str:
        """The prompt as the chat template writes it, up to where the assistant begins."""
        messages = copy.deepcopy(list(view.messages))  # transformers edits what it is given
        if self.sees:
            return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if view.images:
            raise DataError(f"prompt has {len(view.images)} images: expected none, the model is text-only")
        for message in messages:
            message["content"] = "".join(part["text"] for part in message["content"])
        # Text-only Qwen3 opens a thinking block unless told not to; both views must end in the same bytes.
        return tokenizer_of(self.processor).apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
        )


class Collator:
    """Samples -> Batch. Runs in data loader workers."""

    def __init__(self, encoder: Encoder, builder: Builder, max_prompt_tokens: int) -> None:
        self.encoder, self.builder, self.max_prompt_tokens = encoder, builder, max_prompt_tokens

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Raises DataError if no prompt of the batch fits the budget."""
        groups, dropped, without_privilege = [], 0, 0
        for sample in samples:
            views = build_views(sample, self.builder)
            plain = self.encoder.encode(views.plain)
            if self._too_long(plain, sample, "plain"):
                dropped += 1
                continue
            privileged = self.encoder.encode(views.privileged) if views.has_privilege else plain
            fits = not self._too_long(privileged, sample, "privileged")
            without_privilege += not fits
            groups.append(
                Group(sample.id, plain, privileged if fits else plain, has_privilege=views.has_privilege and fits)
            )
        if not groups:
            raise DataError(
                f"samples {', '.join(s.id for s in samples)}: no prompt fits data.max_prompt_tokens="
                f"{self.max_prompt_tokens}; raise it, or lower the processor's image size"
            )
        return Batch(tuple(groups), dropped, without_privilege)

    def _too_long(self, prompt: Prompt, sample: Sample, view: str) -> bool:
        if prompt.id_P.numel() <= self.max_prompt_tokens:
            return False
        fate = "dropped" if view == "plain" else "trained without p"
        logger.warning(
            "sample %s is %s: its %s prompt has %d tokens, data.max_prompt_tokens is %d",
            *(sample.id, fate, view, prompt.id_P.numel(), self.max_prompt_tokens),
        )
        return True
