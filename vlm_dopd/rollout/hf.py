"""Rollouts with `transformers.generate`, for one machine and for tests.

Sampling is ours in one point only: every sequence draws from its own stream of random numbers (inverse CDF of the
filtered distribution), so a response does not depend on what else is in the batch.

Shape letters: B sequences, V vocabulary, T response positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..collate import Group, Prompt
from ..packing import stack_images
from ..roles import Policy
from . import Response, sequence_seed


@dataclass(kw_only=True)
class RolloutConfig:
    siblings: int = 4
    """G, responses a prompt (section 4.1 of the paper)."""
    max_new_tokens: int = 1024
    temperature: float = 1.0
    """Of sampling. Scores and losses are always taken at temperature 1."""
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 64
    """Sequences generated together: a matter of memory, not of results."""


class HFRollout:
    """The engine. `banned` ids and padded vocabulary rows get no probability."""

    def __init__(
        self, policy: Policy, config: RolloutConfig, pad_id: int, eos: list[int], banned: list[int], seed: int
    ) -> None:
        self.policy, self.config, self.pad_id, self.eos, self.seed = policy, config, pad_id, eos, seed
        self.filters = LogitsProcessorList([_Ban(banned, policy.vocab_size)])
        if config.temperature != 1:
            self.filters.append(TemperatureLogitsWarper(config.temperature))
        if config.top_k:
            self.filters.append(TopKLogitsWarper(config.top_k))
        if config.top_p < 1:
            self.filters.append(TopPLogitsWarper(config.top_p))

    def __call__(self, groups: Sequence[Group], step: int) -> list[list[Response]]:
        siblings = self.config.siblings
        jobs = [(group, sibling) for group in groups for sibling in range(siblings)]
        was_training = self.policy.model.training
        self.policy.model.eval()
        try:
            responses: list[Response] = []
            for start in range(0, len(jobs), self.config.batch_size):
                responses += self._generate(jobs[start : start + self.config.batch_size], step)
        finally:
            self.policy.model.train(was_training)
        return [responses[i : i + siblings] for i in range(0, len(responses), siblings)]

    @torch.no_grad()
    def _generate(self, jobs: Sequence[tuple[Group, int]], step: int) -> list[Response]:
        inputs = left_pad([group.plain for group, _ in jobs], self.pad_id)
        inputs = {name: value.to(self.policy.head_VH.device) for name, value in inputs.items()}
        seeds = [sequence_seed(self.seed, step, group.sample_id, sibling) for group, sibling in jobs]
        prompt_length = inputs["input_ids"].shape[1]
        sampler = _InverseCdf(seeds, self.config.max_new_tokens, prompt_length)
        output_BL = self.policy.model.generate(
            **inputs,
            max_new_tokens=self.config.max_new_tokens,
            do_sample=False,  # the last processor leaves one candidate
            logits_processor=LogitsProcessorList([*self.filters, sampler]),
            eos_token_id=self.eos,
            pad_token_id=self.pad_id,
            # generation_config.json of the instruct models asks for sampling; what we do is in the processors
            temperature=None,
            top_p=None,
            top_k=None,
        )
        return [self._cut(row_T) for row_T in output_BL[:, prompt_length:].cpu()]

    def _cut(self, id_T: Tensor) -> Response:
        ends = torch.isin(id_T, torch.tensor(self.eos)).nonzero()
        if ends.numel():
            return Response(id_T[: int(ends[0]) + 1].clone(), truncated=False)
        return Response(id_T.clone(), truncated=True)


def left_pad(prompts: Sequence[Prompt], pad_id: int) -> dict[str, Tensor]:
    """Prompts as the inputs of `generate`: padded on the left, so that all continue at the same column."""
    length = max(p.id_P.numel() for p in prompts)
    id_BL = torch.full((len(prompts), length), pad_id)
    mask_BL, type_BL = torch.zeros_like(id_BL), torch.zeros_like(id_BL)
    for b, prompt in enumerate(prompts):
        start = length - prompt.id_P.numel()
        id_BL[b, start:], type_BL[b, start:], mask_BL[b, start:] = prompt.id_P, prompt.type_P, 1
    inputs = {"input_ids": id_BL, "attention_mask": mask_BL, **stack_images(prompts)}
    if prompts[0].position_CP.shape[0] > 1:
        inputs["mm_token_type_ids"] = type_BL
    return inputs


class _Ban(LogitsProcessor):
    def __init__(self, banned: list[int], vocab_size: int) -> None:
        self.banned, self.vocab_size = banned, vocab_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float()
        scores[:, self.vocab_size :] = float("-inf")
        scores[:, self.banned] = float("-inf")
        return scores


class _InverseCdf(LogitsProcessor):
    """Draws from softmax(scores) with one uniform number a sequence and position; leaves only the drawn id finite."""

    def __init__(self, seeds: list[int], max_new_tokens: int, prompt_length: int) -> None:
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.uniform_BT = torch.stack([torch.rand(max_new_tokens, generator=s, dtype=torch.float64) for s in streams])
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        position = input_ids.shape[1] - self.prompt_length
        cdf_BV = scores.double().softmax(-1).cumsum(-1)
        # The last bin may end a rounding error below 1: scale the draw instead of the table.
        draw_B1 = self.uniform_BT[:, position, None].to(scores.device) * cdf_BV[:, -1:]
        drawn_B1 = torch.searchsorted(cdf_BV, draw_B1, right=True)
        return torch.full_like(scores, float("-inf")).scatter(-1, drawn_B1, 0.0)
