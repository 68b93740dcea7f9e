"""`python -m tests.bench.plan`: the plan's memory against measured peaks, one child process a shape.

A child builds the trainer as a user's configuration does, on a small pair with random weights, and makes two steps.
Measured is the peak of resident memory (VmHWM) above what was resident once models were loaded, plus the weights,
whose size is known exactly; so the interpreter, its libraries and the tokenizer are not in it. glibc is told to give
freed tensors back at once, as CUDA's allocator would reuse them. `--output` keeps the figures that
`tests/test_plan_memory.py` holds the model to.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench.measure import machine, table

MIB = 2**20
STEPS = 2
"""From the second on, the optimizer's states are there."""
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
RECORDED = Path(__file__).resolve().parent.parent / "golden" / "plan_memory.json"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A pair (see `tests.bench.pair`), its pictures, and a run."""

    name: str
    hidden: int = 256
    layers: int = 6
    tied: bool = True
    vision_hidden: int = 128
    vocabulary: int = 16_384
    side: int = 448
    method: str = "opd"
    prompts: int = 2
    accumulation: int = 1
    siblings: int = 4
    response: int = 96
    pass_tokens: int = 16_384
    checkpointing: bool = False
    freeze_vision: bool = True
    lora_rank: int = 0


CASES = (
    Case(name="small", response=64),
    Case(name="large vocabulary", vocabulary=151_936, hidden=128, layers=2, response=32, prompts=1),
    Case(name="untied, dopd", tied=False, method="dopd", vocabulary=32_768, layers=4, response=48),
    Case(name="checkpointing", checkpointing=True, layers=8),
    Case(name="large images", side=896, prompts=1, siblings=2, response=32, vision_hidden=256, layers=4),
    Case(name="long responses", response=160, prompts=1, side=224, layers=4),
    Case(name="accumulation, passes", accumulation=2, pass_tokens=600, response=40, side=224, layers=4),
    Case(name="trained tower", freeze_vision=False, vision_hidden=192, layers=4, response=32),
    Case(name="a copy of the student", method="sdft", layers=4, response=32),
    Case(name="lora", lora_rank=16),
    Case(name="lora, copies, checkpointing", lora_rank=16, method="sdft", checkpointing=True, layers=8, tied=False),
)


def measure(case: Case) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.plan", "--child", json.dumps(asdict(case))]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | MALLOC)
    return json.loads(run.stdout.splitlines()[-1])


def child(case: Case) -> dict[str, Any]:
    from tests.bench import pair
    from vlm_dopd.plan.memory import memory

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tower = pair.Tower(
            hidden=case.hidden,
            layers=case.layers,
            vision_hidden=case.vision_hidden,
            vision_layers=4,
            tied=case.tied,
        )
        teacher = replace(tower, hidden=case.hidden + 128, tied=False)
        pair.save_pair(folder, pair.Size(student=tower, teacher=teacher, vocabulary=case.vocabulary))
        data = pair.save_questions(folder / "data", [(case.side, case.side)] * 8)
        trainer = build(case, folder, data)
        job = describe(case, trainer)
        models = [policy.model for policy in trainer.window_builder.policies.values()]
        weights = sum({id(p): p.numel() * 4 for model in models for p in touched(model)}.values())
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        loaded = resident("VmRSS")
        trainer.train()
        rise = resident("VmHWM") - loaded
    planned = {phase: sum(parts.values()) for phase, parts in memory(job).items()}
    return {
        "case": asdict(case),
        "job": facts(job),
        "measured_mib": (rise + weights) / MIB,
        "rise_mib": rise / MIB,
        "weights_mib": weights / MIB,
        "planned_mib": {phase: size / MIB for phase, size in planned.items()},
    }


def build(case: Case, folder: Path, data: Path) -> Any:
    from omegaconf import OmegaConf

    from tests.bench.step import Spec, train_settings
    from vlm_dopd import run
    from vlm_dopd.config import load_config

    settings = train_settings(Spec(folder=str(folder), data=str(data)))
    values = {
        "model": {
            "student": f"{folder}/student",
            "teacher": f"{folder}/teacher",
            "teacher_dtype": "float32",
            "freeze_vision": case.freeze_vision,
            "lora": {"r": case.lora_rank, "dtype": "float32"} if case.lora_rank else None,
        },
        "data": {
            "train": str(data),
            "builder": "boxes",
            "max_prompt_tokens": 8192,
            "max_pass_tokens": case.pass_tokens,
        },
        "rollout": {"siblings": case.siblings, "max_new_tokens": case.response},
        "method": {"name": case.method},
        "train": settings
        | {
            "max_steps": STEPS,
            "per_device_train_batch_size": case.prompts,
            "gradient_accumulation_steps": case.accumulation,
            "gradient_checkpointing": case.checkpointing,
        },
        "output_dir": str(folder / "run"),
    }
    OmegaConf.save(OmegaConf.create(values), folder / "bench.yaml")
    return run.build_trainer(load_config(folder / "bench.yaml"))


def describe(case: Case, trainer: Any) -> Any:
    """The job as `vlm-dopd plan` would have it, told what the data really look like."""
    from vlm_dopd.plan.job import Job, Work
    from vlm_dopd.plan.shapes import shape_of

    policies = trainer.window_builder.policies
    group = trainer.data_collator([trainer.train_dataset[0]]).groups[0]
    image_tokens = int(group.plain.type_P.sum())
    work = Work(
        text_tokens=group.plain.id_P.numel() - image_tokens,
        image_tokens=image_tokens,
        images=1,
        privileged_tokens=group.privileged.id_P.numel() - group.plain.id_P.numel(),
        response_tokens=case.response,
    )
    return Job(
        student=shape_of(policies["student"].model.config, "student"),
        frozen={"teacher": shape_of(policies["teacher"].model.config, "teacher")},
        method=trainer.window_builder.method,
        work=work,
        micro=case.prompts,
        accumulation=case.accumulation,
        pass_tokens=case.pass_tokens,
        siblings=case.siblings,
        max_new_tokens=case.response,
        freeze_vision=case.freeze_vision,
        checkpointing=case.checkpointing,
        flex=False,
        frozen_bytes=4,
        lora_rank=case.lora_rank,
        cpu=True,
    )


def facts(job: Any) -> dict[str, Any]:
    """What a job of a recorded figure is made of again, without the models."""
    return {
        "student": asdict(job.student),
        "teacher": asdict(job.frozen["teacher"]),
        "work": asdict(job.work),
    }


def touched(model: Any) -> list[Any]:
    """A checkpoint is mapped, not read: its pages become resident when touched."""
    for parameter in model.parameters():
        parameter.detach().sum()
    return list(model.parameters())


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def rows(results: list[dict[str, Any]]) -> str:
    found = []
    for one in results:
        phase, planned = max(one["planned_mib"].items(), key=lambda pair: pair[1])
        measured = one["measured_mib"]
        rise = (planned - one["weights_mib"]) / one["rise_mib"] - 1
        found.append(
            [one["case"]["name"], f"{measured:,.0f}", f"{planned:,.0f}", f"{planned / measured - 1:+.1%}", phase,
             f"{rise:+.1%}"]
        )  # fmt: skip
    header = ["shape", "measured, MiB", "planned, MiB", "difference", "fullest phase", "without the weights"]
    return table(header, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="SHAPE", help=", ".join(case.name for case in CASES))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=f"where to keep the figures, for example {RECORDED.name}")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(Case(**json.loads(arguments.child)))))
        return
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    results = []
    for case in CASES:
        if not arguments.names or case.name in arguments.names:
            results.append(measure(case))
            print(rows(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps({"machine": machine(), "shapes": results}, indent=1) + "\n")
    print(rows(results))


if __name__ == "__main__":
    main()
