"""Rows of a data set, written as people keep them."""

import base64
import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.fixture_rows import picture
from evals.fixtures import png
from evals.sources import load

PNG = png(picture(1))


def star(index, **change):
    return {
        "index": index,
        "question": "Which?\nOptions: A: a, B: b, C: c, D: d",
        "image": base64.b64encode(PNG).decode(),
        "answer": "A",
        "category": "math",
        "l2_category": "geometry",
        **change,
    }


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tsv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def ids(loaded):
    return [record.id for record in loaded.records]


def refused(benchmark, data, message, **options):
    with pytest.raises(ValueError, match=message) as error:
        load(benchmark, str(data), **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600, str(error.value)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        {".tsv": tsv, ".jsonl": jsonl}[path.suffix](path, rows)
    return path
