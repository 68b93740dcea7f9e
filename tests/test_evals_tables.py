"""Files of rows: the same text in every form, images that stay in their file, and what is wrong with a file.

What is locked: 1) text survives each form, and is typed without being run; 2) images take no memory until they are
asked for; 3) every error is one line with file and row, and no row is dropped in silence.
"""

import base64
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evals import tables
from evals.benchmarks import find
from evals.fixture_rows import picture
from evals.fixtures import png
from evals.media import lazy
from evals.sources import load
from privileged.images import load_image
from tests.rows_case import PNG, ids, jsonl, refused, star, tsv, write

MMSTAR = find("mmstar")


def test_text_of_tsv_is_typed_without_running_it(tmp_path):
    row = {"question": "?", "answer": "D", "reasoning": "", "image": base64.b64encode(PNG).decode()}
    for text in ("['inductive']", '["inductive"]'):
        file = tsv(tmp_path / "test.tsv", [row | {"skill": text}])
        assert load(find("logicvista"), str(file)).records[0].group == {"skill": "inductive"}
    for text in ("inductive", "__import__('os')", "[" * 9999, "3", ""):
        file = tsv(tmp_path / "test.tsv", [row | {"skill": text}])
        refused(find("logicvista"), file, "test.tsv: .*column 'skill': expected")


def test_text_with_tabs_newlines_and_odd_separators_survives_every_form(tmp_path):
    asked = 'Tab\there, "quoted"\nand\u2028odd \u0085 lines \r\n?\nOptions: A: a, B: b'
    bare = "Which\u2028one\x85? Options: A: a, B: b"  # no quotes around it in a TSV
    rows = [star(0), star(1, question=asked, answer="B"), star(2, question=bare)]
    seen = []
    for form in ("parquet", "jsonl", "json", "tsv"):
        loaded = load(MMSTAR, str(write(tmp_path / f"val.{form}", rows)))
        seen.append([record.question for record in loaded.records])
        for record in loaded.records:
            assert lazy(record.media[0], loaded.root, load_image).load().size == (96, 72)
    assert seen[0][1:] == [asked, bare] and all(one == seen[0] for one in seen)


def test_a_byte_order_mark_and_windows_lines_are_taken(tmp_path):
    file = tsv(tmp_path / "val.tsv", [star(0), star(1)])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    loaded = load(MMSTAR, str(file))
    assert ids(loaded) == ["mmstar-0", "mmstar-1"]
    assert lazy(loaded.records[0].media[0], loaded.root, load_image).load().size == (96, 72)


def broken(path, content):
    path.write_bytes(content)
    return path


def test_what_is_wrong_with_a_file_is_one_line(tmp_path):
    whole = jsonl(tmp_path / "whole.jsonl", [star(i) for i in range(3)]).read_bytes()
    refused(MMSTAR, broken(tmp_path / "a.jsonl", whole[:-40]), "a.jsonl: line 3 is torn: .* 2 rows are whole")
    refused(MMSTAR, broken(tmp_path / "a.jsonl", b"{}\nnope\n{}\n"), "a.jsonl: line 2: expected a JSON object")
    refused(MMSTAR, broken(tmp_path / "a.jsonl", b"[1]\n"), "a.jsonl: line 1: expected a JSON object")
    refused(MMSTAR, broken(tmp_path / "a.jsonl", b"[" * 99999 + b"\n"), "a.jsonl: line 1: expected a JSON object")
    refused(MMSTAR, broken(tmp_path / "a.jsonl", b"\xff\xfe\n"), "a.jsonl: line 1: expected a JSON object")
    refused(MMSTAR, broken(tmp_path / "a.jsonl", b"\n\n"), "a.jsonl: expected rows, got an empty file")
    refused(MMSTAR, broken(tmp_path / "a.json", b'{"a": 1}'), "a.json: expected a JSON list of objects, got dict")
    refused(MMSTAR, broken(tmp_path / "a.json", b"[{},"), "a.json: expected a JSON list of objects")
    refused(MMSTAR, broken(tmp_path / "a.json", b"[]"), "a.json: expected rows, got an empty file")
    refused(MMSTAR, broken(tmp_path / "a.tsv", b""), "a.tsv: expected rows, got an empty file")
    refused(MMSTAR, broken(tmp_path / "a.tsv", b"a\tb\n1\t2\n3\n"), "a.tsv: row 2 has 1 of 2 columns.* 1 rows before")
    refused(MMSTAR, broken(tmp_path / "a.tsv", b"a\ta\n1\t2\n"), "a.tsv: expected a header of different columns")
    refused(MMSTAR, broken(tmp_path / "a.tsv", b"a\tb\n\xff\t2\n"), "a.tsv: expected tab-separated UTF-8")
    refused(MMSTAR, broken(tmp_path / "a.csv", b"a,b\n"), r"a.csv: expected a file ending in \.parquet, \.jsonl")
    refused(MMSTAR, tmp_path / "none.jsonl", "expected 'fixture', 'hub', a file or a folder, got")
    good = write(tmp_path / "good.parquet", [star(i) for i in range(3)]).read_bytes()
    refused(MMSTAR, broken(tmp_path / "a.parquet", good[:-9]), "a.parquet: expected a parquet file, got one")
    refused(MMSTAR, broken(tmp_path / "a.parquet", b""), "a.parquet: expected a parquet file, got one")
    refused(
        MMSTAR, broken(tmp_path / "a.parquet", good[:4] + b"\0" * 300 + good[304:]), "a.parquet: expected a parquet"
    )
    pq.write_table(pa.Table.from_pylist([star(0)]).slice(0, 0), tmp_path / "a.parquet")
    refused(MMSTAR, tmp_path / "a.parquet", "a.parquet: expected rows, got an empty file")


@given(cut=st.integers(1, 400))
def test_no_row_of_a_torn_file_is_dropped_in_silence(tmp_path_factory, cut):
    folder = tmp_path_factory.getbasetemp() / "torn"
    folder.mkdir(exist_ok=True)
    content = jsonl(folder / "whole.jsonl", [star(i, image="a.png") for i in range(4)]).read_bytes()
    whole = content[:-cut].count(b"\n")
    (folder / "cut.jsonl").write_bytes(content[:-cut])
    try:
        loaded = load(MMSTAR, str(folder / "cut.jsonl"))
    except ValueError as error:
        assert f"line {whole + 1} is torn: the file ends inside it, {whole} rows are whole" in str(error)
    else:
        assert len(loaded.records) == content[:-cut].rstrip(b"\n").count(b"\n") + 1


def test_what_is_wrong_with_rows_names_the_file(tmp_path):
    file = tmp_path / "val.jsonl"
    rows = [star(i) for i in range(3)]
    lacking = [{name: value for name, value in row.items() if name != "category"} for row in rows]
    refused(MMSTAR, jsonl(file, lacking), r"val.jsonl: expected a column 'category' \(text\), .*it has index, question")
    refused(MMSTAR, jsonl(file, [*rows, star(1)]), "val.jsonl: row 3: expected ids that differ, got 'mmstar-1' twice")
    refused(
        MMSTAR, jsonl(file, [*rows, star(9, answer="E")]), "val.jsonl: mmstar: row 3: column 'answer': expected one"
    )
    refused(
        MMSTAR, jsonl(file, [*rows, star(9, question=None)]), "val.jsonl: mmstar: row 3: column 'question': expected"
    )
    refused(
        MMSTAR, jsonl(file, [*rows, star(9, image=None)]), "val.jsonl: mmstar: row 3: column 'image': expected image"
    )
    refused(MMSTAR, file, "limit: expected at least 1, got 0", limit=0)


def test_an_empty_cell_is_no_image(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kinds = {"struct": (struct, {"bytes": PNG, "path": None}), "binary": (pa.binary(), PNG), "text": (pa.string(), "x")}
    for name, (kind, value) in kinds.items():
        column = pa.array([None, value, None, value, None], kind)
        pq.write_table(pa.table({"image_1": column}), tmp_path / f"{name}.parquet", row_group_size=2)
        rows = tables.read_table(tmp_path / f"{name}.parquet", {"image_1"}).rows
        assert [row["image_1"] is None for row in rows] == [True, False, True, False, True], name
        assert rows[3]["image_1"]["path" if name == "text" else "bytes"] in (PNG, "x")
    for form, empty in (("jsonl", None), ("tsv", "")):
        file = write(tmp_path / f"val.{form}", [star(0), star(1, image=empty)])
        rows = tables.read_table(file, {"image"}).rows
        assert isinstance(rows[0]["image"], tables.Cell) and rows[1]["image"] in (None, "")


def test_thousands_of_images_stay_in_their_file(tmp_path):
    """2,000 images of 8 kB take no memory but that of one row group, in whatever order they are read."""
    size, count, group = 8_000, 2000, 50
    noise = np.random.default_rng(0).integers(0, 256, (count, size), dtype=np.uint8)
    rows = [
        star(i, image={"bytes": one.tobytes(), "path": None}, preview={"bytes": one.tobytes()}, thumbnail=one.tobytes())
        for i, one in enumerate(noise)
    ]
    path = tmp_path / "val.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    del rows
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    loaded = load(MMSTAR, str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count * size / 2, "neither the images nor other columns of bytes were made into objects"
    assert "preview" not in tables.read_table(path, {"image"}).rows[0]
    assert pa.total_allocated_bytes() - before < 5 * group * size == count * size / 8
    for i in np.random.default_rng(1).permutation(count)[:60]:
        assert loaded.records[i].media[0].ref["bytes"] == noise[i].tobytes()
        assert pa.total_allocated_bytes() - before < 5 * group * size


def test_large_images_of_a_tsv_are_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    text = base64.b64encode(png(Image.fromarray(noise))).decode()
    loaded = load(MMSTAR, str(tsv(tmp_path / "val.tsv", [star(0, image=text), star(1)])))
    assert len(text) > 2 * 131_072 and np.array_equal(
        lazy(loaded.records[0].media[0], loaded.root, load_image).load(), noise
    )


@pytest.mark.parametrize("form", ["jsonl", "tsv"])
def test_images_of_text_files_are_read_again_from_their_row(tmp_path, form):
    images = [base64.b64encode(png(picture(i))).decode() for i in range(6)]
    loaded = load(MMSTAR, str(write(tmp_path / f"val.{form}", [star(i, image=one) for i, one in enumerate(images)])))
    for i in (4, 0, 5, 2):
        cell = loaded.records[i].media[0].ref
        assert isinstance(cell, tables.Cell) and cell["path"] == images[i] and f"row {i + 1}, " in cell.place
