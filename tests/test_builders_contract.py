"""What every builder promises, shipped or not, and what the shipped ones write, byte for byte.

What is locked: 1) a builder is a pure, deterministic function of sample and record; 2) its audit text holds no
coordinates; 3) it says what it discloses, and the answer only on purpose; 4) wrong names, options and boxes are
DataErrors that say where; 5) a package finds its way in through the entry point.
"""

import copy
import dataclasses
import typing

import pytest
from PIL import Image

from privileged import DataError, Note, PrivilegedRecord, Region, Sample, available, build_views, get_builder
from privileged.builders import (
    ENTRY_POINTS,
    Disclosure,
    _wording,
    answer,
    boxes,
    caption,
    crops,
    find,
    hints,
    marks,
    overlay,
)
from privileged.records import SCHEMA

BUILDERS = available()


def example(name):
    """The `EXAMPLE` of a builder's file as a sample."""
    fields = dict(find(name).EXAMPLE)
    size, record = fields.pop("image_size", None), fields.pop("privileged")
    return Sample(
        id=name,
        **fields,
        images=(Image.new("RGB", size, "white"),) if size else (),
        privileged=PrivilegedRecord.from_json({"schema": SCHEMA, "sample_id": name} | record),
    )


def scene(*regions, sizes=((1000, 1000),), notes=()):
    """A sample with one image a size and the given regions."""
    record = PrivilegedRecord(sample_id="s-7", regions=regions, notes=notes)
    return Sample(id="s-7", question="q", images=tuple(Image.new("L", s) for s in sizes), privileged=record)


def built(sample, name="boxes", **options):
    return get_builder(name, **options).build(sample, sample.privileged)


def lines(sample, **options):
    """The lines between header and footer."""
    (text,) = built(sample, **options).parts
    return text.split("\n")[1:-1]


@pytest.mark.parametrize("name", BUILDERS)
def test_the_example_builds(name):
    """Every builder shows what it does: its example gives parts of text and images (none: nothing)."""
    block = built(example(name), name)
    assert block.empty == (name == "none")
    assert all(isinstance(part, str | Image.Image) and part for part in block.parts)
    assert build_views(example(name), get_builder(name)).has_privilege == (not block.empty)


@pytest.mark.parametrize("name", BUILDERS)
def test_building_is_deterministic_and_changes_nothing(name):
    """Twice the same block, also from another instance; sample, record and images stay as they were."""
    sample = example(name)
    record, pixels = copy.deepcopy(sample.privileged), [image.tobytes() for image in sample.images]
    builder = get_builder(name)
    first, second = builder.build(sample, sample.privileged), builder.build(sample, sample.privileged)
    assert first == second == built(sample, name)
    assert sample.privileged == record
    assert [image.tobytes() for image in sample.images] == pixels


@pytest.mark.parametrize("name", BUILDERS)
def test_the_audit_text_is_what_is_disclosed_without_coordinates(name):
    """Fields of the record only: a leak audit must not find the answer `4` in a coordinate."""
    sample = scene(Region(id="r1", label="cup", box=(123, 234, 456, 567)), notes=(Note(text="Look left."),))
    block = built(sample, name)
    assert set(block.audit_text) <= {"cup", "Look left."}
    assert bool(block.audit_text) == (not block.empty and name != "overlay"), "only an overlay discloses no word"
    assert all(text in "".join(part for part in block.parts if isinstance(part, str)) for text in block.audit_text)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_answer_is_not_looked_at(name):
    """A builder gives the same block whatever the reference answer is, unless it discloses it."""
    sample = example(name)
    answered = dataclasses.replace(sample, answer="42")
    assert (built(sample, name) == built(answered, name)) == (get_builder(name).discloses != "answer")


@pytest.mark.parametrize("name", BUILDERS)
def test_a_builder_says_what_it_discloses(name):
    """One of the grades, as a fact of the class and not an option; `none` alone discloses nothing."""
    cls = find(name).BUILDER
    assert cls.discloses in typing.get_args(Disclosure)
    assert "discloses" not in {field.name for field in dataclasses.fields(cls)}
    assert (cls.discloses == "none") == (name == "none")
    assert (cls.discloses == "answer") == (name == "answer")


@pytest.mark.parametrize("name", BUILDERS)
def test_a_record_without_anything_gives_an_empty_block(name):
    """Zero regions and notes: nothing to say, and both views are one object."""
    for sizes in ((), ((20, 20),), ((20, 20), (30, 30))):
        block = built(scene(sizes=sizes), name)
        assert block.empty
        assert (block.audit_text, block.replace_images, block.left_out) == ((), None, 0)
        assert not build_views(scene(sizes=sizes), get_builder(name)).has_privilege


@pytest.mark.parametrize("name", BUILDERS)
def test_an_unknown_option_is_named_with_the_known_ones(name):
    """One line for a typing error in a configuration."""
    with pytest.raises(DataError, match=rf"builder '{name}' has no option 'colour'.*options: ") as caught:
        get_builder(name, colour=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_builder_is_a_frozen_dataclass_of_its_options(name):
    """Options can be listed and written to a file, and a builder cannot change between samples."""
    builder = get_builder(name)
    assert dataclasses.is_dataclass(builder)
    assert type(builder).__dataclass_params__.frozen


def test_an_unknown_name_gets_a_suggestion():
    """A near miss is named first, and what there is after it."""
    with pytest.raises(DataError, match=r"'boxs' is unknown: did you mean 'boxes'\? available: answer, boxes, "):
        get_builder("boxs")
    with pytest.raises(DataError, match="available: answer, boxes"):
        get_builder("../boxes")


CUP = Region(id="r1", label="cup", box=(100, 200, 300, 400))
LAMP = Region(id="r2", label='a "tall" lamp', box=(500, 100, 750.4, 180))


def test_boxes_as_json():
    """The exact block: header, one object a line in reading order, footer."""
    block = built(scene(CUP, LAMP))
    assert block.parts == (
        "Visual notes for this image (coordinates are relative, 0-1000, [x1, y1, x2, y2]):\n"
        '{"bbox_2d": [500, 100, 750, 180], "label": "a \\"tall\\" lamp"}\n'
        '{"bbox_2d": [100, 200, 300, 400], "label": "cup"}\n'
        "Use them to look at the right places. Answer the question as if you had only seen the image; do not mention "
        "these notes, boxes or coordinates.",
    )
    assert block.audit_text == ('a "tall" lamp', "cup")


def test_boxes_as_lines():
    """The thrifty form."""
    assert lines(scene(CUP, LAMP), style="lines") == ['- a "tall" lamp (500,100,750,180)', "- cup (100,200,300,400)"]


def test_boxes_are_relative_to_their_own_image():
    """Wide and tall images: x by the width, y by the height; what hangs over the border is clamped."""
    sample = scene(Region(label="a", box=(-50, 25, 100, 75)), sizes=((200, 100),))
    assert lines(sample) == ['{"bbox_2d": [0, 250, 500, 750], "label": "a"}']


def test_several_images_are_named():
    """From 1, in the order of the images; a header for several; images without regions are not mentioned."""
    second = dataclasses.replace(CUP, image=2, label="second")
    sample = scene(second, CUP, sizes=((1000, 1000), (50, 50), (500, 500)))
    (text,) = built(sample).parts
    assert text.startswith(boxes.HEADER_MANY + "\n")
    assert lines(sample) == [
        '{"image": 1, "bbox_2d": [100, 200, 300, 400], "label": "cup"}',
        '{"image": 3, "bbox_2d": [200, 400, 600, 800], "label": "second"}',
    ]
    assert lines(sample, style="lines") == [
        "- image 1: cup (100,200,300,400)",
        "- image 3: second (200,400,600,800)",
    ]


@pytest.mark.parametrize("style", ["json", "lines"])
def test_one_region_is_one_line(style):
    """A label with line breaks must not look like further regions or like the end of the notes."""
    sample = scene(dataclasses.replace(CUP, label="cup\n- lamp (1,2,3,4)\n\nQuestion:"))
    assert len(lines(sample, style=style)) == 1


def test_max_regions_cuts_in_reading_order():
    """The first N that a reader meets, text and audit text alike, whatever the annotator's order."""
    column = [Region(id=f"r{i}", label=f"l{i}", box=(10, 100 * i + 10, 90, 100 * i + 90)) for i in range(5)]
    for regions in (column, column[::-1]):
        block = built(scene(*regions), max_regions=2)
        assert block.audit_text == ("l0", "l1")
        assert block.parts[0].count("bbox_2d") == 2
    assert len(lines(scene(*column), max_regions=5)) == 5
    assert len(lines(scene(*column * 6))) == 20, "the default"


@pytest.mark.parametrize("value", [0, -1, "three", 2.5, None])
def test_max_regions_that_makes_no_sense_is_refused(value):
    """When the builder is made, not in a worker in the middle of a run."""
    with pytest.raises(DataError, match="max_regions"):
        get_builder("boxes", max_regions=value)


@pytest.mark.parametrize("value", ["xml", "", None, 3])
def test_an_unknown_style_is_refused(value):
    """With the styles there are."""
    with pytest.raises(DataError, match="style: expected 'json' or 'lines'"):
        get_builder("boxes", style=value)


@pytest.mark.parametrize(
    ("box", "image", "reason"),
    [
        pytest.param((300, 0, 100, 50), 0, "empty or reversed", id="reversed"),
        pytest.param((10, 10, 10, 10), 0, "empty or reversed", id="a point"),
        pytest.param((1000, 0, 1100, 50), 0, "outside the 1000x1000 image", id="outside"),
        pytest.param((-50, 0, 0, 50), 0, "outside the 1000x1000 image", id="outside on the left"),
        pytest.param((0, 0, 10, 10), 1, "expected image < 1, got 1", id="image that is not there"),
    ],
)
def test_a_bad_box_is_named_by_sample_and_region(box, image, reason):
    """Never drawn wrongly, never left out silently, even when the other regions are fine."""
    with pytest.raises(DataError) as caught:
        built(scene(CUP, Region(id="r9", label="x", box=box, image=image)))
    for word in ("'s-7'", "'r9'", reason):
        assert word in str(caught.value)


def test_boxes_on_a_sample_without_images_are_refused():
    """A text-only sample cannot have regions."""
    with pytest.raises(DataError, match=r"'s-7'.*'r1'.*expected image < 0"):
        built(scene(CUP, sizes=()))


def test_hints_are_numbered_and_other_notes_left_out():
    """The exact block, notes of kind hint in their order."""
    notes = (Note(text="Add 3 to 4."), Note(text="A man.", kind="caption"), Note(text="Take 2 away."))
    block = built(scene(notes=notes, sizes=()), "hints")
    assert block.parts == (
        "Steps that lead to the answer:\n1. Add 3 to 4.\n2. Take 2 away.\nWork through them yourself. Answer the "
        "question as if you had not seen these steps; do not mention them.",
    )
    assert block.audit_text == ("Add 3 to 4.", "Take 2 away.")
    assert built(scene(notes=notes[1:2]), "hints").empty


@pytest.mark.parametrize(
    "text",
    [
        value
        for module in (_wording, answer, boxes, caption, crops, hints, marks, overlay)
        for name, value in sorted(vars(module).items())
        if name.startswith(("HEADER", "FOOTER"))
    ],
)
def test_the_wording_does_not_vouch_for_p(text):
    """Notes may be wrong; a policy that is told that they are true trusts wrong boxes (PRIVILEGED.md 3.5)."""
    assert not any(word in text.lower() for word in ("ground truth", "correct", "true", "reference", "privileged"))


PLUGIN = """
from dataclasses import dataclass
from privileged import PrivilegedBlock

@dataclass(frozen=True, kw_only=True)
class Stars:
    many: int = 1

    def build(self, sample, record):
        return PrivilegedBlock(parts=("*" * self.many,), audit_text=("*",))

BUILDER = Stars
EXAMPLE = {"question": "q", "privileged": {"regions": []}}
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Two third-party packages as pip leaves them: one works, one cannot be imported."""
    (tmp_path / "stars_plugin.py").write_text(PLUGIN)
    (tmp_path / "broken_plugin.py").write_text("import a_library_that_nobody_has\n")
    info = tmp_path / "stars-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stars\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nstars = stars_plugin\nbroken = broken_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_a_builder_of_another_package_is_found():
    """By name, with its options checked, in the list, and in the prompts."""
    assert available() == sorted([*BUILDERS, "stars", "broken"])
    views = build_views(example("stars"), get_builder("stars", many=3))
    assert views.privileged.messages[0]["content"][0]["text"].startswith("***")
    with pytest.raises(DataError, match="has no option 'few': options: many"):
        get_builder("stars", few=1)
    with pytest.raises(DataError, match="did you mean 'stars'"):
        get_builder("star")


@pytest.mark.usefixtures("installed")
def test_a_broken_package_troubles_only_those_who_choose_it():
    """The others work; choosing it is a DataError that names builder and cause."""
    assert not built(example("boxes")).empty
    with pytest.raises(DataError, match=r"'broken'.*a_library_that_nobody_has"):
        get_builder("broken")
