"""A gloo rank of `test_distributed*.py`: trains each `engine:config.yaml` it is given, one after another.

    torchrun --nproc-per-node 2 -m tests.gloo_ranks ddp:a.yaml fsdp:b.yaml
    python -m tests.gloo_ranks 4 ddp:a.yaml        starts the ranks itself: all share one import

What each rank was given is in `passes-RANK.jsonl` of the run folder: a line a micro-batch. DIE=RANK:STEP in the
environment has that rank killed when it begins to save its part of the checkpoint of that step.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType

from tests.test_recipes import environment
from vlm_dopd import run, scoring
from vlm_dopd.config import load_config
from vlm_dopd.trainer import DopdTrainer

FILES = {"fsdp": "fsdp2", "zero": "zero2"}
"""The shipped accelerate files of the engines but DDP."""
PREPARE = PartialState._prepare_backend
STEP = DopdTrainer.training_step
SAVE = DopdTrainer._save_rng_state
MOST = scoring.most
SCORED: list[int] = []
"""Passes of each scoring of a sharded model since the last line."""


def pretend_gpus(yes: bool) -> None:
    """accelerate takes FSDP2 and DeepSpeed for GPUs only. Told that these processes have one each, it wraps, shards and
    reduces as it would there; every collective is real, over gloo."""
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    PartialState._prepare_backend = PREPARE
    if yes:
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)


def noted_most(count, device):
    SCORED.append(count)
    return MOST(count, device)


def noted_step(self, model, inputs, num_items_in_batch=None):
    passes = inputs["passes"]
    tokens = [batch.packed.inputs["input_ids"].numel() for batch in passes]
    images = [len(batch.packed.images) for batch in passes]
    line = {"step": self.state.global_step, "tokens": tokens, "images": images, "scored": list(SCORED)}
    SCORED.clear()
    with (Path(self.args.output_dir) / f"passes-{self.args.process_index}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return STEP(self, model, inputs, num_items_in_batch)


def fatal_save(self, output_dir):
    if os.environ.get("DIE") == f"{self.args.process_index}:{self.state.global_step}":
        os.kill(os.getpid(), signal.SIGKILL)
    SAVE(self, output_dir)


def train(engine: str, path: str) -> None:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    before = dict(os.environ)
    config = load_config(path)
    pretend_gpus(engine != "ddp")
    if engine != "ddp":
        with environment(FILES[engine]):  # as `accelerate launch` reads it
            shipped = {key: value for key, value in os.environ.items() if key not in before}
        os.environ.update({key: value for key, value in shipped.items() if "FSDP" in key or "DEEPSPEED" in key})
        os.environ["ACCELERATE_GRADIENT_CLIPPING"] = "1.0"
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if config.train.get("bf16") else "no"
    run.train(config)
    for key in set(os.environ) - set(before):
        del os.environ[key]


def main(jobs: list[str]) -> None:
    torch.set_num_threads(1)
    DopdTrainer.training_step, DopdTrainer._save_rng_state = noted_step, fatal_save
    scoring.most = noted_most
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=600))
    for job in jobs:
        train(*job.split(":", 1))
    torch.distributed.destroy_process_group()


def start(rank: int, size: int, port: int, jobs: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    main(jobs)


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        size = int(sys.argv[1])
        torch.multiprocessing.start_processes(start, (size, port, sys.argv[2:]), nprocs=size, start_method="fork")
    else:
        main(sys.argv[1:])
