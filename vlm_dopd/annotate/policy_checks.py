"""What a model makes of p. Two checks that no rule on words can replace, to be run before training.

| check | what is asked | what it tells |
|---|---|---|
| blind test | the question with the text of p, without the images; against the question alone | p gives answers away |
| citation check | the privileged prompt, images included; against the plain one | the policy talks about p |

A policy that answers blind with p better than without was told the answer, whatever the rules say. The control, p of
another sample, should help nobody. Every run is a file of `evals`, so a killed check goes on where it was.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import evals
from privileged import Sample, build_views
from privileged.builders import Builder
from privileged.views import View

Shown = Literal["question", "p", "shuffled"]

CITATIONS = {
    "bounding box": re.compile(r"\bbounding[- ]box", re.I),
    "coordinates": re.compile(r"\bcoordinates?\b", re.I),
    "numbers in brackets": re.compile(r"[\[(]\s?\d{1,5}\s?,\s?\d{1,5}\b"),
    "according to the notes": re.compile(
        r"\b(?:according to|based on|from|in) the (?:visual )?(?:notes?|annotations?|hints?|steps)\b", re.I
    ),
    "provided region": re.compile(
        r"\b(?:provided|given) (?:regions?|hints?|notes?|annotations?|steps|box(?:es)?)\b", re.I
    ),
    "region 1": re.compile(r"\bregion \d", re.I),
    "marked box": re.compile(r"\b(?:in|inside|the) (?:red|blue|marked|labell?ed|numbered) box", re.I),
}
"""How replies cite p: name -> pattern. A model that wants to cite shifts probability onto such words in training."""
EXAMPLES = 5
EXCERPT = 160


def choose(total: int, count: int, seed: int = 0) -> list[int]:
    """`count` places out of `total`, drawn without replacement, in order; all of them if there are no more."""
    return sorted(random.Random(seed).sample(range(total), min(count, total)))


def blind_test(
    model: evals.Model,
    samples: Sequence[Sample],
    builder: Builder,
    *,
    kinds: Sequence[str] = (),
    out: Path | None = None,
    run: str = "",
    instruction: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy without images: question alone, with p, and with p of another sample; differences are paired.

    Only samples that have p and an answer that `evals` can score are asked; the others are counted as `skipped`.
    `instruction` follows the question in all three prompts, for data whose questions do not say how to answer.
    With `out`, a folder, replies go there and are not asked for again. Raises ValueError of `evals` if it holds those
    of another run.
    """
    known = list(kinds) or [""] * len(samples)
    asked = [(sample, kind) for sample, kind in zip(samples, known, strict=True) if _fit(sample, builder)]
    result: dict[str, Any] = {"n": len(asked), "skipped": len(samples) - len(asked)}
    if len(asked) < 2:  # one sample has no other whose p it could be given
        return result
    chosen = [replace(sample, question=sample.question + instruction) for sample, _ in asked]
    runs = {}
    for shown in ("question", "p", "shuffled"):
        items = _blind_items(chosen, [kind for _, kind in asked], builder, shown, seed)
        file = None if out is None else out / f"blind-{shown}.jsonl"
        runs[shown] = evals.evaluate(model, items, out=file, run=f"{run} blind {shown}".strip())
    before = evals.scores(runs["question"])
    for shown, predictions in runs.items():
        summary = evals.summarise(predictions)
        result[shown] = {
            "accuracy": summary.accuracy,
            "interval": list(summary.interval),
            "parse_rate": summary.parse_rate,
            "kinds": {kind: {"n": one.n, "accuracy": one.accuracy} for kind, one in summary.kinds.items()},
        }
    for name, shown in (("gap", "p"), ("control", "shuffled")):
        result[name] = asdict(evals.paired_difference(before, evals.scores(runs[shown]), seed=seed))
    return result


def citation_check(
    model: evals.Model, samples: Sequence[Sample], builder: Builder, *, out: Path | None = None, run: str = ""
) -> dict[str, Any]:
    """How many replies match each of CITATIONS, in the privileged and, as the base rate, in the plain view.

    Samples without p are left out and counted as `skipped`. `out` is a folder as for `blind_test`.
    """
    views = [(sample, build_views(sample, builder)) for sample in samples]
    shown = [(sample, both) for sample, both in views if both.has_privilege]
    result: dict[str, Any] = {"n": len(shown), "skipped": len(samples) - len(shown)}
    if not shown:
        return result
    counts: dict[str, dict[str, int]] = {name: {} for name in CITATIONS}
    for view in ("plain", "privileged"):
        # Nothing is scored here, and a sample needs no answer; an item does.
        items = [_item(sample, getattr(both, view), "none") for sample, both in shown]
        file = None if out is None else out / f"citation-{view}.jsonl"
        replies = evals.evaluate(model, items, out=file, run=f"{run} citation {view}".strip())
        found = [(reply, citations(reply.response or "")) for reply in replies]
        for name in CITATIONS:
            counts[name][view] = sum(name in names for _, names in found)
        result[view] = sum(bool(names) for _, names in found)
    result["patterns"] = counts
    result["examples"] = [
        {"id": reply.id, "pattern": name, "reply": _around(reply.response or "", match)}
        for reply, names in found
        for name, match in list(names.items())[:1]
    ][:EXAMPLES]
    return result


def citations(reply: str) -> dict[str, re.Match[str]]:
    """Which of CITATIONS `reply` matches, and where first."""
    return {name: match for name, pattern in CITATIONS.items() if (match := pattern.search(reply))}


def _fit(sample: Sample, builder: Builder) -> bool:
    """Whether the blind test can ask `sample`: an answer that scores as correct if a model gives it, and p."""
    answer = sample.answer
    if not answer or not answer.strip():
        return False
    return evals.exact_match(answer, f"Answer: {answer}", False).correct and build_views(sample, builder).has_privilege


def _blind_items(
    samples: Sequence[Sample], kinds: Sequence[str], builder: Builder, shown: Shown, seed: int
) -> list[evals.Item]:
    """Prompts without images. `shuffled` moves p round a circle of the samples in random order: all get another's."""
    givers = dict(zip(range(len(samples)), range(len(samples)), strict=True))
    if shown == "shuffled":
        order = random.Random(seed).sample(range(len(samples)), len(samples))
        givers = dict(zip(order, [*order[1:], order[0]], strict=True))
    items = []
    for place, (sample, kind) in enumerate(zip(samples, kinds, strict=True)):
        both = build_views(replace(samples[givers[place]], question=sample.question), builder)
        view = both.plain if shown == "question" else both.privileged
        items.append(_item(sample, _without_images(view), sample.answer or "", kind))
    return items


def _without_images(view: View) -> View:
    messages = tuple(
        {**message, "content": [part for part in message["content"] if part["type"] != "image"]}
        for message in view.messages
    )
    return View(messages=messages)


def _item(sample: Sample, view: View, answer: str, kind: str = "") -> evals.Item:
    return evals.Item(id=sample.id, messages=view.messages, images=view.images, answer=answer, group={"kind": kind})


def _around(reply: str, match: re.Match[str]) -> str:
    start = max(0, match.start() - EXCERPT // 2)
    return " ".join(reply[start : match.end() + EXCERPT // 2].split())
