"""`vlm-dopd plan` under LoRA and QLoRA and with teachers that are not whole on the GPU: bytes, seconds, settings read.

Formulas are held to real weights where there are any (bitsandbytes works on a CPU), and to sums by hand elsewhere;
what autograd keeps and measured peaks of LoRA runs stand in `test_plan_memory.py`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import tiny
from tests.test_lora import storages
from tests.test_plan import H100, RECIPES, job
from tests.test_plan_memory import big
from vlm_dopd.errors import ConfigError
from vlm_dopd.lora import LoraConfig, add_adapter
from vlm_dopd.methods import find
from vlm_dopd.plan import read_job, suggest
from vlm_dopd.plan.memory import held_bytes, memory, peak
from vlm_dopd.plan.shapes import PUBLISHED, shape_of
from vlm_dopd.plan.table import describe
from vlm_dopd.plan.times import HOST_LINK, times
from vlm_dopd.roles import load_policy

TEACHER, STUDENT = PUBLISHED["Qwen3-VL-8B"], PUBLISHED["Qwen3-VL-2B"]
MATRICES = 36 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 12288)


def loaded(tmp_path, held, hidden=256):
    """A small model as it really lies in memory."""
    tiny.vision_model(1, hidden=hidden, layers=3, tied=False).save_pretrained(tmp_path)
    return load_policy(str(tmp_path), tiny.processor().tokenizer, held=held).model


@pytest.mark.parametrize("held", ["full", "int8", "nf4", "offload"])
def test_bytes_of_weights_are_those_of_real_ones(tmp_path, held):
    """Offloaded layers are nowhere between passes, planned is one; quantised ones have a few numbers a row more."""
    model = loaded(tmp_path, held)
    real = sum(storages(model).values()) - sum(b.nbytes for b in model.buffers())
    if held == "int8":  # the scale of each row, which `storages` knows nothing of
        real += sum(
            m.weight.SCB.nbytes
            for m in model.modules()
            if getattr(m.weight if hasattr(m, "weight") else None, "SCB", None) is not None
        )
    shape = shape_of(model.config, "model")
    one = 4 * shape.text.layer_products if held == "offload" else 0
    assert held_bytes(shape, 4, held) == pytest.approx(real + one, rel=0.02)


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_adapters_have_the_parameters_that_peft_makes(kind):
    model = tiny.vision_model(1, layers=3) if kind == "vision" else tiny.text_model(1)
    shape = shape_of(model.config, "model")
    for rank in (1, 16):
        model = tiny.vision_model(1, layers=3) if kind == "vision" else tiny.text_model(1)
        assert shape.text.lora_parameters(rank) == add_adapter(model, LoraConfig(r=rank))


def test_parts_of_a_qlora_run_by_hand():
    """2B in nf4 with adapters of rank 16, 8B in nf4: what fits on a small card."""
    rank = STUDENT.text.lora_parameters(16)
    own = 28 * 2048 * (2 * 2048 + 2 * 1024 + 3 * 6144)
    parts = memory(big(lora_rank=16, base_bytes=2, base_held="nf4", frozen_held="nf4"))["loss"]
    assert parts["student weights"] == 0.5625 * own + 2 * (STUDENT.parameters - own) + 4 * rank
    assert parts["teacher weights"] == 0.5625 * MATRICES + 2 * (TEACHER.parameters - MATRICES)
    assert (parts["optimizer"], parts["gradients"], parts["LM head's gradient"]) == (8 * rank, 4 * rank, 0)
    whole = memory(big(lora_rank=16, base_bytes=2))["loss"]
    assert whole["student weights"] == 2 * STUDENT.parameters + 4 * rank


@pytest.mark.parametrize(("held", "matrices"), [("full", 2), ("int8", 1), ("nf4", 0.5625), ("offload", 2 / 36)])
def test_a_teachers_matrices_cost_what_its_form_costs(held, matrices):
    """Bytes a weight; embedding, LM head and tower are whole in each."""
    found = memory(big(frozen_held=held))["score"]["teacher weights"]
    assert found == pytest.approx(matrices * MATRICES + 2 * (TEACHER.parameters - MATRICES))


def test_a_sharded_teacher_is_divided_over_gpus():
    """Its layers; two whole ones are there at a time, and with one GPU all of them."""
    alone, eight = (memory(big(frozen_held="sharded", gpus=n))["score"]["teacher weights"] for n in (1, 8))
    assert alone == 2 * TEACHER.parameters
    assert eight == pytest.approx(2 * (1 / 8 + 2 / 36) * MATRICES + 2 * (TEACHER.parameters - MATRICES))
    slow, fast = (
        times(big(frozen_held=held, gpus=8), H100)["score teacher, privileged"] for held in ("sharded", "full")
    )
    assert slow - fast == pytest.approx(2 * 2 * MATRICES * 7 / 8 / (H100.link * 0.7 * 1e9))
    assert "teacher sharded" in describe(job("model.teacher_load=sharded"))


def test_copies_under_lora_are_adapters_and_initial_is_none():
    ema, initial = (memory(big(lora_rank=16, method=find(name)()))["loss"] for name in ("sdft", "exopd"))
    assert ema["ema copy"] == 4 * STUDENT.text.lora_parameters(16) and initial["initial copy"] == 0
    assert memory(big(method=find("exopd")()))["loss"]["initial copy"] > 0


def test_a_smaller_form_needs_less_and_an_offloaded_teacher_takes_longer():
    lora = big(lora_rank=16)
    forms = [lora, replace(lora, base_bytes=2), replace(lora, base_bytes=2, base_held="nf4")]
    assert peak(big()) > peak(forms[0]) > peak(forms[1]) > peak(forms[2])
    for checkpointing in (False, True):
        frozen = [
            peak(big(frozen_held=held, checkpointing=checkpointing)) for held in ("full", "int8", "nf4", "offload")
        ]
        assert frozen == sorted(frozen, reverse=True) and len(set(frozen)) == 4
    slow, fast = (times(big(frozen_held=held), H100)["score teacher, privileged"] for held in ("offload", "full"))
    assert slow - fast == pytest.approx(2 * 2 * MATRICES / (HOST_LINK * 1e9))
    assert times(forms[1], H100)["loss"] < times(forms[0], H100)["loss"]


def test_autocasts_forms_of_frozen_float32_matrices_wait_for_the_backward():
    """Not with checkpointing, which makes them again, nor beside a bfloat16 base."""
    plain = big(lora_rank=16, checkpointing=False)
    size = 2 * (28 * STUDENT.text.layer_products + STUDENT.text.head)
    assert memory(plain)["loss"]["autocast copies"] == size
    for other in ({"base_bytes": 2}, {"checkpointing": True}, {"bf16": False}):
        assert memory(replace(plain, **other))["loss"]["autocast copies"] == 0


def test_settings_of_a_run_are_read():
    full = job()
    assert (full.lora_rank, full.base_bytes, full.base_held, full.frozen_held) == (0, 4, "full", "full")
    lora = job("model.lora.r=8")
    assert (lora.lora_rank, lora.base_bytes, lora.base_held) == (8, 2, "full")
    own = job("model.lora.dtype=float32", "model.lora.quantize=nf4", "model.teacher_load=int8")
    assert (own.lora_rank, own.base_bytes, own.base_held, own.frozen_held) == (16, 4, "nf4", "int8")
    assert job("model.lora.r=8", lora_rank=64).lora_rank == 64
    assert (job(lora_rank=64).lora_rank, job(lora_rank=64).base_bytes) == (64, 2)
    with pytest.raises(ConfigError, match=r"model\.teacher_load"):
        job("model.teacher_load=int4")


def test_a_plan_says_what_is_trained_and_how_weights_lie():
    assert "LoRA" not in describe(job()) and "teacher" not in describe(job())
    said = describe(job("model.lora.r=8", "model.lora.quantize=nf4", "model.teacher_load=offload"))
    assert "LoRA of rank 8 beside nf4 weights" in said and "teacher offloaded" in said
    assert "LoRA of rank 8 beside bfloat16 weights" in describe(job("model.lora.r=8"))
    assert "teacher in int8" in describe(job("model.teacher_load=int8"))


def test_four_bit_students_are_suggested_whole_on_each_gpu():
    """bitsandbytes' matrices and sharding do not go together here."""
    made = job("model.lora.quantize=nf4", gpus=8, sharding="none")
    found = suggest(made, H100)
    assert found is not None and found.job.sharding == "none"
    tight = replace(made, frozen={"teacher": replace(TEACHER, text=replace(TEACHER.text, layers=400))})
    assert suggest(tight, H100) is None


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem.endswith("_lora")], ids=lambda path: path.stem)
def test_lora_recipes_fit_one_gpu_where_full_training_needs_more(path):
    asked = {"work": {}, "gpus": 1, "batch": 64}
    lora = suggest(read_job(path, ["data.train=x"], **asked), H100)
    assert lora is not None and peak(lora.job) < 0.92 * H100.memory_gib * 2**30
