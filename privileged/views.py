"""The only place where prompts are put together.

The plain view is what the deployed student will see. The privileged view is the same, byte for byte, plus one
section that holds p, placed between the images and the question, so that the question and its answer-format
instruction stay next to the answer. Both views therefore end in the same bytes. A builder may also replace the images
of the privileged view (by crops, say); those of the plain view are never touched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from .builders import Builder, PrivilegedBlock
from .escape import escape
from .records import PrivilegedRecord, Sample

SEPARATOR = "\n\n"


@dataclass(frozen=True, kw_only=True)
class View:
    """One prompt: chat messages in the form of `apply_chat_template`, and the images of their placeholders."""

    messages: tuple[dict[str, Any], ...]
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Views:
    """The two prompts of one sample. Without p they are the same object and `has_privilege` is False."""

    plain: View
    privileged: View
    has_privilege: bool


def plain_view(sample: Sample) -> View:
    """The deployed prompt: the images, then the question. Nothing of the answer or of p."""
    return _view(sample, PrivilegedBlock())


def build_views(sample: Sample, builder: Builder) -> Views:
    """Both prompts of `sample`. Raises DataError if the builder cannot render the sample's record."""
    plain = plain_view(sample)
    block = _block(sample, builder)
    if block.empty:
        return Views(plain=plain, privileged=plain, has_privilege=False)
    return Views(plain=plain, privileged=_view(sample, block), has_privilege=True)


def _block(sample: Sample, builder: Builder) -> PrivilegedBlock:
    """What `builder` makes of `sample`. Only one that discloses the answer is given it, and needs no record."""
    if getattr(builder, "discloses", None) == "answer":
        return builder.build(sample, sample.privileged or PrivilegedRecord(sample_id=sample.id))
    if sample.privileged is None:
        return PrivilegedBlock()
    return builder.build(replace(sample, answer=None), sample.privileged)


def _view(sample: Sample, block: PrivilegedBlock) -> View:
    images = list(sample.images if block.replace_images is None else block.replace_images)
    content: list[dict[str, Any]] = [{"type": "image"} for _ in images]
    for part in block.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part + SEPARATOR})
        else:
            content.append({"type": "image"})
            images.append(part)
    content.append({"type": "text", "text": escape(sample.question)})
    return View(messages=({"role": "user", "content": content},), images=tuple(images))
