"""Shared-prefix rows: a prompt and all its sibling responses are one stretch of a row.

    [ prompt | r1 | r2 | … | rG ‖ prompt | r1 | … | rG ‖ padding ]

A response attends to its prompt and to itself (`attention.py`); position ids restart after the prompt, for text
positions and M-RoPE alike. The hidden states are those of G separate rows, while prompt and images are computed once.
Short groups share a row, and rows of one forward pass are of similar length, so that little of it is padding.

Shape letters: B rows, L row length, N response tokens (group by group, sibling by sibling), C position channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .collate import Prompt
from .vision import EncodedImage

MAX_PADDING = 0.1
"""A row joins a forward pass if not more than this share of it is padding then."""


@dataclass(frozen=True)
class Packed:
    """One forward pass: model inputs of B rows, and where their N response tokens are predicted."""

    inputs: dict[str, Any]
    """What a model's forward takes, but for images and `attention_mask`."""
    images: tuple[EncodedImage, ...]
    """Those of all rows, in the order of their placeholders."""
    group_BL: Tensor
    """Number of the group in its row, −1 for padding."""
    segment_BL: Tensor
    """0 in the prompt, then 1..G."""
    row_N: Tensor
    column_N: Tensor
    """Position whose hidden state predicts the token: the one before it, which for a first token ends the prompt."""
    token_N: Tensor
    place_N: Tensor
    """Which of all tokens that were packed these are. Passes may hold groups in another order than they were given."""
    padding: int
    """How many of the B · L tokens are padding."""

    def gather(self, hidden_BLH: Tensor) -> Tensor:
        """The N hidden states that predict the response tokens, [N, H]."""
        return hidden_BLH[self.row_N, self.column_N]

    def to(self, device: torch.device) -> Packed:
        """The same pass on `device`; its images stay where they are, the vision tower fetches them."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        places = {name: getattr(self, name).to(device) for name in _PLACES}
        return replace(self, inputs=inputs, **places)


def pack(
    prompts: Sequence[Prompt], responses: Sequence[Sequence[Tensor]], pad_id: int, max_tokens: int | None = None
) -> list[Packed]:
    """Forward passes that hold every prompt with its responses (1-D id tensors, which may be empty).

    A pass has at most `max_tokens` tokens, padding included, unless a single group has more.
    """
    groups = [_group(prompt, siblings) for prompt, siblings in zip(prompts, responses, strict=True)]
    ends = list(itertools.accumulate(group.column_N.numel() for group in groups))
    for group, end in zip(groups, ends, strict=True):
        group.place_N = torch.arange(end - group.column_N.numel(), end)
    return [_pass(rows, pad_id) for rows in _passes(_rows(groups), max_tokens)]


@dataclass
class _Group:
    """One prompt with its responses, as it will lie in a row; columns are counted from where it begins."""

    id_L: Tensor
    type_L: Tensor
    segment_L: Tensor
    position_CL: Tensor
    column_N: Tensor
    token_N: Tensor
    images: tuple[EncodedImage, ...]
    place_N: Tensor

    def __len__(self) -> int:
        return self.id_L.numel()


_Row = list[_Group]
_PLACES = ("group_BL", "segment_BL", "row_N", "column_N", "token_N", "place_N")


def _group(prompt: Prompt, siblings: Sequence[Tensor]) -> _Group:
    last = prompt.id_P.numel() - 1
    after = int(prompt.position_CP.max()) + 1
    none = prompt.id_P.new_empty(0)
    ids, segments, positions, columns = [prompt.id_P], [torch.zeros_like(prompt.id_P)], [prompt.position_CP], [none]
    start = last + 1
    for number, response in enumerate(siblings, start=1):
        n = response.numel()
        ids.append(response)
        segments.append(torch.full_like(response, number))
        positions.append((after + torch.arange(n)).expand(prompt.position_CP.shape[0], n))
        columns.append(torch.cat([torch.tensor([last]), torch.arange(start, start + n - 1)])[:n] if n else none)
        start += n
    return _Group(
        id_L=torch.cat(ids),
        type_L=torch.cat([prompt.type_P, *map(torch.zeros_like, siblings)]),
        segment_L=torch.cat(segments),
        position_CL=torch.cat(positions, dim=1),
        column_N=torch.cat(columns),
        token_N=torch.cat([none, *siblings]),
        images=prompt.images,
        place_N=none,
    )


def _rows(groups: Sequence[_Group]) -> list[_Row]:
    """Groups into rows no longer than the longest group: each, longest first, into the first row with room."""
    rows: list[_Row] = []
    for group in sorted(groups, key=len, reverse=True):
        row = next((row for row in rows if _length(row) + len(group) <= _length(rows[0])), None)
        if row is None:
            rows.append([group])
        else:
            row.append(group)
    return rows


def _passes(rows: list[_Row], max_tokens: int | None) -> list[list[_Row]]:
    """Rows of similar length into forward passes, within MAX_PADDING and `max_tokens`."""
    passes: list[list[_Row]] = []
    for row in sorted(rows, key=_length, reverse=True):
        if passes:
            longest = _length(passes[-1][0])
            tokens = longest * (len(passes[-1]) + 1)
            padding = tokens - sum(map(_length, passes[-1])) - _length(row)
            if padding <= MAX_PADDING * tokens and (max_tokens is None or tokens <= max_tokens):
                passes[-1].append(row)
                continue
        passes.append([row])
    return passes


def _pass(rows: list[_Row], pad_id: int) -> Packed:
    length, channels = _length(rows[0]), rows[0][0].position_CL.shape[0]
    id_BL = torch.full((len(rows), length), pad_id)
    type_BL, segment_BL = torch.zeros_like(id_BL), torch.zeros_like(id_BL)
    group_BL = torch.full_like(id_BL, -1)
    position_CBL = torch.zeros(channels, len(rows), length, dtype=torch.long)
    row_N, column_N = [], []
    for b, row in enumerate(rows):
        start = 0
        for number, group in enumerate(row):
            place = slice(start, start + len(group))
            id_BL[b, place], type_BL[b, place], segment_BL[b, place] = group.id_L, group.type_L, group.segment_L
            group_BL[b, place], position_CBL[:, b, place] = number, group.position_CL
            row_N.append(torch.full_like(group.column_N, b))
            column_N.append(group.column_N + start)
            start += len(group)
    inputs = {
        "input_ids": id_BL,
        "position_ids": position_CBL if channels > 1 else position_CBL[0],
    }
    if channels > 1:
        inputs["mm_token_type_ids"] = type_BL
    groups = [group for row in rows for group in row]
    return Packed(
        inputs,
        images=tuple(image for group in groups for image in group.images),
        group_BL=group_BL,
        segment_BL=segment_BL,
        row_N=torch.cat(row_N),
        column_N=torch.cat(column_N),
        token_N=torch.cat([group.token_N for group in groups]),
        place_N=torch.cat([group.place_N for group in groups]),
        padding=id_BL.numel() - sum(map(len, groups)),
    )


def _length(row: _Row) -> int:
    return sum(map(len, row))
