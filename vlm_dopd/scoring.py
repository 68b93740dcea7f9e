"""What one role thinks of the sampled tokens: a forward pass without gradient over shared-prefix rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .chunked_loss import Scored, score_tokens
from .packing import Packed
from .roles import Policy
from .vision import VisionOnce


@torch.no_grad()
def score(policy: Policy, packed: Packed) -> Scored:
    """Hidden states, sampled log-probabilities and entropies of the N response tokens under `policy`.

    Leaves the model in the mode it was in; scores are taken without dropout.
    """
    was_training = policy.model.training
    policy.model.eval()
    try:
        packed = packed.to(policy.head_VH.device)
        # The base model stops before the LM head: logits exist only inside score_tokens' chunks.
        images = policy.vision.inputs(packed.images)
        hidden_BLH = policy.model.base_model(**packed.inputs, **images, use_cache=False).last_hidden_state
    finally:
        policy.model.train(was_training)
    return score_tokens(packed.gather(hidden_BLH), policy.head_VH, packed.token_N)


def student_hidden(model: torch.nn.Module, packed: Packed, vision: VisionOnce) -> Tensor:
    """The same hidden states [N, H] with gradient, through the module's own forward.

    `model` may be wrapped (DDP must see the forward call), so the base model is out of reach: the last hidden state
    is asked for instead, and logits of one position only.
    """
    images = vision.training_inputs(packed.images)
    output = model(**packed.inputs, **images, use_cache=False, output_hidden_states=True, logits_to_keep=1)
    return packed.gather(output.hidden_states[-1])
