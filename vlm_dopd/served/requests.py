"""Shared-prefix rows and images in messages, and what a server lets in.

A request comes from anybody who reaches the address, and an index out of range would end a CUDA process: whatever a
model would use as an index or a size is checked before the model sees it.

Shape letters: B rows, L row length, N response tokens, C position channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..packing import Packed
from ..vision import EncodedImage
from .wire import WireError

_PLACES = tuple(f.name for f in fields(Packed) if f.name not in ("inputs", "images", "padding"))
_INPUTS = ("input_ids", "position_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class Limits:
    """What the rows of a request must keep to."""

    embeddings: int
    """Rows of the input embedding."""
    channels: int
    """Of position ids: 3 for M-RoPE, 1 for text."""
    max_tokens: int
    """B · L of one pass."""
    image_id: int | None
    patch_numbers: int
    """Numbers of a patch: channels · time · height · width; 0 without a vision tower."""
    merge: int
    """Patches along an edge that become one image token."""


def rows_to_tensors(passes: Sequence[Packed]) -> dict[str, Tensor]:
    """Everything of the passes but their images."""
    found: dict[str, Tensor] = {}
    for number, packed in enumerate(passes):
        own = {**packed.inputs, **{name: getattr(packed, name) for name in _PLACES}}
        found |= {f"{number}.{name}": value for name, value in own.items()}
    return found


def rows_from_tensors(
    tensors: Mapping[str, Tensor], images: Sequence[tuple[EncodedImage, ...]], limits: Limits
) -> list[Packed]:
    """The passes of a request, one for each tuple of images. Raises WireError if a model could stumble over them."""
    if not images:
        raise WireError("expected at least one pass, got none")
    names = {*_INPUTS[: 3 if limits.channels > 1 else 2], *_PLACES}
    if set(tensors) != {f"{number}.{name}" for number in range(len(images)) for name in names}:
        raise WireError(f"expected the tensors {', '.join(sorted(names))} of each pass; is the model of another kind?")
    if any(tensor.dtype != torch.int64 for tensor in tensors.values()):
        raise WireError("expected whole numbers of 64 bits")
    passes = []
    for number, shown in enumerate(images):
        own = {name: tensors[f"{number}.{name}"] for name in names}
        inputs = {name: own.pop(name) for name in _INPUTS if name in own}
        packed = Packed(inputs=inputs, images=shown, padding=0, **own)
        _check(packed, limits)
        passes.append(packed)
    place_N = torch.cat([packed.place_N for packed in passes])
    if not torch.equal(place_N.sort().values, torch.arange(place_N.numel())):
        raise WireError("place_N: expected every response token once")
    return passes


def _check(packed: Packed, limits: Limits) -> None:
    id_BL = packed.inputs["input_ids"]
    if id_BL.ndim != 2 or not 0 < id_BL.numel() <= limits.max_tokens:
        raise WireError(f"input_ids: expected 1 to {limits.max_tokens} tokens in rows, got {list(id_BL.shape)}")
    rows, length = id_BL.shape
    channels = [limits.channels] if limits.channels > 1 else []
    shapes = {
        "position_ids": (packed.inputs["position_ids"], [*channels, rows, length]),
        "group_BL": (packed.group_BL, [rows, length]),
        "segment_BL": (packed.segment_BL, [rows, length]),
    }
    if limits.channels > 1:
        shapes["mm_token_type_ids"] = (packed.inputs["mm_token_type_ids"], [rows, length])
    count = packed.row_N.numel()
    shapes |= {name: (getattr(packed, name), [count]) for name in ("row_N", "column_N", "token_N", "place_N")}
    for name, (tensor, expected) in shapes.items():
        if list(tensor.shape) != expected:
            raise WireError(f"{name}: expected the shape {expected}, got {list(tensor.shape)}")
    for name, tensor, low, high in (
        ("input_ids", id_BL, 0, limits.embeddings),
        ("position_ids", packed.inputs["position_ids"], 0, 2**31),
        ("group_BL", packed.group_BL, -1, length),
        ("segment_BL", packed.segment_BL, 0, length),
        ("row_N", packed.row_N, 0, rows),
        ("column_N", packed.column_N, 0, length),
    ):
        if tensor.numel() and not (low <= int(tensor.min()) and int(tensor.max()) < high):
            raise WireError(f"{name}: expected {low} to {high - 1}, got {int(tensor.min())} to {int(tensor.max())}")
    if count > id_BL.numel():
        raise WireError(f"row_N: expected at most {id_BL.numel()} response tokens, got {count}")
    placeholders = 0 if limits.image_id is None else int((id_BL == limits.image_id).sum())
    shown = sum(int(image.grid_thw.prod()) // limits.merge**2 for image in packed.images)
    if placeholders != shown:
        raise WireError(f"images: expected {placeholders} image tokens, as many as placeholders, got {shown}")


def image_to_tensors(image: EncodedImage, dtype: torch.dtype) -> dict[str, Tensor]:
    """In the dtype that the tower casts pixels to in any case."""
    return {"pixel_values": image.pixel_values.to(dtype), "grid_thw": image.grid_thw}


def digest(tensors: Mapping[str, Tensor], autocast: str | None) -> str:
    """Names an image in the rows. Features depend on the dtype of the sums, so a server keeps both kinds apart."""
    found = hashlib.sha256(f"{autocast} {tensors['grid_thw'].tolist()} {tensors['pixel_values'].shape}".encode())
    found.update(tensors["pixel_values"].contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def image_from_tensors(tensors: Mapping[str, Tensor], limits: Limits) -> EncodedImage:
    """Raises WireError for what the vision tower could stumble over."""
    if not limits.patch_numbers:
        raise WireError("images: expected none, the served model is text-only")
    if set(tensors) != {"pixel_values", "grid_thw"}:
        raise WireError("image: expected pixel_values and grid_thw")
    pixels, grid = tensors["pixel_values"], tensors["grid_thw"]
    if grid.dtype != torch.int64 or list(grid.shape) != [3] or int(grid.min()) < 1 or int(grid.max()) > 2**16:
        raise WireError("grid_thw: expected patches along time, height and width")
    if int(grid[1]) % limits.merge or int(grid[2]) % limits.merge:
        raise WireError(f"grid_thw: expected height and width in multiples of {limits.merge}, got {grid.tolist()}")
    expected = [int(grid.prod()), limits.patch_numbers]
    if not pixels.is_floating_point() or list(pixels.shape) != expected:
        raise WireError(f"pixel_values: expected floats of the shape {expected}, got {list(pixels.shape)}")
    return EncodedImage(pixels, grid)


def autocast_of(header: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype of the trainer's autocast, None without: a teacher there would have been under it."""
    known = {"None": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(header.get("autocast"))
    if name not in known:
        raise WireError(f"autocast: expected bfloat16, float16 or null, got {name[:20]}")
    return known[name]
