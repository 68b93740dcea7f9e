"""Every object gets one fate, with its reason: PRIVILEGED.md, common checks on import."""

import json
import random
import time

import pytest
from PIL import Image

from privileged import DataError
from privileged.checks import KEEPABLE, REASONS, SAME_IOU, Duplicates, Report
from privileged.readers import get_reader

NAN, INF = float("nan"), float("inf")


def coco(tmp_path, *boxes, label="cup", size=(1000, 800), extra=None, **options):
    """(samples, report) of a COCO file with one image and these boxes (xywh)."""
    annotations = [{"image_id": 1, "category_id": 1, "bbox": box} | (extra or {}) for box in boxes]
    image = {"id": 1, "file_name": "a.png"} | (dict(zip(("width", "height"), size, strict=True)) if size else {})
    data = {"images": [image], "categories": [{"id": 1, "name": label}], "annotations": annotations}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    report = Report()
    return list(get_reader("coco", **options).read(path, report)), report


GOOD = [10, 10, 50, 50]


@pytest.mark.parametrize(
    ("box", "fate"),
    [
        (GOOD, "kept"),
        ([0, 0, 500, 800], "kept"),
        ([990, 790, 10, 10], "kept"),
        ([-10, 10, 50, 50], "clamped"),
        ([980, 780, 50, 50], "clamped"),
        ([NAN, 0, 9, 9], "dropped:not a number"),
        ([0, 0, INF, 9], "dropped:not a number"),
        ([0, 0, 1e308 * 10, 9], "dropped:not a number"),
        ([50, 10, -20, 50], "dropped:reversed"),
        ([50, 10, 20, -50], "dropped:reversed"),
        ([50, 10, 0, 50], "dropped:empty"),
        ([50, 10, 1e-9, 50], "dropped:empty"),
        ([1000, 0, 50, 50], "dropped:outside"),
        ([10, -904, 50, 50], "dropped:outside"),
        ([10, 10, 1.9, 1.9], "dropped:tiny"),
        ([-40, 10, 42, 2], "dropped:tiny"),
        ([0, 0, 1000, 800], "dropped:whole image"),
        ([-99, -99, 5000, 5000], "dropped:whole image"),
        ([1, 2, 3], "dropped:malformed"),
        ([1, 2, 3, "x"], "dropped:malformed"),
        ([1, 2, 3, None], "dropped:malformed"),
        ([1, 2, 3, True], "dropped:malformed"),
        ({"x": 1}, "dropped:malformed"),
        (None, "dropped:malformed"),
        ([1, 2, 3, 10**400], "dropped:not a number"),
    ],
)
def test_the_fate_of_a_box(tmp_path, box, fate):
    """Counted once, and its first places told; the good box beside it stays."""
    samples, report = coco(tmp_path, [700, 700, 50, 50], box)
    assert report.objects == ({"kept": 2} if fate == "kept" else {"kept": 1, fate: 1})
    assert len(samples[0].record.regions) == 1 + (not fate.startswith("dropped"))
    if fate.startswith("dropped"):
        assert "a.json: image 1: object 2" in report.examples[fate][0]
        assert fate.removeprefix("dropped:") in REASONS
        assert REASONS[fate.removeprefix("dropped:")] in "\n".join(report.lines())


def test_a_clamped_box_keeps_how_much_was_cut(tmp_path):
    """A fifth of this one."""
    samples, _ = coco(tmp_path, [-10, 10, 50, 50])
    (region,) = samples[0].record.regions
    assert region.box == (0, 10, 40, 60)
    assert region.extra["clipped"] == 0.2


@pytest.mark.parametrize(
    ("label", "fate"),
    [
        ("", "empty label"),
        (" \n", "empty label"),
        (None, "empty label"),
        ("x" * 81, "long label"),
        ("x" * 80, None),
        (" cup ", None),
        (3.0, "malformed"),
        (["cup"], "malformed"),
    ],
)
def test_the_fate_of_a_label(tmp_path, label, fate):
    """Outer whitespace goes; what cannot be shown as a name goes with a reason."""
    samples, report = coco(tmp_path, GOOD, label=label)
    assert report.objects == {f"dropped:{fate}" if fate else "kept": 1}
    assert [r.label for r in samples[0].record.regions] == ([] if fate else [label.strip()])


def test_duplicates_go_and_neighbours_stay(tmp_path):
    """Same label and almost the same place; a box inside another one is no duplicate."""
    samples, report = coco(tmp_path, [10, 10, 500, 500], [11, 10, 500, 501], [10, 10, 480, 500], [10, 10, 500, 500])
    assert report.objects == {"kept": 2, "dropped:duplicate": 2}
    assert [r.id for r in samples[0].record.regions] == ["r1", "r3"]


def test_duplicates_agree_with_all_pairs():
    """The neighbour search finds what comparing every pair finds, and is fast where it must be."""
    rng = random.Random(3)
    boxes = []
    for _ in range(400):
        x, y, w, h = rng.random() * 50, rng.random() * 50, 20 + rng.random() * 300, 20 + rng.random() * 300
        boxes += [(x, y, x + w, y + h), (x + rng.random() * w / 50, y + rng.random() * h / 50, x + w, y + h)]
    seen, slow, fast = [], [], Duplicates()
    for box in boxes:
        slow.append(any(_iou(box, other) > SAME_IOU for other in seen))
        seen += [] if slow[-1] else [box]
    assert [fast.add("a", box) for box in boxes] == slow
    assert any(slow)
    column, start = Duplicates(), time.perf_counter()
    assert not any(column.add("line", (10, 30.0 * i, 500, 30.0 * i + 20)) for i in range(10_000))
    assert time.perf_counter() - start < 5


def _iou(a, b):
    both = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@pytest.mark.parametrize("reason", KEEPABLE)
def test_the_user_may_keep_what_can_be_drawn(tmp_path, reason):
    """Kept, and still noted."""
    boxes = {"tiny": [[5, 5, 1, 1]], "whole image": [[0, 0, 1000, 800]], "duplicate": [GOOD, GOOD]}.get(reason, [GOOD])
    fields = {"label": "y" * 90 if reason == "long label" else "cup", "extra": {"iscrowd": int(reason == "crowd")}}
    _, dropped = coco(tmp_path, *boxes, **fields)
    assert dropped.objects[f"dropped:{reason}"] == 1
    samples, kept = coco(tmp_path, *boxes, **fields, keep=(reason,))
    assert kept.objects == {"kept": len(boxes)}
    assert kept.notes == {f"kept in spite of: {reason}": 1}
    assert len(samples[0].record.regions) == len(boxes)


def test_unknown_categories_and_images_are_counted(tmp_path):
    """Annotations that hang in the air, and images without any."""
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in (1, 2)],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [
            {"image_id": 1, "category_id": 9, "bbox": [1, 1, 9, 9]},
            {"image_id": 7, "category_id": 1, "bbox": [1, 1, 9, 9]},
            {"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]},
            "cup",
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    report = Report()
    samples = list(get_reader("coco").read(tmp_path / "a.json", report))
    assert [len(sample.record.regions) for sample in samples] == [1, 0]
    dropped = ("unknown category", "annotation without image", "malformed")
    assert report.objects == {"kept": 1} | {f"dropped:{reason}": 1 for reason in dropped}
    assert report.notes == {"image without annotations": 1}


def test_without_any_size_there_are_no_boxes(tmp_path):
    """A box of an image of unknown size can neither be checked nor shown; image_root tells the size."""
    samples, report = coco(tmp_path, GOOD, size=None)
    assert samples == []
    assert report.objects == {"dropped:no image size": 1} == report.images
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    samples, report = coco(tmp_path, GOOD, size=None, image_root=str(tmp_path))
    assert report.objects == {"kept": 1}
    assert (samples[0].images[0].width, samples[0].images[0].height) == (100, 100)


def turned(tmp_path, orientation):
    """A 60 x 40 JPEG whose EXIF says how to hold it."""
    image = Image.new("RGB", (60, 40))
    image.getexif()[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=image.getexif())


@pytest.mark.parametrize(
    ("orientation", "box"),
    [
        (1, (1, 2, 11, 32)), (2, (49, 2, 59, 32)), (3, (49, 8, 59, 38)), (4, (1, 8, 11, 38)),
        (5, (2, 1, 32, 11)), (6, (8, 1, 38, 11)), (7, (8, 49, 38, 59)), (8, (2, 49, 32, 59)),
    ],
)  # fmt: skip
def test_boxes_of_stored_pixels_are_turned(tmp_path, orientation, box):
    """Declared by `space`; a box of the upright image is left alone."""
    turned(tmp_path, orientation)
    samples, _ = coco(tmp_path, [1, 2, 10, 30], size=(60, 40), image_root=str(tmp_path), space="stored")
    assert samples[0].record.regions[0].box == box
    ref = samples[0].images[0]
    assert (ref.width, ref.height) == ((60, 40) if orientation < 5 else (40, 60))
    samples, _ = coco(tmp_path, [1, 2, 10, 30], size=(ref.width, ref.height), image_root=str(tmp_path))
    assert samples[0].record.regions[0].box == (1, 2, 11, 32)


def test_exchanged_sides_point_to_exif(tmp_path):
    """Nothing is turned on suspicion: the image is dropped and the report says what to declare."""
    turned(tmp_path, 6)
    samples, report = coco(tmp_path, [1, 2, 10, 30], size=(60, 40), image_root=str(tmp_path))
    assert samples == []
    assert report.images == {"dropped:size swapped": 1} == report.objects
    assert any("space='stored'" in line for line in report.lines())
    _, report = coco(tmp_path, [1, 2, 10, 30], size=(61, 40), image_root=str(tmp_path))
    assert report.images == {"dropped:size mismatch": 1}


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "nul\0.png", "https://example.org/a.png", "x" * 5000])
def test_images_outside_the_root_are_not_looked_at(tmp_path, name):
    """Like an image that is not there."""
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "root").mkdir()
    data = {"images": [{"id": 1, "file_name": name}], "annotations": []}
    (tmp_path / "a.json").write_text(json.dumps(data))
    report = Report()
    assert list(get_reader("coco", image_root=str(tmp_path / "root")).read(tmp_path / "a.json", report)) == []
    assert report.images == {"dropped:image not found": 1}


def test_reports_of_parts_add_up():
    """For shards of a data set."""
    whole, part = Report(), Report()
    for report in (whole, part):
        for number in range(3):
            report.drop_object(DataError(f"place {number}"))
            report.note("odd", "here")
    whole.merge(part)
    assert whole.objects == {"dropped:malformed": 6}
    assert whole.notes == {"odd": 6}
    assert len(whole.examples["dropped:malformed"]) == 3
