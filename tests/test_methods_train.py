"""Every method through the real trainer on the random pair.

What is locked: 1) a step moves the student and nothing else, with a finite loss, also without p and without images;
2) it does not depend on how the window is split; 3) copies of the student that move are resumed with; 4) methods that
need what a configuration lacks say so.
"""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.test_trainer import finished, largest_difference, settings
from vlm_dopd import methods, run
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.errors import ConfigError

every_method = pytest.mark.parametrize("name", methods.available())
SPLIT = {"train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 2}


def method_settings(pair, folder, name, **overrides):
    """One step of `name`, with rewards that some responses earn."""
    options = {"method.name": name, "rollout.max_new_tokens": 6, "rollout.reward": "tests.rewarding:by_length"}
    return settings(pair, folder, **options | overrides)


@every_method
def test_a_step_is_the_windows_however_it_is_split(pair, tmp_path, name):
    """4×1 = 2×2: weights after one step of size 1 are minus the gradient. The frozen tower stays."""
    whole = finished(method_settings(pair, tmp_path / "whole", name))
    split = finished(method_settings(pair, tmp_path / "split", name, **SPLIT))
    start = load_file(pair[0] / "model.safetensors")
    moved = {key for key in start if not torch.equal(start[key], whole[key])}
    assert moved and not any("visual" in key for key in moved)
    scale = max((whole[key] - start[key]).abs().max().item() for key in start)
    assert largest_difference(whole, split) < 1e-5 * max(scale, 1)
    for folder in ("whole", "split"):
        logged = read_metrics(tmp_path / folder / "run" / "metrics.jsonl")[0]
        assert math.isfinite(logged["loss"])
        components = {f"loss/{component.name}" for component in methods.find(name)().components}
        assert components & set(logged), "at least one component has tokens"


SETTINGS = {
    "p to the student": {"method.name": "opd", "method.student_view": "privileged"},
    "p to both": {"method.name": "opd", "method.student_view": "privileged", "method.teacher_view": "privileged"},
    "tokens dropped": {"method.name": "opd", "method.drop": "highest_gap"},
    "random route": {"method.name": "dopd", "method.route": "random"},
    "two regimes": {"method.name": "dopd", "method.regimes": "[HT, LH]"},
    "gap by JS": {"method.name": "dopd_plus", "method.gap": "js"},
    "difference of gaps": {"method.name": "dopd_plus", "method.gap": "difference", "method.gap_quantile": 0.75},
    "moving average": {"method.name": "dopd_plus", "method.self_teacher": "ema", "method.softness": 0.5},
    "merged stops": {"method.name": "dopd_plus", "method.merge_stops": True, "method.gap": "js"},
    "half references": {"method.name": "gkd", "method.own_share": 0.5},
    "column of references": {"method.name": "sft", "rollout.reference": "answer"},
}


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_settings_train(pair, tmp_path, changes):
    """Views, rollouts with p, statistics, copies and mixtures of responses, and no dependence on the split."""
    whole = finished(method_settings(pair, tmp_path / "whole", "opd", **changes))
    split = finished(method_settings(pair, tmp_path / "split", "opd", **changes, **SPLIT))
    start = load_file(pair[0] / "model.safetensors")
    moved = max((whole[key] - start[key]).abs().max().item() for key in start)
    assert 0 < moved < math.inf
    assert largest_difference(whole, split) < 1e-5 * max(moved, 1)


@every_method
def test_text_only_and_without_p(text_pair, tmp_path, name):
    """The same code where there is no image and no p: a finite loss, and no error."""
    options = {"data.train": str(tiny.TEXT), "data.builder": "none"}
    config = method_settings(text_pair, tmp_path, name, **options)
    finished(config)
    assert math.isfinite(read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["loss"])


def test_merged_stops_are_those_of_both_models_everywhere(pair, tmp_path):
    """Scores, loss, copies, rollouts and thresholds take the teacher's second stop for the student's one. Where they
    are not merged a policy knows nothing of it."""
    teacher = tmp_path / "teacher"
    shutil.copytree(pair[1], teacher)
    own = json.loads((teacher / "generation_config.json").read_text())["eos_token_id"]
    (teacher / "generation_config.json").write_text(json.dumps({"eos_token_id": [own, 11]}))
    options = {"model.teacher": str(teacher), "method.self_teacher": "ema"}
    for merge, stops in ((True, (11, own)), (False, ())):
        options["method.merge_stops"] = merge
        trainer = run.build_trainer(method_settings(pair, tmp_path / str(merge), "dopd_plus", **options))
        window = trainer.window_builder
        assert trainer.student is window.policies["student"]
        assert {name: policy.merged for name, policy in window.policies.items()} == dict.fromkeys(
            ("student", "teacher", "ema"), stops
        )
        assert window.completions.engine.eos == list(stops or (own,))
        assert (11 in window.special_ids.tolist()) == merge


KEPT = {
    "sdft": ("ema.safetensors", {"method.ema_rate": 0.5}),
    "dapd": ("snapshot.safetensors", {"method.snapshot_steps": 1}),
    "dopd_plus": ("method_state.json", {"method.threshold_rate": 0.1}),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_a_method_keeps_is_resumed_with(pair, tmp_path, name):
    """Four steps in one go, and two steps twice: moving average, snapshot and thresholds go on where they were."""
    steps = {"train.max_steps": 4, "train.learning_rate": 0.05, "train.save_strategy": "steps", "train.save_steps": 2}
    kept, options = KEPT[name]
    steps |= options
    whole = finished(method_settings(pair, tmp_path / "whole", name, **steps))
    config = method_settings(pair, tmp_path / "cut", name, **steps)
    trainer = run.build_trainer(config)
    trainer.train()
    checkpoint = tmp_path / "cut" / "run" / "checkpoint-2"
    assert (checkpoint / kept).exists()
    again = run.build_trainer(config)
    again.train(resume_from_checkpoint=str(checkpoint))
    resumed = {key: value for key, value in again.model.state_dict().items() if key in whole}
    assert largest_difference({key: whole[key] for key in resumed}, resumed) == 0


def test_copies_share_what_is_not_trained(pair):
    """A copy costs the trained weights only; the tower and its features are the student's."""
    from vlm_dopd.copies import copy_of
    from vlm_dopd.roles import Policy, freeze_vision

    student = Policy(tiny.vision_model(0), 261)
    freeze_vision(student.model)
    copied = copy_of(student)
    pairs = list(zip(student.model.named_parameters(), copied.model.named_parameters(), strict=True))
    assert all((mine is other) == name.startswith("model.visual") for (name, mine), (_, other) in pairs)
    assert copied.vision is student.vision
    assert copied.model.get_output_embeddings().weight is copied.model.get_input_embeddings().weight


def test_what_a_method_lacks_is_named(pair, tmp_path):
    """A reward that does not exist, and a third model that is not given."""
    with pytest.raises(ConfigError, match="rollout.reward: expected 'answer' or package"):  # noqa: RUF043
        run.build_trainer(method_settings(pair, tmp_path / "a", "uni_opd", **{"rollout.reward": "nope"}))
    with pytest.raises(ConfigError, match=r"model\.teacher_base: expected a model, method exopd scores with it"):
        run.build_trainer(method_settings(pair, tmp_path / "b", "exopd", **{"method.reference": "teacher_base"}))
