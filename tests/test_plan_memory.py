"""The plan's memory: 1) what autograd really keeps, storage by storage; 2) measured peaks of whole runs, recorded by
`python -m tests.bench.plan --output tests/golden/plan_memory.json`, within 15 %; 3) how parts divide and grow.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tests.bench.plan import RECORDED
from tests.plan_case import case
from vlm_dopd.methods import find
from vlm_dopd.plan.job import Job, Work
from vlm_dopd.plan.memory import PHASES, activations, layer_activations, memory, peak
from vlm_dopd.plan.shapes import PUBLISHED, Shape, Text, Vision
from vlm_dopd.scoring import student_hidden

KEPT = {
    "vision": {"max_new_tokens": 60},
    "text": {"images": 0, "hidden": 128},
    "checkpointing": {"checkpointing": True, "layers": 6, "images": 0},
    "trained tower": {"freeze": False},
    "trained tower, checkpointing": {"freeze": False, "checkpointing": True},
    "one long group": {"siblings": 1, "max_new_tokens": 300, "micro": 1},
    "autocast": {"bf16": True, "images": 0, "max_new_tokens": 60},
    "several passes": {"pass_tokens": 60},
    "lora": {"lora_rank": 4, "max_new_tokens": 60},
    "lora, layers": {"lora_rank": 16, "hidden": 128, "layers": 6},
    "lora, checkpointing": {"lora_rank": 4, "checkpointing": True, "layers": 6, "images": 0},
    "lora, autocast": {"lora_rank": 4, "bf16": True, "max_new_tokens": 60, "hidden": 128},
    "lora, autocast, bfloat16": {"lora_rank": 4, "bf16": True, "base": torch.bfloat16, "layers": 6},
    "lora, bfloat16": {"lora_rank": 8, "base": torch.bfloat16, "images": 0, "max_new_tokens": 60},
    "lora, autocast, bfloat16, checkpointing": {
        "lora_rank": 4,
        "bf16": True,
        "base": torch.bfloat16,
        "checkpointing": True,
        "layers": 6,
        "max_new_tokens": 60,
    },
}


@pytest.mark.parametrize("name", KEPT)
def test_activations_are_what_autograd_keeps(name):
    made = case(**KEPT[name])
    made.model.train()
    first = made.packed()[0]
    made.policy.vision.inputs(first.images)
    own = {parameter.untyped_storage().data_ptr() for parameter in made.model.parameters()}
    kept: dict[int, int] = {}
    copies = 0.0

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=made.job.bf16),
    ):
        alive = student_hidden(made.model, made.policy, first)
    if made.job.bf16:
        copies = memory(made.job)["loss"]["autocast copies"]
    measured = sum(size for pointer, size in kept.items() if pointer not in own)
    assert activations(made.job) + copies == pytest.approx(measured, rel=0.05), alive.shape


def recorded():
    return json.loads(RECORDED.read_text(encoding="utf-8"))["shapes"] if RECORDED.exists() else []


def job_of(one):
    """The recorded run's job, made again from what the file says."""
    about, run = one["job"], one["case"]
    shapes = {}
    for name in ("student", "teacher"):
        sizes = about[name]
        shapes[name] = Shape(name, Text(**sizes["text"]), Vision(**sizes["vision"]))
    return Job(
        student=shapes["student"], frozen={"teacher": shapes["teacher"]}, method=find(run["method"])(),
        work=Work(**about["work"]), micro=run["prompts"], accumulation=run["accumulation"],
        pass_tokens=run["pass_tokens"], siblings=run["siblings"], max_new_tokens=run["response"],
        freeze_vision=run["freeze_vision"], checkpointing=run["checkpointing"], flex=False, frozen_bytes=4, cpu=True,
        lora_rank=run.get("lora_rank", 0),
    )  # fmt: skip


@pytest.mark.parametrize("one", recorded(), ids=lambda one: one["case"]["name"])
def test_recorded_peaks_within_15_percent(one):
    assert peak(job_of(one)) / 2**20 == pytest.approx(one["measured_mib"], rel=0.15)


def test_at_least_six_shapes_are_recorded():
    assert len(recorded()) >= 6


def big(**changes):
    sizes = {"student": PUBLISHED["Qwen3-VL-2B"], "frozen": {"teacher": PUBLISHED["Qwen3-VL-8B"]}}
    given = {
        "method": find("dopd")(),
        "work": Work(response_tokens=1024),
        "micro": 2,
        "accumulation": 2,
        "max_new_tokens": 1024,
    }
    return Job(**(sizes | given | {"bf16": True, "checkpointing": True} | changes))


def test_parts_of_the_real_pair_by_hand():
    """Qwen3-VL-8B -> 2B: 8,767,123,696 and 2,127,532,032 parameters, 1,720,574,976 of them trained."""
    train = memory(big())["loss"]
    assert train["student weights"] == 4 * 2_127_532_032
    assert train["teacher weights"] == 2 * 8_767_123_696
    assert train["optimizer"] == 8 * 1_720_574_976 and train["gradients"] == 4 * 1_720_574_976
    assert train["LM head's gradient"] == 4 * 151_936 * 2048
    store, own = 4 * 4 * 1024 * (2048 * 4 + 4096 * 2), 2 * 4 * 2 * 4 * 1024 * 2048
    assert train["hidden states"] == store + own
    assert train["vision features"] == 4 * 1024 * 4 * (2048 + 4096) * 2
    prompt, token = 1024 + 150, 28 * 8 * 128 * (4 + 2)
    assert memory(big())["rollout"]["KV cache"] == 4 * 4 * (prompt + 1024) * token
    assert memory(big(rollout_batch=8))["rollout"]["KV cache"] == 2 * 4 * (prompt + 1024) * token


@pytest.mark.parametrize(
    ("sharding", "weights", "gradients", "states"),
    [("none", 4, 4, 8), ("fsdp2", 0.5, 0.5, 1), ("zero2", 2, 0.25, 1.5), ("zero3", 0.25, 0.25, 1.5)],
)
def test_sharding_divides_as_its_rule_says(sharding, weights, gradients, states):
    """Bytes a parameter on each of 8 GPUs."""
    job = big(gpus=8, sharding=sharding)
    found = memory(job)["loss"]
    assert found["student weights"] == pytest.approx(weights * job.student.parameters)
    assert found["gradients"] == pytest.approx(gradients * job.trained)
    assert found["optimizer"] == pytest.approx(states * job.trained)
    assert ("DDP buckets" in found) == (sharding == "none")
    assert ("gathered weights" in found) == (sharding in ("fsdp2", "zero3"))
    assert found["teacher weights"] == 2 * job.frozen["teacher"].parameters


def test_lora_trains_little():
    full, lora = memory(big())["loss"], memory(big(lora_rank=16))["loss"]
    rank = 28 * 16 * (3 * (2048 + 6144) + 2 * (2048 + 2048) + 2 * (2048 + 1024))
    assert lora["optimizer"] == 8 * rank and lora["gradients"] == 4 * rank
    assert lora["student weights"] == full["student weights"] + 4 * rank
    assert not lora["LM head's gradient"] and not memory(big(lora_rank=16))["rollout"]["autocast copies"]


def test_copies_of_the_student_cost_what_is_trained():
    ema = big(method=find("sdft")())
    names = [name for name in memory(ema)["update"] if name.endswith(" copy")]
    assert names and all(memory(ema)["update"][name] == 4 * ema.trained for name in names)


def test_memory_grows_with_what_is_asked_for():
    base = big()
    for more in (
        {"micro": 4}, {"accumulation": 8}, {"max_new_tokens": 2048}, {"siblings": 8}, {"checkpointing": False},
        {"work": Work(image_tokens=4096, response_tokens=1024)}, 
        {"frozen": base.frozen | {"teacher_base": PUBLISHED["Qwen3-VL-8B"]}},
        {"freeze_vision": False}, {"frozen_bytes": 4}, {"flex": False},
    ):  # fmt: skip
        larger = dataclasses.replace(base, **more)
        assert sum(sum(memory(larger)[phase].values()) for phase in PHASES) > sum(
            sum(memory(base)[phase].values()) for phase in PHASES
        ), more
    assert layer_activations(base.student.text, base) < layer_activations(
        base.student.text, dataclasses.replace(base, bf16=False)
    )


def test_models_of_one_shape_are_still_two():
    """A teacher as large as the student has weights, dtype and features of its own; a copy sees with the student."""
    same = PUBLISHED["Qwen3-VL-2B"]
    pair = memory(big(student=same, frozen={"teacher": same}))["loss"]
    assert (
        pair["vision features"] == 2 * memory(big(student=same, frozen={"teacher": same}))["rollout"]["vision features"]
    )
    assert pair["teacher weights"] == 2 * same.parameters and pair["student weights"] == 4 * same.parameters
    copied = big(method=find("sdft")())
    assert copied.seeing(copied.method.roles) == ("student",)
    trained = dataclasses.replace(copied, freeze_vision=False)
    assert len(trained.seeing(trained.method.roles)) == 2


def test_a_pass_is_no_fuller_than_its_budget():
    """Prompts beyond what a pass holds cost store and features, not activations."""
    few, many = big(pass_tokens=5300), big(pass_tokens=5300, micro=8)
    assert activations(few) == activations(many)
    own = 2 * 4 * 4 * 1024 * 2048
    assert memory(many)["loss"]["hidden states"] - own == 4 * (memory(few)["loss"]["hidden states"] - own)


def test_nothing_is_negative_and_text_has_no_eyes():
    text = big(student=PUBLISHED["Qwen3-1.7B"], frozen={"teacher": PUBLISHED["Qwen3-8B"]})
    for phase in PHASES:
        assert all(size >= 0 for size in memory(text)[phase].values())
        assert not memory(text)[phase].get("vision features")


def test_recorded_file_names_its_machine():
    assert {"cpu", "torch", "transformers"} <= set(json.loads(Path(RECORDED).read_text())["machine"])
