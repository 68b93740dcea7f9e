"""Vision features once an image, model and window: rollout, scoring and all siblings share them.

The tower is most of a prompt's cost when images are large, and a window shows the same image up to four times: to the
rollout, to the privileged student, to the teacher and in the pass with gradient. transformers takes features instead
of pixels (`mm_encoder_outputs`), so a model encodes an image when it first meets it. The pass with gradient takes
them too, unless the tower itself is trained.

Shape letters: I image tokens, H hidden size of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

PATCHES = 16_384
"""Patches encoded at one time: 4,096 image tokens, four megapixels."""


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image as the processor cuts it into patches. Two views that show an image share this object."""

    pixel_values: Tensor
    """[patches, channels · time · height · width]"""
    grid_thw: Tensor
    """Patches along time, height and width."""
    picture: Any = None
    """The PIL image itself, where the encoder was told to keep it: for an engine that cuts it into patches again."""


@dataclass
class _Encoded(BaseModelOutputWithPooling):
    """What the model's own `get_image_features` returns, for the images of a batch: one tensor an image."""

    deepstack_features: Any = None


class VisionOnce:
    """The features of one model's images since `forget` was called."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tower: Any = getattr(model.base_model, "visual", None)
        self._features: dict[EncodedImage, tuple[Tensor, ...]] = {}

    @property
    def trains(self) -> bool:
        """Whether a step moves the tower's weights."""
        return self.tower is not None and any(p.requires_grad for p in self.tower.parameters())

    def forget(self) -> None:
        """To be called when a window begins: images of the last one are gone, and the weights may have moved."""
        self._features = {}

    def drop(self, image: EncodedImage) -> None:
        """For who keeps images longer than a window: this one will not be asked for again."""
        self._features.pop(image, None)

    @torch.no_grad()
    def inputs(self, images: Sequence[EncodedImage]) -> dict[str, Any]:
        """Keyword arguments of a forward pass without gradient that shows `images`, in the order of placeholders."""
        if not images:
            return {}
        for block in _blocks([image for image in dict.fromkeys(images) if image not in self._features]):
            self._encode(block)
        # per image: the features [I, H] that take the placeholders' places, then those of each deepstack layer
        first, *deepstack = zip(*(self._features[image] for image in images), strict=True)
        encoded = _Encoded(pooler_output=cast(Any, first), deepstack_features=deepstack)
        return {"mm_encoder_outputs": {"image": encoded}}

    def training_inputs(self, images: Sequence[EncodedImage]) -> dict[str, Any]:
        """The same for the pass with gradient: features of a frozen tower, pixels for one that is trained."""
        if not images or not self.trains:
            return self.inputs(images)
        return _pixels(images, self.tower.device)

    def _encode(self, images: Sequence[EncodedImage]) -> None:
        was_training = self.tower.training
        self.tower.eval()
        try:
            pixels = _pixels(images, self.tower.device)
            output = self.model.base_model.get_image_features(**pixels, return_dict=True)
        finally:
            self.tower.train(was_training)
        for image, *features in zip(images, output.pooler_output, *output.deepstack_features, strict=True):
            self._features[image] = tuple(features)


def _pixels(images: Sequence[EncodedImage], device: torch.device) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.cat([image.pixel_values for image in images]).to(device),
        "image_grid_thw": torch.stack([image.grid_thw for image in images]).to(device),
    }


def _blocks(images: Sequence[EncodedImage]) -> list[list[EncodedImage]]:
    """Runs of images of at most PATCHES patches; a larger image is a block of its own."""
    blocks: list[list[EncodedImage]] = []
    patches = PATCHES
    for image in images:
        own = image.pixel_values.shape[0]
        if patches + own > PATCHES:
            blocks.append([])
            patches = 0
        blocks[-1].append(image)
        patches += own
    return blocks
