"""Token counts without pixels: equal to what the processor makes, and what `qwen-vl-utils` makes of the same images.

What is locked: 1) sizes and counts of the released configuration, by hand; 2) our arithmetic is the processor's, for
any size, in the released configuration, the bundled pair's and others, in results and refusals, also with pixels;
3) the count of a whole prompt is the number of ids of the real processor, for any number of images, with every builder;
4) qwen-vl-utils, given our images, patch 16 and the processor's limits, agrees wherever both sides reach half a token,
and the places where it does not are the known ones.
"""

import functools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from privileged import DataError, Sample, View, build_views, get_builder, plain_view
from privileged.builders import available
from privileged.tokens import IMAGE_TOKEN, MARKERS, ImageGeometry, count_rendered, count_tokens
from tests import tiny

RELEASED = ImageGeometry()
BUNDLED = ImageGeometry(min_pixels=4096, max_pixels=65_536)
GEOMETRIES = {
    "released": RELEASED,
    "bundled": BUNDLED,
    "capped at 1280 tokens": ImageGeometry(max_pixels=1280 * 32 * 32),
    "utils": ImageGeometry(min_pixels=4096),
    "one token": ImageGeometry(min_pixels=1, max_pixels=1024),
    "Qwen2.5-VL": ImageGeometry(patch=14, min_pixels=3136, max_pixels=12_845_056),
}
SIDES = st.one_of(st.integers(1, 300), st.integers(1, 20_000))


@functools.cache
def oracle(geometry):
    """The image processor of transformers with that geometry."""
    size = {"shortest_edge": geometry.min_pixels, "longest_edge": geometry.max_pixels}
    return Qwen2VLImageProcessor(patch_size=geometry.patch, merge_size=geometry.merge, size=size)


def theirs(geometry, width, height):
    """The processor's pads for one image; None where it refuses."""
    try:
        return oracle(geometry).get_number_of_image_patches(height, width) // geometry.merge**2
    except (ValueError, ZeroDivisionError):
        return None


def ours(geometry, width, height):
    """Our pads; None where we refuse."""
    try:
        return geometry.tokens(width, height)
    except DataError:
        return None


@pytest.mark.parametrize(
    ("width", "height", "resized", "tokens"),
    [
        (640, 480, (640, 480), 300),
        (1920, 1080, (1920, 1088), 2040),
        (4032, 3024, (4032, 3008), 11_844),
        (224, 224, (256, 256), 64),
        (64, 64, (256, 256), 64),
        (200, 40, (576, 128), 72),
        (200, 1, (3648, 32), 114),
    ],
)
def test_the_released_configuration(width, height, resized, tokens):
    """Sizes as measured on the released processor."""
    assert RELEASED.resized(width, height) == resized
    assert RELEASED.tokens(width, height) == tokens == theirs(RELEASED, width, height)


def test_a_cap_and_the_markers():
    """1280 tokens at most for a photograph of 12 Mpx; two markers around each image."""
    capped = GEOMETRIES["capped at 1280 tokens"]
    assert (capped.resized(4032, 3024), capped.tokens(4032, 3024)) == ((1312, 960), 1230)
    assert MARKERS == 2
    assert RELEASED.factor == 32


@pytest.mark.parametrize(
    ("side", "resized"), [(48, 64), (80, 64), (112, 128), (144, 128), (16, 32), (17, 32), (49, 64)]
)
def test_rounding_goes_to_the_even_neighbour(side, resized):
    """Half a square: 48 is 1.5 and becomes 2, 80 is 2.5 and becomes 2 too. 16 is 0.5, and no side is 0."""
    free = ImageGeometry(min_pixels=1)
    assert free.resized(side, 320)[0] == resized
    assert free.resized(320, side)[1] == resized


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_processor_agrees_on_a_grid(name):
    """Every side that could be a boundary, against every other."""
    geometry = GEOMETRIES[name]
    sides = sorted({1, 2, 3, 5, 7, 8, 13, 14, 15, 100, 199, 200, 201, 333, 375, 500, 1000, 4001, 20_000}
                   | {k * geometry.factor // 2 + d for k in (1, 2, 3, 5, 8, 9, 16) for d in (-1, 0, 1)})  # fmt: skip
    wrong = [(w, h) for w in sides for h in sides if ours(geometry, w, h) != theirs(geometry, w, h)]
    assert wrong == []


@given(width=SIDES, height=SIDES, name=st.sampled_from(sorted(GEOMETRIES)))
@settings(max_examples=150)
@example(1, 200, "released")
@example(1, 201, "released")
@example(20_000, 99, "released")
def test_the_processor_agrees_on_any_size(width, height, name):
    """In number and in refusal; the resized sides are those that give the number."""
    geometry = GEOMETRIES[name]
    assert ours(geometry, width, height) == theirs(geometry, width, height)
    if max(width, height) <= 200 * min(width, height):
        wide, tall = geometry.resized(width, height)
        assert wide % geometry.factor == tall % geometry.factor == 0 < min(wide, tall)


@pytest.mark.parametrize(("width", "height"), [(1, 201), (2010, 10), (0, 5), (5, 0), (-3, 5), (20_000, 99)])
def test_what_the_processor_refuses(width, height):
    """One line with the size, not a ValueError of a library or a division by zero."""
    with pytest.raises(DataError, match=f"image of {width}x{height}: expected"):
        RELEASED.tokens(width, height)


def test_the_processors_own_count_of_many_images(processor):
    """Its `_get_num_multimodal_tokens`, which engines call."""
    sizes = [(w, h) for w in (1, 20, 31, 48, 96, 160, 333) for h in (8, 80, 96, 200)]
    counted = processor._get_num_multimodal_tokens(image_sizes=[[h, w] for w, h in sizes])
    assert counted["num_image_tokens"] == [BUNDLED.tokens(w, h) for w, h in sizes]


@pytest.mark.parametrize("geometry", [RELEASED, BUNDLED])
@pytest.mark.parametrize("size", [(96, 96), (8, 8), (48, 80), (33, 500), (500, 375), (800, 8), (144, 112)])
def test_real_pixels(geometry, size):
    """The grid that the processor makes of an image is the size we say, in patches."""
    grid = oracle(geometry)(images=[Image.new("RGB", size)], return_tensors="pt")["image_grid_thw"][0].tolist()
    wide, tall = geometry.resized(*size)
    assert grid == [1, tall // 16, wide // 16]


def test_the_geometry_is_read_from_processors_and_files(processor):
    """A processor, an image processor, and both kinds of configuration files."""
    assert ImageGeometry.from_processor(processor) == BUNDLED
    assert ImageGeometry.from_processor(oracle(RELEASED)) == RELEASED
    saved = json.loads((tiny.ASSETS / "student" / "processor_config.json").read_text())
    assert ImageGeometry.from_processor(saved) == ImageGeometry.from_processor(saved["image_processor"]) == BUNDLED
    older = saved["image_processor"] | {"min_pixels": 3136, "max_pixels": 50_176}
    assert ImageGeometry.from_processor(older) == ImageGeometry(min_pixels=3136, max_pixels=50_176)
    assert theirs(ImageGeometry.from_processor(older), 20, 20) == (
        Qwen2VLImageProcessor(**{k: v for k, v in older.items() if k != "image_processor_type"})
        .get_number_of_image_patches(20, 20) // 4
    )  # fmt: skip


@pytest.mark.parametrize("source", [None, {}, 5, object(), {"patch_size": 16}, {"patch_size": 16, "size": {}}])
def test_what_is_no_processor(source):
    """Text-only tokenizers and other objects."""
    with pytest.raises(DataError, match="image geometry: expected a Qwen3-VL processor"):
        ImageGeometry.from_processor(source)


@pytest.mark.parametrize("numbers", [{"patch": 0}, {"merge": 1.5}, {"min_pixels": True}, {"max_pixels": 100}])
def test_numbers_that_make_no_geometry(numbers):
    """Caught before they divide by zero."""
    with pytest.raises(DataError, match=r"image geometry: (\w+: )?expected"):
        ImageGeometry(**numbers)


@functools.cache
def tools():
    return tiny.processor()


def render(view):
    return tools().apply_chat_template([dict(m) for m in view.messages], add_generation_prompt=True, tokenize=False)


def count_text(text):
    return len(tools().tokenizer(text)["input_ids"])


def ids_of(view):
    return tools()(text=[render(view)], images=list(view.images) or None, return_tensors="pt")["input_ids"][0]


@pytest.mark.parametrize("name", sorted(set(available()) - {"column", "template", "compose"}))
def test_a_prompt_has_as_many_tokens_as_the_processor_makes(name):
    """Both views of samples with no, one and two images, under every builder that needs no options."""
    builder = get_builder(name)
    for sample in tiny.mixed_samples():
        views = build_views(sample, builder)
        for view in (views.plain, views.privileged):
            count = count_tokens(view, BUNDLED, render, count_text)
            ids = ids_of(view)
            assert count.total == len(ids)
            assert sum(count.images) == int((ids == tools().image_token_id).sum())
            assert len(count.images) == len(view.images)


@given(
    sizes=st.lists(st.tuples(st.integers(8, 300), st.integers(8, 300)), max_size=4),
    question=st.text(alphabet="ab 12<|>image_pad?\n", min_size=1).filter(str.strip),
)
@settings(max_examples=25)
def test_any_number_of_images_of_any_size(sizes, question):
    """Also where the question is written to look like a placeholder."""
    view = plain_view(Sample(id="a", question=question, images=tuple(Image.new("RGB", size) for size in sizes)))
    assert count_tokens(view, BUNDLED, render, count_text).total == len(ids_of(view))


def test_placeholders_and_images_must_match():
    """The processor drops pixels without a word where the text shows too few images."""
    for text, sizes in ((IMAGE_TOKEN * 2, [(64, 64)]), ("", [(64, 64)]), (IMAGE_TOKEN, [])):
        with pytest.raises(DataError, match=rf"for each of {len(sizes)} images, got {text.count(IMAGE_TOKEN)}"):
            count_rendered(text, sizes, BUNDLED, count_text)
    # The template writes no picture into a system turn, though its pixels would be processed.
    system = View(messages=({"role": "system", "content": [{"type": "image"}]},), images=(Image.new("RGB", (64, 64)),))
    with pytest.raises(DataError, match="1 images, got 0"):
        count_tokens(system, BUNDLED, render, count_text)


# --- qwen-vl-utils, with the processor's patch size and limits ---


def utils_size(width, height, geometry):
    """(width, height) of what qwen-vl-utils makes of our image."""
    from qwen_vl_utils import process_vision_info

    limits = {"min_pixels": geometry.min_pixels, "max_pixels": geometry.max_pixels}
    part = {"type": "image", "image": Image.new("RGB", (width, height)), **limits}
    images, _ = process_vision_info([{"role": "user", "content": [part]}], image_patch_size=geometry.patch)
    return images[0].size


@pytest.mark.parametrize("name", ["released", "bundled", "utils", "capped at 1280 tokens"])
def test_qwen_vl_utils_agrees_given_the_same_limits(name):
    """From half a square a side. What it made passes the processor unchanged: one resize, not two."""
    geometry = GEOMETRIES[name]
    for size in [(640, 480), (480, 640), (224, 224), (64, 64), (48, 80), (17, 40), (500, 375), (333, 97), (1920, 1080)]:
        made = utils_size(*size, geometry)
        assert made == geometry.resized(*size)
        assert geometry.resized(*made) == made


@given(width=st.integers(17, 3000), height=st.integers(17, 3000))
def test_qwen_vl_utils_agrees_on_any_size(width, height):
    """Its arithmetic alone, without pixels; a side that it shrinks to nothing is one square in the processor's."""
    from qwen_vl_utils.vision_process import smart_resize

    for geometry in (RELEASED, BUNDLED, GEOMETRIES["utils"]):
        if max(width, height) <= 100 * min(width, height):
            found = smart_resize(height, width, 32, geometry.min_pixels, geometry.max_pixels)
            assert tuple(side or 32 for side in found[::-1]) == geometry.resized(width, height)


@pytest.mark.parametrize(
    ("width", "height", "utils", "processor"),
    [
        pytest.param(200, 1, (192, 32), (928, 32), id="a side of less than half a square"),
        pytest.param(2000, 15, (1984, 32), (768, 32), id="a sliver"),
        pytest.param(200, 8, (192, 32), (320, 32), id="no ratio that we refuse to load"),
    ],
)
def test_known_disagreements_given_the_same_limits(width, height, utils, processor):
    """Below half a square utils lifts a side to one square before it looks at the area, the processor after."""
    geometry = GEOMETRIES["utils"]
    assert utils_size(width, height, geometry) == utils
    assert geometry.resized(width, height) == processor
    assert theirs(geometry, width, height) == ours(geometry, width, height)


@pytest.mark.parametrize(
    ("width", "height", "utils", "processor"),
    [
        (640, 480, (640, 480), (640, 480)),
        (1920, 1080, (1920, 1088), (1920, 1088)),
        (4032, 3024, (4032, 3008), (4032, 3008)),
        (224, 224, (224, 224), (256, 256)),
        (64, 64, (64, 64), (256, 256)),
        (200, 40, (192, 32), (576, 128)),
        (200, 1, (192, 32), (3648, 32)),
    ],
)
def test_known_disagreements_of_the_defaults(width, height, utils, processor):
    """utils has a minimum of 4 tokens, the released processor of 64: give both the same limits."""
    from qwen_vl_utils.vision_process import smart_resize

    assert smart_resize(height, width, 32)[::-1] == utils
    assert RELEASED.resized(width, height) == processor


def test_its_default_patch_size_is_that_of_an_older_model():
    """14: whoever forgets `image_patch_size=16` gets sides that are multiples of 28."""
    from qwen_vl_utils import process_vision_info

    content = [{"type": "image", "image": Image.new("RGB", (100, 100))}]
    assert process_vision_info([{"role": "user", "content": content}])[0][0].size == (112, 112)
