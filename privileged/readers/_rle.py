"""COCO's run lengths: columns of a mask from left to right, runs of 0 and 1 in turn, beginning with 0."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DataError
from ..geometry import Box
from ..reader_files import expect, get, numbers


def run_lengths(rle: Any, width: int, height: int) -> list[int]:
    """The runs of an RLE object of a `width` x `height` mask. Raises DataError if they are not of that size.

    The compressed form (counts are a string) needs the extra `coco`.
    """
    size = numbers(get(rle, "size", list, "segmentation"), 2, "segmentation: size")
    if size != (height, width):
        raise DataError(f"segmentation: size: expected [{height}, {width}], got {[*map(int, size)]}")
    counts = get(rle, "counts", (list, str), "segmentation")
    if isinstance(counts, str):
        return _decompressed(counts, width, height)
    runs = [expect(run, int, "segmentation: counts") for run in counts]
    if min(runs, default=-1) < 0 or sum(runs) != width * height:
        raise DataError(f"segmentation: counts: expected runs of {width * height} pixels in all, got {sum(runs)}")
    return runs


def mask_box(runs: list[int], height: int) -> Box | None:
    """The box (px, xyxy) of the ones of a mask, None if it is all zero. `height` is that of the mask."""
    ends = np.cumsum(np.asarray(runs, dtype=np.int64))
    first, last = ends[:-1:2], ends[1::2] - 1  # of each run of ones
    first, last = first[: len(last)][last >= first[: len(last)]], last[last >= first[: len(last)]]
    if not len(first):
        return None
    same = first // height == last // height  # a run that goes on in the next column touches top and bottom
    top = np.where(same, first % height, 0).min()
    bottom = np.where(same, last % height, height - 1).max()
    return float(first.min() // height), float(top), float(last.max() // height + 1), float(bottom + 1)


def _decompressed(counts: str, width: int, height: int) -> list[int]:
    try:
        from pycocotools import mask as coco
    except ImportError:
        raise DataError(
            "segmentation: compressed RLE needs pycocotools, which is not installed; pip install vlm-dopd[coco]"
        ) from None
    try:
        pixels = coco.decode({"size": [height, width], "counts": counts.encode()})
    except Exception as error:  # its C code raises whatever it likes
        raise DataError(f"segmentation: counts: expected compressed run lengths ({error})") from None
    flat = np.asarray(pixels).flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return [0, *runs] if flat[0] else runs
