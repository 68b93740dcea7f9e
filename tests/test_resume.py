"""A killed run, resumed, ends with the same weights as one never killed; its checkpoints need nothing of ours."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import TrainingArguments

from tests import tiny
from tests.test_trainer import settings
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.run import _finished, last_checkpoint

ADAM = {
    "train.max_steps": 6,
    "train.optim": "adamw_torch",
    "train.learning_rate": 1e-3,
    "train.lr_scheduler_type": "cosine",
    "train.save_strategy": "steps",
    "train.save_steps": 2,
    "train.per_device_train_batch_size": 2,
    "train.gradient_accumulation_steps": 2,
}


def start(folder: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "vlm_dopd", "train", str(folder / "config.yaml"), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=tiny.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    settings(pair, folder, **ADAM)
    process = start(folder)
    assert process.wait(timeout=900) == 0, process.stderr.read().decode()[-2000:]
    return folder / "run"


def test_killed_and_resumed_equals_never_killed(pair, tmp_path, whole):
    """SIGKILL after the second checkpoint of six steps; the weights are equal to the bit, the log has no gap."""
    settings(pair, tmp_path, **ADAM)
    process = start(tmp_path)
    deadline = time.monotonic() + 240
    while last_checkpoint(tmp_path / "run") is None and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint is not None, process.stderr.read().decode()[-2000:]
    assert not (tmp_path / "run" / "model.safetensors").exists(), "the run ended before it was killed"
    resumed = start(tmp_path, "resume=true")
    assert resumed.wait(timeout=900) == 0, resumed.stderr.read().decode()[-2000:]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", whole))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    losses = [{line["step"]: line["loss"] for line in read_metrics(f / "metrics.jsonl") if "loss" in line}
              for f in (tmp_path / "run", whole)]  # fmt: skip
    assert losses[0] == losses[1] and sorted(losses[0]) == [1, 2, 3, 4, 5, 6]


def test_an_incomplete_checkpoint_is_left_out(whole, tmp_path):
    """A kill in the middle of saving leaves a folder without its last file, or with half of it."""
    copy = tmp_path / "run"
    shutil.copytree(whole, copy)
    assert last_checkpoint(copy).name == "checkpoint-6"
    (copy / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": 0.')
    assert last_checkpoint(copy).name == "checkpoint-4"
    (copy / "checkpoint-4" / "trainer_state.json").unlink()
    assert last_checkpoint(copy).name == "checkpoint-2"
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_checkpoints_load_with_plain_transformers(whole):
    """The final student and a checkpoint, in a process that cannot import anything of ours."""
    script = """
import sys
for name in ("vlm_dopd", "privileged", "evals"):
    sys.modules[name] = None
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
for folder in sys.argv[1:]:
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image", "image": Image.new("RGB", (96, 96))}, {"type": "text", "text": "What is red?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )
    print(model.generate(**inputs, max_new_tokens=3, do_sample=False).shape)
"""
    folders = [str(whole), str(whole / "checkpoint-6")]
    done = subprocess.run(
        [sys.executable, "-c", script, *folders], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("torch.Size") == 2


def test_a_kill_after_the_last_checkpoint_costs_no_further_step(pair, tmp_path, whole):
    """Left to itself, Trainer would do a seventh step of six."""
    settings(pair, tmp_path, **ADAM)
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    resumed = start(tmp_path, "resume=true")
    assert resumed.wait(timeout=900) == 0, resumed.stderr.read().decode()[-2000:]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", whole))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("asked", "finished"),
    [
        ({"max_steps": 6}, True),
        ({"max_steps": 8}, False),
        ({"num_train_epochs": 2}, True),
        ({"num_train_epochs": 3}, False),
    ],
    ids=str,
)
def test_a_run_that_is_to_be_longer_now_is_not_finished(tmp_path, asked, finished):
    state = {"global_step": 6, "max_steps": 6, "num_train_epochs": 2}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert _finished(tmp_path, TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **asked)) == finished
