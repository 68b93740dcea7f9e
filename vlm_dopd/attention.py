"""Who sees whom in shared-prefix rows, and the attention that is told so.

    [ prompt | r1 | r2 | … | rG ‖ prompt | r1 | … | rG ‖ padding ]

A response sees its prompt and itself. On a GPU the rule becomes a block mask of FlexAttention: no [L, L] mask is kept,
and blocks without a pair that may look are skipped (a quarter of the work for four long siblings). Elsewhere, and for
rollouts, it is SDPA with a dense mask. Models are loaded with the attention of this file, which goes by the mask it is
given: the same weights roll out with the one and score with the other, and a checkpointed layer recomputes with the
mask it had.

Shape letters: B rows, L row length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "shared_prefix"
"""Name of this attention in transformers: `from_pretrained(…, attn_implementation=ATTENTION)`."""


def shared_prefix_mask(group_BL: Tensor, segment_BL: Tensor, flex: bool = False) -> Tensor | BlockMask:
    """Where query i may look at key j: j ≤ i, in the same group, and j in the prompt or in i's own segment.

    bool [B, 1, L, L], True where it may, or FlexAttention's block mask of the same rule.
    Segments are 0 for the prompt, 1..G for the responses; the group of padding is −1. Padding sees padding only, so
    that no row of the softmax is empty (that would be NaN) and nothing real depends on it.
    """

    def sees(b: Tensor, head: Tensor | None, i: Tensor, j: Tensor) -> Tensor:
        key = segment_BL[b, j]
        return (j <= i) & (group_BL[b, i] == group_BL[b, j]) & ((key == 0) | (key == segment_BL[b, i]))

    rows, length = segment_BL.shape
    if flex:
        return create_block_mask(sees, rows, None, length, length, device=str(segment_BL.device))
    at_L = torch.arange(length, device=segment_BL.device)
    b_B = torch.arange(rows, device=segment_BL.device)
    return sees(b_B[:, None, None], None, at_L[:, None], at_L).unsqueeze(1)


def _attention(  # type: ignore[no-untyped-def]  # what a layer gives and wants is transformers' affair
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
):
    forward = flex_attention_forward if isinstance(attention_mask, BlockMask) else sdpa_attention_forward
    return forward(module, query, key, value, attention_mask, **options)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
