"""A study's file, and the page of its numbers.

What is locked: 1) a mistake in the file is one line that names it, before anything runs; 2) a cell is another task when
anything that it depends on changes, and only then; 3) shared measurements are taken once; 4) table, page and JSON hold
the same numbers, names are never markup, nothing is loaded from elsewhere; 5) the shipped studies load.
"""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

import evals
from tests import made_study, tiny
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.errors import ConfigError
from vlm_dopd.study.collect import collect
from vlm_dopd.study.page import write_study
from vlm_dopd.study.plan import load_study
from vlm_dopd.study.records import write_json

STUDIES = sorted((tiny.ROOT / "vlm_dopd" / "studies").glob("*.yaml"))
HOSTILE = "</table><img src=x onerror=alert(1)>\"'&{{ 7*7 }} | `大` ../../x"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with a recipe and its data."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    recipe = {
        "model": {"student": "small", "teacher": "large"},
        "data": {"train": "rows.jsonl", "eval": "rows.jsonl", "eval_limit": 8},
        "train": {"max_steps": 10, "use_cpu": True},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def write(**changes):
    values = {
        "base": "recipe.yaml", "baseline": "opd", "seeds": [0, 1], "output_dir": "out",
        "cells": {"opd": ["method.name=opd"], "dopd": ["method.name=dopd"]},
    }  # fmt: skip
    Path("study.yaml").write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return "study.yaml"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"baseline": "opdd"}, "baseline: no such cell 'opdd'; did you mean 'opd'?"),
        ({"sedes": [1]}, "sedes: no such setting; did you mean 'seeds'?"),
        ({"seeds": [1, 1]}, "seeds: expected different numbers"),
        ({"seeds": ["x"]}, "seeds"),
        ({"cells": {}}, "cells: expected at least one"),
        ({"cells": {"opd": ["method.name=opd"], "b": ["method.nmae=opd"]}}, "cell 'b': method.nmae: no such setting"),
        ({"cells": {"opd": ["method.name=opd"], "b": ["rollout.siblings=0"]}}, "cell 'b': rollout.siblings: expected"),
        ({"cells": {"opd": [], "a b": [], "a-B": []}}, "'a b' and 'a-B' would share the folder 'a-b'"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: no such config file"),
        ({"settings": ["data.eval=null"]}, "data.eval: expected a file of held-out questions"),
        ({"held_out": 0}, "held_out: expected at least 1"),
        ({"processes": 0}, "processes: expected at least 1"),
        ({"groups": [{"name": "g", "cells": ["opd", "dodp"]}]}, "group 'g': cells: no such cell 'dodp'"),
        ({"groups": [{"name": "g", "cells": ["opd"]}]}, "groups: expected every cell in at least one, got none with"),
        ({"groups": [{"name": "g", "cells": ["opd", "dopd"], "baseline": "x"}]}, "group 'g': baseline: no such cell"),
        ({"groups": [{"name": "g", "cells": ["opd", "dopd"], "paper": {"avg": {"x": 1}}}]}, "paper: 'avg': no such"),
        ({"stages": [{"name": "a", "settings": ["train.max_stepz=3"]}]}, "train.max_stepz"),
        ({"output_dir": ""}, "output_dir: expected a folder"),
    ],
)
def test_a_mistake_is_one_line(changes, words):
    """That names the cell, group or setting; and nothing was written."""
    with pytest.raises(ConfigError) as caught:
        load_study(write(**changes))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("out").exists()


def digests(**changes):
    study = load_study(write(**changes))
    return {task.folder.as_posix().removeprefix("out/"): task.digest for task in study.tasks}


def test_a_task_is_what_its_result_depends_on():
    """Another seed, step or method's option is another task; the number of processes, and the other cells, are not."""
    known = digests()
    assert len(set(known.values())) == len(known) == 3 + 4
    assert digests(processes=7, keep_students=True, title="T", output_dir="out/") == known
    more = digests(cells={"dopd": ["method.name=dopd"], "opd": ["method.name=opd"], "x": ["method.name=sft"]})
    assert known.items() <= more.items()
    longer = digests(settings=["train.max_steps=11"])
    assert [name for name in known if longer.get(name) == known[name]] == [n for n in known if "references" in n]
    option = digests(cells={"opd": ["method.name=opd"], "dopd": ["method.name=dopd", "method.beta_light=0.5"]})
    changed = {name for name in known if option.get(name) != known[name]}
    assert changed == {"cells/dopd/seed-0", "cells/dopd/seed-1"}
    assert digests(settings=["output_dir=elsewhere", "resume=true"]) == known
    shown = digests(settings=["data.builder_options.max_regions=3"])
    assert len([name for name in shown if "references" in name and name not in known]) == 1  # the student shown p
    assert not digests(held_out=1).items() & known.items()


def test_measurements_are_shared_and_seeds_come_first():
    """The student with p once for each way of showing it; a study that is stopped has whole seeds."""
    cells = {"opd": ["method.name=opd"], "crops": ["data.builder=crops"], "also crops": ["data.builder=crops"]}
    titles = [task.title for task in load_study(write(cells=cells)).tasks]
    assert titles[:4] == [
        "student before",
        "student before, with p (boxes)",
        "teacher",
        "student before, with p (crops)",
    ]
    assert titles[4:] == [f"{cell}, seed {seed}" for seed in (0, 1) for cell in cells]


def test_a_cell_may_be_called_anything():
    """Its folder stays inside the study."""
    names = [HOSTILE, "../..", "大", "a/b", "x" * 300]
    study = load_study(write(cells={name: [] for name in names}, baseline="大"))
    folders = {task.folder.parent for cell in study.cells.values() for task in cell.tasks.values()}
    assert len(folders) == len(names)
    assert all(f.parent == Path("out/cells") and re.fullmatch("[a-z0-9-]{1,60}", f.name) for f in folders)


def made(leave_out=(), **changes):
    study = load_study(write(**changes))
    made_study.finish(study, leave_out=leave_out)
    return study


def table_of(cell, stage=1):
    return np.array(
        [[p.correct for p in evals.read(task.folder / f"stage-{stage}.jsonl")] for task in cell.tasks.values()], float
    )


def test_the_numbers_are_those_of_the_answers():
    """Accuracy, by seed and by kind, difference, gain, gap recovery, cost, curves: from the files, by other means."""
    study = made()
    figures = collect(study)
    opd, dopd = (table_of(study.cells[name]) for name in ("opd", "dopd"))
    cell = figures["cells"]["dopd"]
    assert cell["accuracy"]["value"] == pytest.approx(dopd.mean())
    assert list(cell["by_seed"].values()) == pytest.approx(dopd.mean(1).tolist())
    assert cell["by_kind"]["sum"]["accuracy"] == pytest.approx(dopd[:, 1::2].mean())
    assert cell["by_kind"]["sum"]["n"] == 20
    against = figures["groups"][0]["differences"]
    assert against["opd"] is None
    assert against["dopd"]["value"] == pytest.approx(100 * (dopd - opd).mean())
    assert against["dopd"]["low"] <= against["dopd"]["value"] <= against["dopd"]["high"]
    before, teacher = (figures["references"][row]["accuracy"] for row in (0, 2))
    assert cell["gain"]["value"] == pytest.approx(100 * (dopd.mean() - before))
    assert cell["gap_recovery"]["value"] == pytest.approx((dopd.mean() - before) / (teacher - before))
    assert cell["passes"] == {"scored": 2, "trained": 1}
    assert cell["cost"]["tokens"] == 1000 and cell["cost"]["memory"] == 2**30  # 100 a step, ten steps
    assert cell["curves"]["eval/accuracy"]["step"] == [0, 4, 10]
    length = cell["curves"]["rollout/length"]
    files = [read_metrics(task.folder / "stage-1" / "metrics.jsonl") for task in study.cells["dopd"].tasks.values()]
    logged = [[line["rollout/length"] for line in lines if "rollout/length" in line] for lines in files]
    for end, of_seeds in (("low", np.min), ("mean", np.mean), ("high", np.max)):
        assert length[end] == pytest.approx(of_seeds(logged, axis=0).tolist())


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_names_are_never_markup_and_nothing_is_loaded():
    """On the page, and in the table of Markdown."""
    cells = {"opd": ["method.name=opd"], HOSTILE: ["method.name=dopd"]}
    group = {"name": HOSTILE, "note": HOSTILE, "cells": list(cells), "paper": {HOSTILE: {HOSTILE: 58.4}}}
    study = made(cells=cells, title=HOSTILE, groups=[group], leave_out=[f"{HOSTILE}, seed 1"])
    task = study.cells[HOSTILE].tasks[1]
    task.folder.mkdir(parents=True, exist_ok=True)
    write_json(task.folder / "failure.json", {"digest": task.digest, "error": HOSTILE})
    text = write_study(study).read_text()
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"img", "script", "link", "iframe"})
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not any(value and "://" in value for _, attributes in page.tags for value in attributes.values())
    assert page.text.count(HOSTILE) > 5
    ids = [its["id"] for _, its in page.tags if "id" in its]
    assert len(ids) == len(set(ids))
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style
    table = Path("out/study.md").read_text()
    assert "<img" not in table
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in table.split("\n") if row.startswith("|")} == {4, 10}


def test_page_table_and_json_hold_the_same_numbers():
    """And the same cells give the same bytes."""
    study = made()
    page = write_study(study)
    first = page.read_bytes()
    figures = json.loads(Path("out/study.json").read_text())
    row = next(row for row in Page(page.read_text()).rows if row[0] == "dopd")
    accuracy, against = figures["cells"]["dopd"]["accuracy"], figures["groups"][0]["differences"]["dopd"]
    assert row[1] == f"{100 * accuracy['value']:.1f}\u00a0%"
    assert row[2] == f"{100 * accuracy['low']:.1f} – {100 * accuracy['high']:.1f}"
    assert row[3].lstrip("+−") == f"{abs(against['value']):.1f}"
    table = Path("out/study.md").read_text()
    assert row[1].replace("\u00a0", " ") in table and row[4] in table
    assert write_study(study).read_bytes() == first


def test_what_is_not_finished_is_said():
    """A cell without a seed, one with fewer seeds than planned, no baseline yet: a page at any time."""
    study = made(leave_out=["dopd", "opd, seed 1"])
    text = Page(write_study(study).read_text()).text
    assert "This study is not finished: 4 of 7 runs are done" in text
    assert "not run yet" in text and "Fewer seeds than planned: opd (1)" in text
    assert "not run yet" in Path("out/study.md").read_text()
    empty = load_study(write(output_dir="other"))
    assert "0 of 7 runs are done" in Page(write_study(empty).read_text()).text
    unpaired = made(leave_out=["opd, seed 0", "dopd, seed 1"], output_dir="third")
    assert collect(unpaired)["groups"][0]["differences"]["dopd"] is None


def test_what_was_trained_and_what_was_not(tmp_path):
    """Stages by kind, the change of old kinds since their own stage, the gain on kinds that were never trained."""
    stages = [
        {"name": "a", "settings": ["data.train_kinds=[which]"]},
        {"name": "b", "settings": ["data.train_kinds=[sum]"]},
    ]
    study = made(stages=stages)
    cell = collect(study)["cells"]["opd"]
    then, now = (table_of(study.cells["opd"], stage)[:, ::2] for stage in (1, 2))  # every other question is of `which`
    assert cell["forgetting"]["kinds"] == ["which"]
    assert cell["forgetting"]["change"]["value"] == pytest.approx(100 * (now - then).mean())
    assert cell["stages"][0]["by_kind"]["which"]["accuracy"] == pytest.approx(then.mean())
    assert cell["curves"]["rollout/length"]["step"] == list(range(2, 21, 2))
    assert "transfer" not in cell
    assert "After each stage" in Page(write_study(study).read_text()).text
    one = made(settings=["data.train_kinds=[sum]"], output_dir="one")
    transfer = collect(one)["cells"]["dopd"]["transfer"]
    before = np.array([p.correct for p in evals.read(one.cells["dopd"].references["before"].folder / "answers.jsonl")])
    gain = 100 * (table_of(one.cells["dopd"])[:, ::2].mean() - before[::2].mean())
    assert transfer["kinds"] == ["sum"] and transfer["untrained"]["value"] == pytest.approx(gain)


def test_a_kind_that_is_trained_again_is_no_old_one():
    """Its own stage is the last that trained it."""
    kinds = ("[which,sum]", "[sum]", "[which]")
    stages = [{"name": str(n), "settings": [f"data.train_kinds={its}"]} for n, its in enumerate(kinds)]
    study = made(stages=stages)
    cell = collect(study)["cells"]["dopd"]
    then, now = (table_of(study.cells["dopd"], stage)[:, 1::2] for stage in (2, 3))
    assert cell["forgetting"]["kinds"] == ["sum"]
    assert cell["curves"]["entropy/student"]["step"] == list(range(2, 31, 2))  # stages one after the other
    assert cell["forgetting"]["change"]["value"] == pytest.approx(100 * (now - then).mean())


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_every_shipped_study_loads(path, monkeypatch):
    """Every cell's configuration is one that trains."""
    monkeypatch.chdir(tiny.ROOT)
    study = load_study(path)
    assert study.file.baseline in study.cells
    assert {name for group in study.groups for name in group.cells} == set(study.cells)
