"""Teachers that are quantised or in host memory: what they think of tokens, and what of them stays a dense matrix.

Everything is real on a CPU: bitsandbytes' 4- and 8-bit products, accelerate's hooks. References: a plain teacher, and
for 4 bits the same weights spelt out again.
"""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.test_lora import logits
from tests.test_trainer import finished, largest_difference, settings
from vlm_dopd import loading, run
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.errors import ConfigError
from vlm_dopd.head import Head
from vlm_dopd.roles import load_policy

HELD = ("full", "int8", "nf4", "offload")


def teacher(pair, processor, held, number=1, dtype="float32"):
    return load_policy(str(pair[number]), processor.tokenizer, dtype, held=held)


@pytest.fixture(scope="module")
def full(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    return finished(settings(pair, folder)), read_metrics(folder / "run" / "metrics.jsonl")[0]


@pytest.mark.parametrize("number", [0, 1], ids=["tied", "untied"])
@pytest.mark.parametrize("held", HELD)
def test_head_embedding_and_tower_stay_as_they_were_loaded(pair, processor, held, number):
    """Whatever becomes of the layers: `Head` needs the matrix, and a tied embedding is the same one."""
    model = teacher(pair, processor, held, number).model
    head, file = model.get_output_embeddings(), load_file(pair[number] / "model.safetensors")
    assert type(head) is nn.Linear
    assert (head.weight is model.get_input_embeddings().weight) == (number == 0)
    dense = {name: p for name, p in model.named_parameters() if ".layers." not in name}
    assert {"model.visual.merger.linear_fc1.weight", "model.visual.blocks.0.attn.qkv.weight"} <= set(dense)
    for name, parameter in dense.items():
        assert torch.equal(parameter, file[name]), name
    policy = teacher(pair, processor, held, number)
    assert policy.device.type == "cpu" and isinstance(policy.head(), Head)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_offloaded_layers_are_nowhere_between_passes_and_answer_as_ever(pair, text_pair, processor, kind):
    folders = pair if kind == "image" else text_pair
    plain, policy = (teacher(folders, processor, held) for held in ("full", "offload"))
    for _ in range(2):
        assert torch.equal(logits(policy.model), logits(plain.model))
        away = {name for name, p in policy.model.named_parameters() if p.is_meta}
        assert away and away == {name for name, _ in policy.model.named_parameters() if ".layers." in name}


def test_an_offloaded_layer_comes_at_once(pair, processor, monkeypatch):
    """All its matrices together, in one piece of work a layer and pass."""
    model = teacher(pair, processor, "offload").model
    layer, seen = model.base_model.language_model.layers[0], []
    inner = layer.mlp.down_proj.forward
    monkeypatch.setattr(
        layer.mlp.down_proj, "forward", lambda x: seen.append([p.is_meta for p in layer.parameters()]) or inner(x)
    )
    logits(model)
    assert seen and not any(seen[0])


@pytest.mark.parametrize("method", ["dopd", "gkd"])
def test_a_run_with_an_offloaded_teacher_is_the_same_run(pair, tmp_path, full, method):
    """Scores, and with gkd completions that the teacher writes: gradients equal to the bit."""
    name = {"method.name": method}
    plain = full[0] if method == "dopd" else finished(settings(pair, tmp_path / "full", **name))
    ours = finished(settings(pair, tmp_path / "offload", **name, **{"model.teacher_load": "offload"}))
    assert largest_difference(ours, plain) == 0


@pytest.mark.parametrize(("held", "near"), [("int8", 0.02), ("nf4", 0.35)])
def test_a_quantised_teacher_trains_and_its_scores_are_near(pair, tmp_path, full, held, near):
    """Of entropies over the window; a random teacher is less robust than a trained one."""
    after = finished(settings(pair, tmp_path, **{"model.teacher_load": held}))
    logged = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert largest_difference(after, full[0]) > 0
    difference = abs(logged["entropy/teacher_privileged"] / full[1]["entropy/teacher_privileged"] - 1)
    assert 0 < difference < near


def test_four_bit_products_are_those_of_the_weights_they_stand_for(pair, processor):
    policy = teacher(pair, processor, "nf4")
    four = [type(m).__name__ for name, m in policy.model.named_modules() if ".layers." in name and "_proj" in name]
    assert four == ["Linear4bit"] * 14
    ours, spelt = logits(policy.model), logits(copy.deepcopy(teacher(pair, processor, "nf4").model).dequantize())
    assert (ours - spelt).abs().max() < 1e-4
    assert (ours - logits(teacher(pair, processor, "full").model)).abs().max() > 0.1


def test_what_is_not_quantised_is_in_the_dtype_asked_for(pair, processor):
    for held in ("int8", "nf4"):
        model = teacher(pair, processor, held, dtype="bfloat16").model
        assert model.get_output_embeddings().weight.dtype == torch.bfloat16
        assert torch.isfinite(logits(model)).all()


def test_a_head_that_is_no_dense_matrix_is_refused(pair, processor, monkeypatch):
    """As it would be if another version of the libraries took no notice of what is to be left out."""
    monkeypatch.setattr(loading, "DENSE", ["visual"])
    with pytest.raises(ConfigError, match="nf4: expected the LM head as a dense matrix, got Linear4bit; load it full"):
        teacher(pair, processor, "nf4")


def test_settings_reach_the_teachers_and_not_the_student(pair, tmp_path):
    config = settings(pair, tmp_path, **{"model.teacher_load": "nf4", "model.teacher_base": pair[1]})
    trainer = run.build_trainer(config)
    kinds = {
        role: {type(module).__name__ for module in policy.model.modules() if isinstance(module, nn.Linear)}
        for role, policy in trainer.window_builder.policies.items()
    }
    assert kinds == {
        "student": {"Linear"}, "teacher": {"Linear", "Linear4bit"}, "teacher_base": {"Linear", "Linear4bit"}
    }  # fmt: skip
    frozen = [trainer.window_builder.policies[role].model for role in ("teacher", "teacher_base")]
    assert not any(p.requires_grad for model in frozen for p in model.parameters())
    with pytest.raises(ConfigError, match=r"model\.teacher_load: .*fp4"):
        settings(pair, tmp_path, **{"model.teacher_load": "fp4"})


@pytest.mark.parametrize("held", ["int8", "nf4"])
def test_a_package_that_is_not_there_is_named(pair, tmp_path, monkeypatch, held):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"{held}: expected bitsandbytes.*pip install 'vlm-dopd\[quantize\]'"):
        run.build_trainer(settings(pair, tmp_path, **{"model.teacher_load": held}))
