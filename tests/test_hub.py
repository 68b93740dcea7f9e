"""Uploads, trackers and old checkpoints: what Trainer does with our runs besides training.

The hub is replaced at the two calls that reach it; what would go out is looked at while it lies there. The tracker is a
real one, read back with its own reader.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import trainer as hf_trainer

from tests import tiny
from tests.test_trainer import settings
from vlm_dopd import run
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.data import SampleDataset
from vlm_dopd.errors import ConfigError, TrainingError

PUSH = {"train.push_to_hub": True, "train.hub_model_id": "someone/student"}
SAVES = {"train.max_steps": 3, "train.save_strategy": "steps", "train.save_steps": 1}
PROCESSOR = {"chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
FULL = {"README.md", "config.json", "generation_config.json", "model.safetensors", *PROCESSOR}
ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors", "generation_config.json", *PROCESSOR}
DATA = {"data.eval": tiny.ASSETS / "scenes" / "heldout.parquet", "data.eval_limit": 2}


class Hub:
    """In the place of `huggingface_hub.HfApi`."""

    def __init__(self) -> None:
        self.created: list[tuple[str, bool | None]] = []
        self.uploads: list[dict[str, bytes]] = []
        self.messages: list[str] = []
        self.refuses: str | None = None

    def create_repo(self, name: str, private: bool | None = None, **_: Any) -> SimpleNamespace:
        self.created.append((name, private))
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str, **options: Any) -> None:
        assert repo_id == self.created[0][0] and not options["run_as_future"]
        if self.refuses:
            raise OSError(self.refuses)
        files = [path for path in Path(folder_path).rglob("*") if path.is_file()]
        self.uploads.append({str(path.relative_to(folder_path)): path.read_bytes() for path in files})
        self.messages.append(commit_message)


@pytest.fixture
def hub(monkeypatch):
    fake = Hub()
    monkeypatch.setattr(hf_trainer, "hf_api", lambda: fake)
    return fake


@pytest.mark.parametrize(("own", "expected"), [({}, FULL), ({"model.lora.r": 4}, ADAPTER)], ids=["full", "lora"])
def test_an_upload_is_student_processor_and_card_and_nothing_else(pair, tmp_path, hub, own, expected):
    """The run folder holds metrics, settings and held-out answers by then; no pickle, and no row of the data."""
    evaluated = {**DATA, "train.eval_strategy": "steps", "train.eval_steps": 3}
    folder = run.train(settings(pair, tmp_path, **PUSH, **SAVES, **evaluated, **own))
    assert [set(upload) for upload in hub.uploads] == [expected] * 4
    assert hub.messages == [f"Training in progress, step {n}" for n in (1, 2, 3)] + ["Model save"]
    weights = next(name for name in expected if name.endswith("model.safetensors"))
    assert hub.uploads[-1][weights] == (folder / weights).read_bytes() == hub.uploads[-2][weights]
    assert hub.uploads[0][weights] != hub.uploads[-1][weights]
    card = hub.uploads[-1]["README.md"].decode()
    assert "# student" in card and "learning_rate: 1.0" in card
    asked = {sample.question for sample in (tiny.scenes(1)[0], SampleDataset(DATA["data.eval"], 1)[0])}
    assert not any(question.encode() in content for question in asked for content in hub.uploads[-1].values())
    assert not list(folder.glob("_upload-*")) and not list(folder.rglob("training_args.bin"))


def test_the_name_is_the_run_folders_where_none_is_given(pair, tmp_path, hub):
    run.train(settings(pair, tmp_path, **{"train.push_to_hub": True, "train.hub_private_repo": True}))
    assert hub.created == [("run", True)]
    assert "# run" in hub.uploads[0]["README.md"].decode()


def test_only_the_end_is_uploaded_if_that_is_asked_for(pair, tmp_path, hub):
    run.train(settings(pair, tmp_path, **PUSH, **SAVES, **{"train.hub_strategy": "end"}))
    assert hub.messages == ["Model save"]


def test_a_failed_upload_ends_no_training_and_is_told_at_the_end(pair, tmp_path, hub, caplog):
    """The last one is an error of one line, when all is on disk."""
    hub.refuses = "503 Service Unavailable\nhtml"
    with pytest.raises(TrainingError, match=r"uploaded to someone/student, got: OSError: 503 Service Unavailable; all"):
        run.train(settings(pair, tmp_path, **PUSH, **SAVES))
    assert caplog.text.count("503 Service Unavailable") == 3
    assert load_file(tmp_path / "run" / "model.safetensors")
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line] == [1, 2, 3]


def test_a_repository_that_cannot_be_is_said_before_the_first_step(pair, tmp_path, hub, monkeypatch):
    def refused(*_: Any, **__: Any) -> None:
        raise OSError("401 Client Error\nmore")

    monkeypatch.setattr(hub, "create_repo", refused)
    with pytest.raises(
        ConfigError, match=r"train\.push_to_hub: expected a repository.*OSError: 401 Client Error; look"
    ):
        run.train(settings(pair, tmp_path, **PUSH))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"train.hub_token": "secret"}, r"train\.hub_token: cannot be set here.*HF_TOKEN"),
        ({"train.hub_strategy": "checkpoint"}, r"train\.hub_strategy: expected end or every_save"),
        ({"train.hub_strategy": "all_checkpoints"}, r"train\.hub_strategy: expected end or every_save"),
    ],
    ids=str,
)
def test_what_must_not_be_uploaded_or_written_down_is_refused(pair, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message) as refused:
        settings(pair, tmp_path, **words)
    assert "secret" not in str(refused.value)


def test_a_tracker_gets_the_figures_of_the_metrics_file(pair, tmp_path, monkeypatch):
    """Every name and value; trackers have train/ before those that are not eval/."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    own = {**DATA, "train.report_to": "tensorboard", "train.max_steps": 2, "train.eval_strategy": "steps"}
    folder = run.train(settings(pair, tmp_path, **own, **{"train.eval_steps": 1}))
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    seen = {(tag, e.step): e.value for tag in board.Tags()["scalars"] for e in board.Scalars(tag)}
    lines = read_metrics(folder / "metrics.jsonl")
    assert {"loss", "share/LH", "gap/mean", "eval/accuracy", "rollout/length"} <= {
        name for line in lines for name in line
    }
    expected = {
        (name if name.startswith("eval/") else f"train/{name}", line["step"]): value
        for line in lines
        for name, value in line.items()
        if name != "step"
    }
    assert seen.keys() == expected.keys()
    assert all(seen[key] == pytest.approx(value, rel=1e-6) for key, value in expected.items())


def test_old_checkpoints_go_with_all_that_is_ours_in_them(pair, tmp_path):
    """A limit of two, and a method whose moving average lies in every checkpoint."""
    own = {**SAVES, "train.save_total_limit": 2, "method.name": "sdft"}
    folder = run.train(settings(pair, tmp_path, **own))
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert (folder / "checkpoint-3" / "ema.safetensors").is_file()
    assert run.last_checkpoint(folder).name == "checkpoint-3"
