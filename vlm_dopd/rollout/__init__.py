"""Rollouts: the live student answers the plain prompt. An engine is a callable in a file of its own.

Responses are token ids from beginning to end. They are never decoded and tokenised again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..collate import Group


@dataclass(frozen=True)
class Response:
    """One completion of a prompt, T tokens of it."""

    id_T: Tensor
    """Sampled ids, the end-of-sequence id included where there is one."""
    truncated: bool
    """The budget of new tokens ended it, not the student."""
    reference: bool = False
    """A reference completion, not the student's own."""
    reward: float = float("nan")
    logp_T: Tensor | None = None
    """Log-probabilities under the weights that sampled it, where the engine says and they may be others than these."""


class Engine(Protocol):
    """Whatever writes responses: the live student, a server, the teacher, a column of the data."""

    def __call__(self, groups: Sequence[Group], step: int) -> list[list[Response]]:
        """G responses for every group, in order. A function of weights, group, step and seed alone, so that it does not
        matter which groups share a batch, a micro-batch or a rank."""
        ...


def sequence_seed(seed: int, step: int, sample_id: str, sibling: int) -> int:
    """A seed of its own for every response of a run: the same after a resume and in any batch layout."""
    key = f"{seed}/{step}/{sample_id}/{sibling}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest())
