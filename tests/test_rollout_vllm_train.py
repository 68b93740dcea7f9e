"""Runs whose responses come from a server: loss, log, ranks and resume are as with any engine.

What is locked: 1) a run with its figures; 2) two processes are one: all send their own prompts, one sends weights;
3) a resumed run is the one that never stopped; 4) settings that cannot be are said before anything is loaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests import tiny
from tests.test_trainer import finished, largest_difference, settings
from tests.vllm_case import fake_server  # noqa: F401
from vlm_dopd import run
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.cli import rollout_server
from vlm_dopd.config import load_config
from vlm_dopd.errors import ConfigError

GENERATE = "/inference/v1/generate"


def served(pair, folder, server, **overrides):
    given = {"rollout.engine": "vllm", "rollout.vllm.urls": f"[{server.url}]", "rollout.max_new_tokens": 4}
    return settings(pair, folder, **given | overrides)


@pytest.fixture
def one_step(pair, tmp_path, server):
    return finished(served(pair, tmp_path / "one", server))


def test_a_run_on_a_server(pair, tmp_path, server, one_step):
    """Weights move, the responses' probabilities agree, and nothing is left of the weights that travelled."""
    assert largest_difference(one_step, load_file(pair[0] / "model.safetensors")) > 1e-3
    (line,) = [line for line in read_metrics(tmp_path / "one" / "run" / "metrics.jsonl") if "loss" in line]
    assert 0 < line["rollout/mismatch"] < 1e-4 and line["rollout/sequences"] == 8
    assert not list((tmp_path / "one" / "run").glob("weights-*"))
    assert len(server.of(GENERATE)) == 4


def test_the_micro_batch_does_not_matter(pair, tmp_path, server, one_step):
    split = {"train.per_device_train_batch_size": 1, "train.gradient_accumulation_steps": 4}
    assert largest_difference(one_step, finished(served(pair, tmp_path / "split", server, **split))) < 1e-6


def test_importance_of_an_engine_that_agrees_changes_little(pair, tmp_path, server, one_step):
    """Next to nothing: the engine bans a few tokens, which have some probability in a random model."""
    config = served(pair, tmp_path / "weighed", server, **{"rollout.vllm.importance": "token"})
    assert 0 < largest_difference(one_step, finished(config)) < 0.01
    (line,) = [line for line in read_metrics(Path(config.output_dir) / "metrics.jsonl") if "loss" in line]
    assert 0.95 < line["rollout/importance"] < 1 and line["rollout/importance_capped"] == 0


def test_two_processes_equal_one(pair, tmp_path, server, one_step):
    """Each rank asks for its own two groups; the weights come from one of them."""
    server.calls.clear()
    layout = {"train.per_device_train_batch_size": 2, "train.ddp_backend": "gloo"}
    config = served(pair, tmp_path / "two", server, **layout)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vlm_dopd"]
    done = subprocess.run(
        [*launch, "train", str(tmp_path / "two" / "config.yaml")],
        cwd=tiny.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(server.of(GENERATE)) == 4 and len(server.of("/collective_rpc")) == 1
    assert largest_difference(one_step, load_file(Path(config.output_dir) / "model.safetensors")) < 1e-6


def test_resumed_equals_never_stopped(pair, tmp_path, server):
    """From the first of two checkpoints, on a server that has weights of the end of the run."""
    steps = {"train.max_steps": 3, "train.optim": "adamw_torch", "train.learning_rate": 1e-3,
             "train.save_strategy": "steps", "train.save_steps": 2, "train.per_device_train_batch_size": 2}  # fmt: skip
    config = served(pair, tmp_path, server, **steps)
    whole = finished(config)
    folder = Path(config.output_dir)
    for name in ("checkpoint-3", "model.safetensors"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    config.resume = True
    assert largest_difference(whole, finished(config)) == 0
    checked = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "rollout/mismatch" in line]
    assert checked == [1, 3]  # the first step of each process


def test_no_server_ends_the_run_with_one_line(pair, tmp_path, server):
    url = server.url
    server.closing.set()
    config = served(pair, tmp_path, server)
    with pytest.raises(ConfigError, match=rf"{url}: .*To start one: VLLM_SERVER_DEV_MODE=1 vllm serve {pair[0]}"):
        run.build_trainer(config)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rollout.engine=sglang", "rollout.engine"),
        ("rollout.vllm.mode=both", "rollout.vllm.mode"),
        ("rollout.vllm.urls=[]", "http://HOST:PORT of each"),
        ("rollout.vllm.urls=[10.0.0.1:8000]", "http://HOST:PORT of each"),
        ("rollout.vllm.timeout=0", "rollout.vllm.timeout: expected above 0"),
        ("rollout.vllm.memory_share=1.5", "rollout.vllm.memory_share"),
        ("rollout.vllm.check_steps=0", "rollout.vllm.check_steps: expected at least 1"),
        ("rollout.vllm.tolerance=-1", "rollout.vllm.tolerance: expected above 0"),
        ("rollout.vllm.importance_cap=0", "rollout.vllm.importance_cap: expected above 0"),
        ("rollout.vllm.importance=token", "expected rollout.engine=vllm"),
        ("rollout.vllm.url=x", "did you mean 'urls'"),
    ],
)
def test_wrong_settings(pair, tmp_path, setting, message):
    settings(pair, tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "config.yaml", [setting])


def test_a_colocated_engine_needs_vllm(pair, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    config = settings(pair, tmp_path, **{"rollout.engine": "vllm", "rollout.vllm.mode": "colocate"})
    with pytest.raises(ConfigError, match=r"pip install 'vlm-dopd\[vllm\]'"):
        run.build_trainer(config)


def test_the_command_for_each_server_is_printed(pair, tmp_path, capsys):
    settings(pair, tmp_path, **{"train.bf16": True})
    words = ["rollout.engine=vllm", "rollout.vllm.urls=[http://n1:8000,http://n2:9000]"]
    rollout_server(tmp_path / "config.yaml", words)
    one, other = capsys.readouterr().out.splitlines()
    assert f"vllm serve {pair[0]} --host n1 --port 8000" in one and "--host n2 --port 9000" in other
    assert "--dtype bfloat16 --max-model-len 1032" in one  # data.max_prompt_tokens + rollout.max_new_tokens
