"""The five commands of `vlm-dopd annotate`, from a foreign file to what a person looks at.

What is locked: 1) the commands fit together: what one writes the next reads, and training loads the end; 2) shards by
command are the whole; 3) a mistake is one line and exit code 2; 4) the sheet for people holds p and runs no formula.
"""

import csv
import json

import datasets
import pytest
from typer.testing import CliRunner

from privileged.readers import write_example
from tests import tiny
from vlm_dopd.cli import app
from vlm_dopd.data import SampleDataset

from .fake_endpoint import FakeEndpoint
from .generate_case import write_data
from .photographs import photograph

ENDPOINT = ("--base-url", "http://localhost/v1", "--model", "m")
STUDENT = str(tiny.ASSETS / "student")


@pytest.fixture(autouse=True)
def quiet(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def run(*words):
    """Output of `vlm-dopd annotate WORDS`, which must succeed."""
    result = CliRunner().invoke(app, ["annotate", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def fails(*words):
    """The error of a command that must not succeed."""
    result = CliRunner().invoke(app, ["annotate", *map(str, words)])
    assert result.exit_code != 0
    return str(result.exception or result.output)


@pytest.fixture
def photos(tmp_path):
    """Two photographs as COCO boxes, with one question about each."""
    (tmp_path / "photos").mkdir()
    images, rows, names, asked = [], [], {}, []
    for number, name in enumerate(("voc", "arc2017")):
        sample = photograph(name)
        image = sample.images[0]
        image.save(tmp_path / "photos" / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.png", "width": image.width, "height": image.height})
        for region in sample.privileged.regions:
            x0, y0, x1, y1 = region.box
            category = names.setdefault(region.label, len(names))
            rows.append({"image_id": number, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0]})
        asked.append({"id": name, "images": [f"photos/{name}.png"], "question": "What is this?", "answer": "=1+1"})
    content = {"images": images, "annotations": rows, "categories": [{"id": i, "name": n} for n, i in names.items()]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    return tmp_path


def read(folder, *more, out="train.jsonl"):
    words = ("--image-root", folder / "photos", "--questions", folder / "asked.jsonl", "--workers", 1)
    return run("read", "coco", folder / "instances.json", *words, "--out", folder / out, *more)


def test_from_boxes_to_training_data(photos):
    """read, audit and what it keeps, preview: the kept file loads, with all 27 boxes of the photographs in it."""
    assert "kept: 27" in read(photos)
    said = run(
        *("audit", photos / "train.jsonl", "--out", photos / "audit", "--kept", photos / "kept.jsonl"),
        *("--processor", STUDENT, "--workers", 1, "--policy", "empty=drop"),
    )
    assert "rows: 2" in said and (photos / "audit" / "audit.html").is_file()
    figures = json.loads((photos / "audit" / "audit.json").read_text())["figures"]
    assert figures["rows"]["total"] == 2
    kept = SampleDataset(photos / "kept.jsonl")
    assert sum(len(kept[i].privileged.regions) for i in range(len(kept))) == 27
    said = run("preview", photos / "kept.jsonl", "--sample", "voc", "--builder", "marks", "--out", photos / "preview")
    assert (photos / "preview" / "preview.html").is_file() and (photos / "preview" / "preview-1.png").is_file()


def test_shards_by_command(photos):
    """Rows one after the other, audits joined."""
    read(photos, out="whole.jsonl")
    for number in (1, 2):
        read(photos, "--shard", f"{number}/2", out=f"part-{number}.jsonl")
    parts = [(photos / f"part-{number}.jsonl").read_text() for number in (1, 2)]
    assert "".join(parts) == (photos / "whole.jsonl").read_text() and all(parts)
    for shard in ("1/2", "2/2", "1/1"):
        out = photos / shard.replace("/", "-of-")
        run("audit", photos / "whole.jsonl", "--out", out, "--shard", shard, "--workers", 1)
    run("audit", photos / "1-of-2", photos / "2-of-2", "--join", "--out", photos / "joined")
    whole, joined = (json.loads((photos / name / "audit.json").read_text()) for name in ("1-of-1", "joined"))
    assert whole["figures"] == joined["figures"]


def test_the_sheet_for_people(photos):
    """p in words, empty cells to fill in, and an answer that looks like a formula as text."""
    read(photos)
    run("audit", photos / "train.jsonl", "--out", photos / "audit", "--workers", 1, "--option", "style=lines")
    with (photos / "audit" / "sheet.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} == {"voc", "arc2017"}
    for row in rows:
        assert row["answer"] == "'=1+1" and row["remark"] == ""
        assert row["p"].startswith("Visual notes for this image") and "\n- " in row["p"]


def test_generate_by_command(tmp_path):
    """An estimate that sends nothing, then the real thing against an endpoint; every row has p."""
    data = write_data(tmp_path, 3)
    with FakeEndpoint().serving() as endpoint:
        words = ["generate", data, "--out", tmp_path / "out.jsonl", "--model", "m", "--base-url", endpoint.url]
        assert "at most" in run(*words, "--dry-run")
        assert not endpoint.calls and not (tmp_path / "out.jsonl").exists()
        assert "kept: 3" in run(*words, "-o", "concurrency=1")
    rows = SampleDataset(tmp_path / "out.jsonl")
    assert [len(rows[i].privileged.regions) for i in range(3)] == [1, 1, 1]
    assert json.loads((tmp_path / "out.summary.json").read_text())["fates"] == {"kept": 3}


def test_rows_of_messages_through_the_audit(photos):
    """Qwen's own chat rows: read, kept in a folder above, and still with their images."""
    content = [{"type": "image", "image": "photos/voc.png"}, {"type": "text", "text": "What is this?"}]
    row = {"id": "voc", "messages": [{"role": "user", "content": content}], "privileged_context": "Look at the table."}
    (photos / "sub").mkdir()
    (photos / "photos").rename(photos / "sub" / "photos")
    (photos / "sub" / "train.jsonl").write_text(json.dumps(row) + "\n")
    run(
        *("audit", photos / "sub" / "train.jsonl", "--out", photos / "audit", "--kept", photos / "kept.jsonl"),
        *("--builder", "column", "--workers", 1),
    )
    sample = SampleDataset(photos / "kept.jsonl")[0]
    assert sample.images[0].size == (500, 375) and sample.question == "What is this?"


def test_a_column_of_any_name_can_be_p(tmp_path):
    """`-o column=my_hint` takes the data file's own column."""
    (tmp_path / "train.jsonl").write_text('{"question": "Which?", "my_hint": "Look left."}\n')
    words = ("--builder", "column", "-o", "column=my_hint", "--workers", 1)
    run("audit", tmp_path / "train.jsonl", "--out", tmp_path / "audit", *words)
    assert "Look left." in (tmp_path / "audit" / "sheet.csv").read_text(encoding="utf-8-sig")


def test_formats_by_command(photos):
    listed = json.loads(run("formats", "--json"))
    assert {"coco", "boxes"} <= {entry["name"] for entry in listed}
    assert "bbox_2d" in run("formats", "boxes")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["read", "cocoo", "instances.json", "--out", "a.jsonl"], "did you mean 'coco'"),
        (["read", "coco", "instances.json", "--out", "a.parquet"], r"ending in .jsonl"),
        (["read", "coco", "instances.json", "--out", "a.jsonl", "-o", "keep"], "expected KEY=VALUE"),
        (["read", "coco", "instances.json", "--out", "a.jsonl", "--shard", "3/2"], "shard"),
        (["audit", "train.jsonl", "--out", "a", "--policy", "told=drop"], "no entry 'told'"),
        (["audit", "nowhere.jsonl", "--out", "a"], "no such data file"),
        (["audit", "train.jsonl", "--out", "a", "--processor", "nowhere"], "no such folder"),
        (["preview", "train.jsonl", "--sample", "nobody"], "expected the id or number of a row, got 'nobody'"),
        (["preview", "train.jsonl", "--student", "nowhere"], "no such folder"),
        (["generate", "train.jsonl", "--out", "a.jsonl", "--base-url", "x", "--model", "m"], "base_url"),
        (["generate", "train.jsonl", "--out", "a.jsonl", *ENDPOINT, "-o", "speed=1"], "no option 'speed'"),
        (["formats", "boxxes"], "boxxes"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_example("coco", tmp_path)
    (tmp_path / "train.jsonl").write_text('{"question": "q"}\n')
    said = fails(*words)
    assert message in said and "\n" not in said.strip()
