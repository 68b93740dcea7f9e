"""Sizes of a model, from its config file alone, and how many parameters follow from them.

Qwen3 and Qwen3-VL, dense: grouped-query attention with norms of queries and keys, a gated MLP, no biases in the text
model; a vision tower with biases, a merger, and one more merger for each deepstack level.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text model's sizes, under the names of its config file made short. Defaults are Qwen3's."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocabulary: int = 151_936
    tied: bool = False

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads together, and of the value heads."""
        return self.kv_heads * self.head_dim

    @property
    def layer_products(self) -> int:
        """Weights of one layer's seven matrices."""
        return self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.intermediate)

    @property
    def head(self) -> int:
        """Weights of the LM head, which are the embedding's where they are tied."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Of all layers, norms, the embedding, and the LM head where it is not tied."""
        norms = self.layers * (2 * self.hidden + 2 * self.head_dim) + self.hidden
        return self.layers * self.layer_products + norms + self.head * (1 if self.tied else 2)

    def lora_parameters(self, rank: int) -> int:
        """Of adapters on all seven matrices of every layer."""
        ends = 3 * (self.hidden + self.intermediate) + 2 * (self.hidden + self.queries) + 2 * (self.hidden + self.keys)
        return self.layers * rank * ends


@dataclass(frozen=True, kw_only=True)
class Vision:
    """A vision tower's sizes; `out` is the width of the text model that it feeds."""

    hidden: int
    layers: int
    intermediate: int
    out: int
    levels: int = 3
    """Deepstack levels: features beside those that take the placeholders' places."""
    patch: int = 1536
    """Numbers of a patch: 3 channels × 2 frames × 16 × 16 pixels."""
    merge: int = 4
    """Patches that become one token."""
    positions: int = 2304

    @property
    def merged(self) -> int:
        """Width of the patches of one token side by side: what a merger reads."""
        return self.merge * self.hidden

    @property
    def layer_products(self) -> int:
        """Weights of one layer's matrices."""
        return self.hidden * (4 * self.hidden + 2 * self.intermediate)

    @property
    def merger_products(self) -> int:
        """Weights of one merger's two matrices."""
        return self.merged * (self.merged + self.out)

    @property
    def parameters(self) -> int:
        """Of patch and position embeddings, layers, the merger and those of the deepstack levels."""
        layer = self.layer_products + 9 * self.hidden + self.intermediate
        mergers = (1 + self.levels) * (self.merger_products + self.merged + self.out)
        norms = 2 * self.hidden + self.levels * 2 * self.merged
        return self.hidden * (self.patch + 1 + self.positions) + self.layers * layer + mergers + norms


@dataclass(frozen=True)
class Shape:
    """A whole model; `vision` is None for one that reads text only."""

    name: str
    text: Text
    vision: Vision | None = None

    @property
    def parameters(self) -> int:
        """Of text model and vision tower."""
        return self.text.parameters + (self.vision.parameters if self.vision else 0)


_SMALL_EYES = {"hidden": 1024, "layers": 24, "intermediate": 4096}
_LARGE_EYES = {"hidden": 1152, "layers": 27, "intermediate": 4304}
_0_6B = Text(hidden=1024, layers=28, intermediate=3072, heads=16, kv_heads=8, tied=True)
_1_7B = Text(hidden=2048, layers=28, intermediate=6144, heads=16, kv_heads=8, tied=True)
_4B = Text(hidden=2560, layers=36, intermediate=9728, heads=32, kv_heads=8, tied=True)
_8B = Text(hidden=4096, layers=36, intermediate=12288, heads=32, kv_heads=8)
PUBLISHED = {
    "Qwen3-VL-2B": Shape("Qwen3-VL-2B", _1_7B, Vision(**_SMALL_EYES, out=2048)),
    "Qwen3-VL-4B": Shape("Qwen3-VL-4B", _4B, Vision(**_SMALL_EYES, out=2560)),
    "Qwen3-VL-8B": Shape("Qwen3-VL-8B", _8B, Vision(**_LARGE_EYES, out=4096)),
    "Qwen3-0.6B": Shape("Qwen3-0.6B", _0_6B),
    "Qwen3-1.7B": Shape("Qwen3-1.7B", _1_7B),
    "Qwen3-4B": Shape("Qwen3-4B", _4B),
    "Qwen3-8B": Shape("Qwen3-8B", _8B),
}
"""As in the `config.json` of these models on the hub (`Qwen/…`), so that a plan needs none of them on disk."""


def find_shape(path: str, allow_download: bool = False) -> Shape:
    """Of the model at `path`: its config file here, else a published one by its name, else the hub's if asked for.

    Raises ConfigError if there is none, or if it is of another family.
    """
    local = _config(path, False)
    if local is not None:
        return shape_of(local, path)
    name = re.sub(r"-(Instruct|Thinking|Base)(-\d{4})?$", "", path.rpartition("/")[2])
    if path.startswith("Qwen/") and name in PUBLISHED:
        return PUBLISHED[name]
    remote = _config(path, True) if allow_download else None
    if remote is None:
        known = ", ".join(f"Qwen/{name}" for name in PUBLISHED)
        raise ConfigError(
            f"{path}: no config.json there, and it is none of {known}; give a folder with the model's config.json, or "
            "set model.allow_download=true to fetch that file"
        )
    return shape_of(remote, path)


def shape_of(config: Any, name: str) -> Shape:
    """From a config object of transformers. Raises ConfigError for a family whose sizes mean something else."""
    if config.model_type not in ("qwen3", "qwen3_vl"):
        raise ConfigError(f"{name}: expected a Qwen3 or Qwen3-VL model, dense, got model_type {config.model_type}")
    inner = config.get_text_config()
    text = Text(
        hidden=inner.hidden_size,
        layers=inner.num_hidden_layers,
        intermediate=inner.intermediate_size,
        heads=inner.num_attention_heads,
        kv_heads=inner.num_key_value_heads,
        head_dim=inner.head_dim,
        vocabulary=inner.vocab_size,
        tied=config.tie_word_embeddings,
    )
    eyes = getattr(config, "vision_config", None)
    if eyes is None:
        return Shape(name, text)
    sides = [eyes.temporal_patch_size, eyes.patch_size, eyes.patch_size]
    vision = Vision(
        hidden=eyes.hidden_size,
        layers=eyes.depth,
        intermediate=eyes.intermediate_size,
        out=eyes.out_hidden_size,
        levels=len(eyes.deepstack_visual_indexes),
        patch=eyes.in_channels * prod(sides),
        merge=eyes.spatial_merge_size**2,
        positions=eyes.num_position_embeddings,
    )
    return Shape(name, text, vision)


def _config(path: str, download: bool) -> Any:
    """None if there is none. A folder with a broken file is an error."""
    try:
        return AutoConfig.from_pretrained(path, local_files_only=not download, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if (Path(path) / "config.json").is_file():
            raise ConfigError(
                f"{path}: expected a transformers config.json, got: {str(error).splitlines()[0]}"
            ) from None
        return None
