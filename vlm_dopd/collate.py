"""From samples to encoded prompts: the only place where a text-only model differs from a vision-language model.

Shape letters: P prompt tokens, C position channels (3 for M-RoPE: time, height, width; 1 for plain RoPE).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from privileged import Sample, View, build_views
from privileged.builders import Builder
from privileged.errors import DataError
from privileged.probes import PROBES, quoted
from privileged.views import view_with

from .roles import tokenizer_of
from .vision import EncodedImage

logger = logging.getLogger(__name__)

_PLACEHOLDER = "<|placeholder|>"
"""Stands for an image token while the template's one placeholder an image is repeated; escaped text never holds it."""


@dataclass(frozen=True)
class Prompt:
    """One view, encoded. It ends with the bytes after which the assistant's first token is sampled."""

    id_P: Tensor
    type_P: Tensor
    """`mm_token_type_ids`: 0 text, 1 image."""
    position_CP: Tensor
    images: tuple[EncodedImage, ...] = ()

    @property
    def image_grid_thw(self) -> Tensor | None:
        """[images, 3], None for a prompt without images."""
        return torch.stack([image.grid_thw for image in self.images]) if self.images else None


@dataclass(frozen=True)
class Group:
    """One sample's two prompts: the unit that is rolled out, scored, packed and trained together."""

    sample_id: str
    plain: Prompt
    privileged: Prompt
    has_privilege: bool
    probes: Mapping[str, Prompt] = field(default_factory=dict)
    """Further prompts the method asks for, by view: `degraded`, `masked`, `praised`, `blamed`."""
    sample: Sample | None = None
    """For methods that need it after the rollout: for rewards, reference completions, prompts that show a response."""


@dataclass(frozen=True)
class Batch:
    """The groups of one micro-batch, and what became of its samples."""

    groups: tuple[Group, ...]
    dropped: int = 0
    """Samples left out: the plain prompt is over budget, or there is no p and `without_p` says drop."""
    without_privilege: int = 0
    """Samples trained without p: they have none, or its prompt is over budget. p itself is never truncated."""
    left_out: int = 0
    """Regions, points or relations that a limit of the builder left out of p."""


class Encoder:
    """View -> Prompt, with the models' own processor (or tokenizer) and position scheme."""

    def __init__(self, processor: Any, model: Any = None, keep_pictures: bool = False) -> None:
        """Without a model, positions are those of text: enough to count tokens."""
        self.processor, self.keep_pictures = processor, keep_pictures
        self.sees = hasattr(processor, "image_processor")
        self.rope_index = _rope_index(getattr(model, "base_model", None))

    def encode(self, view: View, seen: dict[int, EncodedImage] | None = None) -> Prompt:
        """Images already in `seen` (by `id`) are not cut into patches again; new ones are added to it.

        Raises DataError for a view with images if the model has no eyes.
        """
        text = self.render(view)
        seen = {} if seen is None else seen
        images = tuple(self._image(image, seen) for image in view.images)
        for image in images:
            # As the processor's own call does; that would cut the image into patches for each view anew.
            tokens = int(image.grid_thw.prod()) // self.processor.image_processor.merge_size**2
            text = text.replace(self.processor.image_token, _PLACEHOLDER * tokens, 1)
        if images:
            text = text.replace(_PLACEHOLDER, self.processor.image_token)
        tokenizer = tokenizer_of(self.processor)
        ids = tokenizer([text], return_tensors="pt", add_special_tokens=False)["input_ids"]
        types = (ids == self.processor.image_token_id).long() if images else torch.zeros_like(ids)
        if self.rope_index is not None:
            grid = torch.stack([image.grid_thw for image in images]) if images else None
            position_CP = self.rope_index(ids, types, image_grid_thw=grid)[0][:, 0]
        else:
            position_CP = torch.arange(ids.shape[1])[None]
        return Prompt(ids[0], types[0], position_CP, images)

    def _image(self, image: Image, seen: dict[int, EncodedImage]) -> EncodedImage:
        if id(image) not in seen:
            patches = self.processor.image_processor(images=[image], return_tensors="pt")
            picture = image if self.keep_pictures else None
            seen[id(image)] = EncodedImage(patches["pixel_values"], patches["image_grid_thw"][0], picture)
        return seen[id(image)]

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


def _rope_index(model: Any) -> Callable[..., Any] | None:
    """The position scheme of a base model, without its weights: workers get a copy of the encoder."""
    if not hasattr(model, "get_rope_index"):
        return None
    with torch.device("meta"):
        return type(model)(model.config).get_rope_index


class Collator:
    """Samples -> Batch. Runs in data loader workers.

    `without_p` is the fate of a sample that has no p, or whose p does not fit the budget: `fallback_none` (trained
    with the plain prompt in both views, which is vanilla OPD), `drop` or `error`.
    """

    def __init__(
        self,
        encoder: Encoder,
        builder: Builder,
        max_prompt_tokens: int,
        placement: str = "before_question",
        without_p: str = "fallback_none",
        probes: Sequence[str] = (),
        keep_samples: bool = False,
    ) -> None:
        self.encoder, self.builder, self.max_prompt_tokens = encoder, builder, max_prompt_tokens
        self.placement, self.without_p = placement, without_p
        self.probes, self.keep_samples = probes, keep_samples

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Raises DataError if nothing of the batch is left, or a sample has no p where `without_p` is `error`."""
        made = [self._group(sample) for sample in samples]
        groups = tuple(group for group, _ in made if group is not None)
        if not groups:
            raise DataError(
                f"samples {', '.join(s.id for s in samples)}: nothing is left to train on with data.max_prompt_tokens="
                f"{self.max_prompt_tokens} and data.without_p={self.without_p}; raise the budget, lower the "
                "processor's image size, or filter the file with `vlm-dopd annotate audit`"
            )
        return Batch(
            groups=groups,
            dropped=len(made) - len(groups),
            without_privilege=sum(not group.has_privilege for group in groups),
            left_out=sum(left_out for _, left_out in made),
        )

    def _group(self, sample: Sample) -> tuple[Group | None, int]:
        """The prompts of `sample`, None for one to drop; and how much the builder left out of p."""
        views = build_views(sample, self.builder, self.placement)
        seen: dict[int, EncodedImage] = {}
        plain = self.encoder.encode(views.plain, seen)
        if problem := self._too_long(plain, "plain"):
            logger.warning("sample %s is dropped: %s", sample.id, problem)
            return None, 0
        probes = {name: self.encoder.encode(view_with(sample, PROBES[name](sample)), seen) for name in self.probes}
        group = Group(sample.id, plain, plain, False, probes, sample if self.keep_samples else None)
        problem = "it has no p"
        if views.has_privilege:
            privileged = self.encoder.encode(views.privileged, seen)
            problem = self._too_long(privileged, "privileged")
            if not problem:
                return replace(group, privileged=privileged, has_privilege=True), views.left_out
        if self.without_p == "error":
            raise DataError(f"sample {sample.id}: data.without_p=error: {problem}")
        if self.without_p == "drop":
            logger.warning("sample %s is dropped: %s", sample.id, problem)
            return None, 0
        if views.has_privilege:
            logger.warning("sample %s is trained without p: %s", sample.id, problem)
        return group, 0

    def quoting(self, group: Group, text: str, header: str) -> Prompt:
        """The plain prompt of `group` with `text` under `header`; the plain prompt itself if that is over budget."""
        assert group.sample is not None
        seen = {id(pixels): image for pixels, image in zip(group.sample.images, group.plain.images, strict=True)}
        view = view_with(group.sample, quoted(text, header), self.placement)
        prompt = self.encoder.encode(view, seen)
        if problem := self._too_long(prompt, "quoting"):
            logger.warning("sample %s: %s; the plain prompt takes its place", group.sample_id, problem)
            return group.plain
        return prompt

    def _too_long(self, prompt: Prompt, view: str) -> str:
        """What is wrong with a prompt that is over budget; nothing for one that fits."""
        if prompt.id_P.numel() <= self.max_prompt_tokens:
            return ""
        return f"its {view} prompt has {prompt.id_P.numel()} tokens, data.max_prompt_tokens is {self.max_prompt_tokens}"
