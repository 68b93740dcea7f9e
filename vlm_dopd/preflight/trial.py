"""What checks with a model look at: the trainer as training builds it, a few rows, the student's responses to them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from privileged import Sample
from privileged.errors import DataError

from .. import rewards
from ..chunked_loss import Scored
from ..collate import Batch, Collator, Prompt
from ..completions import Completions
from ..data import SampleDataset
from ..methods import Method, View
from ..packing import pack
from ..roles import Policy, tokenizer_of
from ..rollout import Response
from ..scoring import ServedPolicy, score
from ..trainer import DopdTrainer
from ..window import WindowBuilder
from .measure import Measured, measure
from .wiring import Wiring


@dataclass(frozen=True)
class Trial:
    """A trainer that has not begun, and what checks ask it for, each made when it is first asked for."""

    wiring: Wiring
    trainer: DopdTrainer

    @property
    def builder(self) -> WindowBuilder:
        """What turns batches into a window, as training does."""
        return self.trainer.window_builder

    @property
    def policies(self) -> dict[str, Policy | ServedPolicy]:
        """All that the method's roles name, by their weights."""
        return dict(self.builder.policies)

    @property
    def local(self) -> dict[str, Policy]:
        """Those whose weights are here."""
        return {name: policy for name, policy in self.policies.items() if isinstance(policy, Policy)}

    @property
    def student(self) -> Policy:
        """The policy that is trained."""
        return self.local["student"]

    @property
    def method(self) -> Method:
        """The run's method, with its options."""
        return self.builder.method

    @property
    def completions(self) -> Completions:
        """What writes the responses, references included."""
        return self.builder.completions

    @property
    def model(self) -> Any:
        """What is trained: the student, or what wraps it."""
        return self.trainer.model

    @property
    def tokenizer(self) -> Any:
        """The student's."""
        return tokenizer_of(self.collator.encoder.processor)

    @property
    def exact(self) -> bool:
        """Whether figures are float32's: no autocast, no model in fewer bits or elsewhere."""
        dtypes = {p.dtype for policy in self.local.values() for p in policy.model.parameters()}
        return (
            self.local.keys() == self.policies.keys()
            and dtypes == {torch.float32}
            and self.trainer.accelerator.mixed_precision == "no"
        )

    @cached_property
    def collator(self) -> Collator:
        """Training's, but that groups keep their samples."""
        collator = copy(cast(Collator, self.trainer.data_collator))
        collator.keep_samples = True
        return collator

    @cached_property
    def batch(self) -> Batch:
        """All rows that are looked at, as one micro-batch."""
        return self.collator(self.wiring.samples)

    @cached_property
    def samples(self) -> list[Sample]:
        """Of the groups of `batch`."""
        return [group.sample for group in self.batch.groups if group.sample is not None]

    @cached_property
    def responses(self) -> list[list[Response]]:
        """As training's first step would have them."""
        with self.trainer.accelerator.autocast():
            return self.completions([self.batch], 0)[0]

    @cached_property
    def ids(self) -> list[list[Tensor]]:
        """Of every response by group, each [T]."""
        return [[response.id_T for response in siblings] for siblings in self.responses]

    @cached_property
    def right(self) -> list[list[bool]] | None:
        """Which responses give the reference answer; None where rows have none."""
        if any(sample.answer is None for sample in self.samples):
            return None
        return [
            [rewards.answer(sample, self.text(response.id_T), response.truncated) > 0 for response in siblings]
            for sample, siblings in zip(self.samples, self.responses, strict=True)
        ]

    @cached_property
    def lent_p(self) -> list[Prompt | None]:
        """Each group's privileged prompt with p of another row; None where that row has none, or too much of it."""
        data, dataset = self.wiring.config.data, self.wiring.dataset
        lent = SampleDataset(data.train, policy=dataset.policy, kinds=data.train_kinds, shuffle_p=not data.shuffle_p)
        place_of = {sample.id: place for sample, place in zip(self.wiring.samples, self.wiring.places, strict=True)}
        collator = copy(self.collator)
        collator.without_p = "fallback_none"
        found = collator([lent[place_of[sample.id]] for sample in self.samples]).groups
        by_id = {group.sample_id: group.privileged for group in found if group.has_privilege}
        return [by_id.get(sample.id) for sample in self.samples]

    @cached_property
    def measured(self) -> Measured:
        """Time and memory of one micro-batch, taken once."""
        return measure(self.trainer)

    def text(self, id_T: Tensor) -> str:
        """The words of a response, without special tokens."""
        return self.tokenizer.decode(id_T, skip_special_tokens=True)

    def prompts(self, view: View) -> list[Prompt]:
        """One a group, by the code that training asks. Raises DataError for a view that shows a response."""
        shown = iter(self.completions.prompts(self.batch, self.responses, view))
        found = []
        for siblings in self.responses:
            own = [next(shown) for _ in siblings]
            if any(prompt is not own[0] for prompt in own):
                raise DataError(f"view {view}: expected one prompt a group, got one a response")
            found.append(own[0])
        return found

    def score(
        self, policy: Policy | ServedPolicy, prompts: Sequence[Prompt], ids: Sequence[Sequence[Tensor]]
    ) -> Scored:
        """Under `policy`, as training scores: in shared-prefix rows, within `data.max_pass_tokens`."""
        policy.forget()
        with self.trainer.accelerator.autocast():
            return score(policy, pack(prompts, ids, self.builder.pad_id, self.builder.max_tokens))

    def logp_N(self, weights: str, prompts: Sequence[Prompt], ids: Sequence[Sequence[Tensor]] | None = None) -> Tensor:
        """Log-probabilities of the responses, nats."""
        scored = self.score(self.policies[weights], prompts, self.ids if ids is None else ids)
        return scored.logp_N.float().cpu()


def per_response(value_N: Tensor, ids: Sequence[Sequence[Tensor]]) -> Tensor:
    """Sums over the tokens of each response, [M]."""
    parts = value_N.split([id_T.numel() for siblings in ids for id_T in siblings])
    return torch.stack([part.sum() for part in parts])
