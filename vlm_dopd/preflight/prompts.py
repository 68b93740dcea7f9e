"""Are prompts as they should be? The plain one without p, the privileged one with all of it, and room to answer."""

from __future__ import annotations

import re
import unicodedata

import torch

from privileged.views import View, plain_view

from ..collate import Group, Prompt
from ..health import PRIVILEGED
from .finding import Check, Finding, judged, skipped
from .wiring import Wiring

PIXELS = 4
"""Rows whose images are cut into patches once more, for comparison."""
LINE = 400
"""Characters of a decoded prompt that are shown from its beginning and from its end."""


def data_sample(wiring: Wiring) -> Finding:
    """A decoded prompt, for a person to read: is this what the model should be asked, and told?"""
    kept = [group for group in wiring.groups if group is not None]
    if not kept:
        return judged(f"all {len(wiring.groups)} rows are left out", "rows to train on", fail=True, fix=_BUDGET)
    group = next((one for one in kept if one.has_privilege), kept[0])
    plain, privileged = (read(wiring, prompt) for prompt in (group.plain, group.privileged))
    place, section = inserted(plain, privileged) or (0, "")
    sizes = f"{group.plain.id_P.numel()} tokens plain, {group.privileged.id_P.numel()} with p"
    shown = plain if not section else f"{plain[:place]}⟦p: {section}⟧{plain[place:]}"
    figure = f"{len(wiring.dataset)} rows; row {group.sample_id}: {sizes}, {len(group.plain.images)} images"
    return judged(figure, "a prompt as you mean it; p is in ⟦ ⟧", shown=tuple(_shortened(shown).split("\n")))


def p_present(wiring: Wiring) -> Finding:
    """A method that shows p needs rows that have it."""
    if not wiring.shows_p:
        return skipped(f"{wiring.config.method['name']} shows p to nobody")
    total = len(wiring.views)
    found = sum(views.has_privilege for views in wiring.views)
    strict = wiring.config.data.without_p == "error"
    return judged(
        f"{found} of {total} rows",
        "all, data.without_p is error" if strict else f"at least {PRIVILEGED:.0%}",
        fail=strict and found < total,
        warn=found < PRIVILEGED * total,
        fix="does data.builder fit what the rows hold? `vlm-dopd annotate preview` shows; else it is vanilla OPD",
    )


def views_differ_by_p(wiring: Wiring) -> Finding:
    """The plain prompt is the deployed one, and the privileged prompt is the same with one stretch more."""
    lengths = []
    for number, (group, sample) in enumerate(zip(wiring.groups, wiring.samples, strict=True)):
        if group is None:
            continue
        view = plain_view(sample)
        plain, privileged = (read(wiring, prompt) for prompt in (group.plain, group.privileged))
        problem = ""
        if plain != _rendered(wiring, view):
            problem = "the plain prompt is not the question as it is deployed"
        elif number < PIXELS and not _same_pixels(wiring, group, view):
            problem = "the plain prompt shows other images than the row's own"
        elif group.has_privilege and inserted(plain, privileged) is None:
            problem = "the privileged prompt is not the plain one with a stretch more"
        if problem:
            fix = "views are exchanged, or one of them is edited after privileged.views made it"
            return judged(f"row {group.sample_id}: {problem}", "they differ by p alone", fail=True, fix=fix)
        lengths.append(len(privileged) - len(plain))
    figure = f"{len(lengths)} rows; p has {min(lengths, default=0)} to {max(lengths, default=0)} characters"
    return judged(figure, "they differ by p alone")


def p_whole(wiring: Wiring) -> Finding:
    """p is never cut: what does not fit falls back to the plain prompt, and is counted."""
    if not wiring.shows_p:
        return skipped(f"{wiring.config.method['name']} shows p to nobody")
    over, told = 0, 0
    for group, views in zip(wiring.groups, wiring.views, strict=True):
        if not views.has_privilege or group is None:
            continue
        told += 1
        if not group.has_privilege:
            over += 1
        elif read(wiring, group.privileged) != _rendered(wiring, views.privileged):
            fix = "something cuts prompts after the chat template: p must be whole or absent"
            figure = f"row {group.sample_id}: its privileged prompt is not all of what the template wrote"
            return judged(figure, "every privileged prompt whole", fail=True, fix=fix)
    dropped = sum(group is None for group in wiring.groups)
    figure = f"{told - over} of {told} whole; {over} over budget, {dropped} rows left out"
    expected = f"none over data.max_prompt_tokens={wiring.config.data.max_prompt_tokens}"
    return judged(figure, expected, warn=over > 0 or dropped > 0, fix=_BUDGET)


def room_to_answer(wiring: Wiring) -> Finding:
    """Prompt and response fit the positions the models know."""
    prompts = [p for g in wiring.groups if g is not None for p in (g.plain, g.privileged, *g.probes.values())]
    longest = max((p.id_P.numel() for p in prompts), default=0)
    new, budget = wiring.config.rollout.max_new_tokens, wiring.config.data.max_prompt_tokens
    known = {r: c.get_text_config().max_position_embeddings for r, c in wiring.model_configs.items()}
    role = min(known, key=lambda name: known[name])
    return judged(
        f"longest prompt {longest} + response {new} = {longest + new}; the budget allows {budget + new}",
        f"at most the {known[role]} positions of the {role}",
        fail=longest + new > known[role],
        warn=budget + new > known[role],
        fix="lower rollout.max_new_tokens or data.max_prompt_tokens",
    )


def read(wiring: Wiring, prompt: Prompt) -> str:
    """The text of a prompt's ids; an image is one placeholder."""
    text = wiring.tokenizer.decode(prompt.id_P, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return _collapsed(wiring, text)


def inserted(plain: str, privileged: str) -> tuple[int, str] | None:
    """Where `privileged` has one stretch more than `plain`, and the stretch; None if they differ in another way."""
    more = len(privileged) - len(plain)
    place = next((i for i, (a, b) in enumerate(zip(plain, privileged, strict=False)) if a != b), len(plain))
    if more <= 0 or not privileged.endswith(plain[place:]):
        return None
    return place, privileged[place : place + more]


def _rendered(wiring: Wiring, view: View) -> str:
    return _collapsed(wiring, wiring.collator.encoder.render(view))


def _collapsed(wiring: Wiring, text: str) -> str:
    pad = getattr(wiring.processor, "image_token", None)
    text = re.sub(f"(?:{re.escape(pad)})+", "<image>", text) if pad else text
    return unicodedata.normalize("NFC", text)  # as Qwen's tokenizers do


def _same_pixels(wiring: Wiring, group: Group, view: View) -> bool:
    own = wiring.collator.encoder.encode(view).images
    pairs = zip(own, group.plain.images, strict=False)
    return len(own) == len(group.plain.images) and all(torch.equal(a.pixel_values, b.pixel_values) for a, b in pairs)


def _shortened(text: str) -> str:
    return text if len(text) <= 2 * LINE else f"{text[:LINE]} … {text[-LINE:]}"


_BUDGET = "raise data.max_prompt_tokens, or shrink the processor's images"
CHECKS = (
    Check("data sample", "cheap", data_sample),
    Check("p present", "cheap", p_present),
    Check("views", "cheap", views_differ_by_p),
    Check("p whole", "cheap", p_whole),
    Check("room to answer", "cheap", room_to_answer),
)
