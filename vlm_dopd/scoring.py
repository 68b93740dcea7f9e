"""What one role thinks of the sampled tokens: a forward pass without gradient over shared-prefix rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .chunked_loss import Scored, score_tokens
from .packing import Packed
from .roles import Policy
from .vision import VisionOnce


@torch.no_grad()
def score(policy: Policy, passes: Sequence[Packed]) -> Scored:
    """Hidden states, sampled log-probabilities and entropies under `policy` of all response tokens of `passes`.

    The N tokens come in the order in which the groups were packed, whatever pass they are in. Leaves the model in the
    mode it was in; scores are taken without dropout.
    """
    device = policy.head_VH.device
    was_training = policy.model.training
    policy.model.eval()
    try:
        # The base model stops before the LM head: logits exist only inside score_tokens' chunks.
        hidden = [
            packed.gather(
                policy.model.base_model(
                    **packed.inputs, **policy.vision.inputs(packed.images), use_cache=False
                ).last_hidden_state
            )
            for packed in (packed.to(device) for packed in passes)
        ]
    finally:
        policy.model.train(was_training)
    order_N = torch.cat([packed.place_N for packed in passes]).argsort().to(device)
    token_N = torch.cat([packed.token_N for packed in passes]).to(device)
    return score_tokens(torch.cat(hidden)[order_N], policy.head_VH, token_N[order_N])


def student_hidden(model: torch.nn.Module, packed: Packed, vision: VisionOnce) -> Tensor:
    """The same hidden states [N, H] with gradient, through the module's own forward.

    `model` may be wrapped (DDP must see the forward call), so the base model is out of reach: the last hidden state
    is asked for instead, and logits of one position only.
    """
    images = vision.training_inputs(packed.images)
    output = model(**packed.inputs, **images, use_cache=False, output_hidden_states=True, logits_to_keep=1)
    return packed.gather(output.hidden_states[-1])
