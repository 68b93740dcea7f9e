"""The responses of a window: which token belongs to which, which are siblings, and what is known of each.

Shape letters: N response tokens, M responses, both in the flat order of `WindowScores`; J groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Responses:
    """Columns over tokens (N) and over responses (M). All ranks together, so no two groups share a number."""

    token_N: Tensor
    """Sampled ids."""
    response_N: Tensor
    """Number of the token's response, 0..M−1, ascending."""
    group_M: Tensor
    """Number of the response's group, 0..J−1. Siblings share it, their reference completion included."""
    reward_M: Tensor
    """float; NaN where nobody asked for rewards, and for reference completions."""
    truncated_M: Tensor
    """bool: the budget of new tokens ended it."""
    reference_M: Tensor
    """bool: a reference completion, not a response of the student's own."""
    rollout_logp_N: Tensor
    """float: log-probability under the policy that sampled, nats; NaN where the engine does not say."""

    @classmethod
    def joined(cls, parts: Sequence[Responses]) -> Responses:
        """Micro-batches and ranks one after the other: responses and groups are counted on."""
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__}
        responses, groups, response_N, group_M = 0, 0, [], []
        for part in parts:
            response_N.append(part.response_N + responses)
            group_M.append(part.group_M + groups)
            responses += part.group_M.numel()
            groups += int(part.group_M.max()) + 1 if part.group_M.numel() else 0
        return cls(**columns | {"response_N": torch.cat(response_N), "group_M": torch.cat(group_M)})

    @property
    def length_M(self) -> Tensor:
        """Tokens of each response; 0 for an empty one."""
        return self.response_N.bincount(minlength=self.group_M.numel())

    @property
    def position_N(self) -> Tensor:
        """0 for the first token of a response."""
        start_M = self.length_M.cumsum(0) - self.length_M
        return torch.arange(self.response_N.numel(), device=self.response_N.device) - start_M[self.response_N]

    def mean_M(self, value_N: Tensor, mask_N: Tensor | None = None) -> Tensor:
        """Mean over the tokens of each response, of those in the mask if there is one; 0 where there are none."""
        mask_N = torch.ones_like(value_N) if mask_N is None else mask_N.to(value_N.dtype)
        return self.sum_M(value_N * mask_N) / self.sum_M(mask_N).clamp(min=1)

    def sum_M(self, value_N: Tensor) -> Tensor:
        """Sum over the tokens of each response, [M], in the dtype of `value_N`."""
        return value_N.new_zeros(self.group_M.numel()).index_add_(0, self.response_N, value_N)

    def group_sum_M(self, value_M: Tensor) -> Tensor:
        """For every response, the sum over its group, itself included."""
        groups = int(self.group_M.max()) + 1 if self.group_M.numel() else 0
        return value_M.new_zeros(groups).index_add_(0, self.group_M, value_M)[self.group_M]
