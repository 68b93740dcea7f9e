"""What is in a checkpoint, from the headers of its files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file


def sizes(path: str, download: bool) -> dict[str, int]:
    """How many numbers each tensor of a checkpoint has, by name; only headers of files are read."""
    index = _part(path, SAFE_WEIGHTS_INDEX_NAME, download)
    names = {SAFE_WEIGHTS_NAME}
    if index is not None:
        names = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    found: dict[str, int] = {}
    for name in sorted(names):
        file = _part(path, name, download)
        if file is not None:
            with safe_open(file, framework="pt") as tensors:
                found |= {key: math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    return found


def _part(path: str, name: str, download: bool) -> Any:
    return cached_file(
        path,
        name,
        local_files_only=not download,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
