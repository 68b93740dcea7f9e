"""Box arithmetic: what is true of every box, and a page drawn by hand."""

import math
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privileged.geometry import REL1000, check_box, clamp_box, px_to_rel1000, reading_order

stable = settings(deadline=None, derandomize=True)
sides = st.integers(1, 20_000)
edges = st.floats(-30_000, 30_000, allow_nan=False)


@st.composite
def boxes_on_an_image(draw):
    """A non-empty box inside an image of any size up to 20,000 a side."""
    width, height = draw(sides), draw(sides)

    def pair(side):
        low = draw(st.floats(0, side, exclude_max=True))
        return low, draw(st.floats(low, side, exclude_min=True))

    (x0, x1), (y0, y1) = pair(width), pair(height)
    return (x0, y0, x1, y1), width, height


@stable
@given(boxes_on_an_image())
@example(((19_999.0, 0.0, 20_000.0, 1.0), 20_000, 20_000))
@example(((0.0, 0.0, 1.0, 1.0), 20_000, 1))
def test_rel1000_is_never_empty_and_never_off_by_more_than_rounding(drawn):
    """Integers in 0..1000, low < high, each within half a unit; of a widened pair one edge may be one unit more off."""
    box, width, height = drawn
    x0, y0, x1, y1 = px_to_rel1000(box, width, height)
    for low, high, a, b, side in ((box[0], box[2], x0, x1, width), (box[1], box[3], y0, y1, height)):
        assert isinstance(a, int)
        assert isinstance(b, int)
        assert 0 <= a < b <= REL1000
        off = sorted((abs(a - low / side * REL1000), abs(b - high / side * REL1000)))
        widened = round(low / side * REL1000) == round(high / side * REL1000)
        assert off[0] <= 0.5 + 1e-9
        assert off[1] <= 0.5 + 1e-9 + widened


@stable
@given(edges, edges, edges, edges, sides, sides)
def test_rel1000_stays_in_range_for_any_finite_box(x0, y0, x1, y1, width, height):
    """Even a box that nobody clamped gives integers in 0..1000."""
    assert all(0 <= edge <= REL1000 for edge in px_to_rel1000((x0, y0, x1, y1), width, height))


@pytest.mark.parametrize(
    ("box", "width", "height", "expected"),
    [
        pytest.param((0, 0, 640, 480), 640, 480, (0, 0, 1000, 1000), id="whole image"),
        pytest.param((64, 48, 320, 240), 640, 480, (100, 100, 500, 500), id="tenths"),
        pytest.param((4, 6, 26, 30), 96, 96, (42, 62, 271, 312), id="banker's rounding: 62.5 is 62, 312.5 is 312"),
        pytest.param((1999, 3999, 2000, 4000), 2000, 4000, (999, 999, 1000, 1000), id="widened inwards at the border"),
        pytest.param((100, 100, 103, 103), 8000, 8000, (12, 12, 13, 13), id="3 px of 8000: 12.5 and 12.9"),
        pytest.param((101, 101, 103, 103), 8000, 8000, (13, 13, 14, 14), id="collapsed pair is widened by one"),
    ],
)
def test_rel1000_by_hand(box, width, height, expected):
    """Numbers that the vendor's formula gives, worked out on paper."""
    assert px_to_rel1000(box, width, height) == expected


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        pytest.param((10, 10, 20, 20), None, id="inside"),
        pytest.param((0, 0, 100, 50), None, id="exactly on the border"),
        pytest.param((-5, -5, 200, 200), None, id="bigger than the image"),
        pytest.param((99.5, 49.5, 300, 300), None, id="half a pixel inside"),
        pytest.param((NAN, 0, 1, 1), "not a finite number", id="nan"),
        pytest.param((0, 0, INF, 1), "not a finite number", id="inf"),
        pytest.param((20, 10, 10, 20), "empty or reversed", id="reversed in x"),
        pytest.param((10, 20, 20, 10), "empty or reversed", id="reversed in y"),
        pytest.param((10, 10, 10, 20), "empty or reversed", id="no width"),
        pytest.param((0, 0, 0, 0), "empty or reversed", id="zero"),
        pytest.param((100, 0, 120, 20), "outside the 100x50 image", id="starts at the right border"),
        pytest.param((0, 50, 20, 60), "outside the 100x50 image", id="starts at the bottom border"),
        pytest.param((-20, 0, 0, 20), "outside the 100x50 image", id="ends at the left border"),
        pytest.param((0, -904, 20, -1), "outside the 100x50 image", id="above, as in Visual Genome"),
    ],
)
def test_check_box_gives_every_bad_box_its_reason(box, reason):
    """None for what can be drawn; otherwise a phrase that completes `box [...] ...`."""
    found = check_box(box, 100, 50)
    assert found is None if reason is None else reason in found


@stable
@given(edges, edges, edges, edges, sides, sides)
def test_clamping_a_good_box_gives_a_good_box_inside(x0, y0, x1, y1, width, height):
    """What check_box lets through has positive area after clamping, lies inside, and clamping again changes nothing."""
    box = (x0, y0, x1, y1)
    if check_box(box, width, height) is not None:
        return
    clamped = clamp_box(box, width, height)
    assert 0 <= clamped[0] < clamped[2] <= width
    assert 0 <= clamped[1] < clamped[3] <= height
    assert clamp_box(clamped, width, height) == clamped
    inside = x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height
    assert not inside or clamped == box


def test_reading_order_of_a_page_drawn_by_hand():
    """Rows from the top, left to right; a tall or slightly shifted box stays in the row where its centre is.

    .. 0    10   20   30   40
     0 [a]       [ b ]
    10 [a]  [c]  [ b ]         c hangs lower than a, its centre is in a's row
    20      [c]
    30           [e]    [d]
    40 [f]                     f starts below the centre of e, and is a row of its own
    """
    page = {
        "d": (40, 28, 50, 38),
        "f": (0, 41, 10, 49),
        "c": (10, 9, 16, 24),
        "e": (20, 30, 26, 37),
        "b": (20, 0, 32, 18),
        "a": (0, 0, 6, 19),
    }
    names = list(page)
    assert [names[i] for i in reading_order(list(page.values()))] == ["a", "c", "b", "e", "d", "f"]


box = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), *[st.integers(0, 60)] * 2, *[st.integers(1, 30)] * 2)


@stable
@given(st.lists(box, max_size=12))
def test_reading_order_is_a_deterministic_permutation(boxes):
    """Every index once, the same each time, and duplicates of a box keep the order in which they were given."""
    order = reading_order(boxes)
    assert sorted(order) == list(range(len(boxes)))
    assert reading_order(list(boxes)) == order
    for box in boxes:
        same = [i for i in order if boxes[i] == box]
        assert same == sorted(same)


@stable
@given(st.lists(box, min_size=1, max_size=8, unique=True), st.randoms(use_true_random=False))
def test_reading_order_does_not_depend_on_the_annotators_order(boxes, random):
    """Shuffled annotations are read alike, as long as no two boxes start at one height (ties keep their order)."""
    boxes = list({box[1]: box for box in boxes}.values())
    shuffled = random.sample(boxes, len(boxes))
    x_ties = len({box[0] for box in boxes}) < len(boxes)
    read, again = ([given[i] for i in reading_order(given)] for given in (boxes, shuffled))
    assert read == again or (x_ties and sorted(read) == sorted(again))


def test_reading_order_of_thousands_of_boxes_is_quick():
    """A crowded record (2,000 regions, one a line) must not stall a data loader worker."""
    began = time.perf_counter()
    assert reading_order([(0, 2 * i, 5, 2 * i + 1) for i in range(2000)]) == list(range(2000))
    assert time.perf_counter() - began < 5
