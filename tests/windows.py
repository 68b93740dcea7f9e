"""Random windows for tests of methods: everything a method may look at, of the right shapes and ranges."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlm_dopd.methods import Method, WindowScores
from vlm_dopd.methods._responses import Responses


def responses_of(
    lengths: Sequence[Sequence[int]],
    rewards: Sequence[float] | None = None,
    references: bool = False,
    generator: torch.Generator | None = None,
) -> Responses:
    """Groups of responses of these lengths; with `references` the last of each group is a reference completion."""
    flat = [n for siblings in lengths for n in siblings]
    count = sum(flat)
    last = [references and i == len(siblings) - 1 for siblings in lengths for i in range(len(siblings))]
    reference_M = torch.tensor(last, dtype=torch.bool)
    reward_M = torch.full((len(flat),), float("nan")) if rewards is None else torch.tensor(rewards)
    return Responses(
        token_N=torch.randint(5, 90, (count,), generator=generator),
        response_N=torch.arange(len(flat)).repeat_interleave(torch.tensor(flat, dtype=torch.long)),
        group_M=torch.arange(len(lengths)).repeat_interleave(torch.tensor([len(s) for s in lengths], dtype=torch.long)),
        reward_M=reward_M.float().where(~reference_M, float("nan")),
        truncated_M=torch.zeros(len(flat), dtype=torch.bool),
        reference_M=reference_M,
        rollout_logp_N=torch.full((count,), float("nan")),
    )


def window(
    method: Method,
    lengths: Sequence[Sequence[int]] = ((7, 3, 5, 1), (4, 9, 2, 6), (3, 3, 8, 2)),
    seed: int = 0,
    privileged: float = 0.67,
    ordinary: float = 0.9,
    progress: float = 0.25,
) -> WindowScores:
    """Scores under every role of `method`; shares of tokens with p and of ordinary ones; rewards 0 or 1 if it asks."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(map(sum, lengths))

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    rewards = torch.randint(0, 2, (sum(map(len, lengths)),), generator=generator).tolist()
    return WindowScores(
        logp_N={role: uniform(-4, 0) for role in method.roles},
        entropy_N={role: uniform(0, 3) for role in method.roles},
        has_privilege_N=uniform(0, 1) < privileged,
        ordinary_N=uniform(0, 1) < ordinary,
        responses=responses_of(lengths, rewards if method.needs_reward else None, method.references, generator),
        statistic_N={statistic.name: uniform(0, 1) for statistic in method.statistics},
        progress=progress,
    )
