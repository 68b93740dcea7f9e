"""What one role thinks of the sampled tokens: a forward pass without gradient over shared-prefix rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from .attention import shared_prefix_mask
from .chunked_loss import Scored, score_tokens
from .packing import Packed
from .roles import Policy
from .sharding import is_sharded, most


class ServedPolicy(Protocol):
    """Weights that another process holds."""

    @property
    def device(self) -> torch.device:
        """Where the scores will lie."""
        ...

    def forget(self) -> None:
        """To be called when a window begins: its images are sent once."""
        ...

    def submit(self, passes: Sequence[Packed]) -> Callable[[], Scored]:
        """Send rows off; what is returned waits for their scores."""
        ...


def submit(policy: Policy | ServedPolicy, passes: Sequence[Packed]) -> Callable[[], Scored]:
    """Begins to score; what is returned gives the scores. A policy served elsewhere is at work meanwhile."""
    return partial(_score_here, policy, passes) if isinstance(policy, Policy) else policy.submit(passes)


def score(policy: Policy | ServedPolicy, passes: Sequence[Packed]) -> Scored:
    """Hidden states, sampled log-probabilities and entropies under `policy` of all response tokens of `passes`.

    The N tokens come in the order in which the groups were packed, whatever pass they are in. Leaves the model in the
    mode it was in; scores are taken without dropout.
    """
    return submit(policy, passes)()


@torch.no_grad()
def _score_here(policy: Policy, passes: Sequence[Packed]) -> Scored:
    return score_tokens(response_hidden(policy, passes), policy.head(), response_tokens(passes).to(policy.device))


@torch.no_grad()
def response_hidden(policy: Policy, passes: Sequence[Packed]) -> Tensor:
    """Last hidden states of the positions that predict the response tokens, [N, H]: the model's part of `score`."""
    # A forward of a sharded model is a collective: ranks with fewer passes repeat one, and know it before their first.
    idle = most(len(passes), policy.device) - len(passes) if is_sharded(policy.model) else 0
    was_training = policy.model.training
    policy.model.eval()
    try:
        hidden = [_hidden(policy, packed.to(policy.device)) for packed in passes]
        for _ in range(idle):
            _hidden(policy, passes[-1].to(policy.device))
    finally:
        policy.model.train(was_training)
    return torch.cat(hidden)[_order(passes).to(policy.device)]


def response_tokens(passes: Sequence[Packed]) -> Tensor:
    """The response tokens in the order of `response_hidden`, [N]."""
    return torch.cat([packed.token_N for packed in passes])[_order(passes)]


def _order(passes: Sequence[Packed]) -> Tensor:
    return torch.cat([packed.place_N for packed in passes]).argsort()


def _hidden(policy: Policy, packed: Packed) -> Tensor:
    """[N, H] of one pass. The base model stops before the LM head: logits exist only inside score_tokens' chunks."""
    images = policy.vision.inputs(packed.images)
    output = policy.model.base_model(**packed.inputs, **images, **_mask(policy, packed), use_cache=False)
    return packed.gather(output.last_hidden_state)


def student_hidden(model: torch.nn.Module, policy: Policy, packed: Packed) -> Tensor:
    """The same hidden states [N, H] with gradient, through the forward of `model`: the student's, or what wraps it.

    DDP must see the forward call, so the base model is out of reach: the last hidden state is asked for instead, and
    logits of one position only.
    """
    images = policy.vision.training_inputs(packed.images)
    options = {"use_cache": False, "output_hidden_states": True, "logits_to_keep": 1}
    output = model(**packed.inputs, **images, **_mask(policy, packed), **options)
    return packed.gather(output.hidden_states[-1])


def _mask(policy: Policy, packed: Packed) -> dict[str, object]:
    return {"attention_mask": shared_prefix_mask(packed.group_BL, packed.segment_BL, policy.flex)}
