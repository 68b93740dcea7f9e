"""One rank of two is killed while it saves. The others end, and the resumed run ends as one that nobody killed.

What is locked, under DDP and under FSDP2 with a sharded teacher and a sharded moving average: 1) a checkpoint of which
one rank did not write its part does not count, on any rank; 2) weights, optimizer, moving average, thresholds, random
numbers and order of the data go on where they were: the end is the same to the bit; 3) so it is when nothing is left
to do but the last save; 4) what lies in the run folder and its checkpoints loads with plain transformers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests import tiny
from tests.test_resume import ADAM
from tests.test_trainer import settings
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.run import last_checkpoint

METHOD = {
    "method.name": "dopd_plus",
    "method.self_teacher": "ema",
    "method.ema_rate": 0.5,
    "method.threshold_rate": 0.1,
    "data.max_pass_tokens": 150,
    "preflight": False,
}
MEASURED = ("time/", "memory/")
"""Metrics that no two runs have alike."""
OWN = {"ddp": {}, "fsdp": {"model.teacher_load": "sharded", "train.use_cpu": False}}
ENGINES = list(OWN)


def launch(*jobs: str, die: str = "") -> subprocess.CompletedProcess:
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.gloo_ranks", *jobs]
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tiny.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DIE": die},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def resuming(folder: Path) -> Path:
    """The same run with resume=true."""
    path = folder / "resume.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.load(folder / "config.yaml"), {"resume": True})))
    return path


@pytest.fixture(scope="module")
def runs(pair, tmp_path_factory) -> Path:
    """By engine, `whole/run` and `cut/run`. When all is done the whole one is resumed once more, with nothing to do."""
    root = tmp_path_factory.mktemp("resume")
    jobs = []
    for engine in ENGINES:
        for name in ("whole", "cut"):
            settings(pair, root / engine / name, **ADAM, **METHOD, **OWN[engine])
        cut = root / engine / "cut" / "config.yaml"
        died = launch(f"{engine}:{cut}", die="1:4")
        assert died.returncode != 0 and "SIGKILL" in died.stderr
        checkpoint = last_checkpoint(cut.parent / "run")
        assert checkpoint is not None and checkpoint.name == "checkpoint-2", died.stderr[-3000:]
        assert (cut.parent / "run" / "checkpoint-4").exists()
        whole = root / engine / "whole"
        jobs += [f"{engine}:{config}" for config in (whole / "config.yaml", resuming(cut.parent), resuming(whole))]
    done = launch(*jobs)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_rank_costs_nothing(runs, engine):
    """Weights to the bit, and every figure of every step."""
    whole, cut = (runs / engine / name / "run" for name in ("whole", "cut"))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (cut, whole))
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in theirs)
    lines = [[line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line] for folder in (cut, whole)]
    assert [line["step"] for line in lines[0]] == [1, 2, 3, 4, 5, 6]
    for mine, other in zip(*lines, strict=True):
        mine, other = ({k: v for k, v in of.items() if not k.startswith(MEASURED)} for of in (mine, other))
        assert mine == other


@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_has_all_parts(runs, engine):
    """Of both ranks; and the moving average is whole, though each of them held a part."""
    checkpoint = runs / engine / "whole" / "run" / "checkpoint-6"
    names = {path.name for path in checkpoint.iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "ema.safetensors", "method_state.json", "trainer_state.json"} <= names
    start = load_file(runs / engine / "whole" / "run" / "model.safetensors")
    trained = sorted(tuple(w.shape) for name, w in start.items() if "visual" not in name)
    assert sorted(tuple(w.shape) for w in load_file(checkpoint / "ema.safetensors").values()) == trained


@pytest.mark.parametrize("engine", ENGINES)
def test_folders_load_with_plain_transformers(runs, engine):
    for folder in (runs / engine / "cut" / "run", runs / engine / "cut" / "run" / "checkpoint-6"):
        model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert model.lm_head.weight is model.get_input_embeddings().weight
