"""ZeRO-2 of two gloo processes gives what one process gives. Opt-in, for it needs deepspeed: `make test-deepspeed`.

DeepSpeed runs on CPUs too (DS_ACCELERATOR=cpu, and it compiles an operator of its own at the first start, for minutes).
What is locked: 1) one step a window, though DeepSpeed would step after every pass; 2) ranks with other numbers of
passes; 3) the shipped file and the run folder.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("deepspeed")

from safetensors.torch import load_file

from tests import tiny
from tests.test_distributed import data, passes  # noqa: F401  # a fixture
from tests.test_trainer import finished, largest_difference, settings
from vlm_dopd.callbacks import read_metrics

CASE = {"data.max_pass_tokens": 150, "train.max_grad_norm": 1.0, "train.max_steps": 2, "preflight": False}


def test_zero2_equals_one_process(pair, tmp_path, data):  # noqa: F811
    settings_of = {"data.train": str(data), **CASE}
    layout = {"train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 2, "train.use_cpu": False}
    settings(pair, tmp_path / "zero", **settings_of, **layout)
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.gloo_ranks"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, f"zero:{tmp_path / 'zero' / 'config.yaml'}"],
        cwd=tiny.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "zero" / "run"
    by_rank = passes(folder, 2)
    assert all(len(a["tokens"]) == len(b["tokens"]) for a, b in zip(*by_rank, strict=True))
    assert max(len(line["tokens"]) for line in by_rank[0]) > 1
    weights = finished(settings(pair, tmp_path / "one", **settings_of, **{"train.per_device_train_batch_size": 8}))
    assert largest_difference(weights, load_file(folder / "model.safetensors")) < 1e-5
    lines = [read_metrics(tmp_path / name / "run" / "metrics.jsonl") for name in ("one", "zero")]
    assert [line["loss"] for line in lines[1][:2]] == pytest.approx([line["loss"] for line in lines[0][:2]], rel=1e-4)
    assert [line["step"] for line in lines[1] if "loss" in line] == [1, 2]
