"""`vlm-dopd plan`: shapes from config files, jobs from recipes, times, suggestions, the output, one-line errors."""

import dataclasses
import io
import json

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Qwen3Config, Qwen3VLConfig

from tests import tiny
from vlm_dopd.errors import ConfigError
from vlm_dopd.methods import find
from vlm_dopd.plan import Job, Work, find_gpu, read_job, show, suggest
from vlm_dopd.plan.gpus import GPUS
from vlm_dopd.plan.memory import GIB, peak
from vlm_dopd.plan.shapes import PUBLISHED, find_shape, shape_of
from vlm_dopd.plan.suggest import ROOM, fits
from vlm_dopd.plan.times import ASSUMED, rollout, times

RECIPES = sorted((tiny.ROOT / "vlm_dopd" / "recipes").glob("qwen3*.yaml"))
OWN = {
    "model.student": "Qwen/Qwen3-VL-2B-Instruct", "model.teacher": "Qwen/Qwen3-VL-8B-Instruct",
    "rollout.max_new_tokens": 2048, "train.per_device_train_batch_size": 1, "train.gradient_accumulation_steps": 8,
    "train.bf16": "true", "train.gradient_checkpointing": "true",
}  # fmt: skip
RECIPE = tiny.ROOT / "vlm_dopd" / "recipes" / "demo.yaml"
H100 = find_gpu("h100-80g")


def job(*overrides, gpus=8, batch=64, work=None, **options):
    """Of the paper's pair: the demo's recipe with the settings of OWN."""
    given = [f"{key}={value}" for key, value in OWN.items()]
    given += ["model.teacher_dtype=bfloat16", *overrides]
    return read_job(RECIPE, given, work=work or {}, gpus=gpus, batch=batch, **options)


def on_meta(config, cls):
    with torch.device("meta"):
        return cls.from_config(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_have_the_parameters_of_the_real_classes(name):
    shape = PUBLISHED[name]
    text = shape.text
    sizes = {
        "hidden_size": text.hidden, "num_hidden_layers": text.layers, "intermediate_size": text.intermediate,
        "num_attention_heads": text.heads, "num_key_value_heads": text.kv_heads, "head_dim": text.head_dim,
        "vocab_size": text.vocabulary, "tie_word_embeddings": text.tied,
    }  # fmt: skip
    if shape.vision is None:
        model = on_meta(Qwen3Config(**sizes), AutoModelForCausalLM)
    else:
        eyes = shape.vision
        vision = {"hidden_size": eyes.hidden, "depth": eyes.layers, "intermediate_size": eyes.intermediate}
        vision |= {"out_hidden_size": eyes.out}
        config = Qwen3VLConfig(text_config=sizes, vision_config=vision, tie_word_embeddings=text.tied)
        model = on_meta(config, AutoModelForImageTextToText)
    assert shape_of(model.config, name) == shape
    assert shape.parameters == model.num_parameters()


@pytest.mark.parametrize(
    ("name", "billions"), [("Qwen3-VL-2B", 2.13), ("Qwen3-VL-8B", 8.77), ("Qwen3-0.6B", 0.6), ("Qwen3-1.7B", 1.72)]
)
def test_published_sizes_are_the_known_ones(name, billions):
    assert PUBLISHED[name].parameters / 1e9 == pytest.approx(billions, abs=0.006)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("images", [True, False])
def test_small_shapes_come_from_a_config_file_alone(tmp_path, images, tied):
    model = tiny.vision_model(1, hidden=48, tied=tied) if images else tiny.text_model(1)
    model.config.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]
    shape = find_shape(str(tmp_path))
    assert shape.parameters == model.num_parameters()
    assert (shape.vision is not None) == images
    trained = [p for name, p in model.named_parameters() if "visual" not in name]
    assert shape.text.parameters == sum(p.numel() for p in trained)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-8B-Thinking", "Qwen/Qwen3-8B-Base"])
def test_variants_of_a_published_model_have_its_shape(name):
    assert find_shape(name) == PUBLISHED[name.removeprefix("Qwen/").rpartition("-")[0]]


def test_a_dated_variant_is_known_too():
    assert find_shape("Qwen/Qwen3-4B-Instruct-2507") == PUBLISHED["Qwen3-4B"]


def test_unknown_models_are_one_line(tmp_path):
    for path in ("Qwen/Qwen9-8B", "nobody/Qwen3-8B", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"no config\.json there.*give a folder") as error:
            find_shape(path)
        assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    with pytest.raises(ConfigError, match="expected a Qwen3 or Qwen3-VL model, dense, got model_type llama"):
        find_shape(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"expected a transformers config\.json, got"):
        find_shape(str(tmp_path))


def test_recipe_becomes_a_job_without_data_or_weights():
    found = job()
    assert found.student is PUBLISHED["Qwen3-VL-2B"] and found.frozen == {"teacher": PUBLISHED["Qwen3-VL-8B"]}
    assert (found.gpus, found.micro, found.accumulation, found.siblings) == (8, 1, 8, 4)
    assert found.bf16 and found.checkpointing and found.freeze_vision and found.frozen_bytes == 2 and found.flex
    assert found.max_new_tokens == 2048 and found.work.response_tokens == 1024


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("gpus", [1, 8, 64])
def test_every_shipped_recipe_of_a_real_pair_has_a_plan(recipe, gpus):
    """Its data file is `???`, its models are not here."""
    batch = 64 if "vl" in recipe.stem else 128
    best = suggest(read_job(recipe, work={}, gpus=gpus, batch=batch), H100)
    assert best is not None and best.job.gpus * best.job.window == batch


def test_overrides_and_work_reach_the_job():
    found = job(
        "method.name=opd", "train.bf16=false", "model.teacher_dtype=float32", "rollout.siblings=2",
        "data.max_pass_tokens=5000", "model.attention=sdpa", "train.gradient_checkpointing=false",
        "model.freeze_vision=false", "rollout.batch_size=8", "train.tf32=true",
        work={"image_tokens": 300, "response_tokens": 99},
    )  # fmt: skip
    assert found.method == find("opd")() and not found.bf16 and found.frozen_bytes == 4 and found.siblings == 2
    assert found.pass_tokens == 5000 and not found.flex and not found.checkpointing and not found.freeze_vision
    assert found.rollout_batch == 8 and found.tf32
    assert found.work == Work(image_tokens=300, response_tokens=99)


@pytest.mark.parametrize("gpus", [1, 2, 8, 64])
def test_the_global_batch_is_kept(gpus):
    found = job("train.per_device_train_batch_size=4", gpus=gpus)
    assert found.gpus * found.micro * found.accumulation == 64 and found.micro <= 4
    best = suggest(found, find_gpu("h200-141g"))
    assert best is not None and best.job.gpus * best.job.micro * best.job.accumulation == 64


def test_without_a_batch_the_recipe_says():
    found = job(gpus=3, batch=None)
    assert (found.micro, found.accumulation, found.window) == (1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"batch": 65}, "--batch 65: expected a multiple of --gpus 8"),
        ({"gpus": 0, "batch": None}, "--gpus 0: expected at least 1"),
        ({"sharding": "zero1"}, "--sharding zero1: no such sharding; did you mean"),
        ({"work": {"image_tokens": -1}}, "--image-tokens -1: expected 0 or more"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, line):
    with pytest.raises(ConfigError) as error:
        job(**arguments)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.teacher=''", "model.teacher: expected a model"),
        ("train.bathc=1", "train.bathc: no such field"),
        ("train.per_device_train_batch_size=0", "train.per_device_train_batch_size: expected a whole number"),
        ("method.name=dopp", "method.name"),
        ("rollouts.siblings=2", "rollouts: no such setting"),
    ],
)
def test_wrong_recipes_are_one_line(override, line):
    with pytest.raises(ConfigError) as error:
        job(override)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_unknown_gpu_is_one_line():
    with pytest.raises(ConfigError, match="--gpu h100: no such GPU; did you mean 'h100-80g'"):
        find_gpu("h100")


def test_gpus_are_plausible():
    for name, gpu in GPUS.items():
        printed = float(name.rpartition("-")[2].removesuffix("g"))
        assert 0.9 * printed <= gpu.memory_gib <= printed
        assert gpu.bf16 == pytest.approx(2 * gpu.tf32, rel=0.02) and gpu.tf32 >= gpu.fp32


def test_decoding_reads_the_weights_once_a_token():
    """With launches free and nothing but weights to read, a token takes weights over bandwidth."""
    alone = dataclasses.replace(
        job(gpus=1, batch=1), siblings=1, max_new_tokens=100, work=Work(images=0, text_tokens=0, privileged_tokens=0)
    )
    how = dataclasses.replace(ASSUMED, layer_launch=0.0, memory=1.0)
    text = alone.student.text
    read = 2 * (text.layers * text.layer_products + text.head)
    assert rollout(alone, H100, how) == pytest.approx(100 * read / 3.35e12, rel=0.02)


def test_a_window_is_rolled_out_at_once():
    """Micro-batches do not wait for each other; sequences beyond `rollout.batch_size` do."""
    one = job("train.per_device_train_batch_size=8")
    assert (one.micro, one.accumulation) == (8, 1)
    eight = dataclasses.replace(one, micro=1, accumulation=8)
    assert rollout(eight, H100) == rollout(one, H100)
    cut = dataclasses.replace(one, rollout_batch=4)
    assert 6 * rollout(one, H100) < rollout(cut, H100) < 9 * rollout(one, H100)
    assert rollout(dataclasses.replace(eight, rollout_batch=4), H100) == rollout(cut, H100)


def test_times_have_a_part_for_each_role_and_scale_with_the_gpu():
    parts = times(job(), H100)
    assert {"rollout", "image encoding", "score student, privileged", "score teacher, privileged",
            "forward and backward", "loss", "optimizer", "communication"} == set(parts)  # fmt: skip
    assert all(seconds > 0 for seconds in parts.values())
    slower = times(job(), find_gpu("a100-80g"))
    for name in ("image encoding", "forward and backward", "score teacher, privileged", "loss"):
        assert slower[name] > parts[name]
    assert slower["forward and backward"] / parts["forward and backward"] == pytest.approx(989 / 312)
    assert "communication" not in times(job(gpus=1), H100)
    text = dataclasses.replace(job(), student=PUBLISHED["Qwen3-1.7B"], frozen={"teacher": PUBLISHED["Qwen3-8B"]})
    assert "image encoding" not in times(text, H100)


def test_tf32_makes_the_students_head_cheaper():
    plain, fast = (times(dataclasses.replace(job(), tf32=on), H100) for on in (False, True))
    assert fast["loss"] < plain["loss"] / 2 and fast["forward and backward"] == plain["forward and backward"]


def test_zero3_gathers_weights_for_every_token_and_fsdp2_once():
    whole, once, always = (dataclasses.replace(job(gpus=64), sharding=kind) for kind in ("none", "fsdp2", "zero3"))
    gathered = 2 * whole.student.parameters * 63 / 64 / (50e9 * ASSUMED.link)
    assert rollout(once, H100) - rollout(whole, H100) == pytest.approx(gathered)
    assert rollout(always, H100) - rollout(whole, H100) == pytest.approx(2048 * gathered)
    assert times(always, H100)["communication"] > times(once, H100)["communication"]


def test_suggestions_fit_are_faster_and_paste_back():
    asked = job("rollout.batch_size=8")
    best = suggest(asked, H100)
    assert best is not None and fits(best.job, H100) and peak(best.job) <= ROOM * H100.memory_gib * GIB
    assert sum(times(best.job, H100).values()) < sum(times(asked, H100).values())
    again = job("rollout.batch_size=8", *best.overrides)
    assert again == best.job


def test_small_gpus_get_sharding_or_nothing():
    small = find_gpu("rtx4090-24g")
    assert suggest(job(gpus=1), small) is None
    text = job("model.student=Qwen/Qwen3-0.6B", "model.teacher=Qwen/Qwen3-1.7B", "rollout.max_new_tokens=512")
    found = suggest(text, small)
    assert found is not None and fits(found.job, small)
    assert suggest(text, small, ("zero3",)).job.sharding == "zero3"


def test_sharding_needs_several_gpus():
    assert job(gpus=1, sharding="fsdp2").sharding == "none" and job(sharding="fsdp2").sharding == "fsdp2"


def printed(asked: Job, gpu=H100) -> str:
    out = io.StringIO()
    show(asked, gpu, suggest(asked, gpu), Console(file=out, width=120))
    return out.getvalue()


def test_printed_plan_holds_all_parts_and_what_to_paste():
    text = printed(job("rollout.batch_size=8"))
    for word in ("student weights", "teacher weights", "optimizer", "gradients", "activations", "hidden states",
                 "loss chunk", "KV cache", "vision features", "rollout", "forward and backward", "fits:",
                 "train.per_device_train_batch_size=", "8.77 B", "2.13 B", "64 prompts a step"):  # fmt: skip
        assert word in text, word


def test_tf32_is_named_where_it_saves_something():
    assert "train.tf32=true would save" in printed(job())
    assert "tf32" not in printed(job("train.tf32=true")) and "tf32" not in printed(job(), find_gpu("rtx4090-24g"))
    assert not any("tf32" in line for line in suggest(job(), H100).overrides)


def test_suggestions_change_nothing_without_a_reason():
    best = suggest(job(), H100)
    settled = suggest(best.job, H100)
    assert settled.job == best.job
    assert settled.overrides == ("train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=8")


def test_printed_plan_says_what_does_not_fit():
    text = printed(job(gpus=1), find_gpu("rtx4090-24g"))
    assert "DOES NOT FIT" in text and "nothing tried fits" in text
