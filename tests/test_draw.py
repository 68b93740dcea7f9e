"""What is drawn and cut out is what the box says, on real photographs and on the worst of boxes.

What is locked: 1) the input stays as it is; 2) a change lies in an outline or in a tag, nowhere else; 3) outlines lie
on the box's edges and leave the object's pixels alone; 4) a box on the image is never drawn as nothing, one that is
not is an error; 5) at 19 boxes every number can be read; 6) a crop holds its box and is a legal image.
"""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from privileged import DataError
from privileged.draw import (
    MAX_ASPECT,
    PALETTE,
    crop_window,
    draw_boxes,
    frame_box,
    line_width,
    pixel_box,
    tag_boxes,
)

from . import photographs

stable = settings(deadline=None, derandomize=True, max_examples=150)


@st.composite
def boxes_on_images(draw, most=6000):
    """A size and a box that overlaps it, from less than a pixel to far more than the image."""
    width, height = draw(st.integers(8, most)), draw(st.integers(8, most))
    x0 = draw(st.floats(-50, width, exclude_max=True, allow_subnormal=False))
    y0 = draw(st.floats(-50, height, exclude_max=True, allow_subnormal=False))
    x1 = draw(st.floats(max(x0, 0), width + 50, exclude_min=True, allow_subnormal=False))
    y1 = draw(st.floats(max(y0, 0), height + 50, exclude_min=True, allow_subnormal=False))
    return (width, height), (x0, y0, x1, y1)


def photo(name):
    """Pixels, image and boxes of a photograph."""
    sample = photographs.photograph(name)
    return sample.images[0], [region.box for region in sample.privileged.regions]


def within(shape, boxes):
    """bool [y, x]: the pixels of `boxes`."""
    mask = np.zeros(shape, bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def ring(shape, box, size):
    """bool [y, x]: the outline of one box, from its two edges."""
    x0, y0, x1, y1 = frame_box(box, size)
    width = line_width(size)
    return within(shape, [(x0, y0, x1, y1)]) & ~within(shape, [(x0 + width, y0 + width, x1 - width, y1 - width)])


@pytest.mark.parametrize("name", photographs.NAMES)
def test_only_outlines_and_tags_change_a_photograph(name):
    """Every other pixel is the photograph's, and the photograph itself is not touched."""
    image, boxes = photo(name)
    before, numbers = np.asarray(image).copy(), range(1, len(boxes) + 1)
    after = np.asarray(draw_boxes(image, boxes, numbers))
    allowed = within(before.shape[:2], tag_boxes(boxes, numbers, image.size))
    for box in boxes:
        allowed |= ring(allowed.shape, box, image.size)
    assert np.array_equal(after[~allowed], before[~allowed])
    assert np.array_equal(np.asarray(image), before)
    untagged = np.asarray(draw_boxes(image, boxes, numbers, tags=False))
    outlines = within(allowed.shape, [])
    for box in boxes:
        outlines |= ring(allowed.shape, box, image.size)
    assert np.array_equal(untagged[~outlines], before[~outlines])


@pytest.mark.parametrize("name", photographs.NAMES)
def test_each_outline_is_on_its_edges_and_around_its_object(name):
    """Drawn alone: the whole ring has the box's colour, and not one pixel inside a box off the border changes."""
    image, boxes = photo(name)
    before, width = np.asarray(image), line_width(image.size)
    for number, (box, mask) in enumerate(zip(boxes, photographs.masks(name), strict=True), start=1):
        after = np.asarray(draw_boxes(image, [box], [number], tags=False))
        outline = ring(mask.shape, box, image.size)
        assert (after[outline] == PALETTE[(number - 1) % 12]).all()
        assert np.array_equal(after[~outline], before[~outline])
        x0, y0, x1, y1 = pixel_box(box, image.size)
        if x0 >= width and y0 >= width and x1 + width <= image.width and y1 + width <= image.height:
            assert not outline[y0:y1, x0:x1].any(), "the outline hides pixels of the object"
            assert outline[y0 - 1, x0:x1].all(), "and lies on the pixels next to it"
            assert outline[y0:y1, x1].all()
            assert not (outline & mask).any()


@pytest.mark.parametrize("name", photographs.NAMES)
def test_every_tag_can_be_read(name):
    """Whole, on the image, at its own box, over no other tag; with the numeral drawn in it."""
    image, boxes = photo(name)
    numbers = range(1, len(boxes) + 1)
    tags = tag_boxes(boxes, numbers, image.size)
    drawn = np.asarray(draw_boxes(image, boxes, numbers))
    assert within((image.height, image.width), tags).sum() == sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in tags)
    faces = {}
    for number, (x0, y0, x1, y1), box in zip(numbers, tags, boxes, strict=True):
        assert 0 <= x0 < x1 <= image.width
        assert 0 <= y0 < y1 <= image.height
        assert y1 - y0 >= 11, "numerals of 8 px or more"
        frame = frame_box(box, image.size)
        assert x0 <= frame[2] and frame[0] <= x1 and y0 <= frame[3] and frame[1] <= y1, "touches its outline"
        face = drawn[y0:y1, x0:x1]
        colour = np.array(PALETTE[(number - 1) % 12])
        assert (face == colour).all(-1).mean() > 0.4, "filled"
        far = np.abs(face.astype(int) - colour).sum(-1) > 150
        assert far.sum() > 8, "with a numeral on it"
        faces[far.tobytes() + bytes(far.shape)] = number
    assert len(faces) == len(boxes), "no two tags show the same"


def test_the_palette_is_twelve_different_colours_in_turn():
    """By number, so that a region has one colour in overlay and marks."""
    assert len(set(PALETTE)) == 12
    image = Image.new("RGB", (100, 100), "white")
    for number in (1, 12, 13, 40):
        drawn = draw_boxes(image, [(20, 20, 60, 60)], [number], tags=False)
        assert drawn.getpixel((40, 19)) == PALETTE[(number - 1) % 12]


@pytest.mark.parametrize(("size", "width"), [((96, 96), 2), ((500, 375), 2), ((640, 480), 2), ((4032, 3024), 15)])
def test_the_line_grows_with_the_image(size, width):
    """max(2, round(shorter side / 200)): still there after the processor has shrunk the image."""
    assert line_width(size) == width


def test_small_boxes_are_drawn_over_large_ones():
    """In whichever order they come."""
    image, small, large = Image.new("RGB", (100, 100)), (40, 40, 60, 60), (20, 20, 61, 80)
    for boxes, numbers in (([small, large], [1, 2]), ([large, small], [2, 1])):
        assert draw_boxes(image, boxes, numbers, tags=False).getpixel((61, 50)) == PALETTE[0]


@stable
@given(boxes_on_images(most=400), st.integers(1, 99))
@example(((8, 8), (0, 0, 8, 8)), 1)
@example(((400, 8), (0, 0, 400, 8)), 19)
@example(((100, 100), (97, 97, 100, 100)), 19)
@example(((100, 100), (99.999, 99.999, 100, 100)), 7)
def test_no_box_on_the_image_is_drawn_as_nothing(case, number):
    """Its outline is there on all four sides, at the border too, and its tag within the image if that has room."""
    size, box = case
    image = Image.new("RGB", size, (17, 17, 17))
    drawn = np.asarray(draw_boxes(image, [box], [number], tags=False))
    coloured = (drawn == PALETTE[(number - 1) % 12]).all(-1)
    assert np.array_equal(coloured, ring(coloured.shape, box, size))
    x0, y0, x1, y1 = frame_box(box, size)
    assert coloured[y0, x0:x1].all() and coloured[y1 - 1, x0:x1].all()
    assert coloured[y0:y1, x0].all() and coloured[y0:y1, x1 - 1].all()
    ((tx0, ty0, tx1, ty1),) = tag_boxes([box], [number], size)
    assert tx0 >= 0 and ty0 >= 0
    if tx1 - tx0 <= size[0] and ty1 - ty0 <= size[1]:
        assert tx1 <= size[0] and ty1 <= size[1]


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((100, 0, 120, 10), "outside"),
        ((-20, 0, 0, 10), "outside"),
        ((30, 0, 20, 10), "reversed"),
        ((20, 0, 20, 10), "empty"),
        ((float("nan"), 0, 20, 10), "finite"),
    ],
)
def test_a_box_that_cannot_be_drawn_is_an_error(box, reason):
    """Never silently nothing."""
    image = Image.new("RGB", (100, 100))
    for call in (
        lambda: draw_boxes(image, [(0, 0, 9, 9), box], [1, 2]),
        lambda: crop_window(box, image.size, 0.25, 64),
    ):
        with pytest.raises(DataError, match=reason):
            call()


def test_grey_images_come_out_in_colour():
    """The copy is RGB whatever the input, which stays as it is."""
    image = Image.new("L", (50, 50), 9)
    assert draw_boxes(image, [(10, 10, 20, 20)], [1]).mode == "RGB"
    assert image.mode == "L" and image.getextrema() == (9, 9)


@stable
@given(boxes_on_images(), st.floats(0, 2), st.integers(1, 128))
@example(((4000, 3000), (0, 0, 3, 3)), 0.25, 64)
@example(((4000, 3000), (3997, 2997, 4000, 3000)), 0.25, 64)
@example(((4000, 3000), (100, 100, 120, 3000)), 0.0, 1)
@example(((4000, 3000), (5, 5, 3005, 6)), 0.0, 1)
@example(((30, 4500), (0, 0, 30, 4500)), 0.25, 64)
@example(((8, 8), (1, 1, 2, 2)), 2.0, 128)
def test_a_crop_is_legal_and_holds_its_box(case, pad, min_side):
    """Whole pixels within the image, the box and its padding inside, sides and aspect as far as the image reaches."""
    size, box = case
    x0, y0, x1, y1 = crop_window(box, size, pad, min_side)
    bx0, by0, bx1, by1 = pixel_box(box, size)
    assert all(isinstance(edge, int) for edge in (x0, y0, x1, y1))
    assert 0 <= x0 <= bx0 < bx1 <= x1 <= size[0]
    assert 0 <= y0 <= by0 < by1 <= y1 <= size[1]
    width, height = x1 - x0, y1 - y0
    assert width >= min(min_side, size[0]) and height >= min(min_side, size[1])
    assert x0 <= max(bx0 - pad * (bx1 - bx0), 0) and x1 >= min(bx1 + pad * (bx1 - bx0), size[0])
    assert y0 <= max(by0 - pad * (by1 - by0), 0) and y1 >= min(by1 + pad * (by1 - by0), size[1])
    assert max(width / height, height / width) <= MAX_ASPECT or min(width, height) == min(size)


@pytest.mark.parametrize(
    ("box", "pad", "min_side", "expected"),
    [
        pytest.param((100, 100, 200, 300), 0.25, 64, (75, 50, 225, 350), id="padding by the side"),
        pytest.param((100, 100, 110, 110), 0.0, 64, (73, 73, 137, 137), id="grown about the middle"),
        pytest.param((0, 0, 3, 3), 0.25, 64, (0, 0, 64, 64), id="3x3 px in the first corner"),
        pytest.param((997, 797, 1000, 800), 0.25, 64, (936, 736, 1000, 800), id="3x3 px in the last corner"),
        pytest.param((10.6, 10.2, 90.1, 99.9), 0.0, 1, (10, 10, 91, 100), id="whole pixels, outwards"),
        pytest.param((0, 100, 1000, 104), 0.0, 1, (0, 97, 1000, 107), id="a sliver becomes 1:100"),
    ],
)
def test_crop_windows_by_hand(box, pad, min_side, expected):
    """On an image of 1000 x 800."""
    assert crop_window(box, (1000, 800), pad, min_side) == expected


def test_the_processor_takes_the_crops_of_a_corner_and_a_sliver(processor):
    """Real preprocessing with both minimum sizes gives the grid of its own arithmetic, so tokens can be counted."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    image = Image.new("RGB", (1200, 900), "white")
    for box in ((0, 0, 3, 3), (1197, 897, 1200, 900), (300, 440, 1050, 445)):
        crop = image.crop(crop_window(box, image.size, 0.25, 64))
        for least in (4096, 65536):
            size = {"shortest_edge": least, "longest_edge": 16777216}
            encoded = processor.image_processor(images=[crop], size=size, return_tensors="pt")
            height, width = smart_resize(crop.height, crop.width, 32, least, 16777216)
            assert encoded["image_grid_thw"].tolist() == [[1, height // 16, width // 16]]
