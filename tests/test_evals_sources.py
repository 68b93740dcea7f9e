"""Where the rows of a benchmark come from: files in every form and layout, the hub's cache, and what goes wrong.

What is locked: 1) layouts of the hub, single files and folders are found, and give the same records in a fixed order;
2) rows of VLMEvalKit's TSV files are mapped; 3) nothing leads out of the data's folder, and nothing is downloaded
unless allowed; 4) every error is one line that says what was expected and what is there.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from evals.benchmarks import find
from evals.fixtures import write_fixture
from evals.media import lazy
from evals.sources import load
from privileged.images import load_image
from tests.rows_case import PNG, ids, jsonl, refused, star, tsv, write

MMSTAR, MMMU, DYNAMATH = find("mmstar"), find("mmmu"), find("dynamath")

# Files of data sets as they lie on the hub or as people name them.
LAYOUTS = [
    ("mmstar.parquet", MMSTAR),
    ("MMStar.tsv", MMSTAR),
    ("MMStar.jsonl", MMSTAR),
    ("mmstar.json", MMSTAR),
    ("val.jsonl", MMSTAR),
    ("val-00000-of-00001.parquet", MMSTAR),
    ("data/val-00000-of-00001-3532b8d3f1b4047a.parquet", MMSTAR),
    ("default/val/0000.parquet", MMSTAR),
]


@pytest.mark.parametrize(("name", "benchmark"), LAYOUTS, ids=[name for name, _ in LAYOUTS])
def test_layouts(tmp_path, name, benchmark):
    rows = [star(i) for i in range(3)]
    file = write(tmp_path / name, rows)
    for data in (tmp_path, file):
        loaded = load(benchmark, str(data))
        assert ids(loaded) == ["mmstar-0", "mmstar-1", "mmstar-2"]
        assert lazy(loaded.records[0].media[0], loaded.root, load_image).load().size == (96, 72)
        assert "sha256" in loaded.origin and str(data) in loaded.origin and loaded.notes == ("3 of 1,500 rows",)


def test_the_origin_changes_with_the_file(tmp_path):
    one = load(MMSTAR, str(write(tmp_path / "val.jsonl", [star(0)]))).origin
    two = load(MMSTAR, str(write(tmp_path / "val.jsonl", [star(0, answer="B")]))).origin
    assert one != two


def test_shards_are_read_in_order_and_counted_through(tmp_path):
    rows = [{"image": PNG, "question": f"{i}?", "answer": "3"} for i in range(5)]
    write(tmp_path / "data" / "test-00001-of-00002.parquet", rows[3:])
    write(tmp_path / "data" / "test-00000-of-00002.parquet", rows[:3])
    loaded = load(find("realworldqa"), str(tmp_path))
    assert [record.question for record in loaded.records] == ["0?", "1?", "2?", "3?", "4?"]
    assert ids(loaded) == [f"realworldqa-000{i}" for i in range(5)]
    assert "2 files" in loaded.origin


def test_forms_have_an_order_of_preference(tmp_path):
    write(tmp_path / "MMStar.tsv", [star(7)])
    write(tmp_path / "mmstar.parquet", [star(1)])
    assert ids(load(MMSTAR, str(tmp_path))) == ["mmstar-1"]


def test_sources_keep_the_order_of_the_benchmark(tmp_path):
    loaded = load(MMMU, str(write_fixture("mmmu", tmp_path)))
    assert [record.group["subject"] for record in loaded.records] == [source.config for source in MMMU.sources]
    assert loaded.records[0].split == "Accounting/validation"
    some = load(MMMU, str(tmp_path), sources=("Physics", "Art/validation"))
    assert [record.group["subject"] for record in some.records] == ["Art", "Physics"]
    assert some.notes == ("2 of 60 rows", "2 of 30 sources: Art/validation, Physics/validation")


def test_files_of_dynamath_as_the_hub_names_them(tmp_path):
    write_fixture("dynamath", tmp_path)
    before = ids(load(DYNAMATH, str(tmp_path)))
    for file in (tmp_path / "data").glob("*.parquet"):
        number = file.name.split("-")[0].removeprefix("sample_variant")
        file.rename(file.with_name(f"sample{number}-00000-of-{int(number):05d}.parquet"))
    assert ids(load(DYNAMATH, str(tmp_path))) == before and len(set(before)) == 30
    one = load(DYNAMATH, str(tmp_path), split="sample_variant10")
    assert ids(one) == ["dynamath-1-10", "dynamath-2-10", "dynamath-3-10"]
    file = load(DYNAMATH, str(tmp_path / "data" / "sample10-00000-of-00010.parquet"))
    assert ids(file) == ids(one) and file.notes == ("3 of 5,010 rows", "1 of 10 sources: sample_variant10")
    other, wrong = tmp_path / "data" / "sample10-00000-of-00010.parquet", "got none; it has sample_variant10"
    refused(DYNAMATH, other, f"expected rows of sample_variant9, {wrong}", split="sample_variant9")
    refused(
        DYNAMATH, other, f"expected rows of sample_variant9, {wrong}", sources=("sample_variant9", "sample_variant10")
    )


def test_another_split_is_read_and_said(tmp_path):
    write(tmp_path / "testmini.jsonl", [star(0)])
    loaded = load(MMSTAR, str(tmp_path), split="testmini")
    assert loaded.records[0].split == "testmini"
    assert loaded.notes == ("1 rows of split 'testmini', not the one that MMStar is reported on",)


def test_questions_about_one_video_follow_each_other():
    scenes = [record.cluster for record in load(find("vsibench"), "fixture").records]
    assert scenes == sorted(scenes) and len(set(scenes)) == 3
    first = load(find("vsibench"), "fixture", limit=3)
    assert sorted(ids(first)) == ["vsibench-0", "vsibench-1", "vsibench-2"], "the limit counts as the file does"


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_a_limit_takes_the_first_of_each_source(limit):
    whole, some = load(DYNAMATH, "fixture"), load(DYNAMATH, "fixture", limit=limit)
    by_variant = {}
    for record in whole.records:
        by_variant.setdefault(record.split, []).append(record.id)
    assert ids(some) == [name for names in by_variant.values() for name in names[:limit]]
    assert f"{len(some.records)} of 5,010 rows, the first {limit} of each source" in some.notes


def one_mmmu_file(tmp_path, form, **columns):
    """All subjects of the fixture in one file, as toolkits keep them."""
    folder = write_fixture("mmmu", tmp_path / "split", "jsonl")
    rows = []
    for source in MMMU.sources:
        for line in (folder / source.config / "validation.jsonl").read_text().splitlines():
            rows.append(json.loads(line) | {name: of(source) for name, of in columns.items()})
    shutil.copytree(folder / "images", tmp_path / "images")
    return write(tmp_path / f"MMMU.{form}", rows), ids(load(MMMU, str(folder)))


@pytest.mark.parametrize("columns", [{}, {"split": lambda s: s.split}, {"config": lambda s: s.config}], ids=" ".join)
def test_one_file_of_many_sources(tmp_path, columns):
    file, expected = one_mmmu_file(tmp_path, "jsonl", **columns)
    loaded = load(MMMU, str(file))
    assert ids(loaded) == expected and loaded.records[3].split == MMMU.sources[3].name
    assert ids(load(MMMU, str(file), sources=("Art",))) == [expected[3]]


def test_rows_of_other_splits_in_one_file_are_left_out(tmp_path):
    rows = [star(i, split="dev" if i < 2 else "val") for i in range(5)]
    file = write(tmp_path / "MMStar.tsv", rows)
    assert ids(load(MMSTAR, str(file))) == ["mmstar-2", "mmstar-3", "mmstar-4"]
    refused(MMSTAR, file, r"expected rows of test, got none; it has dev, val", split="test")


def test_a_file_that_does_not_say_its_source_is_refused(tmp_path):
    row = {"id": "1", "question": "?", "decoded_image": "a.png", "ground_truth": "1", "answer_type": "float",
           "subject": "algebra", "knowledge_level": "high school"}  # fmt: skip
    refused(DYNAMATH, write(tmp_path / "dynamath.jsonl", [row]), r"row 1: cannot tell which of 10 sources")
    refused(DYNAMATH, tmp_path, r"row 1: cannot tell which of 10 sources")


def vlmevalkit(question="Which colour?", **change):
    row = {"index": 5, "question": question, "A": "red", "B": "blue", "C": "", "D": "", "answer": "B"}
    return row | {"image": base64.b64encode(PNG).decode()} | change


def test_options_of_vlmevalkit_go_into_the_question(tmp_path):
    file = tsv(tmp_path / "MMStar.tsv", [vlmevalkit(category="math", **{"l2-category": "geometry"}, C="up, down")])
    loaded = load(MMSTAR, str(file))
    record = loaded.records[0]
    assert record.question == "Which colour?\nOptions: A: red, B: blue, C: up, down"
    assert record.choices == {"A": "red", "B": "blue", "C": "up, down"} and record.group["l2_category"] == "geometry"
    assert any("not the data set's own" in note for note in loaded.notes)
    file = tsv(tmp_path / "RealWorldQA.tsv", [vlmevalkit(), vlmevalkit("How many {}?", A="", B="", answer="3")])
    loaded = load(find("realworldqa"), str(file))
    asked = "Please answer directly with only the letter of the correct option and nothing else."
    assert loaded.records[0].question == f"Which colour?\n\nA. red\nB. blue\n{asked}"
    assert loaded.records[0].choices == {"A": "red", "B": "blue"}
    assert loaded.records[1].question == "How many {}?" and loaded.records[1].answer_type == "open"


def test_options_of_vlmevalkit_become_a_list(tmp_path):
    row = vlmevalkit(id="7", level="2", subject="algebra", image_path="x.png")
    loaded = load(find("mathvision"), str(tsv(tmp_path / "MathVision.tsv", [row])))
    assert loaded.records[0].choices == {"A": "red", "B": "blue"}
    assert "column 'image' of MathVision.tsv was read as 'decoded_image'" in loaded.notes
    row = {"index": 0, "id": "3", "question": "?", "answer": "1.5", "answer_type": "float", "subject": "algebra",
           "knowledge_level": "low", "image_path": "a.png", "split": "sample_variant4"}  # fmt: skip
    (tmp_path / "a.png").write_bytes(PNG)
    loaded = load(DYNAMATH, str(tsv(tmp_path / "sample_variant4.tsv", [row])), split="sample_variant4")
    assert ids(loaded) == ["dynamath-3-4"] and loaded.records[0].answer == "1.5"
    assert lazy(loaded.records[0].media[0], loaded.root, load_image).load().size == (96, 72)


def test_what_is_missing_in_a_folder_is_named(tmp_path):
    write(tmp_path / "testmini-00000-of-00001.parquet", [star(0)])
    refused(MMSTAR, tmp_path, r"expected rows of val, .* one file mmstar\.\*; got testmini-00000-of-00001\.parquet")
    refused(
        MMSTAR, tmp_path / "testmini-00000-of-00001.parquet", "expected rows of split val, got a file of split 'tes"
    )
    refused(MMSTAR, tmp_path, "expected rows of train", split="train")
    (tmp_path / "empty").mkdir()
    refused(MMSTAR, tmp_path / "empty", r"got no \.parquet, \.jsonl, \.json, \.tsv file")
    write_fixture("mmmu", tmp_path / "mmmu")
    shutil.rmtree(tmp_path / "mmmu" / "Physics")
    refused(MMMU, tmp_path / "mmmu", "files of 1 of 30 sources are missing: Physics/validation; add them, or ask")
    assert len(load(MMMU, str(tmp_path / "mmmu"), sources=("Art", "Math")).records) == 2
    refused(MMMU, tmp_path / "mmmu", "source 'Alchemy' is unknown: known: Accounting/validation", sources=("Alchemy",))
    for split in ("../x", "a/b", "", ".", "*"):
        refused(MMSTAR, tmp_path, "split: expected a name", split=split)


def test_rows_do_not_lead_outside_their_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(PNG)
    file = jsonl(tmp_path / "data" / "val.jsonl", [star(0, image="../secret.png")])
    loaded = load(MMSTAR, str(file))
    assert loaded.root == tmp_path / "data"
    with pytest.raises(ValueError, match="expected one inside"):
        lazy(loaded.records[0].media[0], loaded.root, load_image).load()


def hub_cache(home, name, revision, folder):
    """What `datasets` leaves in its cache after it downloaded `name`."""
    files = [str(file) for file in folder.rglob("*.parquet")]
    made = datasets.load_dataset("parquet", data_files={"test": files}, split="test", cache_dir=str(home / "made"))
    source = Path(made.cache_files[0]["filename"]).parent
    there = home / "cache" / "xai-org___realworld_qa" / "default" / "0.0.0" / revision
    shutil.copytree(source, there)
    (there / "parquet-test.arrow").rename(there / "realworld_qa-test.arrow")
    info = json.loads((there / "dataset_info.json").read_text())
    info["dataset_name"] = info["splits"]["test"]["dataset_name"] = name
    (there / "dataset_info.json").write_text(json.dumps(info))
    return home / "cache"


def test_the_cache_of_the_hub_is_read_offline(tmp_path, monkeypatch):
    benchmark = find("realworldqa")
    folder = write_fixture("realworldqa", tmp_path / "data")
    pinned = benchmark.hub.partition("@")[2]
    assert len(pinned) == 40
    cache = hub_cache(tmp_path, "realworld_qa", pinned, folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    loaded, local = load(benchmark, "hub", limit=3), load(benchmark, str(folder), limit=3)
    assert loaded.origin == f"xai-org/RealworldQA on the hub, revision {pinned}" and loaded.notes == local.notes
    for one, other in zip(loaded.records, local.records, strict=True):
        digests = [lazy(r.media[0], here.root, load_image).digest for r, here in ((one, loaded), (other, local))]
        assert digests[0] == digests[1] and one.id == other.id and one.question == other.question
    assert datasets.config.HF_HUB_OFFLINE is False, "as it was"
    (there,) = cache.rglob(pinned)
    there.rename(there.with_name("f" * 40))
    refused(benchmark, "hub", f"expected revision {pinned} of xai-org/RealworldQA, got {'f' * 40} in the cache")


def test_nothing_is_downloaded_unless_allowed(tmp_path, monkeypatch):
    asked = []

    def fake(name, config, split, revision):
        asked.append((name, config, split, revision, datasets.config.HF_HUB_OFFLINE))
        raise ConnectionError("no\nway")

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    refused(MMMU, "hub", "Accounting/validation of MMMU/MMMU cannot be loaded from the cache; allow the .*: no way")
    refused(MMSTAR, "hub", "val of Lin-Chen/MMStar cannot be loaded: no way", allow_download=True)
    revision = MMSTAR.hub.partition("@")[2]
    assert asked == [
        ("MMMU/MMMU", "Accounting", "validation", None, True),
        ("Lin-Chen/MMStar", None, "val", revision, False),
    ]
    refused(
        find("vsibench"), "hub", "holds no videos: download the files of nyu-visionx/VSI-Bench@", allow_download=True
    )


def test_importing_the_sources_loads_nothing_heavy():
    code = (
        "import sys, evals.sources; "
        "print(*sorted({'datasets', 'pyarrow', 'av', 'torch', 'pandas', 'openai'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parent.parent
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, env=os.environ
    )
    assert run.stdout.split() == []
