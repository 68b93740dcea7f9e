"""The only place where prompts are put together.

The plain view is what the deployed student will see. The privileged view is the same, byte for byte, plus one
section that holds p. By default it stands between the images and the question, so that the question and its
answer-format instruction stay next to the answer. Both views end in the same bytes: those that open the assistant's
turn. A builder may also replace the images of the privileged view (by crops, say); those of the plain view are never
touched.

| placement | where the section stands |
|---|---|
| `before_question` | user turn, after the images: the default |
| `after_question` | user turn, at its end: images and question are a prefix that both views share |
| `system` | a system turn of its own; Qwen3-VL's template drops images there, so it is for text only |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from .builders import Builder, PrivilegedBlock
from .errors import DataError
from .escape import escape
from .records import PrivilegedRecord, Sample

SEPARATOR = "\n\n"
PLACEMENTS = ("before_question", "after_question", "system")


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
    left_out: int = 0
    """What a limit of the builder left out of p: regions, points or relations."""


def plain_view(sample: Sample) -> View:
    """The deployed prompt: the images, then the question. Nothing of the answer or of p."""
    return view_with(sample, PrivilegedBlock())


def build_views(sample: Sample, builder: Builder, placement: str = "before_question") -> Views:
    """Both prompts of `sample`, the section at one of PLACEMENTS.

    Raises DataError if the builder cannot render the sample's record, or for a picture in a system turn.

    >>> from .builders import get_builder
    >>> from .records import Region
    >>> record = PrivilegedRecord(sample_id="7", regions=(Region(label="cup", box=(64, 48, 96.5, 88)),))
    >>> image = Image.new("RGB", (640, 480))
    >>> sample = Sample(id="7", question="What is on the tray?", images=(image,), privileged=record)
    >>> views = build_views(sample, get_builder("boxes", style="lines"))
    >>> views.plain.messages[0]["content"]
    [{'type': 'image'}, {'type': 'text', 'text': 'What is on the tray?'}]
    >>> [part["type"] for part in views.privileged.messages[0]["content"]]
    ['image', 'text', 'text']
    >>> views.privileged.messages[0]["content"][1]["text"].splitlines()[1]
    '- cup (100,100,151,183)'
    """
    if placement not in PLACEMENTS:
        raise DataError(f"placement: expected one of {', '.join(PLACEMENTS)}, got {placement!r}")
    plain = plain_view(sample)
    block = _block(sample, builder)
    if block.empty:
        return Views(plain=plain, privileged=plain, has_privilege=False)
    return Views(
        plain=plain, privileged=view_with(sample, block, placement), has_privilege=True, left_out=block.left_out
    )


def _block(sample: Sample, builder: Builder) -> PrivilegedBlock:
    """What `builder` makes of `sample`. Only one that discloses the answer is given it, and needs no record."""
    if getattr(builder, "discloses", None) == "answer":
        return builder.build(sample, sample.privileged or PrivilegedRecord(sample_id=sample.id))
    if sample.privileged is None:
        return PrivilegedBlock()
    return builder.build(replace(sample, answer=None), sample.privileged)


def view_with(sample: Sample, block: PrivilegedBlock, placement: str = "before_question") -> View:
    """The plain prompt of `sample` with the section, and the images, of `block`."""
    images = list(sample.images if block.replace_images is None else block.replace_images)
    content: list[dict[str, Any]] = [{"type": "image"} for _ in images]
    question = {"type": "text", "text": escape(sample.question)}
    pictures = [part for part in block.parts if not isinstance(part, str)]
    if placement == "system" and block.parts:
        if pictures:
            raise DataError(
                f"sample {sample.id!r}: placement 'system': expected text, got pictures of p ({len(pictures)}), which "
                "the chat template would drop; use before_question"
            )
        section = [{"type": "text", "text": SEPARATOR.join(part for part in block.parts if isinstance(part, str))}]
        turns = ({"role": "system", "content": section}, {"role": "user", "content": [*content, question]})
        return View(messages=turns, images=tuple(images))
    before = placement == "before_question"
    section = [_part(part, before) for part in block.parts]
    content += [*section, question] if before else [question, *section]
    return View(messages=({"role": "user", "content": content},), images=(*images, *pictures))


def _part(part: str | Image.Image, before: bool) -> dict[str, Any]:
    """A part of the section; its separator is on the side of the question."""
    if not isinstance(part, str):
        return {"type": "image"}
    return {"type": "text", "text": part + SEPARATOR if before else SEPARATOR + part}
