"""Shared-prefix rows: a prompt and all its sibling responses are one row of the batch.

    [ prompt | r1 | r2 | … | rG | padding ]

A response attends to the prompt and to itself; position ids restart after the prompt, for text positions and M-RoPE
alike. The hidden states are those of G separate rows, while prompt and images are computed once.

Shape letters: B rows, L row length, N response tokens (row by row, sibling by sibling), C position channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .collate import Prompt
from .vision import EncodedImage


@dataclass(frozen=True)
class Packed:
    """Model inputs of B rows, and where the N response tokens are predicted in them."""

    inputs: dict[str, Any]
    images: tuple[EncodedImage, ...]
    """Those of all rows, in the order of their placeholders."""
    row_N: Tensor
    column_N: Tensor
    """Position whose hidden state predicts the token: the one before it, which for a first token ends the prompt."""
    token_N: Tensor

    def gather(self, hidden_BLH: Tensor) -> Tensor:
        """The N hidden states that predict the response tokens, [N, H]."""
        return hidden_BLH[self.row_N, self.column_N]

    def to(self, device: torch.device) -> Packed:
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return Packed(inputs, self.images, self.row_N.to(device), self.column_N.to(device), self.token_N.to(device))


def pack(prompts: Sequence[Prompt], responses: Sequence[Sequence[Tensor]], pad_id: int) -> Packed:
    """One row a prompt with its responses (1-D id tensors, which may be empty), padded on the right."""
    rows = [_row(prompt, siblings) for prompt, siblings in zip(prompts, responses, strict=True)]
    length = max(row.id_L.numel() for row in rows)
    channels = rows[0].position_CL.shape[0]
    id_BL = torch.full((len(rows), length), pad_id)
    type_BL = torch.zeros_like(id_BL)
    position_CBL = torch.zeros(channels, len(rows), length, dtype=torch.long)
    segment_BL = torch.full_like(id_BL, -1)
    for b, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        n = row.id_L.numel()
        id_BL[b, :n], segment_BL[b, :n] = row.id_L, row.segment_L
        type_BL[b, : prompt.type_P.numel()] = prompt.type_P
        position_CBL[:, b, :n] = row.position_CL
    inputs = {
        "input_ids": id_BL,
        "attention_mask": shared_prefix_mask(segment_BL),
        "position_ids": position_CBL if channels > 1 else position_CBL[0],
    }
    if channels > 1:
        inputs["mm_token_type_ids"] = type_BL
    return Packed(
        inputs,
        images=tuple(image for prompt in prompts for image in prompt.images),
        row_N=torch.cat([torch.full_like(row.column_N, b) for b, row in enumerate(rows)]),
        column_N=torch.cat([row.column_N for row in rows]),
        token_N=torch.cat([torch.cat([*siblings, id_BL.new_empty(0)]) for siblings in responses]),
    )


def shared_prefix_mask(segment_BL: Tensor) -> Tensor:
    """bool [B, 1, L, L], True where query i may look at key j: j ≤ i, and j in the prompt or in i's own segment.

    Segments are 0 for the prompt, 1..G for the responses, −1 for padding. Padding sees padding only, so that no row
    of the softmax is empty (that would be NaN) and nothing real depends on it.
    """
    query, key = segment_BL.unsqueeze(-1), segment_BL.unsqueeze(-2)
    causal_LL = torch.ones(segment_BL.shape[-1], segment_BL.shape[-1], dtype=torch.bool).tril()
    return (causal_LL & ((query == key) | ((key == 0) & (query > 0)))).unsqueeze(1)


@dataclass(frozen=True)
class _Row:
    id_L: Tensor
    segment_L: Tensor
    position_CL: Tensor
    column_N: Tensor


def _row(prompt: Prompt, siblings: Sequence[Tensor]) -> _Row:
    last = prompt.id_P.numel() - 1
    after = int(prompt.position_CP.max()) + 1
    ids, segments, positions, columns = [prompt.id_P], [torch.zeros_like(prompt.id_P)], [prompt.position_CP], []
    start = last + 1
    for number, response in enumerate(siblings, start=1):
        n = response.numel()
        ids.append(response)
        segments.append(torch.full_like(response, number))
        positions.append((after + torch.arange(n)).expand(prompt.position_CP.shape[0], n))
        columns.append(torch.cat([torch.tensor([last]), torch.arange(start, start + n - 1)])[:n] if n else response)
        start += n
    return _Row(
        torch.cat(ids),
        torch.cat(segments),
        torch.cat(positions, dim=1),
        torch.cat([*columns, prompt.id_P.new_empty(0)]),
    )
