"""Handwritten strokes: scikit-learn's `load_digits`, 1,797 samples of 8x8 (UCI optical digits, CC BY 4.0)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

HELDOUT_SHARE = 0.2
LEVELS = 8


@dataclass(frozen=True)
class Strokes:
    """`images` [N, 8, 8] in 0..1, `labels` [N]."""

    images: np.ndarray
    labels: np.ndarray

    def pick(self, digit: int, rng: np.random.Generator) -> np.ndarray:
        """A random sample [8, 8] of `digit`."""
        return self.images[rng.choice(np.flatnonzero(self.labels == digit))]


def split_strokes(seed: int) -> tuple[Strokes, Strokes]:
    """(train, held-out), split by handwriting sample before anything is composed of them."""
    raw = load_digits()
    images, labels = (raw.images / 16.0).astype(np.float32), raw.target
    order = np.random.default_rng([seed, 1]).permutation(len(labels))
    cut = int(len(labels) * HELDOUT_SHARE)
    return Strokes(images[order[cut:]], labels[order[cut:]]), Strokes(images[order[:cut]], labels[order[:cut]])


def draw_glyph(stroke: np.ndarray, rng: np.random.Generator, size: tuple[int, int], degrees: float) -> np.ndarray:
    """Opacity of one digit, cropped to its ink: [height, width] in 0..1.

    The 8x8 `stroke` is enlarged to a side in `size` and turned by up to `degrees`. Faint fringes are cut, so that the
    array's border is exactly the border of what can be seen.
    """
    side = int(rng.integers(size[0], size[1] + 1))
    tile = Image.fromarray((stroke * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    tile = tile.rotate(float(rng.uniform(-degrees, degrees)), Image.Resampling.BILINEAR)
    alpha = np.asarray(tile, dtype=np.float32) / 255.0
    # Few levels, so that a scene has few colours and its PNG is small.
    alpha = (np.where(alpha < 0.15, 0.0, np.minimum(alpha * 1.25, 1.0)) * LEVELS).round() / LEVELS
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
