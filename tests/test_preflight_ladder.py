"""The ladder around its checks: what it refuses, what it costs, what it tells.

What is locked: 1) training is refused by the first FAIL in one line, before anything is written, and `preflight=false`
trains all the same; 2) it draws no random number and is fast; 3) table and JSON say the same.
"""

import io
import json
import random
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from tests.preflight_case import config, set_stops, spoiled
from vlm_dopd import preflight, run
from vlm_dopd.cli import app
from vlm_dopd.errors import ConfigError
from vlm_dopd.preflight.finding import Check, judged
from vlm_dopd.preflight.ladder import CHEAP, MODEL, _asked


def test_it_is_fast_enough_to_begin_every_run(tmp_path):
    preflight.refuse(config(tmp_path))
    began = time.process_time()
    preflight.refuse(config(tmp_path))
    assert time.process_time() - began < 2


def test_what_a_check_raises_is_what_it_found():
    def broken(_):
        raise KeyError("depth")

    def wrong(_):
        raise ConfigError("data.train: two\nlines")

    first, second = (_asked(1, Check("x", "cheap", find), None).finding for find in (broken, wrong))
    assert (first.status, first.figure) == ("FAIL", "KeyError: 'depth'")
    assert (second.status, second.figure) == ("FAIL", "data.train: two lines")


def test_training_is_refused_in_one_line_before_anything_is_written(tmp_path):
    word = spoiled(tmp_path, "student", "generation_config.json", set_stops(501, 502, 70))
    given = config(tmp_path, word)
    with pytest.raises(
        ConfigError, match=r"preflight: stop tokens: .*\(preflight=false trains all the same\)$"
    ) as error:
        run.train(given)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_training_goes_on_where_it_is_not_asked_for(tmp_path, monkeypatch):
    """`preflight=false`, and every rank but the first."""
    given = config(tmp_path, spoiled(tmp_path, "student", "generation_config.json", set_stops(501, 502, 70)))

    class Built(Exception):
        pass

    def build(config):
        raise Built

    monkeypatch.setattr(run, "build_trainer", build)
    with pytest.raises(Built):
        run.train(replace(given, preflight=False))
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(Built):
        run.train(given)


def test_warnings_go_to_the_log(tmp_path, caplog):
    caplog.set_level("INFO")
    preflight.refuse(config(tmp_path, "data.builder=hints"))
    assert "preflight: p present: 0 of 16 rows (expected at least 50%): does data.builder fit" in caplog.text
    assert "WARN" in caplog.records[-1].message and "PASS" in caplog.records[-1].message
    assert "is trained without p" not in caplog.text


def test_no_random_number_is_drawn(tmp_path):
    def states():
        name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global state is the point
        return random.getstate(), (name, keys.tobytes(), *rest), torch.get_rng_state().tolist()

    before = states()
    preflight.refuse(config(tmp_path))
    assert states() == before


def test_table_and_json_say_the_same(tmp_path):
    given = config(tmp_path, spoiled(tmp_path, "teacher", "generation_config.json", set_stops(501)))
    console = Console(record=True, width=2000, color_system=None, file=io.StringIO())
    rungs = preflight.show(preflight.climb(given, None), console)
    text = console.export_text()
    preflight.write_json(rungs, tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["rungs"]
    assert [row["name"] for row in rows] == [check.name for check in CHEAP]
    for row in rows:
        line = next(line for line in text.splitlines() if row["name"] in line and row["status"] in line)
        assert row["figure"].split("\n")[0] in line and row["expected"] in line
        assert not row["fix"] or f"→ {row['fix']}" in text
    assert " 2 WARN, 1 SKIP" in text and "nothing speaks against it" in text


def test_names_are_one_check_each():
    names = [check.name for check in (*CHEAP, *MODEL)]
    assert len(set(names)) == len(names)
    assert {check.cost for check in CHEAP} == {"cheap"} and {check.cost for check in MODEL} == {"model"}
    assert judged("f", "e", fix="x").fix == ""


def test_the_command_fails_with_exit_code_1_and_writes_its_findings(tmp_path):
    """As a user runs it: the ladder on stdout, no traceback, nothing in the run's folder."""
    word = spoiled(tmp_path, "student", "generation_config.json", set_stops(501, 502, 70))
    words = [
        "preflight",
        "demo",
        "--cheap",
        "--json",
        str(tmp_path / "out.json"),
        word,
        f"output_dir={tmp_path / 'run'}",
    ]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 1 and "FAIL  stop tokens" in found.stdout and "do not train yet" in found.stdout
    rows = json.loads((tmp_path / "out.json").read_text())["rungs"]
    assert [row["name"] for row in rows if row["status"] == "FAIL"] == ["stop tokens"]
    assert not (tmp_path / "run").exists()
    assert CliRunner().invoke(app, [*words[:3], words[-1]]).exit_code == 0
