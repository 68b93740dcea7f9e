"""The step of ARCHITECTURE.md on `transformers.Trainer`: layout of the batch, ranks and restarts do not matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from tests import tiny
from vlm_dopd import run
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.config import RunConfig, load_config
from vlm_dopd.errors import ConfigError, TrainingError

GOLDEN = Path(__file__).parent / "golden" / "five_steps.json"


def settings(pair, folder: Path, **overrides) -> RunConfig:
    """A run of the random pair: SGD with learning rate 1, so that one step moves the weights by minus the gradient."""
    values = {
        "model": {"student": str(pair[0]), "teacher": str(pair[1]), "teacher_dtype": "float32"},
        "data": {"train": str(tiny.SCENES), "max_prompt_tokens": 1024},
        "rollout": {"siblings": 2, "max_new_tokens": 8},
        "train": {
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "optim": "sgd",
            "learning_rate": 1.0,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 3,
        },
        "output_dir": str(folder / "run"),
    }
    words = [f"{key}={value}" for key, value in overrides.items()]
    path = folder / "config.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(OmegaConf.to_yaml(OmegaConf.merge(values, OmegaConf.from_dotlist(words))))
    return load_config(path)


def finished(config: RunConfig) -> dict[str, torch.Tensor]:
    return load_file(run.train(config) / "model.safetensors")


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def four_by_one(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("4x1")
    return finished(settings(pair, folder)), read_metrics(folder / "run" / "metrics.jsonl")[0]


@pytest.mark.parametrize("method", ["dopd", "opd"])
@pytest.mark.parametrize("batch, accumulation", [(1, 4), (2, 2)])
def test_gradient_does_not_depend_on_the_micro_batch(pair, tmp_path, four_by_one, method, batch, accumulation):
    """4×1 = 1×4 = 2×2: same rollouts, same thresholds, same denominator, so the same gradient and log."""
    name = {"method.name": method}
    layout = {"train.per_device_train_batch_size": batch, "train.gradient_accumulation_steps": accumulation}
    other = finished(settings(pair, tmp_path / "split", **name, **layout))
    whole = four_by_one[0] if method == "dopd" else finished(settings(pair, tmp_path / "whole", **name))
    start = load_file(pair[0] / "model.safetensors")
    assert largest_difference(whole, start) > 1e-3
    assert largest_difference(whole, other) < 1e-6
    if method == "dopd":
        logged = read_metrics(tmp_path / "split" / "run" / "metrics.jsonl")[0]
        for key, value in four_by_one[1].items():
            if not key.startswith(("time/", "memory/")) and key not in ("epoch", "data/padding"):
                assert logged[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize(
    "layout",
    [
        {"data.max_pass_tokens": 150},
        {"train.gradient_checkpointing": True},
        {"train.dataloader_num_workers": 1, "train.dataloader_prefetch_factor": 2},
        {"rollout.batch_size": 2},
    ],
    ids=["small passes", "checkpointing", "workers", "small rollouts"],
)
def test_what_saves_memory_or_time_changes_nothing(pair, tmp_path, four_by_one, layout):
    """Passes of one group, activations computed twice, prompts made by workers, rollouts by twos: one gradient."""
    assert largest_difference(finished(settings(pair, tmp_path, **layout)), four_by_one[0]) < 1e-6


def test_bfloat16_autocast_keeps_weights_and_loss_in_float32(pair, tmp_path, four_by_one):
    """The step points where that of float32 does; some sampled tokens differ, so it is not the same step."""
    config = settings(pair, tmp_path, **{"train.bf16": True})
    after, start = finished(config), load_file(pair[0] / "model.safetensors")
    assert all(weights.dtype == torch.float32 for weights in after.values())
    ours, theirs = (torch.cat([(w[n] - start[n]).flatten() for n in start]) for w in (after, four_by_one[0]))
    assert 0.8 < torch.cosine_similarity(ours, theirs, dim=0) < 1


def test_two_processes_equal_one(pair, tmp_path, four_by_one):
    """Two gloo ranks of two groups each: thresholds and denominator are those of all four groups."""
    config = settings(pair, tmp_path, **{"train.per_device_train_batch_size": 2, "train.ddp_backend": "gloo"})
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vlm_dopd"]
    done = subprocess.run(
        [*launch, "train", str(tmp_path / "config.yaml")],
        cwd=tiny.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert largest_difference(four_by_one[0], load_file(Path(config.output_dir) / "model.safetensors")) < 1e-6
    logged = read_metrics(Path(config.output_dir) / "metrics.jsonl")[0]
    for key in ("share/LH", "gap/mean", "loss/HT", "entropy/student", "rollout/tokens", "loss"):
        assert logged[key] == pytest.approx(four_by_one[1][key], rel=1e-4), key


def test_only_the_student_learns_and_its_frozen_tower_does_not(pair, tmp_path, four_by_one):
    start = load_file(pair[0] / "model.safetensors")
    moved = {name for name in start if not torch.equal(start[name], four_by_one[0][name])}
    assert moved and not any("visual" in name for name in moved)
    trained_tower = finished(settings(pair, tmp_path, **{"model.freeze_vision": False}))
    assert any("visual" in name and not torch.equal(start[name], trained_tower[name]) for name in start)


def test_no_p_anywhere_is_vanilla_opd(pair, tmp_path):
    """With the builder `none` every row falls back: DOPD's gradient is OPD's, and no threshold is taken."""
    dopd = finished(settings(pair, tmp_path / "dopd", **{"data.builder": "none"}))
    opd = finished(settings(pair, tmp_path / "opd", **{"data.builder": "none", "method.name": "opd"}))
    assert largest_difference(dopd, opd) == 0
    logged = read_metrics(tmp_path / "dopd" / "run" / "metrics.jsonl")[0]
    assert logged["share/NP"] == 1 and "gap/mean" not in logged


def test_teacher_equal_to_student_without_p_gives_zero_loss(pair, tmp_path):
    """The smoke test of every distillation code: equal policies on equal prompts have nothing to teach."""
    twin = tmp_path / "twin"
    twin.mkdir()
    for file in pair[0].iterdir():
        (twin / file.name).write_bytes(file.read_bytes())
    after = finished(settings(pair, tmp_path, **{"model.teacher": twin, "data.builder": "none"}))
    assert largest_difference(after, load_file(pair[0] / "model.safetensors")) < 1e-6
    assert abs(read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["loss"]) < 1e-6


def stopped(trainer, message: str) -> None:
    """Training raises TrainingError with `message`, and the student is as it was."""
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(TrainingError, match=message):
        trainer.train()
    assert largest_difference(trainer.model.state_dict(), start) == 0


def test_non_finite_scores_stop_before_the_optimizer(pair, tmp_path):
    """A NaN compares as False, so a broken teacher would go to LL, whose loss is finite: caught when scored."""
    trainer = run.build_trainer(settings(pair, tmp_path))
    teacher = trainer.window_builder.policies["teacher"].model
    teacher.get_output_embeddings().weight.data[5, 0] = float("nan")
    stopped(trainer, r"teacher in the privileged view: expected finite log-probabilities, got")


def test_non_finite_loss_stops_before_the_optimizer(pair, tmp_path):
    """Every score is finite, the pass with gradient is not."""
    trainer = run.build_trainer(settings(pair, tmp_path))

    def spoil(module, inputs, output):
        return output * float("nan") if torch.is_grad_enabled() else output

    trainer.model.base_model.language_model.norm.register_forward_hook(spoil)
    stopped(trainer, r"step 1: expected a finite loss, got nan")


def test_non_finite_gradient_stops_before_the_optimizer(pair, tmp_path):
    """The loss is finite but a gradient is not."""
    trainer = run.build_trainer(settings(pair, tmp_path))
    trainer.model.base_model.language_model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    stopped(trainer, r"step 1: expected a finite gradient")


def test_a_builder_that_finds_nothing_is_told_once(pair, tmp_path, caplog):
    """Hints on rows that hold boxes: the run goes on as vanilla OPD, and says so."""
    finished(settings(pair, tmp_path, **{"data.builder": "hints", "train.max_steps": 2}))
    assert caplog.text.count("no sample of this window has p") == 1


def test_text_only_samples_train_with_the_same_command(pair, text_pair, tmp_path):
    """Hints as p, no image anywhere; the vision-language pair and a text-only Qwen3 pair alike."""
    text = {"data.train": tiny.TEXT, "data.builder": "hints"}
    after = finished(settings(pair, tmp_path / "vl", **text))
    assert largest_difference(after, load_file(pair[0] / "model.safetensors")) > 1e-3
    after = finished(settings(text_pair, tmp_path / "text", **text))
    assert largest_difference(after, load_file(text_pair[0] / "model.safetensors")) > 1e-3
    assert read_metrics(tmp_path / "text" / "run" / "metrics.jsonl")[0]["share/NP"] == 0


def test_prompts_over_budget_fall_back_or_go_and_are_counted(pair, tmp_path, caplog):
    """p is never truncated: a privileged prompt over budget means no p; a plain one means no sample."""
    folder = tmp_path / "some"
    finished(settings(pair, folder, **{"data.max_prompt_tokens": 100, "train.per_device_train_batch_size": 8}))
    logged = read_metrics(folder / "run" / "metrics.jsonl")[0]
    assert logged["data/without_privilege"] > 0 and logged["share/NP"] > 0
    assert "trained without p" in caplog.text
    with pytest.raises(Exception, match=r"nothing is left to train on with data\.max_prompt_tokens=5"):
        finished(settings(pair, tmp_path / "none", **{"data.max_prompt_tokens": 5, "preflight": False}))


def test_five_steps_match_golden_numbers(pair, tmp_path):
    """Locked: loss, regime shares and gap of five seeded AdamW steps. A refactor leaves them alone; new assets do not.

    Do not refresh them without a decision: delete the file, run this test once, say in the commit why they moved.
    """
    words = {
        "train.max_steps": 5,
        "train.optim": "adamw_torch",
        "train.learning_rate": 1e-3,
        "train.max_grad_norm": 1.0,
    }
    finished(settings(pair, tmp_path, **words))
    keys = ("loss", "grad_norm", "share/LH", "share/LL", "share/HT", "share/HS", "gap/mean", "entropy/student")
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    ours = [{key: line[key] for key in keys} for line in lines]
    if not GOLDEN.exists():
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(ours, indent=1) + "\n")
        pytest.fail(f"{GOLDEN.name} was missing and has been written: look at it and commit it")
    for step, (mine, golden) in enumerate(zip(ours, json.loads(GOLDEN.read_text()), strict=True), start=1):
        assert mine == pytest.approx(golden, rel=1e-3, abs=1e-5), f"step {step}"


def test_a_folder_with_a_run_is_not_overwritten(pair, tmp_path):
    config = settings(pair, tmp_path, **{"train.save_strategy": "steps", "train.save_steps": 1})
    run.train(config)
    with pytest.raises(ConfigError, match="resume=true"):
        run.train(config)
