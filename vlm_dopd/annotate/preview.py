"""What each policy really sees of one sample: three prompts as facts. `preview_page` and `preview_picture` show them.

Nothing is estimated. The text is what the chat template of that model writes, a token count is a count of the ids that
training feeds to that model, and the section of p is where the privileged prompt's characters are not the plain one's.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from PIL import Image

from privileged import Sample, View
from privileged.builders import Builder
from privileged.errors import DataError
from privileged.views import Views, build_views, plain_view

from ..roles import tokenizer_of

ROLES = ("student", "privileged student", "teacher")
Kind = Literal["template", "question", "p", "image"]
Origin = Literal["sample", "p", "replaced"]

WITHOUT_P = {"fallback_none": "trained without p", "drop": "dropped", "error": "training stops at this sample"}
"""`without_p` -> the fate of a sample that has no p, or no room for it."""

CONTROL = re.compile(r"<\|[^|<>\s]+\|>|</?think>")
"""What a Qwen template writes as one token."""
VISION = ("<|vision_start|>", "<|vision_end|>")


class EncoderLike(Protocol):
    """What is needed of `collate.Encoder`. No weights: its model may be None."""

    processor: Any

    def render(self, view: View) -> str:
        """The prompt as the chat template writes it, up to where the assistant begins."""

    def encode(self, view: View, seen: dict[int, Any] | None = None) -> Any:
        """The prompt's token ids, and its images as the model will see them."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image of a prompt, as the view holds it: before the processor resizes it."""

    number: int
    """From 1, in the order of the prompt."""
    image: Image.Image
    origin: Origin
    """`sample`: the plain prompt has it too; `replaced`: a builder changed it; `p`: it is a part of the section."""
    tokens: int
    """With the tokens before and after it that mark an image."""
    seen: tuple[int, int]
    """Width and height (px) after the processor's resize."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of the prompt's characters. The pieces of a prompt make up its text, and their tokens its total.

    A token belongs to the piece in which it begins.
    """

    text: str
    kind: Kind
    tokens: int
    in_section: bool
    picture: Picture | None = None


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The prompt of one role. If there is none, `error` is the line that says why, and all else is empty."""

    role: str
    pieces: tuple[Piece, ...] = ()
    error: str = ""
    ids: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """As the chat template writes it, up to where the assistant begins; one placeholder an image."""
        return _joined(self.pieces)

    @property
    def section(self) -> str:
        """The characters that the plain prompt lacks."""
        return _joined(piece for piece in self.pieces if piece.in_section)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The prompt's images, in its order."""
        return tuple(piece.picture for piece in self.pieces if piece.picture)

    @property
    def stretches(self) -> list[tuple[bool, list[Piece]]]:
        """The pieces, those of the section together."""
        return [(inside, list(pieces)) for inside, pieces in itertools.groupby(self.pieces, lambda p: p.in_section)]

    @property
    def tokens(self) -> int:
        """Length of the prompt, image tokens included."""
        return len(self.ids)

    def count(self, kind: Kind) -> int:
        """Tokens of all pieces of that kind."""
        return sum(piece.tokens for piece in self.pieces if piece.kind == kind)


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Three prompts of one sample in the order of ROLES, and what training would make of them."""

    sample_id: str
    answer: str | None
    builder: str
    """With its options."""
    discloses: str
    """The grade that the builder declares; empty if it declares none."""
    placement: str
    max_prompt_tokens: int
    prompts: tuple[Prompt, Prompt, Prompt]
    has_privilege: bool
    left_out: int
    """How many regions, points or relations a limit of the builder left out."""
    fate: str
    """What training does with the sample."""
    trained_with_p: bool
    problems: tuple[str, ...]
    """What no sample should have, a line each."""


def preview(
    sample: Sample,
    builder: Builder,
    encoders: Mapping[str, EncoderLike],
    max_prompt_tokens: int,
    placement: str = "before_question",
    without_p: str = "fallback_none",
) -> Preview:
    """The prompts of `sample`. `encoders` holds one for "student" and one for "teacher", maybe the same. The other
    settings are those of training.

    An error of the builder or of a processor for this sample is the `error` of the prompts that it prevents.
    """
    problem = ""
    try:
        views = build_views(sample, builder, placement)
    except Exception as error:  # a builder may be anybody's: whatever it raises belongs on the page
        plain = plain_view(sample)
        problem, views = _line(error), Views(plain=plain, privileged=plain, has_privilege=False)
    patches: dict[int, dict[int, Any]] = {id(encoder): {} for encoder in encoders.values()}  # each image is cut once
    student, privileged, teacher = (
        Prompt(role=role, error=problem)
        if problem and role != "student"
        else _prompt(role, encoders["teacher" if role == "teacher" else "student"], view, views.plain, patches)
        for role, view in zip(ROLES, (views.plain, views.privileged, views.privileged), strict=True)
    )
    prompts = (student, privileged, teacher)
    fate, trained_with_p = _fate(prompts, views.has_privilege, sample, max_prompt_tokens, without_p)
    return Preview(
        sample_id=sample.id,
        answer=sample.answer,
        builder=repr(builder) if dataclasses.is_dataclass(builder) else type(builder).__name__,
        discloses=getattr(builder, "discloses", None) or "",
        placement=placement,
        max_prompt_tokens=max_prompt_tokens,
        prompts=prompts,
        has_privilege=views.has_privilege,
        left_out=views.left_out,
        fate=fate,
        trained_with_p=trained_with_p,
        problems=tuple(_problems(prompts)),
    )


def _prompt(role: str, encoder: EncoderLike, view: View, plain: View, patches: dict[int, dict[int, Any]]) -> Prompt:
    try:
        text = encoder.render(view)
        items = _items(encoder, view, text)
        section = _section(encoder.render(plain), text, items) if view is not plain else (0, 0)
        encoded = encoder.encode(view, patches[id(encoder)])
        return _counted(role, encoder, encoded, view, plain, text, items, section)
    except (
        Exception
    ) as error:  # templates and processors raise anything: of an image too long, of half a surrogate pair
        return Prompt(role=role, error=_line(error))


class _Item(NamedTuple):
    """Where a text, or image number `image` of the view (from 0), stands in the rendered prompt."""

    start: int
    end: int
    image: int | None = None


def _items(encoder: EncoderLike, view: View, text: str) -> list[_Item]:
    """The parts of the messages, found in the rendered `text` without guessing: the template is also asked to render
    a mark in place of every part of text, and what it writes between the marks is its own.

    Raises DataError if the template left out, changed or moved a part.
    """
    texts = [[part["text"] for part in m["content"] if part["type"] == "text"] for m in view.messages]
    marks = (f"\ue000{number}\ue001" for number in itertools.count())
    messages = tuple(
        {**m, "content": [{**p, "text": next(marks)} if p["type"] == "text" else p for p in m["content"]]}
        for m in view.messages
    )
    frame = re.split("\ue000([0-9]+)\ue001", encoder.render(View(messages=messages, images=view.images)))
    between, order = frame[::2], frame[1::2]
    parts = next((parts for parts in _readings(texts) if _woven(between, parts) == text), None)
    if parts is None or order != [str(number) for number in range(len(parts))]:
        raise DataError("chat template: expected every text of the messages, as it is and in order, got others")
    image_token = getattr(encoder.processor, "image_token", None)
    items: list[_Item] = []
    place = images = 0
    for own, part in zip(between, [*parts, ""], strict=True):
        for found in re.finditer(re.escape(image_token), own) if image_token else ():
            start, end = place + found.start(), place + found.end()
            start -= len(VISION[0]) if text[:start].endswith(VISION[0]) else 0
            end += len(VISION[1]) if text[end:].startswith(VISION[1]) else 0
            items.append(_Item(start, end, images))
            images += 1
        place += len(own)
        items.append(_Item(place, place + len(part)))
        place += len(part)
    if images != len(view.images):
        raise DataError(f"chat template: expected placeholders of {len(view.images)} images, got {images}")
    return [item for item in items if item.start < item.end]


def _readings(texts: list[list[str]]) -> Iterator[list[str]]:
    """What a template may write of the texts of each message: as they are, each one stripped, each message stripped."""
    yield [text for message in texts for text in message]
    yield [text.strip() for message in texts for text in message]
    yield [
        (text.lstrip() if n == 0 else text).rstrip() if n == len(message) - 1 else text.lstrip() if n == 0 else text
        for message in texts
        for n, text in enumerate(message)
    ]


def _woven(between: list[str], parts: list[str]) -> str:
    if len(between) != len(parts) + 1:
        return ""
    return "".join(word for pair in zip(between, [*parts, ""], strict=True) for word in pair)


def _section(plain: str, text: str, items: list[_Item]) -> tuple[int, int]:
    """The run of characters that `text` has and `plain` has not.

    Equal characters at its edges leave a choice ("\\n" before it, and its last one); it then begins where a part of
    the messages or a control token begins.
    """
    shorter = min(len(plain), len(text))
    start = next((i for i in range(shorter) if plain[i] != text[i]), shorter)
    end = next((i for i in range(shorter - start) if plain[-1 - i] != text[-1 - i]), shorter - start)
    length = len(text) - start - end
    first = start
    while first > 0 and len(plain) == start + end and text[first - 1] == text[first - 1 + length]:
        first -= 1
    begins = {item.start for item in items} | {found.start() for found in CONTROL.finditer(text)}
    start = max((place for place in begins if first <= place <= start), default=start)
    return start, start + length


def _counted(
    role: str,
    encoder: EncoderLike,
    encoded: Any,
    view: View,
    plain: View,
    text: str,
    items: list[_Item],
    section: tuple[int, int],
) -> Prompt:
    ids = encoded.id_P.tolist()
    question = [item for item in items if item.image is None and not section[0] <= item.start < section[1]]
    cuts = sorted(
        {0, len(text), *(section if section[0] < section[1] else ()), *(e for i in items for e in i[:2])} - {len(text)}
    )
    tokens = [0] * len(cuts)
    for start, number in _token_starts(encoder.processor, text, ids):
        tokens[bisect_right(cuts, start) - 1] += number
    pieces = []
    for start, end, number in zip(cuts, [*cuts[1:], len(text)], tokens, strict=True):
        inside = section[0] <= start < section[1]
        image = next((item.image for item in items if item.start == start), None)
        picture = None if image is None else _picture(encoder, encoded, view, plain, image, inside, number)
        asked = any(item.start <= start < item.end for item in question)
        kind: Kind = "image" if picture else "p" if inside else "question" if asked else "template"
        pieces.append(Piece(text=text[start:end], kind=kind, tokens=number, in_section=inside, picture=picture))
    return Prompt(role=role, pieces=tuple(pieces), ids=tuple(ids))


def _token_starts(processor: Any, text: str, ids: list[int]) -> list[tuple[int, int]]:
    """(place of its first character, how many ids) of every token of the rendered `text`: an image's one placeholder
    stands for as many ids as the processor made of it.

    Raises DataError if `ids` are not the ids of `text`.
    """
    encoded = tokenizer_of(processor)([text], return_offsets_mapping=True, add_special_tokens=False)
    image_id = getattr(processor, "image_token_id", None)
    starts, place = [], 0
    for token, (start, _) in zip(encoded["input_ids"][0], encoded["offset_mapping"][0], strict=True):
        first = place
        while place < len(ids) and ids[place] == token and (place == first or token == image_id):
            place += 1
        if place == first:
            break
        starts.append((start, place - first))
    if place != len(ids) or len(starts) != len(encoded["input_ids"][0]):
        raise DataError(f"processor: expected the ids of the rendered prompt, got others from token {place}")
    return starts


def _picture(
    encoder: EncoderLike, encoded: Any, view: View, plain: View, index: int, inside: bool, tokens: int
) -> Picture:
    image = view.images[index]
    _, high, wide = encoded.images[index].grid_thw.tolist()
    patch = encoder.processor.image_processor.patch_size
    kept = index < len(plain.images) and (plain.images[index] is image or plain.images[index] == image)
    origin: Origin = "p" if inside else "sample" if kept else "replaced"
    return Picture(number=index + 1, image=image, origin=origin, tokens=tokens, seen=(wide * patch, high * patch))


def _fate(
    prompts: tuple[Prompt, ...], has_privilege: bool, sample: Sample, budget: int, without_p: str
) -> tuple[str, bool]:
    """What `collate.Collator` does, whose budget is of the student's ids; and whether p is used."""
    plain, privileged = prompts[0], prompts[1]
    if plain.error or privileged.error:
        return "training stops at this sample", False
    if plain.tokens > budget:
        return f"dropped: the plain prompt has {plain.tokens:,} tokens, max_prompt_tokens is {budget:,}", False
    if has_privilege and privileged.tokens <= budget:
        return "trained with p", True
    if has_privilege:
        why = f"the privileged prompt has {privileged.tokens:,} tokens, max_prompt_tokens is {budget:,}; p is never cut"
    else:
        why = "the sample has no record" if sample.privileged is None else "the builder has nothing to say about it"
    return f"{WITHOUT_P[without_p]}: {why}", False


def _problems(prompts: tuple[Prompt, Prompt, Prompt]) -> list[str]:
    plain, student, teacher = prompts
    found = []
    if not plain.error and not student.error:
        rest = [piece for piece in student.pieces if not piece.in_section]
        ours, theirs = _joined(rest), _joined(plain.pieces)
        # A builder may show other images instead of the sample's; every word of the plain prompt must still be there.
        if ours != theirs and _joined(rest, images=False) != _joined(plain.pieces, images=False):
            found.append(
                "The privileged prompt is not the plain prompt plus p: without the section, "
                f"{_difference(ours, theirs)}."
            )
    if student.error or teacher.error:
        if not student.error or not teacher.error:
            found.append("Only one of teacher and student can read the privileged prompt.")
    elif student.text != teacher.text:
        found.append(
            "The teacher's prompt is not the privileged student's: "
            f"{_difference(teacher.text, student.text)}. Training refuses two chat templates."
        )
    elif student.ids != teacher.ids:
        pairs = [(a, b) for a, b in zip(student.pictures, teacher.pictures, strict=True) if a.tokens != b.tokens]
        found += [
            f"Image {a.number} is {b.tokens} tokens for the teacher, {a.tokens} for the student. Training refuses two "
            "image geometries."
            for a, b in pairs
        ]
        if not pairs:
            found.append(
                "Teacher and student read the same text as different token ids. Training refuses two vocabularies."
            )
    return found


def _joined(pieces: Iterable[Piece], images: bool = True) -> str:
    return "".join(piece.text for piece in pieces if images or piece.kind != "image")


def _difference(ours: str, theirs: str) -> str:
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return f"from character {place} it reads {ours[place : place + 40]!r} instead of {theirs[place : place + 40]!r}"


def _line(error: Exception) -> str:
    line = " ".join(str(error).split())
    return line if isinstance(error, DataError) else f"{type(error).__name__}: {line}"
