"""LoRA and QLoRA: only adapters learn, and what a run leaves is of use to plain peft and plain transformers.

What is locked: 1) adapters sit on the language model's linear layers alone, and the base keeps every bit; 2) a run that
was stopped and resumed, or split over processes, or checkpointed, has the same adapter; 3) copies of the student share
the base; 4) libraries that know nothing of us load the adapter and the merged model, and both answer as the student.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests import tiny
from tests.test_trainer import largest_difference, settings
from vlm_dopd import run
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.errors import ConfigError
from vlm_dopd.lora import LoraConfig, add_adapter, base_of, linear_layers
from vlm_dopd.roles import load_policy

LORA = {"model.lora.r": 4, "model.lora.dtype": "float32"}
ADAM = {"train.optim": "adamw_torch", "train.learning_rate": 3e-2, "train.max_steps": 2}
BFLOAT16 = {**LORA, "model.lora.dtype": "bfloat16"}
QLORA = {**LORA, "model.lora.quantize": "nf4"}
IDS = torch.arange(40, 52)[None]


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def trained(pair, folder, **overrides):
    """The run folder, and the trainer as it was at the end."""
    kept, build = [], run.build_trainer
    with mock.patch.object(run, "build_trainer", lambda config: kept.append(build(config)) or kept[0]):
        return run.train(settings(pair, folder, **overrides)), kept[0]


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory):
    """Four steps with the moving average as a role, a checkpoint every second one."""
    steps = {"train.max_steps": 4, "train.save_strategy": "steps", "train.save_steps": 2}
    return trained(pair, tmp_path_factory.mktemp("whole"), **LORA, **ADAM | steps, **{"method.name": "sdft"})


@pytest.fixture(scope="module")
def one_step(pair, tmp_path_factory):
    """SGD with learning rate 1: the adapter has moved by minus its gradient."""
    return adapter(trained(pair, tmp_path_factory.mktemp("one"), **LORA)[0])


@pytest.fixture(scope="module")
def bfloat16_step(pair, tmp_path_factory):
    return adapter(trained(pair, tmp_path_factory.mktemp("one"), **BFLOAT16)[0])


@pytest.mark.parametrize("kind", ["image", "text"])
def test_fresh_adapters_are_on_the_language_model_alone_and_change_nothing(kind):
    """All seven matrices of each layer; neither the tower, whose names may be the same, nor the LM head."""
    model = tiny.vision_model(1) if kind == "image" else tiny.text_model(1)
    before = logits(model)
    count = add_adapter(model, LoraConfig(r=3, dtype="float32"))
    names = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert len(names) == 2 * 7 and not any("visual" in name or "lm_head" in name for name in names)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == {f"{name}.lora_{ab}.default.weight" for name in names for ab in "AB"}
    assert count == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert torch.equal(logits(model), before)


def test_a_tower_with_layers_of_the_same_names_is_left_alone():
    model = tiny.vision_model(1)
    model.base_model.visual.blocks[0].q_proj = nn.Linear(4, 4)
    add_adapter(model, LoraConfig(r=2))
    assert not any("lora" in name for name, _ in model.base_model.visual.named_modules())


def test_targets_can_be_chosen_and_a_wrong_one_is_named():
    model = tiny.vision_model(1)
    assert linear_layers(model) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for wrong in ("q_prj", "linear_fc1", "lm_head", "embed_tokens"):
        with pytest.raises(ConfigError, match=f"target_modules: {wrong} is no linear layer of the language model"):
            add_adapter(model, LoraConfig(target_modules=["q_proj", wrong]))
    add_adapter(model, LoraConfig(target_modules=["q_proj"], alpha=6, r=2))
    assert sum(hasattr(module, "lora_A") for module in model.modules()) == 2
    assert model.peft_config["default"].lora_alpha == 6


def test_adapters_are_float32_beside_a_bfloat16_base(pair, processor):
    model = load_policy(str(pair[0]), processor.tokenizer, "bfloat16").model
    add_adapter(model, LoraConfig())
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


@pytest.mark.parametrize("own", [LORA, BFLOAT16], ids=["float32", "bfloat16"])
def test_a_run_leaves_the_base_as_it_was_to_the_bit(pair, tmp_path, own):
    """Of the live model after a real run, beside the base's file; and the adapter has learnt."""
    folder, trainer = trained(pair, tmp_path, **own, **ADAM)
    dtype = getattr(torch, own["model.lora.dtype"])
    live = {name.replace(".base_layer", ""): tensor for name, tensor in trainer.model.state_dict().items()}
    for name, tensor in load_file(pair[0] / "model.safetensors").items():
        assert torch.equal(live[name], tensor.to(dtype)), name
    assert all(tensor.abs().max() > 1e-3 for name, tensor in adapter(folder).items() if "lora_B" in name)


def test_a_run_folder_holds_an_adapter_and_no_model(whole):
    names = {path.name for path in whole[0].iterdir() if path.is_file()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "processor_config.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth")) or name.startswith("model") for name in names)
    assert base_of(whole[0]) == trained_base(whole[0]) and base_of(trained_base(whole[0])) is None
    assert json.loads((whole[0] / "versions.json").read_text())["peft"]


def trained_base(folder):
    return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]


def test_checkpointing_changes_no_gradient(pair, tmp_path, one_step):
    """With nothing trained below the layers, a checkpoint could cut the graph and leave gradients of zero."""
    folder, _ = trained(pair, tmp_path, **LORA, **{"train.gradient_checkpointing": True})
    assert largest_difference(adapter(folder), one_step) < 1e-6
    assert all(tensor.abs().max() > 1e-4 for name, tensor in one_step.items() if "lora_B" in name)


@pytest.fixture(scope="module")
def ranks(pair, tmp_path_factory):
    """Two gloo ranks under DDP and FSDP2: by case the run folder."""
    root, jobs = tmp_path_factory.mktemp("ranks"), []
    cases = {
        "ddp": {**LORA, "train.use_cpu": True},
        "fsdp": {**LORA, "train.use_cpu": False},
        "fsdp bfloat16": {**BFLOAT16, "train.use_cpu": False, "train.gradient_checkpointing": True},
    }
    for case, own in cases.items():
        settings(pair, root / case, **own, **{"train.per_device_train_batch_size": 2})
        jobs.append(f"{case.split()[0]}:{root / case / 'config.yaml'}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.gloo_ranks", "2", *jobs],
        cwd=tiny.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {case: root / case / "run" for case in cases}


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_equal_one(ranks, one_step, engine):
    assert largest_difference(adapter(ranks[engine]), one_step) < 1e-6


def test_shards_may_be_bfloat16_beside_float32_adapters(ranks, bfloat16_step):
    ours, theirs = (
        torch.cat([t[name].flatten() for name in bfloat16_step])
        for t in (adapter(ranks["fsdp bfloat16"]), bfloat16_step)
    )
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.99


def test_stopped_and_resumed_equals_never_stopped(pair, tmp_path, whole):
    """To the bit: adapter, its moving average, and the log."""
    again = tmp_path / "run"
    shutil.copytree(whole[0], again)
    shutil.rmtree(again / "checkpoint-4")
    (again / "adapter_model.safetensors").unlink()
    steps = {"train.max_steps": 4, "train.save_strategy": "steps", "train.save_steps": 2}
    trained(pair, tmp_path, **LORA, **ADAM | steps, **{"method.name": "sdft", "resume": True})
    for name in ("adapter_model.safetensors", "checkpoint-4/ema.safetensors", "checkpoint-4/adapter_model.safetensors"):
        ours, theirs = load_file(again / name), load_file(whole[0] / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    losses = [[line["loss"] for line in read_metrics(f / "metrics.jsonl") if "loss" in line] for f in (again, whole[0])]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_checkpoint_of_another_adapter_is_refused(pair, tmp_path, whole):
    """Another rank, or none."""
    shutil.copytree(whole[0], tmp_path / "run")
    steps = {"train.max_steps": 6, "resume": True, "method.name": "sdft"}
    with pytest.raises(ConfigError, match=r"expected the adapter of this run; model\.lora\.r"):
        run.train(settings(pair, tmp_path, **{**LORA, **ADAM, **steps, "model.lora.r": 2}))
    (tmp_path / "run" / "checkpoint-4" / "adapter_model.safetensors").rename(tmp_path / "run" / "model.safetensors")
    trainer = run.build_trainer(settings(pair, tmp_path, **LORA, **steps))
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors: not found"):
        trainer._load_from_checkpoint(str(tmp_path / "run" / "checkpoint-4"))


def test_the_best_checkpoint_can_be_loaded_at_the_end(whole):
    folder, trainer = whole
    trainer.state.best_model_checkpoint = str(folder / "checkpoint-2")
    trainer._load_best_model()
    earlier = adapter(folder / "checkpoint-2")
    mine = {name: tensor for name, tensor in trainer.model.state_dict().items() if "lora_" in name}
    assert len(mine) == len(earlier)
    for name, tensor in mine.items():
        assert torch.equal(tensor, earlier["base_model.model." + name.replace(".default", "")])
    trainer._load_from_checkpoint(str(folder / "checkpoint-4"))


def storages(model):
    """Bytes by place in memory, of all tensors that `model` holds: buffers and tables of 4-bit weights included."""
    found = {}
    for module in model.modules():
        tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
        states = [getattr(holder, "quant_state", None) for holder in (*tensors, module)]
        tensors += [tensor for state in states if state is not None for tensor in (state.absmax, state.code)]
        found |= {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return found


@pytest.mark.parametrize("own", [LORA, QLORA], ids=["lora", "qlora"])
def test_copies_of_the_student_share_the_base(pair, tmp_path, own):
    """`initial` holds no adapter at all, `ema` only its own; what else a copy has are rotary frequencies."""
    live, extra = {}, {}
    for method in ("exopd", "sdft"):
        trainer = run.build_trainer(settings(pair, tmp_path / method, **own, **{"method.name": method}))
        live = storages(trainer.model)
        for kind, policy in trainer.copies.policies.items():
            extra[kind] = sum(size for place, size in storages(policy.model).items() if place not in live)
            buffers = sum(buffer.nbytes for buffer in policy.model.buffers())
            extra[kind] -= buffers
    adapters = sum(p.nbytes for p in trainer.model.parameters() if p.requires_grad)
    assert buffers < 1000 < adapters < sum(live.values()) / 10
    assert extra == {"initial": 0, "ema": adapters}


def test_initial_is_the_base_for_ever(pair, tmp_path, processor):
    """After steps that have moved the student, and without a copy of what it was."""
    _, trainer = trained(pair, tmp_path, **LORA, **ADAM, **{"method.name": "exopd"})
    base = load_policy(str(pair[0]), processor.tokenizer).model
    assert torch.equal(logits(trainer.copies.policies["initial"].model), logits(base))
    assert (logits(trainer.model) - logits(base)).abs().max() > 1


def test_qlora_trains_beside_four_bits_and_keeps_the_head_and_the_tower(pair, tmp_path):
    """Real 4-bit matrices, before and after; the LM head, the embedding and the tower are as they were loaded."""
    config = settings(pair, tmp_path, **QLORA, **ADAM)
    trainer = run.build_trainer(config)
    four = {n: p for n, p in trainer.model.named_parameters() if type(p).__name__ == "Params4bit"}
    assert len(four) == 2 * 7 and all("language_model" in name for name in four)
    before = {name: parameter.clone() for name, parameter in four.items()}
    assert type(trainer.model.get_output_embeddings()) is nn.Linear
    trainer.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in four.items())
    for name, tensor in load_file(pair[0] / "model.safetensors").items():
        if "visual" in name or "embed_tokens" in name or "norm" in name:
            assert torch.equal(trainer.model.state_dict()[name], tensor), name
    assert any(p.abs().max() > 1e-3 for n, p in trainer.model.named_parameters() if "lora_B" in n)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"model.lora.r": 0}, r"model\.lora\.r: expected at least 1, got 0"),
        ({"model.lora.alpha": 0}, r"model\.lora\.alpha: expected above 0"),
        ({"model.lora.dropout": 1}, r"model\.lora\.dropout: expected 0 or more and below 1"),
        ({"model.lora.rank": 4}, r"model\.lora\.rank: no such setting"),
        ({"model.lora.quantize": "fp4"}, r"model\.lora\.quantize: .*fp4"),
        ({"model.lora.r": 4, "model.freeze_vision": False}, r"model\.freeze_vision: expected true with model\.lora"),
    ],
    ids=str,
)
def test_wrong_settings_are_said_before_anything_is_loaded(pair, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        settings(pair, tmp_path, **words)


def test_packages_that_are_not_there_are_named(pair, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"expected peft, which is not installed: pip install 'vlm-dopd\[lora\]'"):
        add_adapter(tiny.text_model(1), LoraConfig())
    monkeypatch.setattr("vlm_dopd.loading.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"nf4: expected bitsandbytes.*pip install 'vlm-dopd\[quantize\]'"):
        run.build_trainer(settings(pair, tmp_path, **QLORA))


def test_a_student_that_is_an_adapter_is_refused(pair, tmp_path, whole):
    with pytest.raises(
        ConfigError, match=r"holds an adapter of .*, expected a whole model; `vlm-dopd merge` makes one"
    ):
        settings((whole[0], pair[1]), tmp_path)
