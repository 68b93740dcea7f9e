"""Rollouts with `transformers.generate`, for one machine and for tests.

A prompt is computed once for its G siblings: its keys and values are repeated, and `generate` goes on from there.
Sampling is ours in one point only: every sequence draws from its own stream of random numbers (inverse CDF of the
filtered distribution), so a response does not depend on what else is in the batch.

Shape letters: B prompts (in `generate`: sequences, B·G of them), P prompt tokens, C position channels, V vocabulary,
T response positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..collate import Group, Prompt
from ..roles import Policy
from . import Response, sequence_seed
from .settings import RolloutConfig


class HFRollout:
    """The engine. `banned` ids and padded vocabulary rows get no probability."""

    def __init__(
        self,
        policy: Policy,
        config: RolloutConfig,
        pad_id: int,
        eos: list[int],
        banned: list[int],
        seed: int,
        view: Literal["plain", "privileged"] = "plain",
    ) -> None:
        self.policy, self.config, self.pad_id, self.eos, self.seed = policy, config, pad_id, eos, seed
        self.view = view
        self.filters = filters(config, banned, policy.vocab_size)

    def watched(self, processor: LogitsProcessor, max_new_tokens: int) -> HFRollout:
        """The same engine, for one short response a prompt; `processor` sees the logits before they are filtered."""
        engine = copy(self)
        engine.config = replace(self.config, siblings=1, max_new_tokens=min(max_new_tokens, self.config.max_new_tokens))
        engine.filters = LogitsProcessorList([processor, *self.filters])
        return engine

    def __call__(self, groups: Sequence[Group], step: int) -> list[list[Response]]:
        # Prompts of similar length together: neighbours need little padding.
        order = sorted(range(len(groups)), key=lambda i: getattr(groups[i], self.view).id_P.numel())
        prompts = max(1, self.config.batch_size // self.config.siblings)
        was_training = self.policy.model.training
        self.policy.model.eval()
        responses: dict[int, list[Response]] = {}
        try:
            for start in range(0, len(order), prompts):
                places = order[start : start + prompts]
                found = self._generate([groups[i] for i in places], step)
                responses.update(zip(places, found, strict=True))
        finally:
            self.policy.model.train(was_training)
        return [responses[i] for i in range(len(groups))]

    @torch.no_grad()
    def _generate(self, groups: Sequence[Group], step: int) -> list[list[Response]]:
        model, siblings = self.policy.model, self.config.siblings
        prompts = [getattr(group, self.view) for group in groups]
        id_BP, mask_BP, position_CBP = (t.to(self.policy.device) for t in left_pad(prompts, self.pad_id))
        cache = DynamicCache(config=model.config)
        if id_BP.shape[1] > 1:  # the last token stays for `generate`, which needs something to begin with
            model.base_model(
                input_ids=id_BP[:, :-1],
                attention_mask=mask_BP[:, :-1],
                position_ids=position_CBP[..., :-1] if len(position_CBP) > 1 else position_CBP[0, :, :-1],
                past_key_values=cache,
                use_cache=True,
                **self.policy.vision.inputs([image for prompt in prompts for image in prompt.images]),
            )
            cache.batch_repeat_interleave(siblings)
        if len(position_CBP) > 1:  # where M-RoPE goes on after images; the model keeps it between forward passes
            after_B1 = position_CBP[..., -1].amax(0)[:, None] + 1 - mask_BP.sum(1, keepdim=True)
            model.base_model.rope_deltas = after_B1.repeat_interleave(siblings, 0)
        id_BP, mask_BP = id_BP.repeat_interleave(siblings, 0), mask_BP.repeat_interleave(siblings, 0)
        seeds = [sequence_seed(self.seed, step, group.sample_id, i) for group in groups for i in range(siblings)]
        output_BL = model.generate(
            input_ids=id_BP,
            attention_mask=mask_BP,
            past_key_values=cache,
            max_new_tokens=self.config.max_new_tokens,
            do_sample=False,  # the last processor leaves one candidate
            logits_processor=LogitsProcessorList(
                [*self.filters, _InverseCdf(seeds, self.config.max_new_tokens, id_BP.shape[1])]
            ),
            eos_token_id=self.eos,
            pad_token_id=self.pad_id,
            # generation_config.json of the instruct models asks for sampling; what we do is in the processors
            temperature=None,
            top_p=None,
            top_k=None,
        )
        responses = [self._cut(row_T) for row_T in output_BL[:, id_BP.shape[1] :].cpu()]
        return [responses[i : i + siblings] for i in range(0, len(responses), siblings)]

    def _cut(self, id_T: Tensor) -> Response:
        ends = torch.isin(id_T, torch.tensor(self.eos)).nonzero()
        if ends.numel():
            return Response(id_T[: int(ends[0]) + 1].clone(), truncated=False)
        return Response(id_T.clone(), truncated=True)


def filters(config: RolloutConfig, banned: list[int], vocab_size: int) -> LogitsProcessorList:
    """What turns a model's scores into those that are sampled from."""
    found = LogitsProcessorList([_Ban(banned, vocab_size)])
    if config.temperature != 1:
        found.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        found.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        found.append(TopPLogitsWarper(config.top_p))
    return found


def left_pad(prompts: Sequence[Prompt], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids [B, P], mask [B, P] and positions [C, B, P], padded on the left, so that all continue at one column."""
    length, channels = max(p.id_P.numel() for p in prompts), prompts[0].position_CP.shape[0]
    id_BP = torch.full((len(prompts), length), pad_id)
    mask_BP = torch.zeros_like(id_BP)
    position_CBP = torch.zeros(channels, *id_BP.shape, dtype=torch.long)
    for b, prompt in enumerate(prompts):
        start = length - prompt.id_P.numel()
        id_BP[b, start:], mask_BP[b, start:], position_CBP[:, b, start:] = prompt.id_P, 1, prompt.position_CP
    return id_BP, mask_BP, position_CBP


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
        return scores.fill_(float("-inf")).scatter_(-1, drawn_B1, 0.0)  # `generate` hands over a copy of its own
