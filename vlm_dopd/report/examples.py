"""The held-out questions that are shown: chosen so that every outcome is seen, each with its replies and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from privileged import Sample

from .collect import EVALS, Prediction
from .overlay import Picture, picture

STORIES = {
    "gained": "wrong before, right after",
    "kept": "right before and after",
    "missed": "wrong before and after",
    "lost": "right before, wrong after",
}
QUOTA = {"gained": 4, "kept": 1, "missed": 2, "lost": 1}


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question of the page; `story` is a key of STORIES."""

    sample: Sample
    story: str
    replies: dict[str, Prediction]
    """By the names of `EVALS`."""
    pictures: tuple[Picture, ...]


def count_stories(evals: Mapping[str, Mapping[str, Prediction]]) -> dict[str, int]:
    """How many questions took which way from before to after; every story of `STORIES` is present."""
    counts = Counter(_story(evals, key) for key in evals["before"] if key in evals["after"])
    return {story: counts[story] for story in STORIES}


def choose(evals: Mapping[str, Mapping[str, Prediction]], samples: Sequence[Sample]) -> list[Example]:
    """Up to eight examples, in the order of `STORIES`; the same input gives the same choice.

    Each story gets its quota, and what one cannot fill goes to the others. Within a story the kind shown least so far
    comes first. Samples without a reply of all three models cannot be shown.
    """
    pools: dict[str, list[Sample]] = {story: [] for story in STORIES}
    for sample in samples:
        if all(sample.id in evals[name] for name in EVALS):
            pools[_story(evals, sample.id)].append(sample)
    shown: Counter[str] = Counter()
    chosen: list[tuple[str, Sample]] = []

    def take(story: str, count: int) -> None:
        for _ in range(min(count, len(pools[story]))):
            sample = min(pools[story], key=lambda sample: shown[evals["before"][sample.id].kind])
            pools[story].remove(sample)
            shown[evals["before"][sample.id].kind] += 1
            chosen.append((story, sample))

    for story in STORIES:
        take(story, QUOTA[story])
    for story in STORIES:
        take(story, sum(QUOTA.values()) - len(chosen))
    chosen.sort(key=lambda pair: list(STORIES).index(pair[0]))
    return [
        Example(
            sample=sample,
            story=story,
            replies={name: evals[name][sample.id] for name in EVALS},
            pictures=tuple(picture(sample, index) for index in range(len(sample.images))),
        )
        for story, sample in chosen
    ]


def _story(evals: Mapping[str, Mapping[str, Prediction]], key: str) -> str:
    before, after = evals["before"][key].correct, evals["after"][key].correct
    return {(False, True): "gained", (True, True): "kept", (False, False): "missed", (True, False): "lost"}[
        before, after
    ]
