"""How long it takes to read 100,000 COCO boxes over 10,000 images, and to build the default view of every one.

Data are made in a temporary folder first (photographs of 640x480 as JPEG, not timed). Timed, with cold caches of ours:
`annotate read`, and then a map that loads each row as a sample and builds both prompts with the builder `boxes`.
Says seconds, images decoded and peak memory of this process and its children.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (640, 480)
BOXES = 10


def make(folder: Path, images: int) -> Path:
    """COCO instances with BOXES boxes an image; each picture has content of its own."""
    generator = np.random.default_rng(0)
    (folder / "photos").mkdir()
    rows, annotations = [], []
    for number in range(images):
        coarse = generator.integers(0, 255, (15, 20, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
        picture.save(folder / "photos" / f"{number:06d}.jpg", quality=85)
        rows.append({"id": number, "file_name": f"{number:06d}.jpg", "width": SIZE[0], "height": SIZE[1]})
        for x, y in generator.integers(0, 400, (BOXES, 2)).tolist():
            place = {"id": len(annotations), "image_id": number, "category_id": 1 + len(annotations) % 80}
            annotations.append(place | {"bbox": [x, y, 20 + x % 150, 20 + y % 60], "iscrowd": 0, "area": 1})
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": rows, "categories": categories, "annotations": annotations}))
    return file


def view(row: dict[str, Any], default_id: str, root: Path) -> list[int]:
    """Characters of the privileged prompt, and how many images were decoded for it."""
    from privileged import build_views, get_builder, images, rows

    decoded = 0

    def counted(*arguments: Any, **options: Any) -> Image.Image:
        nonlocal decoded
        decoded += 1
        return images.load_image(*arguments, **options)

    rows.load_image = counted  # type: ignore[attr-defined]
    views = build_views(rows.to_sample(row, default_id, root), get_builder("boxes"))
    texts = [part.get("text", "") for part in views.privileged.messages[0]["content"]]
    return [sum(map(len, texts)), decoded]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        from privileged.reading import Reading, read_annotations
        from privileged.scale import map_rows

        file = make(folder, arguments.images)
        began = time.perf_counter()
        reading = Reading(
            format="coco",
            paths=(file,),
            options={"image_root": str(folder / "photos")},
            question="How many objects are there?",
            workers=arguments.workers,
        )
        report = read_annotations(reading, folder / "rows.jsonl")
        read = time.perf_counter()
        facts = map_rows(folder / "rows.jsonl", view, key="bench", workers=arguments.workers, desc="views")
        built = time.perf_counter()
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    print(
        f"python {platform.python_version()}, pillow {version('pillow')}, datasets {version('datasets')}, "
        f"{arguments.workers} processes, {os.cpu_count()} cores"
    )
    print(f"boxes {sum(report.objects.values()):,} of {len(facts):,} images: {dict(report.objects)}")
    print(f"read {read - began:.1f} s, views {built - read:.1f} s, together {built - began:.1f} s")
    print(f"images decoded: {sum(decoded for _, decoded in facts):,}, most for one row {max(d for _, d in facts)}")
    print(f"peak memory: {peak:.0f} MiB, this process plus its largest child")


if __name__ == "__main__":
    main()
