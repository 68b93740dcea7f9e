"""Files of strangers: whatever is wrong with them, a reader says so in a DataError or counts it. Nothing else escapes.

Every EXAMPLE is broken in every place: cut off, each value replaced by each kind of nonsense, each key left out.
"""

import copy
import json
import xml.etree.ElementTree as ET

import pytest

from privileged import DataError
from privileged.checks import REASONS, Report
from privileged.readers import available, find, get_reader, write_example

READERS = available()
NONSENSE = [None, "", "x", -1, 0, 1e999, float("nan"), 10**400, True, [], [[]], [1, "a"], {}, {"a": None}, [None] * 4]
JUNK = [
    b"", b" ", b"\n\n", b"\x00\x01\x02", b"\xff\xfe{\x00", b"{", b"[", b"null", b"5", b'"a"', b"[1]", b"{}", b"[]",
    b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a":' * 50_000, b"1" * 6000, b"<", b"<a/>", b"<a><b></a>", b"\x89PNG\r\n",
    b"PAR1PAR1", b"1 2 3\n", b"0 nan nan nan nan\n", b"\x80\x04\x95.", b"\xed\xa0\x80", b"```json\n[{", b"<!DOCTYPE x>",
]  # fmt: skip


def consistent(reader, path):
    """Read it all; whatever came of it, the counts are those of the samples. Returns the DataError, if any."""
    report, samples = Report(), []
    try:
        samples.extend(reader.read(path, report))
    except DataError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return error
    kept = sum(len(sample.record.regions) for sample in samples)
    assert report.images["kept"] == len(samples)
    assert report.objects["kept"] + report.objects["clamped"] >= kept
    for fate in [*report.objects, *report.images]:
        assert fate in ("kept", "clamped") or fate.removeprefix("dropped:") in REASONS
    for sample in samples:
        sample.record.to_json()
    return None


def files_of(name, folder):
    """(reader, what to read, the files of the example that the reader is given)."""
    reader, path = write_example(name, folder)
    return reader, path, [folder / file for file in find(name).EXAMPLE["files"]]


@pytest.mark.parametrize("name", READERS)
def test_junk_instead_of_the_file(name, tmp_path):
    """Empty, binary, other formats, a pickle, ten thousand brackets, no file at all."""
    reader, path, files = files_of(name, tmp_path)
    for file in files:
        good = file.read_bytes()
        for junk in JUNK:
            file.write_bytes(junk)
            consistent(reader, path)
        file.unlink()
        consistent(reader, path)
        file.write_bytes(good)
    assert consistent(reader, path) is None


@pytest.mark.parametrize("name", READERS)
def test_a_file_cut_off_anywhere(name, tmp_path):
    """After 0, 1, ... bytes, in steps of a prime."""
    reader, path, files = files_of(name, tmp_path)
    for file in files:
        good = file.read_bytes()
        for length in range(0, len(good), 7):
            file.write_bytes(good[:length])
            consistent(reader, path)
        file.write_bytes(good)


def places(node, route=()):
    """The routes to all values of a JSON document, containers included."""
    yield route
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*route, key))


def changed(document, route, value, remove):
    """A copy with one value replaced, or left out."""
    if not route:
        return value
    document = copy.deepcopy(document)
    parent = document
    for key in route[:-1]:
        parent = parent[key]
    if remove:
        del parent[route[-1]]
    else:
        parent[route[-1]] = value
    return document


def is_json(file):
    return file.suffix in (".json", ".jsonl")


@pytest.mark.parametrize("name", [n for n in READERS if any(".json" in f for f in find(n).EXAMPLE["files"])])
def test_nonsense_in_every_place_of_a_json_file(name, tmp_path):
    """Each value by each kind of nonsense, and each key left out."""
    reader, path, files = files_of(name, tmp_path)
    for file in filter(is_json, files):
        good = file.read_text()
        document = json.loads(good)
        if name in ("qwen", "gemini"):  # what a model said is a document in the document
            text = document["response"]
            document["response"] = json.loads(text[text.index("[") : text.rindex("]") + 1])
        for route in places(document):
            for value in NONSENSE:
                file.write_text(json.dumps(changed(document, route, value, False)))
                consistent(reader, path)
            file.write_text(json.dumps(changed(document, route, None, True)))
            consistent(reader, path)
        file.write_text(good)


@pytest.mark.parametrize("name", ["voc", "cvat", "page_xml", "alto"])
def test_nonsense_in_every_place_of_an_xml_file(name, tmp_path):
    """Each attribute and text replaced or left out, each element left out."""
    reader, path, (file,) = files_of(name, tmp_path)
    good = file.read_text()
    for number in range(len(list(ET.fromstring(good).iter()))):
        for value in ("", "x", "-1", "nan", "inf", "1e999", "9" * 5000, "1,2", "\u0663"):
            tree = ET.fromstring(good)
            element = list(tree.iter())[number]
            element.text = value
            file.write_bytes(ET.tostring(tree))
            consistent(reader, path)
            for key in list(element.attrib):
                element.set(key, value)
                file.write_bytes(ET.tostring(tree))
                consistent(reader, path)
        tree = ET.fromstring(good)
        unwanted = list(tree.iter())[number]
        for parent in list(tree.iter()):
            if unwanted in list(parent):
                parent.remove(unwanted)
        file.write_bytes(ET.tostring(tree))
        consistent(reader, path)


BOMB = '<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'


@pytest.mark.parametrize("name", ["voc", "cvat", "page_xml", "alto"])
@pytest.mark.parametrize(
    "head",
    [
        f"<!DOCTYPE annotation [{BOMB}]>",
        '<!DOCTYPE annotation SYSTEM "file:///etc/passwd">',
        '<?xml version="1.0" encoding="UTF-7"?>',
        '<?xml version="1.0" encoding="nonsense"?>',
    ],
)
def test_xml_with_entities_is_refused(name, head, tmp_path):
    """Before a parser sees it."""
    reader, _, (file,) = files_of(name, tmp_path)
    file.write_text(head + file.read_text())
    error = consistent(reader, file)
    assert error is not None
    assert "DOCTYPE" in str(error) if "DOCTYPE" in head else "XML" in str(error)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_wide_characters_do_not_hide_a_doctype(encoding, tmp_path):
    """The search for it is in bytes."""
    file = tmp_path / "a.xml"
    file.write_bytes(f"<!DOCTYPE annotation [{BOMB}]><annotation/>".encode(encoding))
    with pytest.raises(DataError, match="NUL"):
        list(get_reader("voc").read(file, Report()))


def test_a_pickle_is_named_as_what_it_is(tmp_path):
    """RefCOCO's original file: not opened, and what to do instead."""
    for file, content in (("refs(unc).p", b"(lp0\n."), ("refs.json", b"\x80\x04\x95\x00.")):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(DataError, match=r"pickle.*export it as JSON"):
            list(get_reader("refcoco").read(tmp_path / file, Report()))


def test_one_bad_file_of_a_folder_costs_only_itself(tmp_path):
    """In a folder it is counted, alone it is an error; a folder of nothing is an error too."""
    reader, path = write_example("voc", tmp_path)
    (path / "broken.xml").write_text("<annotation>")
    report = Report()
    assert len(list(reader.read(path, report))) == 1
    assert report.images == {"kept": 1, "dropped:malformed": 1}
    assert "broken.xml" in report.examples["dropped:malformed"][0]
    with pytest.raises(DataError, match=r"broken\.xml"):
        list(reader.read(path / "broken.xml", Report()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected files ending in \.xml"):
        list(reader.read(tmp_path / "empty", Report()))


def test_one_bad_line_costs_only_itself(tmp_path):
    """Of JSON lines."""
    reader, path = write_example("ms_swift", tmp_path)
    path.write_text("{\n" + path.read_text() + "\nnull\n\n")
    report = Report()
    assert len(list(reader.read(path, report))) == 1
    assert report.images == {"kept": 1, "dropped:malformed": 2}
    assert "grounding.jsonl:1" in report.examples["dropped:malformed"][0]


@pytest.mark.parametrize(
    "text",
    [
        "names: !!python/object/apply:os.system ['x']",
        "names: [no, yes]",
        "names: 5",
        "- a",
        "",
        "a: &a [*a, *a",
        "names: {x: y}",
    ],
)
def test_a_data_yaml_of_a_stranger(tmp_path, text):
    """Nothing is run; a name that YAML takes for False must be quoted."""
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=r"data\.yaml") as caught:
        get_reader("yolo", image_root=str(tmp_path), data=str(tmp_path / "data.yaml"))
    assert "\n" not in str(caught.value)
