"""The audit of files: what is written, in shards and whole, with a kept file and with a model.

What is locked: 1) the three files of an audit agree; 2) shards, joined, and several workers give the same bytes as the
whole; 3) nothing of another builder, option or counter comes out of the cache; 4) the kept file holds the surviving
rows, and their images are found; one from which they would not be is refused first; 5) checks with a model join.
"""

from __future__ import annotations

import json

import datasets
import pytest

import evals
from privileged import DataError, get_builder
from privileged.audit import DropPolicy, summarise
from privileged.rows import read_rows, to_sample
from privileged.scale import Shard
from tests.audit_case import many, noise, row, words, write
from vlm_dopd.annotate.audit import audit, join, lines

BOXES, HINTS = get_builder("boxes"), get_builder("hints")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """No block of an earlier test, and a short contact sheet."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("vlm_dopd.annotate.audit.SHEET", 2)


def run(data, out, **options):
    return audit(data, **({"builder": BOXES, "builder_name": "boxes", "out": out} | options))


def rows_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_bytes().splitlines()]


def test_the_files_of_an_audit(tmp_path):
    data = write(tmp_path / "train.jsonl", many())
    report = run([data], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == json.loads(json.dumps(report))
    rows = rows_of(tmp_path / "out")
    assert [one["row"] for one in rows] == list(range(12)) and len({one["file"] for one in rows}) == 1
    assert report["figures"] == summarise(rows)
    written = ["audit.html", "audit.json", "rows.jsonl", "sheet.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    assert "rows: 12: 4 kept, 3 kept with a warning, 5 dropped" in list(lines(report))


def test_shards_and_workers_change_nothing(tmp_path):
    """Three jobs, then joined; and two processes."""
    data = write(tmp_path / "train.jsonl", many(11))
    held = write(tmp_path / "eval.jsonl", [row(3, question="x"), row(50)])
    whole = run([data], tmp_path / "whole", eval_data=[held])
    parts = [tmp_path / f"part{i}" for i in (1, 2, 3)]
    for i, part in enumerate(parts, start=1):
        run([data], part, eval_data=[held], shard=Shard(i, 3), workers=2 if i == 1 else 1)
    joined = join(parts, builder=BOXES, out=tmp_path / "joined")
    assert joined == whole
    for name in ("rows.jsonl", "audit.json", "audit.html"):
        assert (tmp_path / "joined" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(DataError, match="expected the folder of a finished audit"):
        join([tmp_path / "none"], builder=BOXES, out=tmp_path / "x")
    run([data], tmp_path / "other", policy=DropPolicy(stated="keep"), shard=Shard(2, 3))
    with pytest.raises(DataError, match="one way"):
        join([parts[0], tmp_path / "other"], builder=BOXES, out=tmp_path / "x")


def test_another_builder_is_another_audit(tmp_path):
    """Nothing of the first comes out of the cache for the second."""
    data = write(tmp_path / "train.jsonl", [row(0, answer="cup")])
    assert run([data], tmp_path / "a")["figures"]["rows"]["dropped"] == 1
    assert run([data], tmp_path / "b", builder=HINTS, builder_name="hints")["figures"]["prompts"]["empty"] == 1
    run([data], tmp_path / "l", builder=get_builder("boxes", style="lines"))
    json_style, lines_style = (rows_of(tmp_path / name)[0]["chars"] for name in "al")
    assert json_style[0] == lines_style[0] and json_style[1] > lines_style[1]
    counted = run([data], tmp_path / "c", count_tokens=words, counted_by="words")
    assert counted["figures"]["prompts"]["tokens"]["plain"]["max"] == 103


def test_the_kept_file_is_a_training_file(tmp_path):
    """The surviving rows of three files, word by word, with ids and with images that are found."""
    first, second = write(tmp_path / "a" / "one.jsonl", many(8)), write(tmp_path / "b" / "two.jsonl", [row(30)])
    no_id = {key: value for key, value in row(31, privileged=None).items() if key != "id"}
    third = write(tmp_path / "c" / "three.jsonl", [no_id | {"note": "kept"}])
    kept = tmp_path / "kept.jsonl"
    report = run([first, second, third], tmp_path / "out", kept=kept)
    rows = [one for one in rows_of(tmp_path / "out") if one["fate"] != "dropped"]
    samples = kept_samples(kept)
    assert [sample.id for sample in samples] == [one["id"] for one in rows] and samples[-1].id == "three-0"
    assert len(samples) == report["figures"]["rows"]["kept"] + report["figures"]["rows"]["warned"] == 6
    pixels = {one["id"]: noise(int(one["id"][1:])) for one in rows if one["id"].startswith("s")}
    assert all(sample.images[0].tobytes() == pixels[sample.id].tobytes() for sample in samples[:-1])
    assert read_rows(kept)[-1]["note"] == "kept" and read_rows(kept)[0]["images"] == ["a/pictures/2.png"]
    assert read_rows(kept)[-1]["privileged"] is None


def test_kept_rows_of_parquet_stay_parquet(tmp_path):
    """Encoded images come along; a file without ids gets them."""
    rows = [row(i, answer=["sofa", "cup"][i % 2]) for i in range(4)]
    path = tmp_path / "train.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    bare = tmp_path / "bare.parquet"
    keep = ("question", "images", "answer", "kind")
    datasets.Dataset.from_list([{key: one[key] for key in keep} for one in rows[:1]]).to_parquet(str(bare))
    run([path], tmp_path / "out", kept=tmp_path / "kept.parquet")
    assert [sample.id for sample in kept_samples(tmp_path / "kept.parquet")] == ["s0", "s2"]
    run([bare], tmp_path / "out2", kept=tmp_path / "kept2.parquet")
    assert [sample.id for sample in kept_samples(tmp_path / "kept2.parquet")] == ["bare-0"]


def test_a_kept_file_that_could_not_be_read_is_refused(tmp_path):
    """Before anything is looked at."""
    data = write(tmp_path / "data" / "train.jsonl", [row()])
    for kept, reason in (
        (tmp_path / "elsewhere" / "kept.jsonl", "put it beside"),
        (data, "the data itself"),
        (data.with_name("kept.parquet"), "ending in .jsonl"),
        (data.with_name("kept.json"), "ending in .jsonl"),
    ):
        with pytest.raises(DataError, match=reason):
            run([data], tmp_path / "out", kept=kept)
    assert not (tmp_path / "out").exists()


def test_checks_with_a_model_join_the_report(tmp_path):
    """The model reads the label out of p: without p it knows nothing, so the gap is all of it."""

    class Reader:
        def generate(self, items):
            texts = ["".join(part.get("text", "") for part in item.messages[0]["content"]) for item in items]
            return [evals.Reply(f"Answer: {'cup' if 'cup' in text else 'none'}", truncated=False) for text in texts]

    rows = [row(i, answer="cup", regions=[("cup", (1, 1, 9, 9)), ("mug", (9, 9, 30, 30))]) for i in range(6)]
    data = write(tmp_path / "train.jsonl", [*rows, row(0, answer="cup"), row(90, privileged=None)])
    report = run([data], tmp_path / "out", model=Reader(), model_name="reader")
    blind = report["checks"]["blind"]
    assert blind["n"] == 6 and blind["gap"]["difference"] == 1 and blind["p"]["accuracy"] == 1
    assert report["checks"]["citation"]["privileged"] == 0
    assert any("blind test: +100.0 points" in line for line in lines(report))
    assert "reader" in (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")


def kept_samples(path):
    return [to_sample(one, f"{path.stem}-{i}", path.parent) for i, one in enumerate(read_rows(path))]
