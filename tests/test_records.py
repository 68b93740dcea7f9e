"""Records: what is written is read back, what is wrong is named.

What is locked: 1) `from_json(to_json(r)) == r` for every record; 2) keys we do not know survive; 3) every invalid
field is a DataError of one line with the sample and the field; 4) another schema or coordinate system is refused.
"""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privileged import DataError, Note, PrivilegedRecord, Region, Sample
from privileged.records import SCHEMA

stable = settings(deadline=None, derandomize=True)
words = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-10_000, 10_000)
regions = st.builds(Region, label=words, box=st.tuples(*[numbers] * 4), image=st.integers(0, 9), id=st.text(max_size=8))
notes = st.builds(Note, text=words, kind=st.sampled_from(["hint", "caption", "事"]))
known = {"schema", "sample_id", "coords", "regions", "notes"}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
records = st.builds(
    PrivilegedRecord,
    sample_id=words,
    regions=st.lists(regions, max_size=4).map(tuple),
    notes=st.lists(notes, max_size=3).map(tuple),
    extra=st.dictionaries(st.text(max_size=8).filter(lambda key: key not in known), values, max_size=3),
)


def row(**fields):
    """A valid record as a dict, with `fields` replaced."""
    region = {"id": "r1", "label": "cup", "box": [1, 2, 3, 4]}
    return {"schema": SCHEMA, "sample_id": "s-7", "regions": [region]} | fields


def region_row(**fields):
    return row(regions=[{"id": "r1", "label": "cup", "box": [1, 2, 3, 4]} | fields])


@stable
@given(records)
def test_round_trip(record):
    """A record survives its own JSON, unknown keys included, and the JSON is one line."""
    text = record.to_json()
    assert "\n" not in text
    again = PrivilegedRecord.from_json(text)
    assert again == record
    assert again.to_json() == text
    assert PrivilegedRecord.from_json(json.loads(text)) == record


def test_minimal_records():
    """Schema, sample id and one of regions or notes are enough; coordinates default to px, xyxy, display."""
    record = PrivilegedRecord.from_json(json.dumps(row()))
    assert record.regions == (Region(id="r1", label="cup", box=(1, 2, 3, 4)),)
    assert record.regions[0].box == (1.0, 2.0, 3.0, 4.0)
    assert all(isinstance(edge, float) for edge in record.regions[0].box)
    hint = PrivilegedRecord.from_json({"schema": SCHEMA, "sample_id": "s", "notes": [{"text": "Look left."}]})
    assert hint.notes == (Note(text="Look left.", kind="hint"),)


def test_unknown_top_level_keys_are_kept():
    """Other tools' fields come through reading and writing."""
    extra = {"origin": {"how": "model", "model": "x"}, "checks": {"leak": {"grade": 1, "hits": []}}, "v": None}
    record = PrivilegedRecord.from_json(row(**extra))
    assert record.extra == extra
    assert {key: json.loads(record.to_json())[key] for key in extra} == extra


def test_the_record_of_the_design_page_is_read():
    """PRIVILEGED.md 7.1: regions carry score, polygon, caption …, notes carry a step; all of it survives."""
    given = row(
        images=[{"path": "images/123-0.jpg", "width": 640, "height": 480}],
        coords={"unit": "px", "order": "xyxy", "space": "display"},
        regions=[
            {"id": "r1", "image": 0, "label": "bottle", "box": [220, 255, 260, 345], "score": 0.93}
            | {"polygon": None, "points": None, "text": None, "caption": None, "attributes": {}, "flags": []}
        ],
        relations=[["r1", "on", "r3"]],
        notes=[{"kind": "hint", "step": 1, "text": "Compare the heights of the two bars."}],
    )
    record = PrivilegedRecord.from_json(given)
    assert record.regions[0].label == "bottle"
    written = json.loads(record.to_json())
    assert written["regions"][0]["score"] == 0.93
    assert written["notes"][0]["step"] == 1
    assert written["relations"] == given["relations"]


def test_reading_does_not_change_what_it_was_given():
    """A dict from a caller is left as it was."""
    given = row(extra=[1])
    before = json.dumps(given)
    PrivilegedRecord.from_json(given)
    assert json.dumps(given) == before


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        pytest.param(row(schema="privileged/2"), ["schema", "'privileged/1'", "'privileged/2'"], id="next schema"),
        pytest.param({k: v for k, v in row().items() if k != "schema"}, ["schema", "None"], id="no schema"),
        pytest.param(row(coords={"unit": "rel1000", "order": "xyxy", "space": "display"}), ["coords"], id="rel1000"),
        pytest.param(row(coords={"unit": "px", "order": "yxyx", "space": "display"}), ["coords"], id="y first"),
        pytest.param(row(coords={"unit": "px", "order": "xyxy", "space": "stored"}), ["coords"], id="stored space"),
        pytest.param(row(coords=None), ["coords"], id="coords null"),
        pytest.param(region_row(label=""), ["label", "r1"], id="empty label"),
        pytest.param(region_row(label=" \n"), ["label", "r1"], id="blank label"),
        pytest.param(region_row(label=None), ["label", "r1"], id="null label"),
        pytest.param(region_row(label=3.0), ["label", "r1", "3.0"], id="float label"),
        pytest.param(region_row(box=[1, 2, 3]), ["box", "r1"], id="three edges"),
        pytest.param(region_row(box=[1, 2, 3, 4, 5]), ["box", "r1"], id="five edges"),
        pytest.param(region_row(box=None), ["box", "r1"], id="null box"),
        pytest.param(region_row(box=[1, 2, 3, "x"]), ["box", "r1"], id="word in a box"),
        pytest.param(region_row(box=[1, 2, 3, None]), ["box", "r1"], id="null in a box"),
        pytest.param(region_row(box="1234"), ["box", "r1"], id="box of four characters"),
        pytest.param(region_row(box={"x": 1, "y": 2, "w": 3, "h": 4}), ["box", "r1"], id="mapping as box"),
        pytest.param(region_row(image=-1), ["image", "r1"], id="negative image"),
        pytest.param(region_row(image=0.5), ["image", "r1"], id="fractional image"),
        pytest.param(region_row(image=None), ["image", "r1"], id="null image"),
        pytest.param(row(regions=[{"id": "r1", "box": [1, 2, 3, 4]}]), ["label"], id="label missing"),
        pytest.param(row(regions=[{"id": "r1", "label": "cup"}]), ["box"], id="box missing"),
        pytest.param(row(regions=["cup"]), ["region"], id="region is a string"),
        pytest.param(row(regions=None), ["regions"], id="regions null"),
        pytest.param(row(regions=5), ["regions"], id="regions is a number"),
        pytest.param(row(notes=[{"text": ""}]), ["note", "text"], id="empty note"),
        pytest.param(row(notes=[{"text": 5}]), ["note", "text"], id="note is a number"),
        pytest.param(row(notes=[{"kind": "hint"}]), ["text"], id="note without text"),
        pytest.param(row(notes="look left"), ["note"], id="notes is a string"),
    ],
)
def test_every_invalid_field_is_named(wrong, words):
    """One line that names the sample, the field and, where there is one, the region."""
    with pytest.raises(DataError) as caught:
        PrivilegedRecord.from_json(wrong)
    message = str(caught.value)
    assert "\n" not in message
    assert "__init__" not in message, "tells of our classes, not of the user's file"
    for word in ["s-7", *words]:
        assert word in message


@pytest.mark.parametrize("text", ["", "{", "null", "5", '"a"', "[1]", "[]", '{"a":1', "\x00"])
def test_what_is_no_json_object_is_a_data_error(text):
    """Whatever a column holds instead of a record."""
    with pytest.raises(DataError) as caught:
        PrivilegedRecord.from_json(text)
    assert "\n" not in str(caught.value)


def test_a_record_without_sample_id_says_so():
    """The one field that cannot be named by the sample."""
    with pytest.raises(DataError, match="sample_id"):
        PrivilegedRecord.from_json({"schema": SCHEMA, "regions": []})


@pytest.mark.parametrize("edge", [math.nan, math.inf, -math.inf])
def test_a_record_with_a_box_that_is_no_number_can_still_be_written(edge):
    """Such a box is refused by a DataError, when it is made or when it is written, and never by another error."""
    try:
        text = PrivilegedRecord(sample_id="s", regions=(Region(label="a", box=(0, 0, edge, 1)),)).to_json()
    except DataError:
        return
    assert repr(json.loads(text)["regions"][0]["box"][2]) == repr(edge)


@pytest.mark.parametrize("question", ["", "  \n", None, 5])
def test_a_sample_without_question_is_refused(question):
    """Named by its id."""
    with pytest.raises(DataError, match=r"'s-7'.*question"):
        Sample(id="s-7", question=question)


@pytest.mark.parametrize("thing", [Region(label="a", box=(0, 0, 1, 1)), Note(text="a"), Sample(id="s", question="q")])
def test_records_are_immutable(thing):
    """A builder cannot change what another one will read."""
    name = dataclasses.fields(thing)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(thing, name, "x")
