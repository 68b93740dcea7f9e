"""From annotation files to rows for training, by several processes and by shards.

What is locked: 1) the rows are a data file: they load, and the record fits their images; 2) shards one after the other
are the whole, bytes and counts, whatever the split and the processes; 3) questions come from the format, from a file
about the same images, or are one for all, and their absence is an error; 4) every object's fate is in the report, also
when the rows come from the cache; 5) a map over rows is cached, notices changed pixels, and goes on after a kill.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import pytest
from PIL import Image

from privileged import DataError
from privileged.checks import Report
from privileged.readers import available, write_example
from privileged.reading import Reading, read_annotations
from privileged.records import PrivilegedRecord
from privileged.rows import read_rows, to_sample
from privileged.scale import BLOCK, Shard, map_rows

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The library's cache in a folder of its own; no bars in the output of tests."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    datasets.disable_progress_bars()
    return folder


def coco(folder, count, per_image=2, name="instances.json"):
    """`count` images with boxes; every third box of an image lies outside."""
    images, annotations = [], []
    (folder / "photos").mkdir(exist_ok=True)
    for i in range(count):
        Image.new("L", (64 + i, 48)).save(folder / "photos" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64 + i, "height": 48})
        for j in range(per_image):
            box = [2 + 9 * j, 3, 8, 20 + j] if (j + 1) % 3 else [500, 500, 9, 9]
            annotations.append({"id": len(annotations), "image_id": i, "category_id": 1, "bbox": box})
    content = {"images": images, "categories": [{"id": 1, "name": "cup"}], "annotations": annotations}
    (folder / name).write_text(json.dumps(content))
    return folder / name


def reading(path, **fields):
    options = {"image_root": str(path.parent / "photos")}
    return Reading(**{"format": "coco", "paths": (path,), "options": options, "question": "How many?"} | fields)


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", available())
def test_every_format_becomes_a_data_file(name, tmp_path):
    """The example of each reader: rows that load as samples, the record made for those very images."""
    reader, path = write_example(name, tmp_path)
    options = {k: getattr(reader, k) for k in ("image_root",) if getattr(reader, k)}
    from privileged.readers import find

    options |= find(name).EXAMPLE.get("options", {})
    out = tmp_path / "rows.jsonl"
    report = read_annotations(Reading(format=name, paths=(path,), options=options, question="What is it?"), out)
    rows = read_rows(out)
    assert len(rows) == report.images["kept"] > 0
    for row in rows:
        if options.get("image_root"):
            sample = to_sample(row, "x", tmp_path)
            refs = sample.privileged.images
            assert [(ref.width, ref.height) for ref in refs] == [image.size for image in sample.images]
            assert all(len(ref.sha256) == 64 for ref in refs)
        assert row["question"]


def test_rows_hold_what_the_reader_found(tmp_path):
    """Paths relative to the new file, sizes, digests and boxes; the report counts the boxes that are outside."""
    out = tmp_path / "rows.jsonl"
    report = read_annotations(reading(coco(tmp_path, 3, per_image=3)), out)
    assert report.objects == {"kept": 6, "dropped:outside": 3}
    assert report.images == {"kept": 3}
    row = json.loads(lines(out)[1])
    assert (row["id"], row["images"], row["question"]) == ("1", ["photos/1.png"], "How many?")
    record = PrivilegedRecord.from_json(row["privileged"])
    assert [region.box for region in record.regions] == [(2, 3, 10, 23), (11, 3, 19, 24)]
    assert (record.images[0].width, record.images[0].path) == (65, "photos/1.png")


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_shards_are_the_whole(tmp_path, count):
    """Concatenated bytes and summed counts, for any number of shards, even more than there are rows."""
    path = coco(tmp_path, 7, per_image=3)
    whole = read_annotations(reading(path), tmp_path / "whole.jsonl")
    parts, text = Report(), ""
    for index in range(1, count + 1):
        out = tmp_path / f"part-{index}.jsonl"
        parts.merge(read_annotations(reading(path, shard=Shard(index, count)), out))
        text += out.read_text()
    assert text == (tmp_path / "whole.jsonl").read_text()
    assert (parts.objects, parts.images, parts.notes) == (whole.objects, whole.images, whole.notes)


def test_several_files_by_several_processes(tmp_path):
    """The same rows in the same order as by one process."""
    paths = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        paths.append(coco(tmp_path / name, 2))
        data = json.loads(paths[-1].read_text())
        for image in data["images"]:
            image["file_name"] = f"{name}/photos/{image['file_name']}"
            image["id"] = f"{name}{image['id']}"
        for annotation in data["annotations"]:
            annotation["image_id"] = f"{name}{annotation['image_id']}"
        paths[-1].write_text(json.dumps(data))
    texts = []
    for workers in (1, 2):
        job = reading(paths[0], paths=tuple(paths), options={"image_root": str(tmp_path)}, workers=workers)
        report = read_annotations(job, tmp_path / "rows.jsonl")
        assert report.objects == {"kept": 12}
        texts.append((tmp_path / "rows.jsonl").read_text())
    assert texts[0] == texts[1]


def test_an_id_given_twice_is_dropped_once(tmp_path):
    """Across files, too: the second is left out and counted."""
    path = coco(tmp_path, 3)
    report = read_annotations(reading(path, paths=(path, path)), tmp_path / "rows.jsonl")
    assert +report.images == {"kept": 3, "dropped:same id": 3}
    assert report.objects == {"kept": 6, "dropped:same id": 6}, "objects of a sample that is not used are not kept"
    assert len(lines(tmp_path / "rows.jsonl")) == 3


def test_the_report_survives_the_cache(tmp_path):
    """A second run says the same; a changed file is read again."""
    path = coco(tmp_path, 4, per_image=3)
    first = read_annotations(reading(path), tmp_path / "a.jsonl")
    second = read_annotations(reading(path), tmp_path / "b.jsonl")
    assert first.to_json() == second.to_json()
    assert lines(tmp_path / "a.jsonl") == lines(tmp_path / "b.jsonl")
    coco(tmp_path, 5, per_image=3)
    assert read_annotations(reading(path), tmp_path / "c.jsonl").images == {"kept": 5}


def test_what_lies_around_the_files_is_part_of_the_cache(tmp_path):
    """A list of names, and the images: a change of theirs is read, though the annotation files are the same."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names: [cup]\n")
    Image.new("L", (40, 30)).save(tmp_path / "photos" / "a.png")
    options = {"image_root": str(tmp_path / "photos"), "data": str(tmp_path / "data.yaml")}
    job = Reading(format="yolo", paths=(tmp_path / "labels",), options=options, question="What?")

    def found():
        report = read_annotations(job, tmp_path / "rows.jsonl")
        records = [
            PrivilegedRecord.from_json(json.loads(line)["privileged"]) for line in lines(tmp_path / "rows.jsonl")
        ]
        return report.images["kept"], {(r.label, r.box) for record in records for r in record.regions}

    assert found() == (1, {("cup", (10, 7.5, 30, 22.5))})
    (tmp_path / "data.yaml").write_text("names: [dog]\n")
    Image.new("L", (80, 30)).save(tmp_path / "photos" / "a.png")
    Image.new("L", (40, 30)).save(tmp_path / "photos" / "b.png")
    assert found() == (2, {("dog", (20, 7.5, 60, 22.5)), ("dog", (10, 7.5, 30, 22.5))})


def test_all_annotations_of_an_image_are_joined(tmp_path):
    """From two files, and through a link: nothing of a record is left out without a note."""
    path, other = coco(tmp_path, 2), coco(tmp_path, 2, per_image=1, name="stuff.json")
    (tmp_path / "photos" / "link.png").symlink_to("0.png")
    asked = [{"id": "q", "images": ["photos/0.png"], "question": "Which?"}]
    asked += [{"id": "l", "images": ["photos/link.png"], "question": "Which?"}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    job = reading(path, paths=(path, other), question="", questions=tmp_path / "asked.jsonl")
    report = read_annotations(job, tmp_path / "rows.jsonl")
    for line in lines(tmp_path / "rows.jsonl"):
        record = PrivilegedRecord.from_json(json.loads(line)["privileged"])
        assert [r.id for r in record.regions] == ["r1", "r2", "2.r1"]
    assert report.notes["question about an image that was annotated several times: all are joined"] == 2


def test_the_input_is_never_overwritten(tmp_path):
    path = coco(tmp_path, 1)
    (tmp_path / "asked.jsonl").write_text('{"question": "q", "images": ["photos/0.png"]}\n')
    before = (tmp_path / "asked.jsonl").read_text()
    job = reading(path, question="", questions=tmp_path / "asked.jsonl")
    with pytest.raises(DataError, match="expected a new file"):
        read_annotations(job, tmp_path / "asked.jsonl")
    assert (tmp_path / "asked.jsonl").read_text() == before


def test_a_format_without_questions_says_so(tmp_path):
    with pytest.raises(DataError, match=r"'coco' holds no question for sample '0': give a file of questions"):
        read_annotations(reading(coco(tmp_path, 1), question=""), tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()


def test_questions_about_the_same_images_get_their_regions(tmp_path):
    """Two images in one question, one image in two questions, one without annotations, one never asked about."""
    path = coco(tmp_path, 4)
    Image.new("L", (30, 30)).save(tmp_path / "photos" / "bare.png")
    asked = [
        {"id": "two", "images": ["photos/2.png", "photos/0.png"], "question": "Which?", "answer": "a", "kind": "k"},
        {"id": "one", "image": "photos/0.png", "question": "What?"},
        {"id": "bare", "images": ["photos/bare.png"], "question": "Why?"},
        {"question": "No picture?"},
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    job = {"question": "", "questions": tmp_path / "asked.jsonl"}
    report = read_annotations(reading(path, **job), tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in lines(tmp_path / "rows.jsonl")]
    assert [row["id"] for row in rows] == ["two", "one", "bare", "asked-3"]
    records = [PrivilegedRecord.from_json(row["privileged"]) for row in rows]
    assert [len(record.regions) for record in records] == [4, 2, 0, 0]
    assert [(r.image, r.id) for r in records[0].regions] == [(0, "1.r1"), (0, "1.r2"), (1, "2.r1"), (1, "2.r2")]
    assert [ref.width for ref in records[0].images] == [66, 64]
    assert (rows[0]["answer"], rows[0]["kind"]) == ("a", "k")
    assert report.notes["annotated image without a question"] == 2
    assert report.notes["question about an image without annotations"] == 1
    for row in rows:
        to_sample(row, "x", tmp_path)
    halves = [read_annotations(reading(path, shard=Shard(i, 2), **job), tmp_path / f"{i}.jsonl") for i in (1, 2)]
    assert lines(tmp_path / "1.jsonl") + lines(tmp_path / "2.jsonl") == lines(tmp_path / "rows.jsonl")
    assert sum((half.notes for half in halves), Counter()) == report.notes


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "cocoo"}, r"did you mean 'coco'"),
        ({"options": {"root": "x"}}, r"no option 'root'"),
        ({"paths": ()}, r"expected a file or folder"),
        ({"paths": (Path("nowhere.json"),)}, r"nowhere\.json: no such file"),
        ({"questions": Path("q.jsonl"), "question": "x"}, r"got both"),
    ],
)
def test_wrong_settings_are_told_before_reading(tmp_path, fields, words):
    with pytest.raises(DataError, match=words):
        reading(coco(tmp_path, 1), **fields)


def test_a_file_of_another_format_is_one_line(tmp_path):
    """The library's own wrapping is taken off, with one process and with two."""
    (tmp_path / "photos").mkdir()
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("[1, 2]")
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"^[ab]\.json: expected an object, got \[1, 2\]$"):
            job = reading(tmp_path / "a.json", paths=(tmp_path / "a.json", tmp_path / "b.json"), workers=workers)
            read_annotations(job, tmp_path / "rows.jsonl")


def test_images_outside_the_folder_of_the_rows_are_refused(tmp_path):
    """The loader would refuse the paths later; better now."""
    path = coco(tmp_path, 1)
    with pytest.raises(DataError, match=r"expected a place beside or above the images"):
        read_annotations(reading(path), tmp_path / "elsewhere" / "rows.jsonl")


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/0", "-1/2", "1/2/3", "1.0/2"])
def test_a_shard_that_is_none_is_named(text):
    with pytest.raises(DataError, match="shard"):
        Shard.parse(text)


@pytest.mark.parametrize(("total", "count"), [(0, 1), (0, 3), (5, 2), (10, 3), (2, 5)])
def test_shards_cover_all_places_once(total, count):
    places = [place for i in range(1, count + 1) for place in Shard(i, count).slice(total)]
    assert places == list(range(total))
    sizes = [len(Shard(i, count).slice(total)) for i in range(1, count + 1)]
    assert max(sizes) - min(sizes) <= 1


def rows_file(folder, count, **more):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}"} | more) + "\n" for i in range(count)))
    return path


def told(row, default_id, root):
    """Leaves a mark for every call, so that a test can count them."""
    with open(os.environ["CALLS"], "a") as file:
        file.write(default_id + "\n")
    return [row["question"], default_id]


@pytest.fixture
def calls(tmp_path, monkeypatch):
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    (tmp_path / "calls").write_text("")
    return tmp_path / "calls"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_map_is_in_order_and_cached(tmp_path, calls, workers):
    path = rows_file(tmp_path, 10)
    expected = [[f"q{i}", f"rows-{i}"] for i in range(10)]
    assert map_rows(path, told, key="k", workers=workers) == expected
    assert map_rows(path, told, key="k", workers=workers) == expected
    assert len(lines(calls)) == 10
    assert map_rows(path, told, key="other", workers=workers) == expected
    assert len(lines(calls)) == 20


def test_a_map_notices_new_pixels(tmp_path, calls):
    """The data file is the same, the picture is not."""
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    path = rows_file(tmp_path, 2, images=["a.png"])
    map_rows(path, told, key="k")
    map_rows(path, told, key="k")
    assert len(lines(calls)) == 2
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    os.utime(tmp_path / "a.png", ns=(1, 1))
    map_rows(path, told, key="k")
    assert len(lines(calls)) == 4


def test_shards_of_a_map_are_the_whole(tmp_path, calls):
    path = rows_file(tmp_path, BLOCK + 5)
    whole = map_rows(path, told, key="k")
    parts = [fact for i in (1, 2, 3) for fact in map_rows(path, told, key="k", shard=Shard(i, 3))]
    assert parts == whole


KILLED = """
import os, signal, sys
from pathlib import Path
from privileged.scale import BLOCK, map_rows
from tests.test_reading import told

def work(row, default_id, root):
    if default_id == f"rows-{2 * BLOCK + 3}":
        os.kill(os.getpid(), signal.SIGKILL)
    return told(row, default_id, root)

map_rows(Path(sys.argv[1]), work, key="k")
"""


def test_a_killed_map_goes_on_with_the_next_block(tmp_path, calls, cache):
    """What was finished is not done again: the calls after the kill are those of the last block."""
    path = rows_file(tmp_path, 2 * BLOCK + 10)
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    run = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, env=environment, capture_output=True)
    assert run.returncode == -signal.SIGKILL
    before = len(lines(calls))
    assert before == 2 * BLOCK + 3
    facts = map_rows(path, told, key="k")
    assert [fact[1] for fact in facts] == [f"rows-{i}" for i in range(2 * BLOCK + 10)]
    assert len(lines(calls)) - before == 10


def test_an_error_of_the_work_comes_through(tmp_path):
    def work(row, default_id, root):
        raise DataError(f"{default_id} is wrong")

    with pytest.raises(DataError, match=r"^rows-0 is wrong$"):
        map_rows(rows_file(tmp_path, 3), work, key="k")
