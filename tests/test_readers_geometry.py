"""Conversions between coordinate conventions: inverse to each other, and right on pixels that can be looked at."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from privileged import DataError
from privileged import geometry as g
from privileged.geometry import Coords

stable = settings(deadline=None, derandomize=True)
sides = st.integers(1, 20_000)
conventions = st.builds(
    Coords, unit=st.sampled_from(["px", "rel1", "percent", "rel1000"]), order=st.sampled_from(g.ORDERS)
) | st.builds(Coords, unit=st.just("resized"), order=st.sampled_from(g.ORDERS), resized=st.tuples(sides, sides))


@st.composite
def placed(draw):
    """(box, width, height), the box inside the image."""
    w, h = draw(sides), draw(sides)
    xs = sorted(draw(st.tuples(st.floats(0, w), st.floats(0, w))))
    ys = sorted(draw(st.tuples(st.floats(0, h), st.floats(0, h))))
    return (xs[0], ys[0], xs[1], ys[1]), w, h


def close(box, width, height):
    return pytest.approx(box, abs=1e-9 * max(width, height))


@stable
@given(conventions, placed())
def test_every_convention_and_back(coords, drawn):
    """px -> any unit and order -> px."""
    box, w, h = drawn
    assert coords.to_px(coords.from_px(box, w, h), w, h) == close(box, w, h)


@stable
@given(conventions, placed())
def test_points_and_boxes_agree(coords, drawn):
    """A corner converted as a point is the corner of the converted box."""
    if coords.order in ("xywh", "cxcywh"):
        coords = Coords(unit=coords.unit, resized=coords.resized)
    box, w, h = drawn
    written = coords.from_px(box, w, h)
    assert coords.point_to_px(written[:2], w, h) == close(box[:2], w, h)


@stable
@given(placed())
def test_padded_square_and_back(drawn):
    """Visual-CoT's text form, for wide, tall and square images; inside the unit square."""
    box, w, h = drawn
    square = g.px_to_padded_square(box, w, h)
    assert all(-1e-9 <= edge <= 1 + 1e-9 for edge in square)
    assert g.padded_square_to_px(square, w, h) == close(box, w, h)


@stable
@given(placed(), st.floats(-720, 720), st.sampled_from(["center", "top_left"]))
def test_a_turn_keeps_area_and_pivot(drawn, degrees, pivot):
    """And the box around the corners holds them all."""
    box, w, h = drawn
    corners = g.rotated_polygon(box, degrees, pivot)
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert g.polygon_area(corners) == pytest.approx(area, rel=1e-6, abs=1e-6 * w * h)
    if pivot == "top_left":
        assert corners[0] == close(box[:2], w, h)
    else:
        middle = sum(x for x, _ in corners) / 4, sum(y for _, y in corners) / 4
        assert middle == close(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), w, h)
    x0, y0, x1, y1 = g.enclosing_box(corners)
    assert all(x0 <= x <= x1 and y0 <= y <= y1 for x, y in corners)


def test_turns_by_hand():
    """Clockwise on the screen: after 90 degrees about the centre, top left is at the top right."""
    assert g.rotated_polygon((0, 0, 4, 2), 90, "center") == ((3, -1), (3, 3), (1, 3), (1, -1))
    assert g.rotated_polygon((1, 1, 5, 3), 90, "top_left") == ((1, 1), (1, 5), (-1, 5), (-1, 1))
    assert g.rotated_polygon((1, 1, 5, 3), 360, "center") == ((1, 1), (5, 1), (5, 3), (1, 3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_on_pixels(orientation):
    """A marked box of the stored pixels is where Pillow's own transposition puts it."""
    w, h, box = 7, 5, (1, 2, 4, 3)
    pixels = np.zeros((h, w), dtype=np.uint8)
    pixels[2:3, 1:4] = 255
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image))
    assert g.display_size(w, h, orientation) == upright.shape[::-1]
    x0, y0, x1, y1 = map(int, g.box_to_display(box, w, h, orientation))
    assert upright.sum() == 3 * 255
    assert (upright[y0:y1, x0:x1] == 255).all()
    assert (x1 - x0) * (y1 - y0) == 3


@stable
@given(placed(), st.integers(1, 8))
def test_exif_keeps_boxes_on_the_image(drawn, orientation):
    """Inside stays inside, of the same area."""
    box, w, h = drawn
    turned = g.box_to_display(box, w, h, orientation)
    wide, high = g.display_size(w, h, orientation)
    assert 0 <= turned[0] <= turned[2] <= wide
    assert 0 <= turned[1] <= turned[3] <= high


@stable
@given(placed(), st.floats(0, 360), st.integers(1, 300), st.integers(1, 300))
def test_a_clipped_polygon_is_inside_and_what_was_inside_stays(drawn, degrees, width, height):
    """The part of a convex outline on the image; unchanged if all of it is."""
    outline = g.rotated_polygon(drawn[0], degrees, "center")
    clipped = g.clip_polygon(outline, width, height)
    assert all(-1e-6 <= x <= width + 1e-6 and -1e-6 <= y <= height + 1e-6 for x, y in clipped)
    assert g.polygon_area(clipped) <= g.polygon_area(outline) * (1 + 1e-9) + 1e-6
    if all(0 <= x <= width and 0 <= y <= height for x, y in outline):
        assert clipped == outline


def test_clipping_by_hand():
    """A square that hangs over a corner of the image."""
    assert set(g.clip_polygon(((-2, -2), (2, -2), (2, 2), (-2, 2)), 10, 10)) == {(0, 0), (2, 0), (2, 2), (0, 2)}
    assert g.clip_polygon(((20, 0), (30, 0), (30, 9)), 10, 10) == ()


@pytest.mark.parametrize(
    "wrong",
    [{"unit": "inch"}, {"order": "yx"}, {"space": "screen"}, {"unit": "resized"}, {"unit": "px", "resized": (3, 4)}],
)
def test_a_declaration_that_is_none_is_refused(wrong):
    """By its name, with what there is."""
    with pytest.raises(DataError, match=r"coords: .*expected"):
        Coords(**wrong)


def test_y_first_and_x_first_differ_though_ranges_do_not():
    """The reason why nothing is detected: the same four numbers, two places."""
    values = (100, 200, 300, 400)
    assert Coords(unit="rel1000").to_px(values, 1000, 500) == (100, 100, 300, 200)
    assert Coords(unit="rel1000", order="yxyx").to_px(values, 1000, 500) == (200, 50, 400, 150)
