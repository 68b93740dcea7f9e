"""Rows for the tests of the audit: structured noise as images, boxes by hand."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from privileged import Note, PrivilegedRecord, Region
from privileged.rows import write_rows


def record(sample_id, *regions, notes=(), **extra):
    made = [
        Region(id=f"r{i}", label=label, box=box, **more[0] if more else {})
        for i, (label, box, *more) in enumerate(regions)
    ]
    notes = tuple(Note(text=text) for text in notes)
    return PrivilegedRecord(sample_id=sample_id, regions=tuple(made), notes=notes, extra=extra).to_json()


def noise(seed, size=(200, 100)):
    """An image with structure: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def png(image, **options):
    stream = io.BytesIO()
    image.save(stream, **({"format": "PNG"} | options))
    return stream.getvalue()


def row(number=0, question="What is red?", answer="sofa", regions=(("cup", (10, 10, 60, 60)),), **changes):
    made = {
        "id": f"s{number}",
        "question": question,
        "answer": answer,
        "images": [png(noise(number))],
        "kind": "what",
        "privileged": record(f"s{number}", *regions),
    }
    return made | changes


def many(count=12):
    """Rows of all sorts: leaks, oddities, errors, several images, none."""
    made = []
    for i in range(count):
        regions = [("red cup", (10, 10, 60, 60)), (f"label {i}", (-5, 0, 40, 30))][: 1 + i % 2]
        one = row(i, answer=["cup", "3", "sofa"][i % 3], kind=f"k{i % 2}", regions=regions)
        made.append(one | [{}, {"images": ["none.png"]}, {"privileged": None}, {}][i % 4])
    return made


def write(path, rows):
    """Rows as JSON lines, their images beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = []
    for number, one in enumerate(rows):
        names = []
        for image in one.get("images") or []:
            if isinstance(image, bytes):
                (path.parent / "pictures").mkdir(exist_ok=True)
                (path.parent / "pictures" / f"{number}.png").write_bytes(image)
                image = f"pictures/{number}.png"
            names.append(image)
        plain.append(one | {"images": names})
    write_rows(path, plain)
    return path


def words(view):
    return sum(
        len(part.get("text", "").split()) + 100 * (part["type"] == "image") for part in view.messages[0]["content"]
    )


def jpeg(image, quality):
    return Image.open(io.BytesIO(png(image, format="JPEG", quality=quality))).convert("RGB")
