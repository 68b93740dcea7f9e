"""What every reader promises, shipped or not.

What is locked: 1) its EXAMPLE reads, completely, twice the same; 2) the counts of the report are those of the samples;
3) records survive their JSON; 4) wrong names and options are DataErrors; 5) a package finds its way in.
"""

import dataclasses

import pytest
from PIL import Image

from privileged import DataError, PrivilegedRecord
from privileged.checks import Report
from privileged.geometry import check_box
from privileged.readers import ENTRY_POINTS, available, find, get_reader, write_example

READERS = available()


def read_example(name, folder):
    reader, path = write_example(name, folder)
    report = Report()
    return list(reader.read(path, report)), report


def test_the_readers_there_are():
    """One file each; the list in the command line comes from here."""
    names = "alto coco cvat doctr gemini gqa hocr label_studio labelme ms_swift page_xml points qwen refcoco virl39k"
    assert " ".join(READERS) == f"{names} visual_cot visual_genome voc yolo"


@pytest.mark.parametrize("name", READERS)
def test_the_example_reads(name, tmp_path):
    """Nothing of an example is dropped, cut or doubtful, and its boxes are on its images."""
    samples, report = read_example(name, tmp_path)
    regions = [region for sample in samples for region in sample.record.regions]
    assert report.images == {"kept": len(samples)}
    assert report.objects == ({"kept": len(regions)} if regions else {})
    assert bool(regions) == (name != "virl39k")
    for sample in samples:
        assert sample.record.sample_id
        assert PrivilegedRecord.from_json(sample.record.to_json()) == sample.record
        for region in sample.record.regions:
            ref = sample.images[region.image]
            assert check_box(region.box, ref.width, ref.height) is None
            assert (tmp_path / "images" / ref.path).is_file()


@pytest.mark.parametrize("name", READERS)
def test_reading_is_deterministic(name, tmp_path):
    """Also by another instance."""
    assert read_example(name, tmp_path) == read_example(name, tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_an_image_of_another_size_takes_no_boxes(name, tmp_path):
    """Sizes are compared with the header where a format declares one; no box of another image gets through."""
    reader, path = write_example(name, tmp_path)
    for file in (tmp_path / "images").rglob("*.*"):
        Image.new("RGB", (17, 23)).save(file)
    report = Report()
    samples = list(reader.read(path, report))
    assert all(r.box[2] <= 17 and r.box[3] <= 23 for sample in samples for r in sample.record.regions)


@pytest.mark.parametrize("name", READERS)
def test_images_that_are_not_there_are_counted(name, tmp_path):
    """The sample is not given, its objects have a fate."""
    reader, path = write_example(name, tmp_path)
    for file in (tmp_path / "images").rglob("*.*"):
        file.unlink()
    report = Report()
    assert list(reader.read(path, report)) == []
    assert set(report.images) == {"dropped:image not found"}
    assert set(report.objects) <= {"dropped:image not found"}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("option", "value"),
    [("space", "screen"), ("keep", ("outside",)), ("keep", "tiny"), ("max_bytes", 0), ("max_bytes", "many")],
)
def test_a_common_option_that_makes_no_sense_is_refused(name, option, value):
    """When the reader is made."""
    needed = dict(find(name).EXAMPLE.get("options", {}))
    needed |= {"image_root": "."}
    with pytest.raises(DataError, match=option) as caught:
        get_reader(name, **needed, **{option: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", READERS)
def test_stored_space_needs_the_images(name):
    """An orientation that nobody can look up cannot be applied."""
    needed = dict(find(name).EXAMPLE.get("options", {}))
    with pytest.raises(DataError, match="image_root"):
        get_reader(name, **needed, space="stored")


@pytest.mark.parametrize("name", READERS)
def test_a_file_above_the_cap_is_not_read(name, tmp_path):
    """Named, with the option that raises the cap; in a folder of files it is the fate of that file."""
    reader, path = write_example(name, tmp_path)
    report = Report()
    try:
        samples = list(dataclasses.replace(reader, max_bytes=10).read(path, report))
    except DataError as error:
        assert "max_bytes" in str(error)
    else:
        assert samples == []
        assert "max_bytes" in report.examples["dropped:malformed"][0]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("voc", {"base": 2}, "base"),
        ("yolo", {"names": ("a",), "task": "pose", "image_root": "."}, "task"),
        ("yolo", {"names": ("a",)}, "image_root"),
        ("yolo", {"image_root": "."}, "names or data"),
        ("yolo", {"image_root": ".", "names": "cup"}, "names"),
        ("yolo", {"image_root": ".", "names": (True,)}, "quote it"),
        ("qwen", {}, "profile"),
        ("qwen", {"profile": "auto"}, "profile"),
        ("qwen", {"profile": "qwen2_5", "resized": 28}, "resized"),
        ("visual_cot", {"form": "text"}, "form"),
        ("points", {"unit": "resized"}, "unit"),
        ("alto", {"dpi": 0}, "dpi"),
        ("hocr", {"level": "page"}, "level"),
        ("coco", {"colour": 1}, "has no option 'colour'"),
        ("coc", {}, "did you mean 'coco'"),
        ("_base", {}, "unknown"),
        ("../coco", {}, "unknown"),
    ],
)
def test_wrong_options_are_named(name, options, words):
    """One line."""
    with pytest.raises(DataError, match=words) as caught:
        get_reader(name, **options)
    assert "\n" not in str(caught.value)


PLUGIN = """
from dataclasses import dataclass
from privileged import PrivilegedRecord
from privileged.readers import Annotated
from privileged.records import ImageRef

@dataclass(frozen=True, kw_only=True)
class Lines:
    def read(self, path, report):
        for line in path.read_text().split():
            yield Annotated(record=PrivilegedRecord(sample_id=line, images=(ImageRef(path=line),)))

READER = Lines
EXAMPLE = {"path": "a.lst", "files": {"a.lst": "one two"}}
"""


def test_a_reader_of_another_package_is_found(tmp_path, monkeypatch):
    """By name and in the list, as pip leaves it."""
    (tmp_path / "lines_plugin.py").write_text(PLUGIN)
    info = tmp_path / "lines-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lines\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nlines = lines_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert available() == sorted([*READERS, "lines"])
    samples, _ = read_example("lines", tmp_path)
    assert [sample.record.sample_id for sample in samples] == ["one", "two"]
