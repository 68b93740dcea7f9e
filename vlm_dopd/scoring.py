"""What one role thinks of the sampled tokens: a forward pass without gradient over shared-prefix rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .attention import shared_prefix_mask
from .chunked_loss import Scored, score_tokens
from .packing import Packed
from .roles import Policy


@torch.no_grad()
def score(policy: Policy, passes: Sequence[Packed]) -> Scored:
    """Hidden states, sampled log-probabilities and entropies under `policy` of all response tokens of `passes`.

    The N tokens come in the order in which the groups were packed, whatever pass they are in. Leaves the model in the
    mode it was in; scores are taken without dropout.
    """
    was_training = policy.model.training
    policy.model.eval()
    try:
        hidden = [_hidden(policy, packed.to(policy.device)) for packed in passes]
    finally:
        policy.model.train(was_training)
    order_N = torch.cat([packed.place_N for packed in passes]).argsort().to(policy.device)
    token_N = torch.cat([packed.token_N for packed in passes]).to(policy.device)
    return score_tokens(torch.cat(hidden)[order_N], policy.head(), token_N[order_N])


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
