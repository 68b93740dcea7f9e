"""Does the engine sample from the student that is trained? Its log-probabilities against the trainer's own.

Both are of the same ids and of what was sampled from: after temperature, top-k, top-p and bans. Equal weights and
processing agree up to the kernels: 1e-4 nats a token in float32, some 1e-2 in bfloat16.

Shape letters: N response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..collate import Group
from ..errors import TrainingError
from ..packing import Packed, pack
from ..roles import Policy
from ..scoring import response_hidden
from . import Response
from .hf import filters
from .settings import RolloutConfig

GROUPS = 8
"""Compared of each rank's, a step: enough for a mean, cheap beside the step."""
CHUNK = 1024


@dataclass(frozen=True)
class Differences:
    """Absolute ones, of tokens that both give a probability, [N]."""

    processed_N: Tensor
    unprocessed_N: Tensor
    """Against the trainer's at temperature 1, with nothing banned or filtered."""
    image_N: Tensor
    """bool: the token's prompt has images."""


class MismatchCheck:
    """The engine's log-probabilities of what it sampled against those of `policy`, both of the same weights."""

    def __init__(
        self,
        policy: Policy,
        config: RolloutConfig,
        banned: list[int],
        pad_id: int,
        view: Literal["plain", "privileged"] = "plain",
        max_tokens: int | None = None,
    ) -> None:
        """`max_tokens`: of one forward pass."""
        self.policy, self.config, self.pad_id, self.view, self.max_tokens = policy, config, pad_id, view, max_tokens
        self.filters = filters(config, banned, policy.vocab_size)
        self._begun = False

    def __call__(self, groups: Sequence[Group], responses: Sequence[Sequence[Response]], step: int) -> dict[str, float]:
        """Figures for the log, over all ranks; none in a step without a check. To be called on all ranks.

        Raises TrainingError if the mean is beyond the tolerance.
        """
        if self._begun and step % self.config.vllm.check_steps:
            return {}
        self._begun = True
        found = _joined(self.differences(groups, responses))
        if not found.processed_N.numel():
            return {}
        mean, largest = found.processed_N.mean().item(), found.processed_N.max().item()
        if not mean <= self.config.vllm.tolerance:
            raise TrainingError(
                f"rollout mismatch in step {step + 1}: log-probabilities of {found.processed_N.numel()} sampled tokens "
                f"differ by {mean:.3g} nats on average and {largest:.3g} at most between engine and trainer, "
                f"expected rollout.vllm.tolerance={self.config.vllm.tolerance} on average; {self._likely(found)}"
            )
        return {"rollout/mismatch": mean, "rollout/mismatch_max": largest}

    @torch.no_grad()
    def differences(self, groups: Sequence[Group], responses: Sequence[Sequence[Response]]) -> Differences:
        """Of this rank's first groups with responses that the engine has sampled."""
        sampled = [[r for r in own if r.logp_T is not None and not r.reference] for own in responses]
        pairs = [pair for pair in zip(groups, sampled, strict=True) if pair[1]][:GROUPS]
        if not pairs:
            return Differences(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool))
        prompts = [getattr(group, self.view) for group, _ in pairs]
        flat = [response for _, own in pairs for response in own]
        engine_N = torch.cat([r.logp_T for r in flat if r.logp_T is not None]).float()
        token_N = torch.cat([response.id_T for response in flat])
        length = [sum(response.id_T.numel() for response in own) for _, own in pairs]
        image_N = torch.tensor([bool(prompt.images) for prompt in prompts]).repeat_interleave(torch.tensor(length))
        packed = pack(prompts, [[response.id_T for response in own] for _, own in pairs], self.pad_id, self.max_tokens)
        processed_N, unprocessed_N = self._trainers(packed, token_N)
        known_N = torch.isfinite(processed_N) & torch.isfinite(engine_N)
        return Differences(
            (processed_N - engine_N).abs()[known_N], (unprocessed_N - engine_N).abs()[known_N], image_N[known_N]
        )

    def _trainers(self, packed: list[Packed], token_N: Tensor) -> tuple[Tensor, Tensor]:
        hidden_NH, head = response_hidden(self.policy, packed), replace(self.policy.head(), merged=())
        processed, unprocessed = [], []
        for hidden_nH, token_n in zip(hidden_NH.split(CHUNK), token_N.to(hidden_NH.device).split(CHUNK), strict=True):
            logits_nV = hidden_nH.new_empty(len(token_n), head.vocab_size, dtype=torch.float32)
            with torch.autocast(hidden_nH.device.type, enabled=False):
                head.logits(hidden_nH, logits_nV)
            unprocessed.append(_picked(logits_nV, token_n))
            processed.append(_picked(self.filters(token_n[:, None], logits_nV.clone()), token_n))
        return torch.cat(processed).cpu(), torch.cat(unprocessed).cpu()

    def _likely(self, found: Differences) -> str:
        """What most probably is wrong, by what agrees."""
        tolerance = self.config.vllm.tolerance
        if found.unprocessed_N.mean() <= tolerance:
            return "the engine's are those before temperature and filters: give it --logprobs-mode processed_logprobs"
        with_images, without = found.processed_N[found.image_N], found.processed_N[~found.image_N]
        if with_images.numel() and without.numel() and without.mean() <= tolerance:
            return "prompts without images agree: does its processor_config.json resize images as model.student's does?"
        return "most likely stale weights, another model, or another dtype than the trainer's: start it anew"


def _picked(logits_nV: Tensor, token_n: Tensor) -> Tensor:
    return logits_nV.log_softmax(-1).gather(-1, token_n[:, None])[:, 0]


def _joined(mine: Differences) -> Differences:
    """Those of all ranks, on every rank: all stop, or none."""
    if not torch.distributed.is_initialized():
        return mine
    ranks: list[Differences] = [mine] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, mine)
    return Differences(
        *(torch.cat([getattr(rank, name) for rank in ranks]) for name in ("processed_N", "unprocessed_N", "image_N"))
    )
