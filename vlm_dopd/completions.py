"""The responses a window trains on, what they earn, and the prompts that can only be written once they exist.

own          the student's, from the rollout engine
reference    a completion of somebody else: the teacher's, or a column of the data

A method says what it wants (`Method.own_share`, `references`, `needs_reward`, and the views of its roles).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from privileged import Sample

from .collate import Batch, Collator, Group, Prompt
from .errors import TrainingError
from .methods import Method, View
from .rollout import Engine, Response, sequence_seed

Reward = Callable[[Sample, str, bool], float]
"""(sample, text of the response, whether it was cut off) -> what it earns; 1 is right."""

HEADERS = {
    "sibling": "Another answer to the question below, which was found correct:",
    "reference": "A reference answer to the question below:",
    "rollout": "An answer to the question below:",
}
"""What stands above the text in the prompts of these views."""


@dataclass(frozen=True, kw_only=True)
class Completions:
    """Whose responses a window trains on, as `method` wants them, with what they earn."""

    method: Method
    engine: Engine
    references: Engine | None = None
    """Gives one reference completion a group; needed where the method asks for them."""
    collator: Collator | None = None
    """Writes prompts that show a response; needed for the views of HEADERS."""
    tokenizer: Any = None
    reward: Reward | None = None
    seed: int = 0

    def __call__(self, batches: Sequence[Batch], step: int) -> list[list[list[Response]]]:
        """Responses for every group of every micro-batch, in order; a reference completion comes last.

        The engine is asked once for all of them: how a window is split is no matter of generation.
        """
        responses = iter(self._responses([group for batch in batches for group in batch.groups], step))
        return [[next(responses) for _ in batch.groups] for batch in batches]

    def _responses(self, groups: Sequence[Group], step: int) -> list[list[Response]]:
        own = [self._is_own(group, step) for group in groups]
        mine = iter(self.engine([group for group, its in zip(groups, own, strict=True) if its], step))
        wants = [group for group, its in zip(groups, own, strict=True) if self.method.references or not its]
        given = iter(self._references(wants, step))
        responses = []
        for group, its in zip(groups, own, strict=True):
            siblings = [self._rewarded(group, response) for response in next(mine)] if its else []
            if self.method.references or not its:
                siblings.append(next(given))
            responses.append(siblings)
        return responses

    def prompts(self, batch: Batch, responses: Sequence[Sequence[Response]], view: View) -> list[Prompt]:
        """The prompt of every response, group by group. Equal prompts of siblings are one object."""
        pairs = zip(batch.groups, responses, strict=True)
        if view in HEADERS:
            return [prompt for group, siblings in pairs for prompt in self._showing(group, siblings, view)]
        return [prompt_of(group, view) for group, siblings in pairs for _ in siblings]

    def _is_own(self, group: Group, step: int) -> bool:
        share = self.method.own_share
        # A draw of the sample's own, so that it does not matter which samples share a batch.
        return share >= 1 or random.Random(sequence_seed(self.seed, step, group.sample_id, -1)).random() < share

    def _references(self, groups: list[Group], step: int) -> list[Response]:
        if not groups:
            return []
        if self.references is None:
            raise TrainingError("this method trains on reference completions: expected an engine for them, got none")
        return [replace(response, reference=True) for (response,) in self.references(groups, step)]

    def _rewarded(self, group: Group, response: Response) -> Response:
        if not self.method.needs_reward:
            return response
        if self.reward is None or group.sample is None:
            raise TrainingError("this method needs rewards: expected a reward function, got none")
        return replace(response, reward=self.reward(group.sample, self._text(response), response.truncated))

    def _showing(self, group: Group, siblings: Sequence[Response], view: View) -> list[Prompt]:
        """For each response the prompt that shows `view` of it; a text is encoded once."""
        made: dict[str, Prompt] = {}
        prompts = []
        for number in range(len(siblings)):
            shown = self._shown(siblings, number, view)
            if shown is None:  # nobody was right: p is the next best, and without p this is the plain prompt
                prompts.append(group.privileged)
                continue
            text = self._text(shown)
            if text not in made:
                made[text] = self._writer.quoting(group, text, HEADERS[view])
            prompts.append(made[text])
        return prompts

    def _shown(self, siblings: Sequence[Response], number: int, view: View) -> Response | None:
        if view == "reference":
            return siblings[-1]
        if view == "rollout":
            return siblings[0] if siblings[number].reference else siblings[number]
        others = (r for i, r in enumerate(siblings) if i != number and r.reward >= self.method.success)
        return next(others, None)

    @property
    def _writer(self) -> Collator:
        if self.collator is None:
            raise TrainingError("this method shows responses in prompts: expected a collator to write them, got none")
        return self.collator

    def _text(self, response: Response) -> str:
        return self.tokenizer.decode(response.id_T, skip_special_tokens=True)


def prompt_of(group: Group, view: View) -> Prompt:
    """The prompt of `group` that does not depend on its responses."""
    if view == "plain":
        return group.plain
    return group.privileged if view == "privileged" else group.probes[view]


class ReferenceColumn:
    """An engine whose responses are a column of the data: `answer`, or one that `record.extra` holds."""

    def __init__(self, column: str, tokenizer: Any, eos_id: int, max_new_tokens: int) -> None:
        self.column, self.tokenizer, self.eos_id, self.max_new_tokens = column, tokenizer, eos_id, max_new_tokens

    def __call__(self, groups: Sequence[Group], step: int) -> list[list[Response]]:
        return [[self._response(group)] for group in groups]

    def _response(self, group: Group) -> Response:
        sample = group.sample
        assert sample is not None
        extra = sample.privileged.extra if sample.privileged else {}
        text = sample.answer if self.column == "answer" else extra.get(self.column)
        if not text or not isinstance(text, str):
            raise TrainingError(
                f"sample {group.sample_id}: rollout.reference={self.column}: expected a text in that column, got none"
            )
        ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.eos_id]
        return Response(torch.tensor(ids[: self.max_new_tokens]), truncated=len(ids) > self.max_new_tokens)
