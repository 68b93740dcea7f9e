"""Rows of a file -> samples, whatever tool wrote the file.

What is locked: 1) parquet with bytes, JSON lines with paths and Hugging Face's Image features give the same samples;
2) text stays text; 3) what is wrong with a file is a ConfigError with its name, what is wrong with a row a DataError
with file and row, one line each; 4) the data set touches no file but the one it was given and its images.
"""

import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from privileged import DataError
from privileged.image_policy import ImagePolicy
from privileged.records import SCHEMA
from vlm_dopd.data import SampleDataset
from vlm_dopd.errors import ConfigError

RED = (255, 0, 0)
RECORD = {"schema": SCHEMA, "sample_id": "a", "regions": [{"id": "r1", "label": "cup", "box": [0, 0, 3, 2]}]}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The library's cache in a folder of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png(size=(16, 12), colour=RED):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def jsonl(folder, *rows, name="data.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def parquet(folder, *rows, name="data.parquet"):
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / name)
    return folder / name


def config_error(path):
    with pytest.raises(ConfigError) as caught:
        SampleDataset(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def row_error(path, index):
    data = SampleDataset(path)
    with pytest.raises(DataError) as caught:
        data[index]
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path} row {index}: ")
    return message


def assert_full(sample):
    """The sample that every format below describes."""
    assert (sample.id, sample.question, sample.answer) == ("a", "What is it?", "cup")
    assert [(image.mode, image.size, image.getpixel((0, 0))) for image in sample.images] == [("RGB", (16, 12), RED)]
    assert sample.privileged.regions[0].label == "cup"


FULL = {"id": "a", "question": "What is it?", "answer": "cup", "privileged": json.dumps(RECORD)}


def test_parquet_with_bytes(tmp_path):
    """A list of byte strings, or of {bytes, path} as Hugging Face writes it."""
    assert_full(SampleDataset(parquet(tmp_path, FULL | {"images": [png()]}))[0])
    rows = FULL | {"images": [{"bytes": png(), "path": "somewhere.png"}]}
    assert_full(SampleDataset(parquet(tmp_path, rows, name="two.parquet"))[0])


def test_jsonl_with_paths_relative_to_the_file(tmp_path, monkeypatch):
    """Not to the working directory; sub-folders are fine."""
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "images" / "a.png").write_bytes(png())
    path = jsonl(tmp_path / "set", FULL | {"images": ["images/a.png"]})
    assert_full(SampleDataset(path)[0])
    monkeypatch.chdir(tmp_path / "set" / "images")
    assert_full(SampleDataset(path)[0])
    monkeypatch.chdir(tmp_path)
    assert_full(SampleDataset("set/data.jsonl")[0])


def test_hugging_face_image_features(tmp_path):
    """`List(Image())` as `Dataset.to_parquet` writes it: we decode, so EXIF is applied and limits hold."""
    rotated = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 16), RED).save(rotated, format="PNG", exif=exif)
    features = datasets.Features({k: datasets.Value("string") for k in FULL})
    features["images"] = datasets.List(datasets.Image())
    for name, source in (("plain", png()), ("rotated", rotated.getvalue())):
        rows = {k: [v] for k, v in FULL.items()} | {"images": [[{"bytes": source, "path": None}]]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")
        assert_full(SampleDataset(tmp_path / f"{name}.parquet")[0])


def test_one_image_instead_of_a_list(tmp_path):
    """A single path or `Image()` feature is either the sample's one image or an error that says a list was expected,
    but not a complaint about an image called 'b'."""
    (tmp_path / "a.png").write_bytes(png())
    features = datasets.Features({k: datasets.Value("string") for k in FULL} | {"images": datasets.Image()})
    rows = {k: [v] for k, v in FULL.items()} | {"images": [{"bytes": png(), "path": None}]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "one.parquet")
    for path in (tmp_path / "one.parquet", jsonl(tmp_path, FULL | {"images": "a.png"})):
        try:
            sample = SampleDataset(path)[0]
        except DataError as error:
            assert "list" in str(error)
        else:
            assert_full(sample)


def test_a_minimal_row_and_what_stands_for_nothing(tmp_path):
    """Question only; images missing, null or empty; answer, record and id null or empty."""
    rows = [
        {"question": "q", "images": ["a.png"], "answer": "x", "privileged": json.dumps(RECORD), "id": "first"},
        {"question": "q"},
        {"question": "q", "images": None, "answer": None, "privileged": None, "id": None},
        {"question": "q", "images": [], "privileged": "", "id": ""},
    ]
    data = SampleDataset(jsonl(tmp_path, *rows))
    assert len(data) == 4
    for index in (1, 2, 3):
        sample = data[index]
        assert (sample.images, sample.answer, sample.privileged) == ((), None, None)
        assert sample.id == f"data-{index}"
    assert SampleDataset(jsonl(tmp_path, {"question": "only"}, name="only.jsonl"))[0].question == "only"


@pytest.mark.parametrize("answer", ["2020-01-01", "12:30", "1e3", "007", "null", "True", " 5 ", "None", "½"])
def test_text_stays_text(tmp_path, answer):
    """No reader may turn a date or a number in quotes into something else: answers are compared as text."""
    sample = SampleDataset(jsonl(tmp_path, {"question": answer, "answer": answer, "id": answer}))[0]
    assert (sample.question, sample.answer, sample.id) == (answer, answer, answer)


@pytest.mark.parametrize(("answer", "text"), [(5, "5"), (0, "0"), (2.5, "2.5")])
def test_a_number_as_answer_becomes_text_or_an_error(tmp_path, answer, text):
    """`"answer": 5` is common in files; it must not reach the scorer as an int."""
    data = SampleDataset(jsonl(tmp_path, {"question": "q", "answer": answer}))
    try:
        assert data[0].answer == text
    except DataError as error:
        assert "answer" in str(error)


def test_numbers_as_ids(tmp_path):
    """0 is an id like any other."""
    data = SampleDataset(jsonl(tmp_path, {"question": "q", "id": 0}, {"question": "q", "id": 17}))
    assert [data[0].id, data[1].id] == ["0", "17"]


def test_limit_and_kind(tmp_path):
    """The first N rows; `kind` where there is one."""
    rows = [{"question": f"q{i}", "kind": k} for i, k in enumerate(["count", None, ""])]
    path = jsonl(tmp_path, *rows)
    assert [len(SampleDataset(path, limit)) for limit in (None, 1, 2, 3, 99)] == [3, 1, 2, 3, 3]
    data = SampleDataset(path, 2)
    assert [data[i].question for i in range(2)] == ["q0", "q1"]
    assert [SampleDataset(path).kind(i) for i in range(3)] == ["count", "", ""]
    assert SampleDataset(jsonl(tmp_path, {"question": "q"}, name="no.jsonl")).kind(0) == ""


def test_json_is_read_as_well(tmp_path):
    """A list of objects."""
    (tmp_path / "data.json").write_text(json.dumps([{"question": "q0"}, {"question": "q1"}]))
    assert [SampleDataset(tmp_path / "data.json")[i].question for i in range(2)] == ["q0", "q1"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        pytest.param("data.jsonl", b'{"question": "q"}\n{"question": "q', ["jsonl"], id="torn jsonl"),
        pytest.param("data.jsonl", b"not json\n", ["jsonl"], id="text"),
        pytest.param("data.jsonl", b"", [], id="empty jsonl"),
        pytest.param("data.jsonl", b"\n\n", [], id="blank lines only"),
        pytest.param("data.parquet", b"", [], id="empty parquet"),
        pytest.param("data.parquet", b"PAR1 but torn", [], id="torn parquet"),
        pytest.param("data.jsonl", b'{"prompt": "q"}\n', ["'question'", "prompt"], id="no question column"),
        pytest.param("data.csv", b"question\nq\n", [".parquet", ".jsonl"], id="another format"),
        pytest.param("data", b"", [".parquet", ".jsonl"], id="no suffix"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, data, words):
    """One line, when the data set is opened and not in a worker."""
    (tmp_path / name).write_bytes(data)
    message = config_error(tmp_path / name)
    assert all(word in message for word in words)


def test_a_missing_file_is_named(tmp_path):
    """A file, and a folder of that name."""
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("missing.parquet", "folder.jsonl"):
        assert "no such data file" in config_error(tmp_path / name)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"images": ["missing.png"]}, ["missing.png", "no such file"], id="image missing"),
        pytest.param({"images": ["bad.png"]}, ["bad.png", "unreadable"], id="image unreadable"),
        pytest.param({"images": ["../secret.png"]}, ["../secret.png", "outside"], id="image outside the folder"),
        pytest.param({"images": ["http://127.0.0.1:9/a.png"]}, ["URL"], id="image by URL"),
        pytest.param({"images": [None]}, ["images", "NoneType"], id="image null"),
        pytest.param({"question": ""}, ["question"], id="question empty"),
        pytest.param({"question": None}, ["question"], id="question null"),
        pytest.param({"privileged": "{nope"}, ["privileged record", "JSON"], id="record is no JSON"),
        pytest.param({"privileged": "[1]"}, ["privileged record"], id="record is a list"),
        pytest.param({"privileged": '{"sample_id": "a"}'}, ["'a'", "schema"], id="record without schema"),
        pytest.param(
            {"privileged": json.dumps(RECORD | {"regions": [{"id": "r9", "label": "", "box": [0, 0, 1, 1]}]})},
            ["'a'", "'r9'", "label"],
            id="region without label",
        ),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_read(tmp_path, fields, words):
    """File, row, and what is wrong with it; rows before and after are fine."""
    (tmp_path / "bad.png").write_bytes(b"text")
    (tmp_path.parent / "secret.png").write_bytes(png())
    fine = {"question": "q"}
    path = jsonl(tmp_path, fine | {k: "x" for k in fields if k == "privileged"} | {"privileged": None}, fine | fields)
    message = row_error(path, 1)
    assert all(word in message for word in words)
    assert SampleDataset(path)[0].question == "q"


def test_unreadable_bytes_name_the_row(tmp_path):
    """Parquet has no file name to give, so the row is all there is."""
    path = parquet(tmp_path, {"question": "q", "images": [png()]}, {"question": "q", "images": [b"no image"]})
    assert "unreadable" in row_error(path, 1)


def test_only_the_file_that_was_named_is_read(tmp_path):
    """Brackets and stars in a name are characters, not patterns."""
    jsonl(tmp_path, {"question": "other"}, name="a.jsonl")
    path = jsonl(tmp_path, {"question": "mine"}, name="[ab].jsonl")
    assert [sample.question for sample in SampleDataset(path)] == ["mine"]


def test_a_file_that_was_rewritten_is_read_again(tmp_path):
    """No stale cache between two runs."""
    assert SampleDataset(jsonl(tmp_path, {"question": "old"}))[0].question == "old"
    assert SampleDataset(jsonl(tmp_path, {"question": "new!"}))[0].question == "new!"


def test_the_shipped_files_are_read():
    """Every row of a slice of the bundled data is a sample with an answer and p; scenes have one image."""
    from pathlib import Path

    assets = Path(__file__).resolve().parent.parent / "assets"
    for name, images in (("scenes/train.parquet", 1), ("scenes/heldout.parquet", 1), ("text/train.jsonl", 0)):
        data = SampleDataset(assets / name, limit=5)
        for sample in (data[i] for i in range(5)):
            assert (len(sample.images), bool(sample.answer), bool(sample.privileged)) == (images, True, True)
            assert data.kind(0)


def test_the_image_policy_reaches_the_loader(tmp_path):
    """What `data.images` says holds for every image of the rows."""
    path = jsonl(tmp_path, {"question": "q", "images": ["a.png"]})
    (tmp_path / "a.png").write_bytes(png((16, 12)))
    assert SampleDataset(path)[0].images[0].size == (16, 12)
    with pytest.raises(DataError, match=r"row 0: image 'a\.png'.*16x12"):
        SampleDataset(path, policy=ImagePolicy(min_side=13))[0]


def test_only_rows_of_some_kinds(tmp_path):
    """In the file's order, with the row numbers of the file in ids and errors; an unknown kind is named."""
    rows = [{"question": f"q{i}", "kind": k} for i, k in enumerate(["sum", "count", "sum", None])]
    path = jsonl(tmp_path, *rows, {"question": "", "kind": "sum"})
    data = SampleDataset(path, kinds=["sum"])
    assert [data[i].question for i in range(2)] == ["q0", "q2"]
    assert (len(data), data[1].id, data.kind(1)) == (3, "data-2", "sum")
    assert len(SampleDataset(path, limit=1, kinds=["sum", "count"])) == 1
    with pytest.raises(DataError, match=r"data.jsonl row 4: .*question"):
        data[2]
    with pytest.raises(IndexError):
        data[3]
    with pytest.raises(ConfigError, match=r"rows of kind 'summ'; did you mean 'sum'\?"):
        SampleDataset(path, kinds=["count", "summ"])


def test_shuffled_records(tmp_path):
    """Everyone has another one's record, each record one new owner, the same at every call; the rest stays."""
    records = [
        RECORD | {"sample_id": f"s{i}", "regions": [RECORD["regions"][0] | {"label": f"l{i}"}]} for i in range(9)
    ]
    (tmp_path / "a.png").write_bytes(png())
    rows = [{"question": f"q{i}", "privileged": json.dumps(r), "images": ["a.png"]} for i, r in enumerate(records)]
    path = jsonl(tmp_path, *rows)
    own, shuffled = SampleDataset(path), SampleDataset(path, shuffle_p=True)
    assert [s.id for s in shuffled] == [s.id for s in own] == [f"s{i}" for i in range(9)]
    assert [s.question for s in shuffled] == [s.question for s in own]
    labels = [sample.privileged.regions[0].label for sample in shuffled]
    assert sorted(labels) == [f"l{i}" for i in range(9)]
    assert all(label != f"l{i}" for i, label in enumerate(labels))
    assert labels == [s.privileged.regions[0].label for s in SampleDataset(path, shuffle_p=True)]
    with pytest.raises(ConfigError, match="shuffle_p: expected at least two rows"):
        SampleDataset(path, limit=1, shuffle_p=True)


def test_a_shuffled_record_fits_the_images_of_its_new_owner(tmp_path):
    """Places keep their share of the picture; those on an image that the new owner lacks go; rows may lack p."""
    for name, size in (("wide", (40, 20)), ("small", (10, 10))):
        (tmp_path / f"{name}.png").write_bytes(png(size))
    marked = {
        "label": "cup",
        "box": [20, 5, 40, 20],
        "polygon": [[20, 5], [40, 20], [20, 20]],
        "points": {"a": [30, 10]},
    }
    second = {"label": "cat", "box": [0, 0, 4, 4], "image": 1}
    size = {"path": "wide.png", "width": 40, "height": 20}
    record = RECORD | {"sample_id": "w", "regions": [marked, second], "images": [size, {"path": "small.png"}]}
    path = jsonl(
        tmp_path,
        {"question": "q", "privileged": json.dumps(record), "images": ["wide.png", "small.png"]},
        {"question": "q", "images": ["small.png"]},
    )
    wide, small = SampleDataset(path, shuffle_p=True)
    assert wide.privileged is None
    (region,) = small.privileged.regions
    assert (region.label, region.box, region.points) == ("cup", (5, 2.5, 10, 10), {"a": (7.5, 5)})
    assert region.polygon == ((5, 2.5), (10, 10), (5, 10))
