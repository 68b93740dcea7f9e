"""ZeRO-2 of two gloo processes gives what one process gives. Opt-in, for it needs deepspeed: `make test-deepspeed`.

DeepSpeed runs on CPUs too (DS_ACCELERATOR=cpu, and it compiles an operator of its own at the first start, for minutes).
What is locked: 1) one step a window, though DeepSpeed would step after every pass; 2) ranks with other numbers of
passes; 3) the shipped file and the run folder; 4) the same of adapters; 5) a run that goes on from a checkpoint.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")

from safetensors.torch import load_file

from tests import tiny
from tests.test_distributed import data, passes  # noqa: F401  # a fixture
from tests.test_distributed_resume import resuming
from tests.test_lora import LORA, adapter
from tests.test_trainer import finished, largest_difference, settings
from vlm_dopd import run
from vlm_dopd.callbacks import read_metrics

CASE = {"data.max_pass_tokens": 150, "train.max_grad_norm": 1.0, "train.max_steps": 2, "preflight": False}
LAYOUT = {"train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 2, "train.use_cpu": False}
SAVES = {"train.max_steps": 3, "train.save_strategy": "steps", "train.save_steps": 1, "train.optim": "adamw_torch"}
SMALL = {"train.learning_rate": 0.01}


def zero2(*configs: Path) -> None:
    """Trains each on two ranks."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.gloo_ranks"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, *(f"zero:{path}" for path in configs)],
        cwd=tiny.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def given(pair, tmp_path_factory, data):  # noqa: F811
    """Where the runs are, and what all of them have in common."""
    root, common = tmp_path_factory.mktemp("zero"), {"data.train": str(data), **CASE}
    for name, own in {"full": {}, "lora": LORA, "whole": {**SAVES, **SMALL}}.items():
        settings(pair, root / name, **(common | LAYOUT | own))
    zero2(*(root / name / "config.yaml" for name in ("full", "lora", "whole")))
    return root, common


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(folder / "run" / "metrics.jsonl") if "loss" in line]


def test_zero2_equals_one_process(pair, given):
    root, common = given
    folder = root / "full" / "run"
    by_rank = passes(folder, 2)
    assert all(len(a["tokens"]) == len(b["tokens"]) for a, b in zip(*by_rank, strict=True))
    assert max(len(line["tokens"]) for line in by_rank[0]) > 1
    weights = finished(settings(pair, root / "one", **common, **{"train.per_device_train_batch_size": 8}))
    assert largest_difference(weights, load_file(folder / "model.safetensors")) < 1e-5
    (_, one), (_, zero) = (zip(*losses(root / name), strict=True) for name in ("one", "full"))
    assert zero == pytest.approx(one, rel=1e-4)
    assert [step for step, _ in losses(root / "full")] == [1, 2]


def test_adapters_equal_those_of_one_process(pair, given):
    root, common = given
    one = run.train(settings(pair, root / "one lora", **common, **LORA, **{"train.per_device_train_batch_size": 8}))
    assert largest_difference(adapter(one), adapter(root / "lora" / "run")) < 1e-5


def test_a_run_that_goes_on_ends_as_one_never_stopped(pair, given):
    """From the second of three checkpoints, in another folder: weights to the bit, and the same figures."""
    root, common = given
    settings(pair, root / "cut", **(common | LAYOUT | SAVES | SMALL))
    shutil.copytree(root / "whole" / "run", root / "cut" / "run", ignore=shutil.ignore_patterns("*-3", "model.*"))
    zero2(resuming(root / "cut"))
    ours, theirs = (load_file(root / name / "run" / "model.safetensors") for name in ("cut", "whole"))
    assert largest_difference(ours, theirs) == 0
    assert losses(root / "cut") == losses(root / "whole") and len(losses(root / "cut")) == 3
