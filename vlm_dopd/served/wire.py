"""A message: one frame with a JSON header, one with tensors as safetensors. Nothing else is ever decoded, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
from torch import Tensor

VERSION = 1
MAX_HEADER = 2**24
MAX_FRAME = 2**29
"""Bytes that a server takes: ZeroMQ drops who sends more. 4,096 patches, a megapixel, are 25 MB in float32."""


class WireError(ValueError):
    """A message that is not one of ours."""


def encode(header: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> list[bytes]:
    """The frames of a message. Tensors may lie anywhere."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()}
    return [json.dumps(dict(header)).encode(), safetensors.torch.save(ready)]


def decode(frames: Sequence[bytes]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors. Raises WireError for anything that `encode` cannot have written."""
    if len(frames) != 2 or len(frames[0]) > MAX_HEADER:
        raise WireError(f"expected a header and tensors, got {len(frames)} frames")
    try:
        header = json.loads(frames[0])
        tensors = safetensors.torch.load(frames[1])
    except Exception as error:  # the bytes are a stranger's: the two decoders have a dozen ways to refuse them
        raise WireError(f"expected JSON and safetensors, got: {str(error)[:200]}") from None
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise WireError("expected a header that names the kind of message")
    if header.get("version") != VERSION:
        raise WireError(f"expected version {VERSION} of this protocol, got {str(header.get('version'))[:20]}")
    return header, tensors
