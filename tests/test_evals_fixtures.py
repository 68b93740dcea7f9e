"""The synthetic data sets: in the schema of each benchmark, every stratum there, the same in every file form."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from evals import benchmarks, fixtures
from evals.benchmarks import available, find
from evals.benchmarks.mmmu import DOMAIN_OF
from evals.benchmarks.vsibench import CHOICE, NUMERIC
from evals.fixture_rows import rows
from evals.media import lazy
from evals.questions import Media
from evals.sources import load
from privileged.images import load_image

from .predicted import Scored

NAMES = available()
FORMS = ("parquet", "jsonl", "tsv")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    home = tmp_path_factory.mktemp("fixtures")
    return {(name, form): fixtures.write_fixture(name, home / name / form, form) for name in NAMES for form in FORMS}


def media_of(loaded, record, frames=4):
    return [lazy(item, loaded.root, load_image, frames, record.id) for item in record.media]


def told(loaded):
    """All that a record says, with its media by their digests."""
    return [
        {
            "id": r.id, "split": r.split, "question": r.question, "answer": r.answer, "type": r.answer_type,
            "choices": r.choices, "group": r.group, "cluster": r.cluster, "meta": r.meta, "columns": r.columns,
            "media": [(item.kind, item.number, lazily.digest)
                      for item, lazily in zip(r.media, media_of(loaded, r), strict=True)],
        }
        for r in loaded.records
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_three_forms_hold_the_same_records(name, written):
    parquet, jsonl, tsv = (told(load(find(name), str(written[name, form]))) for form in FORMS)
    assert parquet == jsonl == tsv and parquet
    assert told(load(find(name), "fixture")) == parquet


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_all_media_decode(name, form, written):
    loaded = load(find(name), str(written[name, form]))
    for record in loaded.records:
        for item in media_of(loaded, record):
            decoded = item.load()
            frames = decoded.frames if item.kind == "video" else (decoded,)
            assert len(frames) == (4 if item.kind == "video" else 1)
            assert all(frame.mode == "RGB" and np.asarray(frame).min() < 200 for frame in frames)


@pytest.mark.parametrize("name", NAMES)
def test_every_source_has_rows_of_the_whole_schema(name):
    benchmark, made = find(name), rows(name)
    assert list(made) == list(benchmark.sources)
    required = {column for column, kind in benchmark.columns.items() if not kind.endswith("?")}
    for source, those in made.items():
        for index, row in enumerate(those):
            assert required <= set(row)
            record = benchmark.record(row, source, index)
            assert record.media and record.answer
            gold = record.answer if isinstance(record.answer, tuple) else (record.answer,)
            assert record.answer_type != "mcq" or set(gold) <= set(record.choices)
    example = {column for case in benchmarks.example(name) for column in case.row}
    assert example - {column for those in made.values() for row in those for column in row} == set()


def test_every_stratum_that_decides_a_headline_is_there():
    def groups(name, group):
        return {record.group[group] for record in load(find(name), "fixture").records}

    assert groups("vsibench", "task") == {*NUMERIC, *CHOICE} and groups("vsibench", "dataset") == {
        "scannet", "arkitscenes", "scannetpp"
    }  # fmt: skip
    assert len(groups("mmstar", "category")) == 6
    assert groups("mmmu", "subject") == set(DOMAIN_OF)
    assert len(groups("mmmu_pro", "setting")) == 3
    assert len(groups("logicvista", "skill")) == 5
    assert groups("mathvision", "level") == set("12345")
    assert groups("dynamath", "variant") == {str(v) for v in range(1, 11)}
    for name in NAMES:
        loaded = load(find(name), "fixture")
        numbers = find(name).aggregate([Scored(record, 1.0) for record in loaded.records])
        assert None not in numbers.headline.values(), name


def test_the_hard_kinds_of_rows_are_there():
    def by_type(name):
        return {record.answer_type for record in load(find(name), "fixture").records}

    assert by_type("dynamath") == {"mcq", "number", "text"}
    assert by_type("logicvista") == {"mcq", "multi_mcq", "number"}
    assert by_type("mmmu") == by_type("mathvision") == by_type("realworldqa") == {"mcq", "open"}
    mmmu = load(find("mmmu"), "fixture").records
    assert {len(record.media) for record in mmmu} == {1, 2, 3}
    assert any(isinstance(record.answer, tuple) for record in mmmu), "an open question with several golds"
    prompt = next(find("mmmu").prompt(r, "official") for r in mmmu if len(r.media) == 2)
    assert [part.number for part in prompt if isinstance(part, Media)] == [2, 1], "in the order of the text"
    assert len({r.cluster for r in load(find("mmmu_pro"), "fixture").records}) == 4


def test_writing_is_repeatable(tmp_path):
    for name in NAMES:
        fixtures.write_fixture(name, tmp_path / "a" / name)
        fixtures.write_fixture(name, tmp_path / "b" / name)
    files = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*") if file.is_file())
    assert len(files) > 50
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_the_forms_hold_images_as_they_usually_do(written):
    parquet = pq.read_table(next(written["mmstar", "parquet"].rglob("*.parquet")))
    assert str(parquet.schema.field("image").type) == "struct<bytes: binary, path: string>"
    row = json.loads((written["mmstar", "jsonl"] / "val.jsonl").read_text().splitlines()[0])
    assert (written["mmstar", "jsonl"] / row["image"]).is_file()
    assert "\tiVBOR" in (written["mmstar", "tsv"] / "val.tsv").read_text()
    assert (written["vsibench", "tsv"] / "scannet" / "scene0000_00.mp4").is_file()


def test_a_benchmark_without_rows_here_has_those_of_its_example(monkeypatch):
    monkeypatch.delitem(fixtures.rows.__globals__["_ROWS"], "mmmu_pro")
    made = rows("mmmu_pro")
    assert [source.config for source in made] == ["standard (10 options)", "vision"]
    assert next(iter(made.values()))[0]["id"] == "test_Geography_901"
