"""Importance weights: the tokens were sampled by an engine whose probabilities are not quite the trainer's.

The trainer's are at temperature 1 with nothing filtered or banned, as in scores and losses; so the weights correct for
another temperature of sampling as well.

Shape letters: N response tokens of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .methods import Role
from .methods._responses import Responses


@dataclass(frozen=True, kw_only=True)
class Importance:
    """min(π_trainer(y) / π_engine(y), cap), a token or a response at a time (truncated importance sampling)."""

    role: Role
    """The live student, shown what it was shown when it wrote."""
    of: Literal["token", "sequence"]
    cap: float

    def weights(self, logp_N: Tensor, responses: Responses) -> Tensor:
        """Of the student's log-probabilities under `role`, [N]; 1 for tokens that no engine sampled."""
        ratio_N = (logp_N - responses.rollout_logp_N).nan_to_num(nan=0.0).double()
        if self.of == "sequence":
            ratio_N = responses.sum_M(ratio_N)[responses.response_N]
        return ratio_N.exp().clamp(max=self.cap).to(logp_N.dtype)


def figures(ranks: list[Tensor], cap: float) -> dict[str, float]:
    """For the log, from the weights of all ranks."""
    weight_N = torch.cat(ranks)
    if not weight_N.numel():
        return {}
    capped = (weight_N >= cap).float().mean().item()
    return {"rollout/importance": weight_N.mean().item(), "rollout/importance_capped": capped}
