"""Builders that show pixels, on two real photographs: what is shown is what the record's boxes say.

What is locked: 1) the plain view never changes; 2) `append` adds to the images, `replace` takes their place, and then
no coordinate is written; 3) a crop is the photograph's own pixels, with the whole object in it; 4) numbers in the
legend are those in the picture.
"""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from privileged import DataError, PrivilegedRecord, Region, Sample, build_views, get_builder, plain_view
from privileged.draw import crop_window, draw_boxes, pixel_box

from . import photographs


def built(sample, name, **options):
    return get_builder(name, **options).build(sample, sample.privileged)


def pictures(block):
    return [part for part in block.parts if isinstance(part, Image.Image)]


def words(block):
    return "\n".join(part for part in block.parts if isinstance(part, str))


def with_regions(*regions, sizes=((400, 300),)):
    """A sample of noise, so that every crop differs, and the given regions."""
    noise = np.random.default_rng(0)
    images = tuple(Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes)
    record = PrivilegedRecord(sample_id="s-7", regions=regions)
    return Sample(id="s-7", question="q", images=images, privileged=record)


def found_in(image, crop):
    """Top left corners (x, y) at which `crop` lies in `image`, pixel by pixel."""
    whole, part = np.asarray(image), np.asarray(crop)
    height, width = part.shape[:2]
    first = np.argwhere((whole[: whole.shape[0] - height + 1, : whole.shape[1] - width + 1] == part[0, 0]).all(-1))
    return [(x, y) for y, x in first if np.array_equal(whole[y : y + height, x : x + width], part)]


@pytest.mark.parametrize("name", photographs.NAMES)
def test_crops_are_the_pixels_of_their_objects(name):
    """Each crop occurs in the photograph once, and holds every pixel of the mask of the region in its caption."""
    sample, masks = photographs.photograph(name), photographs.masks(name)
    for region, mask in zip(sample.privileged.regions, masks, strict=True):
        one = dataclasses.replace(sample.privileged, regions=(region,))
        block = built(dataclasses.replace(sample, privileged=one), "crops")
        (crop,) = pictures(block)
        assert f"Region 1 ({region.label}):" in block.parts
        ((x, y),) = found_in(sample.images[0], crop)
        assert (x, y, x + crop.width, y + crop.height) == crop_window(region.box, sample.images[0].size, 0.25, 64)
        inside = np.zeros_like(mask)
        inside[y : y + crop.height, x : x + crop.width] = True
        assert mask.any() and not (mask & ~inside).any(), region.label


@pytest.mark.parametrize("name", photographs.NAMES)
def test_crops_of_a_whole_photograph(name):
    """Four at most, all different, captioned in turn, and every region is shown or counted."""
    sample = photographs.photograph(name)
    block = built(sample, "crops")
    crops = pictures(block)
    assert len(crops) == 4
    assert len({crop.tobytes() for crop in crops}) == 4
    captions = [part for part in block.parts if isinstance(part, str)][1:-1]
    assert [caption.split(" (")[0] for caption in captions] == [f"Region {n}" for n in range(1, 5)]
    assert block.left_out > 0
    everything = built(sample, "crops", max_crops=99, merge_iou=1.0)
    assert everything.left_out == 0
    assert len(pictures(everything)) == len({region.box for region in sample.privileged.regions})


@pytest.mark.parametrize("name", photographs.NAMES)
@pytest.mark.parametrize("builder", ["overlay", "marks"])
def test_drawn_copies_are_what_draw_draws(name, builder):
    """The photograph with all boxes in reading order, at its own size, after the photograph itself."""
    sample = photographs.photograph(name)
    (drawn,) = pictures(block := built(sample, builder))
    order = [line.split(": ")[1] for line in words(built(sample, "marks")).split("\n") if line[0].isdigit()]
    numbers = range(1, len(order) + 1)
    by_label = sorted(zip(order, numbers, strict=True))
    assert [label for label, _ in by_label] == sorted(region.label for region in sample.privileged.regions)
    assert drawn.size == sample.images[0].size
    outlines = np.asarray(drawn) != np.asarray(sample.images[0])
    for region in sample.privileged.regions:
        x0, y0, x1, y1 = pixel_box(region.box, drawn.size)
        assert outlines.any(-1)[max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2].any()
    views = build_views(sample, get_builder(builder))
    assert views.plain == plain_view(sample)
    assert views.privileged.images == (sample.images[0], drawn)
    assert block.audit_text == (tuple(order) if builder == "marks" else ())


def test_the_legend_names_what_its_number_marks():
    """The picture equals one drawn here with the numbers of the legend."""
    regions = [Region(id=f"r{i}", label=f"l{i}", box=(20 + 90 * i, 200 - 60 * i, 90 + 90 * i, 250)) for i in range(3)]
    sample = with_regions(*regions)
    block = built(sample, "marks")
    legend = dict(re.findall(r"^(\d+): (l\d)$", words(block), flags=re.MULTILINE))
    assert sorted(legend) == ["1", "2", "3"]
    boxes = {region.label: region.box for region in regions}
    expected = draw_boxes(sample.images[0], [boxes[label] for label in legend.values()], [*map(int, legend)])
    assert pictures(block) == [expected]


@pytest.mark.parametrize("builder", ["overlay", "marks"])
def test_a_drawn_copy_may_replace_the_image(builder):
    """The privileged view shows the copy alone; an image without regions stays; the plain view shows the originals."""
    sample = with_regions(Region(label="cup", box=(50, 60, 90, 120), image=1), sizes=((100, 80), (200, 150)))
    views = build_views(sample, get_builder(builder, mode="replace"))
    (drawn,) = pictures(built(sample, builder))
    assert views.privileged.images == (sample.images[0], drawn)
    assert views.plain.images == sample.images
    kinds = [part["type"] for part in views.privileged.messages[0]["content"]]
    assert kinds == ["image", "image", "text", "text"]


@pytest.mark.parametrize("builder", ["overlay", "marks", "crops"])
def test_several_images_are_told_apart(builder):
    """Each region is shown on its own image, named from 1; an image without regions is not shown twice."""
    regions = (Region(label="cup", box=(50, 60, 90, 120), image=2), Region(label="hat", box=(9, 9, 60, 60), image=0))
    sample = with_regions(*regions, sizes=((100, 80), (30, 30), (200, 150)))
    block = built(sample, builder)
    first, second = pictures(block)
    texts = [part for part in block.parts if isinstance(part, str)]
    assert ["image 1" in text.lower() for text in texts[-3:-1]] == [True, False]
    assert ["image 3" in text.lower() for text in texts[-3:-1]] == [False, True]
    if builder == "crops":
        assert found_in(sample.images[0], first) and found_in(sample.images[2], second)
        assert texts[1:-1] == ["Region 1 (hat) of image 1:", "Region 2 (cup) of image 3:"]
    else:
        assert (first.size, second.size) == ((100, 80), (200, 150))
    assert build_views(sample, get_builder(builder)).privileged.images == (*sample.images, first, second)


def test_crops_instead_of_the_image():
    """The teacher sees crops, the student the image; no coordinate is written anywhere."""
    sample = photographs.photograph("voc")
    views = build_views(sample, get_builder("crops", mode="replace"))
    block = built(sample, "crops", mode="replace")
    assert views.privileged.images == tuple(pictures(block))
    assert views.plain.images == sample.images
    assert sample.images[0].size not in [image.size for image in views.privileged.images]
    text = "".join(part["text"] for part in views.privileged.messages[0]["content"] if part["type"] == "text")
    assert not re.search(r"\d+\s*,\s*\d+", text)
    assert "bbox" not in text
    assert sum(part["type"] == "image" for part in views.privileged.messages[0]["content"]) == 4


def test_crops_instead_of_some_of_the_images():
    """Unequal counts: two crops for the second of three images, the others stay, in order and named."""
    regions = (Region(label="a", box=(0, 0, 40, 40), image=1), Region(label="b", box=(300, 200, 340, 240), image=1))
    sample = with_regions(*regions, sizes=((50, 40), (400, 300), (60, 70)))
    views = build_views(sample, get_builder("crops", mode="replace"))
    assert [image.size for image in views.privileged.images] == [(50, 40), (64, 64), (64, 64), (60, 70)]
    texts = [part["text"].strip() for part in views.privileged.messages[0]["content"] if part["type"] == "text"]
    assert texts[1:5] == ["Image 1:", "Region 1 (a) of image 2:", "Region 2 (b) of image 2:", "Image 3:"]


@pytest.mark.parametrize(
    ("order", "labels"),
    [("reading", ("top", "middle")), ("area", ("low", "top")), ("score", ("middle", "low"))],
)
def test_the_order_of_crops_decides_what_is_left_out(order, labels):
    """Reading order, largest first, or surest first with those without a score last."""
    regions = (
        Region(label="low", box=(0, 200, 390, 290), score=0.5),
        Region(label="top", box=(0, 0, 90, 60)),
        Region(label="middle", box=(0, 90, 60, 150), score=0.9),
    )
    block = built(with_regions(*regions), "crops", order=order, max_crops=2)
    assert block.audit_text == labels
    assert block.left_out == 1


def test_regions_on_one_spot_share_a_crop():
    """A cup and its handle: one view with both labels and both boxes inside; at merge_iou=1 two."""
    sample = with_regions(
        Region(label="cup", box=(100, 100, 200, 200)),
        Region(label="handle", box=(110, 100, 210, 200)),
        Region(label="cup", box=(300, 10, 340, 50)),
    )
    block = built(sample, "crops", pad=0.0)
    assert "Region 2 (cup, handle):" in block.parts
    assert pictures(block)[1].size == (110, 100)
    assert len(pictures(built(sample, "crops", pad=0.0, merge_iou=1.0))) == 3


@pytest.mark.parametrize("builder", ["overlay", "marks", "crops"])
def test_no_regions_no_section(builder):
    """Then both views are one."""
    sample = with_regions()
    for mode in ("append", "replace"):
        assert built(sample, builder, mode=mode).empty
        assert not build_views(sample, get_builder(builder, mode=mode)).has_privilege


@pytest.mark.parametrize("builder", ["overlay", "marks", "crops"])
def test_a_bad_box_is_named(builder):
    """By sample and region, before anything is drawn."""
    for region in (
        Region(id="r9", label="x", box=(400, 0, 410, 10)),
        Region(id="r9", label="x", box=(1, 1, 9, 9), image=1),
    ):
        with pytest.raises(DataError, match=r"'s-7'.*'r9'"):
            built(with_regions(region), builder)


@pytest.mark.parametrize("mode", ["append", "replace"])
@pytest.mark.parametrize("builder", ["overlay", "marks", "crops"])
def test_the_processor_takes_what_is_shown(processor, builder, mode):
    """Through the real template: as many placeholders as images, as many pads as pixels, and the same end."""
    from vlm_dopd.collate import Encoder

    class Model:
        base_model = None

    encoder = Encoder(processor, Model())
    regions = (Region(label="<|image_pad|>", box=(0, 0, 3, 3)), Region(label="x", box=(30, 290, 390, 292), image=1))
    views = build_views(with_regions(*regions, sizes=((400, 300),) * 2), get_builder(builder, mode=mode))
    end = "q<|im_end|>\n<|im_start|>assistant\n"
    for view in (views.plain, views.privileged):
        assert encoder.render(view).endswith(end)
        assert encoder.render(view).count("<|vision_start|>") == len(view.images)
        encoded = processor(text=[encoder.render(view)], images=list(view.images), return_tensors="pt")
        pad = processor.tokenizer.get_vocab()["<|image_pad|>"]
        assert (encoded["input_ids"] == pad).sum() == encoded["image_grid_thw"].prod(-1).sum() // 4
    assert len(views.privileged.images) == {"append": 4, "replace": 2}[mode]


@pytest.mark.parametrize(
    ("builder", "option", "value"),
    [
        ("overlay", "mode", "inplace"),
        ("overlay", "max_regions", 0),
        ("marks", "mode", None),
        ("marks", "max_regions", "all"),
        ("crops", "mode", ""),
        ("crops", "order", "random"),
        ("crops", "pad", -0.1),
        ("crops", "pad", float("nan")),
        ("crops", "merge_iou", 0),
        ("crops", "merge_iou", 1.5),
        ("crops", "merge_iou", True),
        ("crops", "min_side", 0),
        ("crops", "max_crops", 2.0),
    ],
)
def test_options_that_make_no_sense_are_refused(builder, option, value):
    """When the builder is made, naming it and the option."""
    with pytest.raises(DataError, match=rf"builder '{builder}': {option}: expected .* got "):
        get_builder(builder, **{option: value})
