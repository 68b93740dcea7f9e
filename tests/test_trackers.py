"""What trackers get beside the figures: a table of responses and pictures with boxes, read back from their own files.

What is locked: 1) columns and pictures say what the token files say; 2) hostile text is text in them; 3) every tracker
of SENDERS holds table and pictures after a run; 4) one that fails costs a line of log, not the run.

All but TensorBoard's need `make test-trackers`, which installs them in an environment of its own.
"""

from __future__ import annotations

import html
import io
import json
import logging
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.test_report_tokens import HOSTILE
from tests.test_trainer import settings
from vlm_dopd import run, trackers
from vlm_dopd.trackers import SENDERS, TABLE, TrackerSamples, columns_of, markdown, pictures_of

OWN = {"train.max_steps": 2, "report.every": 1, "report.token_samples": 3}


def row(**changes):
    """As `token_files.py` writes one; the student is surer of the second token, the teacher of the third."""
    return {
        "step": 0, "sample": "a", "question": "How many?", "answer": "2", "reward": None, "pictures": [],
        "token": ["I", " see", " 2"], "component": ["LH", "HS", None], "gap_of": ["student", "teacher"],
        "logp": {"student": [-1.0, -0.5, -4.0], "teacher": [-1.0, -3.0, -0.25]},
    } | changes  # fmt: skip


def test_columns():
    own = columns_of([row(), row(answer=None, reward=0.5, gap_of=None)])
    assert {name: entries[0] for name, entries in own.items()} == {
        "sample": "a",
        "question": "How many?",
        "answer": "2",
        "response": "I see 2",
        "reward": "",
        "regimes": "LH 33%, HS 33%, no loss 33%",
        "largest gaps": '" 2" +3.75, " see" -2.50, "I" +0.00',
    }
    assert [own[name][1] for name in ("answer", "reward", "largest gaps")] == ["", "0.5", ""]
    assert columns_of([]) == {}


def test_a_token_that_has_no_finite_score_is_not_among_the_gaps():
    """null is what the files have for it."""
    logp = {"student": [-1.0, None, -4.0], "teacher": [-1.5, -3.0, None]}
    assert columns_of([row(logp=logp)])["largest gaps"] == ['"I" -0.50']


def test_pictures(tmp_path):
    """One a question; its boxes are in pixels of the picture as it was, which the file may be a smaller copy of."""
    Image.new("RGB", (100, 50), "white").save(tmp_path / "p.png")
    picture = {"file": "p.png", "origin": "sample", "width": 200, "height": 100}
    boxes = [{"label": "x", "box": [40, 40, 80, 80]}, {"label": "y", "box": [120, 20, 180, 60]}]
    rows = [row(pictures=[picture | {"boxes": boxes}]), row(), row(sample="b", pictures=[picture | {"boxes": []}])]
    (caption, drawn), (_, blank) = pictures_of([*rows, rows[0]], tmp_path)
    assert caption == "a: How many?" and drawn.size == (100, 50)
    changed = np.abs(np.asarray(drawn).astype(int) - 255).max(axis=2) > 0
    assert changed[20:40, 18:20].any() and changed[10:30, 90:92].any() and not changed[22:38, 22:38].any()
    assert (np.asarray(blank) == 255).all()


@pytest.mark.parametrize(
    "text", [HOSTILE, "![x](http://evil.example/p.png)", "[a](javascript:b)", "a | b\n| - |", "`c`"]
)
def test_hostile_text_is_text_in_tensorboard(text):
    """Its own renderer makes one cell of it, with the characters that went in and nothing to load or to click."""
    from tensorboard.plugin_util import markdown_to_safe_html

    shown = columns_of([row(question=text)])["question"][0]
    page = markdown_to_safe_html(f"| question | n |\n| --- | --- |\n| {markdown(shown)} | 7 |")
    assert set(re.findall(r"<(\w+)", page)) <= {"table", "thead", "tbody", "tr", "th", "td", "br"}
    cell, last = re.findall(r"<td>(.*?)</td>", page, flags=re.S)
    assert last == "7"
    assert html.unescape(cell.replace("<br>", "\n")).split() == shown.split()


def of_tensorboard(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "board"), size_guidance={"images": 0, "tensors": 0}).Reload()
    texts = [event.tensor_proto.string_val[0].decode() for event in board.Tensors(f"{TABLE}/text_summary")]
    images = [image for tag in board.Tags()["images"] for image in board.Images(tag)]
    assert all(Image.open(io.BytesIO(image.encoded_image_string)).size == (96, 96) for image in images)
    return "".join(texts), len(images)


def of_wandb(folder: Path):
    media = folder / "wandb" / "latest-run" / "files" / "media"
    return "".join(path.read_text() for path in media.rglob("*.table.json")), len(list(media.rglob("*.png")))


def of_mlflow(folder: Path):
    (artifacts,) = (folder / "mlruns").glob("*/*/artifacts")
    texts = [path.read_text() for path in (artifacts / "samples").glob("*.json")]
    return "".join(texts), len(list(artifacts.rglob("*.png")))


def of_trackio(folder: Path):
    (database,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(database) as found:
        texts = [bytes(line[0]).decode() for line in found.execute("SELECT metrics FROM metrics")]
    assert [json.loads(text)["train/global_step"] for text in texts if TABLE in text] == [1, 2]
    return "".join(texts), len(list((folder / "trackio" / "media").rglob("*.png")))


def of_swanlab(folder: Path):
    (own,) = (folder / "swanlog").glob("run-*")
    return (own / "backup.swanlab").read_bytes().decode(errors="replace"), len(list((own / "media").rglob("*.png")))


READ = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
    "trackio": of_trackio,
    "swanlab": of_swanlab,
}


@pytest.mark.parametrize("name", sorted(SENDERS))
def test_a_tracker_holds_table_and_pictures_of_both_steps(pair, tmp_path, name):
    """Three responses a step, each to another question; every question and its sample are in the tracker's files."""
    pytest.importorskip(name, reason=f"{name} is not installed: make test-trackers")
    folder = Path(settings(pair, tmp_path, **OWN, **{"train.report_to": name}).output_dir)
    places = {
        "PYTHONPATH": str(tiny.ROOT),
        "TENSORBOARD_LOGGING_DIR": "board",
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "SWANLAB_MODE": "offline",
    }
    command = [sys.executable, "-m", "vlm_dopd", "train", "config.yaml"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | places, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "took no token samples" not in done.stderr
    rows = [json.loads(line) for path in (folder / "tokens").glob("*.jsonl") for line in path.open()]
    assert len(rows) == 6
    text, pictures = READ[name](tmp_path)
    spoken = (lambda words: markdown(words)) if name == "tensorboard" else (lambda words: json.dumps(words)[1:-1])
    assert all(spoken(one[field]) in text for one in rows for field in ("sample", "question"))
    assert pictures == len({(one["step"], one["sample"]) for one in rows})


def test_a_tracker_that_fails_costs_a_line(pair, tmp_path, monkeypatch, caplog):
    """Of the log, with its name, the step and what it said; the run ends and its own files are whole."""

    def broken(shown, callbacks):
        raise OSError("no space\nleft")

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    monkeypatch.setitem(trackers.SENDERS, "tensorboard", broken)
    with caplog.at_level(logging.WARNING):
        folder = run.train(settings(pair, tmp_path, **OWN, **{"train.report_to": "tensorboard"}))
    lines = [record.getMessage() for record in caplog.records if "report_to" in record.getMessage()]
    expected = "train.report_to=tensorboard took no token samples of step {}: OSError: no space left"
    assert lines == [expected.format(1), expected.format(2)]
    assert (folder / "tokens.html").is_file() and (folder / "model.safetensors").is_file()


def test_trackers_that_get_figures_only_are_named(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        TrackerSamples(tmp_path, ["dvclive", "tensorboard"], [])
    assert caplog.messages == [
        "train.report_to=dvclive: figures only; tensorboard, wandb, mlflow, trackio, swanlab get token samples too"
    ]


def test_without_token_samples_nothing_is_sent(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    monkeypatch.setitem(trackers.SENDERS, "tensorboard", lambda *_: pytest.fail("sent"))
    own = {**OWN, "report.token_samples": 0, "train.report_to": "tensorboard"}
    run.train(settings(pair, tmp_path, **own))
