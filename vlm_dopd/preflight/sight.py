"""Does what is shown reach the models? Images, both models'; p, both models' again; and is p worth its tokens?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from privileged.views import plain_view

from ..collate import Prompt
from .finding import Check, Finding, judged, skipped
from .trial import Trial, per_response

BLIND = 1e-3
"""Nats a token. A model that is not shown its images scores the same to the bit; one that is changes by tenths."""
UNREAD = 1e-5
"""Nats a token. p that is not shown changes nothing; p that is of no use, very little."""
FLAT = 1e-3
"""Relative change of a level of features between an image and a blank one. A level that is lost is the same for all."""
GREY = (128, 128, 128)


def sees(trial: Trial, weights: str) -> Finding:
    """Blank images and other rows' images must change the scores, and every level of features."""
    if weights not in trial.policies:
        return skipped(f"there is no {weights}")
    pictured = [i for i, group in enumerate(trial.batch.groups) if group.plain.images]
    if not pictured:
        return skipped("no row has an image")
    ids = [trial.ids[i] for i in pictured]
    own_N = trial.logp_N(weights, [trial.batch.groups[i].plain for i in pictured], ids)
    change = {}
    for name, paint in (("blank", _blank), ("another's", _others)):
        other_N = trial.logp_N(weights, [_showing(trial, i, paint) for i in pictured], ids)
        change[name] = (own_N - other_N).abs().mean().item()
    levels = _levels(trial, weights, pictured[0])
    figures = [f"{name} images change scores by {value:.3g} nats a token" for name, value in change.items()]
    figures += [f"levels of features change by {', '.join(f'{level:.0%}' for level in levels)}"] if levels else []
    flat = [number for number, level in enumerate(levels) if not level > FLAT]
    fix = f"the {weights} is blind: are the tower's weights in the checkpoint, the projector whole, pixels passed on?"
    if flat and all(value > BLIND for value in change.values()):
        lost = "the merger" if flat[0] == 0 else f"deepstack level {flat[0]}"
        fix = f"the {weights}'s {lost} gives the same for every image: is it in the checkpoint?"
    fail = bool(flat) or not all(value > BLIND for value in change.values())
    return judged("; ".join(figures), f"more than {BLIND} nats", fail=fail, fix=fix)


def p_is_read(trial: Trial) -> Finding:
    """With p of another row, the scores that p is for must change, and so must the gap."""
    weights = [role.weights for role in trial.method.roles if role.view == "privileged"]
    told = [i for i, group in enumerate(trial.batch.groups) if group.has_privilege]
    if not weights or len(trial.wiring.dataset) < 2:
        return skipped("no role is shown p")
    if not told:
        return skipped("no row that was looked at has p")
    others = trial.lent_p
    kept = [i for i in told if others[i] is not None]
    own, other = [trial.prompts("privileged")[i] for i in kept], [p for i in kept if (p := others[i]) is not None]
    ids = [trial.ids[i] for i in kept]
    pairs = {name: (trial.logp_N(name, own, ids), trial.logp_N(name, other, ids)) for name in dict.fromkeys(weights)}
    change = {name: (mine_N - other_N).abs().mean().item() for name, (mine_N, other_N) in pairs.items()}
    figures = [f"another row's p changes the {name}'s scores by {change[name]:.3g} nats a token" for name in change]
    unread = [name for name, value in change.items() if not value > UNREAD]
    if {"student", "teacher"} <= set(pairs):
        gaps = [(pairs["teacher"][i] - pairs["student"][i]).abs().mean().item() for i in (0, 1)]
        figures.append(f"the gap from {gaps[0]:.3g} to {gaps[1]:.3g}")
    fix = f"p does not reach the {' and the '.join(unread)}: is the privileged view what the privileged roles score?"
    return judged("; ".join(figures), f"more than {UNREAD} nats", fail=bool(unread), fix=fix)


def p_helps(trial: Trial) -> Finding:
    """The teacher with p should think no less of right answers than without; and less of them with another row's p."""
    if not trial.wiring.shows_p:
        return skipped("the method shows p to nobody")
    if trial.right is None:
        return skipped("rows have no reference answers")
    others = trial.lent_p
    places = [
        i
        for i, group in enumerate(trial.batch.groups)
        if group.has_privilege and others[i] is not None and any(trial.right[i])
    ]
    ids = [[t for t, ok in zip(trial.ids[i], trial.right[i], strict=True) if ok] for i in places]
    if len(places) < 2:
        return skipped(f"{len(places)} rows have p and a right answer of the student's; 2 are needed")
    groups = [trial.batch.groups[i] for i in places]
    shown: dict[str, Sequence[Prompt]] = {
        "p": [group.privileged for group in groups],
        "no p": [group.plain for group in groups],
        "another's p": [p for i in places if (p := others[i]) is not None],
    }
    logp = {name: per_response(trial.logp_N("teacher", prompts, ids), ids) for name, prompts in shown.items()}
    figures, worse = [], False
    for name in ("no p", "another's p"):
        mean, margin = _paired(logp["p"] - logp[name])
        figures.append(f"{mean:+.2g} ± {margin:.2g} nats against {name}")
        worse |= mean + margin < 0
    figure = f"teacher with p on {len(logp['p'])} right answers: {', '.join(figures)}"
    fix = "the teacher knows without p, then take harder rows; or p misleads it, then see `vlm-dopd annotate preview`"
    return judged(figure, "not worse", warn=worse, fix=fix)


def _showing(trial: Trial, place: int, paint: Callable[[Trial, int], list[Image.Image]]) -> Prompt:
    """The plain prompt with other images of the same sizes: the same tokens, so the same rows."""
    view = plain_view(trial.samples[place])
    return trial.collator.encoder.encode(replace(view, images=tuple(paint(trial, place))))


def _blank(trial: Trial, place: int) -> list[Image.Image]:
    return [Image.new("RGB", image.size, GREY) for image in trial.samples[place].images]


def _others(trial: Trial, place: int) -> list[Image.Image]:
    """Of the next row that has any, resized; of the same row turned over if there is no other."""
    samples = trial.samples[place + 1 :] + trial.samples[:place]
    lent = next((sample.images for sample in samples if sample.images), ())
    own = trial.samples[place].images
    if not lent:
        return [image.transpose(Image.Transpose.ROTATE_180) for image in own]
    return [lent[i % len(lent)].convert("RGB").resize(image.size) for i, image in enumerate(own)]


@torch.no_grad()
def _levels(trial: Trial, weights: str, place: int) -> list[float]:
    """How much each level of features differs between a row's first image and a blank one, relative to its size."""
    policy = trial.local.get(weights)
    if policy is None or policy.vision.tower is None:
        return []
    policy.forget()
    found = []
    for prompt in (trial.batch.groups[place].plain, _showing(trial, place, _blank)):
        with trial.trainer.accelerator.autocast():
            encoded = policy.vision.inputs(prompt.images[:1])["mm_encoder_outputs"]["image"]
        found.append([encoded.pooler_output[0], *(level[0] for level in encoded.deepstack_features)])
    return [_relative(own, blank) for own, blank in zip(*found, strict=True)]


def _relative(own: Tensor, blank: Tensor) -> float:
    size = own.float().norm() + blank.float().norm()
    return ((own.float() - blank.float()).norm() / size.clamp(min=1e-12)).item()


def _paired(difference_M: Tensor) -> tuple[float, float]:
    """Mean of paired differences, and the half of its 95 % interval."""
    margin = 1.96 * difference_M.std() / max(difference_M.numel(), 1) ** 0.5 if difference_M.numel() > 1 else 0.0
    return difference_M.mean().item(), float(margin)


CHECKS = (
    Check("student sees", "model", partial(sees, weights="student")),
    Check("teacher sees", "model", partial(sees, weights="teacher")),
    Check("p is read", "model", p_is_read),
    Check("p helps", "model", p_helps),
)
