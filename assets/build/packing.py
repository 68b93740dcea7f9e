"""Several conversations about one image as one row: their common prefix once, then each rest as a branch.

    prefix | rest of conversation 1 | rest of 2 | ...      a branch sees the prefix and itself

With a mask to that effect and positions that restart after the prefix, the row gives the same hidden states as the
conversations one by one, at about a third of the tokens: p is long, and six questions share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .scenes import CELLS, GRID

IGNORE = -100


@dataclass(frozen=True)
class Row:
    """Everything [L] but `positions` [3, L]. `branch` is 0 in the prefix, then 1, 2, ...

    `targets` holds the token to predict at each position, IGNORE where nothing is learnt.
    """

    ids: Tensor
    targets: Tensor
    branch: Tensor
    positions: Tensor
    image: int | None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Batch:
    """Rows of one length: `ids`, `targets` [B, L], `positions` [3, B, L], `mask` [B, 1, L, L] (True = may see)."""

    ids: Tensor
    targets: Tensor
    positions: Tensor
    mask: Tensor
    images: list[int]


def pack(conversations: list[tuple[list[int], list[int]]], image: int | None, image_token: int) -> Row:
    """One row of `(prompt ids, response ids)` pairs that show the same image, or none."""
    prompts = [prompt for prompt, _ in conversations]
    # The last prompt token predicts the response, so it must belong to the branch.
    shared = min(_common_prefix(prompts), *(len(prompt) - 1 for prompt in prompts))
    ids, targets = list(prompts[0][:shared]), [IGNORE] * shared
    branch = [0] * shared
    positions = [mrope_positions(prompts[0], image_token)[:, :shared]]
    for number, (prompt, response) in enumerate(conversations, start=1):
        whole = prompt + response
        ids += whole[shared:]
        targets += ([IGNORE] * (len(prompt) - 1) + response + [IGNORE])[shared:]
        branch += [number] * (len(whole) - shared)
        positions.append(mrope_positions(whole, image_token)[:, shared:])
    return Row(torch.tensor(ids), torch.tensor(targets), torch.tensor(branch), torch.cat(positions, dim=1), image)


def collate(rows: list[Row], pad: int) -> Batch:
    """Right-padded batch of `rows`."""
    size = (len(rows), max(map(len, rows)))
    ids, targets = torch.full(size, pad), torch.full(size, IGNORE)
    positions, branch = torch.zeros(3, *size, dtype=torch.long), torch.full(size, -1)
    for i, row in enumerate(rows):
        n = len(row)
        ids[i, :n], targets[i, :n], branch[i, :n], positions[:, i, :n] = row.ids, row.targets, row.branch, row.positions
    # A query of branch b sees the prefix and branch b, never ahead. Padding (-1) sees itself, to keep softmax finite.
    related = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    mask = related & torch.ones(size[1], size[1], dtype=torch.bool).tril()
    images = [row.image for row in rows if row.image is not None]
    return Batch(ids, targets, positions, mask[:, None], images)


def mrope_positions(ids: list[int], image_token: int) -> Tensor:
    """Positions [3, L] (time, height, width) of a conversation with at most one 3x3-token image.

    The same as `Qwen3VLModel.get_rope_index`, which `train` checks on the first row.
    """
    text = torch.arange(len(ids))
    if image_token not in ids:
        return text.expand(3, -1)
    start = ids.index(image_token)
    cell = torch.arange(CELLS)
    image = start + torch.stack([torch.zeros_like(cell), cell // GRID, cell % GRID])
    rest = torch.arange(len(ids) - start - CELLS) + start + GRID
    return torch.cat([text[:start].expand(3, -1), image, rest.expand(3, -1)], dim=1)


def _common_prefix(sequences: list[list[int]]) -> int:
    """Number of leading tokens that all of `sequences` share."""
    first, last = min(sequences), max(sequences)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
