"""`vlm-dopd merge`: the adapter of a LoRA run and its base become one plain transformers checkpoint.

Products are added in float32 and rounded once, to the dtype of the base as it lies on disk. Under QLoRA they are added
to the 4-bit weights that the run had, spelt out again: those are what the adapter was trained beside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from .errors import ConfigError, closest
from .lora import base_of, merged, trained_as
from .roles import load_policy, load_processor, tokenizer_of

DTYPES = ("float32", "bfloat16")


def merge(
    folder: Path, out: Path, *, base: str | None = None, dtype: str | None = None, allow_download: bool = False
) -> Path:
    """Write what the run folder or checkpoint `folder` has trained to `out`, with its processor; returns `out`.

    `base` replaces where the adapter says that its base is, `dtype` the base's own. Raises ConfigError if there is no
    adapter, no such base, or something in `out`.
    """
    named = base_of(folder)
    if named is None:
        raise ConfigError(f"{folder}: expected an adapter folder, as a run with model.lora leaves, got none")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: expected a new or empty folder, it holds files already")
    if dtype not in (None, *DTYPES):
        raise ConfigError(f"--dtype {dtype}: no such dtype; {closest(str(dtype), DTYPES)}")
    path = base or named
    try:
        processor = load_processor(path, allow_download)
        model = merged(_base(path, tokenizer_of(processor), folder, allow_download), folder)
    except ConfigError as error:
        raise ConfigError(f"the base of {folder}: {error}; --base says where it is now") from None
    model.to(_dtype(path, dtype, allow_download)).save_pretrained(out)
    processor.save_pretrained(out)
    return out


def _base(path: str, tokenizer: Any, folder: Path, allow_download: bool) -> Any:
    """The base in float32, with the values that it had in training."""
    settings = trained_as(folder)
    if settings is None or settings.quantize is None:
        return load_policy(path, tokenizer, "float32", allow_download).model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = load_policy(path, tokenizer, settings.dtype, allow_download, held=settings.quantize, device=device)
    return policy.model.dequantize().cpu().float()


def _dtype(path: str, dtype: str | None, allow_download: bool) -> torch.dtype:
    if dtype is not None:
        return getattr(torch, dtype)
    config = AutoConfig.from_pretrained(path, local_files_only=not allow_download, trust_remote_code=False)
    return config.dtype or torch.float32
