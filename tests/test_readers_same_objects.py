"""The same objects written in eight formats read as equal regions: label, id, image, box and, if turned, outline.

The writers are the formulas of each format's documentation. Formats that round (0..1000) agree within their rounding.
"""

import pytest
from PIL import Image

from privileged.checks import Report
from privileged.readers import get_reader

from .readers import writers

SIZES = [(640, 480), (333, 1001)]
STRAIGHT = [("cup", 64, 48, 96, 88, 0), ("dog", 100.5, 150.25, 300, 271, 0), ("cup", 0, 0, 40, 30, 0)]
TURNED = [("tray", 100, 150, 200, 200, 30), ("sign", 200, 300, 260, 420, 90), ("leaf", 60, 60, 120, 80, 350)]
WRITERS = {
    "labelme": ("labelme", {}),
    "voc 0-based": ("voc", {"base": 0}),
    "voc 1-based": ("voc", {"base": 1}),
    "coco": ("coco", {}),
    "yolo": ("yolo", {}),
    "yolo obb": ("yolo", {"task": "obb"}),
    "label studio": ("label_studio", {}),
    "cvat": ("cvat", {}),
}
KEEP_TURN = ["labelme", "coco", "yolo obb", "label studio", "cvat"]


def read(folder, kind, size, objects):
    """The samples of `objects` after a way through a file of that kind."""
    reader, arguments = WRITERS.get(kind, (kind, {}))
    (folder / "images").mkdir(exist_ok=True)
    Image.new("L", size).save(folder / "images" / "scene.png")
    path, options = getattr(writers, reader)(folder / kind, "scene.png", *size, objects, **arguments)
    reader = "visual_cot" if reader == "visual_cot_square" else reader.replace("qwen2_5", "qwen")
    report = Report()
    samples = list(get_reader(reader, image_root=str(folder / "images"), **options).read(path, report))
    assert report.objects == {"kept": len(objects)}
    assert [(i.path, i.width, i.height) for i in samples[0].images] == [("scene.png", *size)]
    return samples


def essence(sample):
    return [(r.id, r.image, r.label, r.box) for r in sample.record.regions]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", WRITERS)
def test_straight_objects_are_equal(tmp_path, kind, size):
    """To the last digit, not nearly: conversions are rounded to a millionth of a pixel."""
    (sample,) = read(tmp_path, kind, size, STRAIGHT)
    expected = [(f"r{i}", 0, o[0], tuple(map(float, o[1:5]))) for i, o in enumerate(STRAIGHT, start=1)]
    assert essence(sample) == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", WRITERS)
def test_turned_objects_are_equal(tmp_path, kind, size):
    """Box around the turned object; outline from the corner that was top left, in the formats that know turns."""
    (sample,) = read(tmp_path, kind, size, TURNED)
    for region, object_ in zip(sample.record.regions, TURNED, strict=True):
        assert region.box == pytest.approx(writers.upright(object_), abs=2e-6)
        if kind in KEEP_TURN:
            corners = [pytest.approx(corner, abs=2e-6) for corner in writers.corners(*object_[1:])]
            assert list(region.polygon) == corners


def test_records_of_formats_that_say_the_same_are_equal(tmp_path):
    """Whole regions, outlines included."""
    kinds = ["labelme", "yolo obb", "label studio", "cvat"]
    first, *others = (read(tmp_path, kind, (640, 480), TURNED)[0].record.regions for kind in kinds)
    for other in others:
        assert [r.label for r in other] == [r.label for r in first]
        for a, b in zip(first, other, strict=True):
            assert a.box == pytest.approx(b.box, abs=2e-6)
            assert [*map(pytest.approx, a.polygon)] == list(b.polygon)


@pytest.mark.parametrize("size", SIZES)
def test_visual_cot_text_is_relative_to_the_padded_square(tmp_path, size):
    """On wide and on tall images."""
    cups = [("cup", *o[1:]) for o in STRAIGHT]
    samples = read(tmp_path, "visual_cot_square", size, cups)
    boxes = [region.box for sample in samples for region in sample.record.regions]
    assert boxes == [tuple(map(float, o[1:5])) for o in cups]
    assert {(sample.question, sample.answer) for sample in samples} == {("Where?", "There.")}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "units"), [("qwen", 0.5), ("gemini", 0.5), ("qwen2_5", 1e-3)])
def test_model_replies_agree_within_their_rounding(tmp_path, kind, units, size):
    """Half a thousandth of each side for integers 0..1000."""
    (sample,) = read(tmp_path, kind, size, STRAIGHT)
    for region, (label, *box, _) in zip(sample.record.regions, STRAIGHT, strict=True):
        assert region.label == label
        for edge, expected, side in zip(region.box, box, size * 2, strict=True):
            assert abs(edge - expected) <= units / 1000 * side + 1e-6
