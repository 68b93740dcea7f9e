"""The recipes of real pairs and the accelerate files beside them: they say what the paper did, and launch.

What is locked: 1) every recipe has the paper's settings and its global batch, on the GPUs that its header names; 2)
every launch line in a header is one that works: its files are there, its overrides load, and the batch stays the
paper's; 3) accelerate reads its files as they are meant, down to the plugins that it builds from them; 4) nothing in
them empties, wraps twice or loses a model.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from vlm_dopd.config import load_config

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "vlm_dopd" / "recipes"
ACCELERATE = {path.stem: path for path in sorted((FOLDER / "accelerate").glob("*.yaml"))}
PAIRS = {
    "qwen3vl_8b_to_2b": ("Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-VL-2B-Instruct"),
    "qwen3vl_4b_to_2b": ("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-2B-Instruct"),
    "qwen3_8b_to_1.7b": ("Qwen/Qwen3-8B", "Qwen/Qwen3-1.7B"),
    "qwen3_8b_to_0.6b": ("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B"),
}
LORA = [f"{name}_lora" for name in PAIRS]
PAPER = {
    "image": {"batch": 64, "steps": 300, "builder": "boxes"},
    "text": {"batch": 128, "steps": 200, "builder": "hints"},
}
HEADERS = {path.relative_to(FOLDER).as_posix(): path for path in sorted(FOLDER.rglob("*.yaml"))}


def paper(name):
    return PAPER["image" if name.startswith("qwen3vl") else "text"]


def load(name, overrides=()):
    """A recipe whose data file is not here: any file of that kind will do for loading."""
    data = [f"data.{key}={ROOT / 'assets' / 'scenes' / 'train.parquet'}" for key in ("train", "eval")]
    own = [word for word in overrides if not word.startswith(("data.train=", "data.eval="))]
    wanted = [word for word in data if word.split("=")[0] in {o.split("=")[0] for o in overrides} | {"data.train"}]
    return load_config(FOLDER / f"{name}.yaml", [*wanted, *own])


def batch(config, processes):
    train = config.train
    return processes * train["per_device_train_batch_size"] * train["gradient_accumulation_steps"]


def header(path):
    """The comment above the settings, its lines without their mark."""
    lines = path.read_text(encoding="utf-8").split("\n")
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line[1:] for line in lines[:count])


def launches(path):
    """The commands that a header tells to type, as words; a backslash goes on in the next line."""
    text = header(path).replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^ {3}((?:accelerate|torchrun) .*)$", text, re.MULTILINE)]


LAUNCHES = [
    pytest.param(words, id=f"{name} {number}")
    for name, path in HEADERS.items()
    for number, words in enumerate(launches(path), 1)
]


def launched(words):
    """What accelerate makes of a launch line: its arguments, and the environment of a rank."""
    assert words[:2] == ["accelerate", "launch"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words[2:]))
    args.main_process_port = 0  # a free one: another launch may be running on this machine
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        return args, prepare_deepspeed_cmd_env(args)[1]
    return args, prepare_multi_gpu_env(args)


def environment(name):
    """That of the first launch line in the header of an accelerate file."""
    return mock.patch.dict(os.environ, launched(launches(ACCELERATE[name])[0])[1])


def test_the_recipes_are_there():
    named = {path.stem for path in FOLDER.glob("qwen*.yaml")}
    assert named == {*PAIRS, *LORA}
    assert set(ACCELERATE) == {"one_gpu", "fsdp2", "fsdp2_multinode", "zero2", "zero3"}


@pytest.mark.parametrize("name", PAIRS)
def test_a_recipe_has_the_papers_settings(name):
    """METHODS.md c.1, and full fine-tuning: float32 weights under a bfloat16 autocast."""
    config, expected = load(name), paper(name)
    method, train = config.build_method(), config.train
    assert (config.model.teacher, config.model.student) == PAIRS[name]
    assert (config.method["name"], method.k, method.beta_weak, method.beta_light) == ("dopd", 128, 0.3, 0.6)
    assert (train["learning_rate"], train["lr_scheduler_type"], train["max_steps"]) == (
        5e-6,
        "cosine",
        expected["steps"],
    )
    assert (config.rollout.siblings, config.rollout.temperature, config.data.builder) == (4, 1.0, expected["builder"])
    assert "optim" not in train  # AdamW is Trainer's own
    assert train["bf16"] and train["gradient_checkpointing"] and train["save_total_limit"]
    assert batch(config, 8) == expected["batch"]


@pytest.mark.parametrize("name", PAIRS)
def test_a_header_says_what_counts_and_what_is_a_guess(name):
    """The unit of the batch, and that the steps stay within one epoch of the paper's rows."""
    text, expected = header(FOLDER / f"{name}.yaml"), paper(name)
    seen = expected["batch"] * expected["steps"]
    rows = {64: 25_000, 128: 32_000}[expected["batch"]]
    assert f"{seen:,} of its {rows // 1000}K rows" in re.sub(r"\s+", " ", text) and seen < rows
    assert "prompts" in text and "Guesses" in text and "Not run by us yet" in text


@pytest.mark.parametrize("name", LORA)
def test_a_lora_recipe_is_the_full_one_with_adapters(name):
    """All but adapters, learning rate and folder: so the paper's settings and its batch too."""
    lora, full = load(name), load(name.removesuffix("_lora"))
    assert lora.model.lora is not None and lora.model.lora.target_modules is None
    assert lora.train["learning_rate"] == 10 * full.train["learning_rate"]
    assert lora.output_dir == f"{full.output_dir}-lora"
    for section, key in ((lora.model, "lora"), (full.model, "lora")):
        setattr(section, key, None)
    lora.train["learning_rate"], lora.output_dir = full.train["learning_rate"], full.output_dir
    assert lora == full
    text = header(FOLDER / f"{name}.yaml")
    assert (
        "guesses" in text and "Not run by us yet" in text and f"merge runs/{Path(load(name).output_dir).name}" in text
    )
    assert [words[0] for words in launches(FOLDER / f"{name}.yaml")] == ["torchrun", "accelerate"]
    assert all(f"{name} " in " ".join(words) for words in launches(FOLDER / f"{name}.yaml"))


@pytest.mark.parametrize("words", ["model.lora.quantize=nf4 model.teacher_load=nf4", "model.teacher_load=offload"])
def test_what_a_lora_header_offers_for_smaller_cards_loads(words):
    for name in LORA:
        assert load(name, words.split()).model.teacher_load == words.split("=")[-1]


@pytest.mark.parametrize("name", PAIRS)
def test_another_method_is_one_override_away(name):
    """No setting of DOPD is in the way of what it is compared with."""
    assert load(name, ["method.name=opd"]).build_method().components


def test_pairs_differ_in_models_alone():
    """Text of two recipes of one kind: names, output folder, and nothing else."""
    for one, other in (("qwen3vl_8b_to_2b", "qwen3vl_4b_to_2b"), ("qwen3_8b_to_1.7b", "qwen3_8b_to_0.6b")):
        first, second = load(one), load(other)
        assert (first.data, first.rollout, first.method, first.train) == (
            second.data,
            second.rollout,
            second.method,
            second.train,
        )
        assert first.output_dir != second.output_dir


@pytest.mark.parametrize("name", PAIRS)
def test_a_recipe_is_known_by_its_bare_name(name, tmp_path, monkeypatch):
    """Wherever one stands, with - or _; a file of that name goes first, and a path is a path."""
    monkeypatch.chdir(tmp_path)
    data = [f"data.train={ROOT / 'assets' / 'scenes' / 'train.parquet'}"]
    assert load_config(name, data) == load_config(name.replace("_", "-"), data) == load(name)
    with pytest.raises(ValueError, match="no such config file"):
        load_config(f"./{name}", data)
    (tmp_path / name).write_text("model: 3\n")
    with pytest.raises(ValueError, match="model"):
        load_config(name, data)


@pytest.mark.parametrize("words", LAUNCHES)
def test_every_launch_line_launches(words, monkeypatch):
    """From the repository's root: the files are there, the overrides load, and the batch is the paper's."""
    monkeypatch.chdir(ROOT)
    if words[0] == "torchrun":
        assert words[1] == "--nproc-per-node"
        processes, script = int(words[2]), words[3:]
    else:
        args, _ = launched(words)
        processes, script = args.num_processes, ["-m", args.training_script, *args.training_script_args]
        assert args.module
    assert script[:3] == ["-m", "vlm_dopd", "train"]
    assert batch(load(script[3], script[4:]), processes) == paper(script[3])["batch"]


@pytest.mark.parametrize("path", [*map(FOLDER.joinpath, (f"{n}.yaml" for n in PAIRS)), *ACCELERATE.values()], ids=str)
def test_every_header_has_a_launch_line(path):
    """Recipes for DDP and shards; accelerate files, which name themselves, for images and for text."""
    lines = launches(path)
    assert len(lines) == 2
    if path.parent.name == "accelerate":
        kinds = {"image" if "qwen3vl" in " ".join(words) else "text" for words in lines}
        assert kinds == set(PAPER)
        assert all(words[3] == str(path.relative_to(ROOT)) for words in lines)
    else:
        assert all(path.stem in words for words in lines)
        assert [words[0] for words in lines] == ["torchrun", "accelerate"]


def test_the_batches_in_the_headers_are_products():
    """`8 x 4 x 2 = 64` and the like, wherever a header says so."""
    found = [
        (*map(int, match),)
        for path in HEADERS.values()
        for match in re.findall(r"(\d+) x (\d+) x (\d+) = (\d+)", header(path))
    ]
    assert len(found) == 2 * len(ACCELERATE)
    assert all(a * b * c == total and total in (64, 128) for a, b, c, total in found)


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_knows_every_key(name):
    """Its own class refuses unknown ones at the top; its launcher would ignore one in a section."""
    config = ClusterConfig.from_yaml_file(str(ACCELERATE[name]))
    assert config.mixed_precision == "bf16" and config.num_processes == {"one_gpu": 1, "fsdp2_multinode": 16}.get(
        name, 8
    )
    assert config.num_machines == (2 if name == "fsdp2_multinode" else 1)
    known = vars(launch_command_parser().parse_args(["script.py"]))
    for key in (*config.fsdp_config, *config.deepspeed_config):
        assert key in known, f"{name}: accelerate launch has no option {key}"
    expected = {"fsdp2": "FSDP", "fsdp2_multinode": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}.get(name, "NO")
    assert config.distributed_type == DistributedType(expected)


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_multinode"])
def test_fsdp2_shards_the_student_and_leaves_the_teacher_whole(name):
    """Of the plugin that a rank builds; weights that only the first loads would leave the other teachers empty."""
    with environment(name):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is False  # a rollout needs them at every token
    assert plugin.state_dict_type is StateDictType.FULL_STATE_DICT  # else save_model writes no weights
    assert not plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing  # the recipes' own; Trainer refuses both


@pytest.mark.parametrize("kind", ["image", "text"])
def test_fsdp2_wraps_each_layer_of_either_kind_of_model(kind, request):
    """The file names no classes: decoder layers and vision blocks are found by what the model says of itself."""
    folder = request.getfixturevalue("pair" if kind == "image" else "text_pair")[0]
    cls = AutoModelForImageTextToText if kind == "image" else AutoModelForCausalLM
    with torch.device("meta"):
        model = cls.from_config(AutoConfig.from_pretrained(folder))
    with environment("fsdp2"):
        policy = fsdp2_prepare_auto_wrap_policy(FullyShardedDataParallelPlugin(), model)
    wrapped = sorted({type(module).__name__ for module in model.modules() if policy(module)})
    expected = ["Qwen3VLTextDecoderLayer", "Qwen3VLVisionBlock"] if kind == "image" else ["Qwen3DecoderLayer"]
    assert wrapped == expected


def test_several_nodes_meet_at_the_first_ones_address():
    """Eight processes a node, and the rank that the line says."""
    words = launches(ACCELERATE["fsdp2_multinode"])[0]
    words[words.index("--machine_rank") + 1] = "1"
    args, _ = launched(words)
    assert (args.nproc_per_node, args.nnodes, args.node_rank) == ("8", "2", 1)
    assert args.rdzv_endpoint.startswith("10.0.0.1:") and args.rdzv_backend == "static"


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_deepspeed_is_configured_as_the_file_says(name, stage):
    """Its own JSON, as accelerate writes it: batch sizes are filled in by Trainer, weights are saved whole."""
    with environment(name):
        plugin = DeepSpeedPlugin()
    config = plugin.deepspeed_config
    assert config["zero_optimization"]["stage"] == stage
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] == (stage == 3)
    assert config["gradient_clipping"] == 1.0
    assert {config[key] for key in ("train_batch_size", "train_micro_batch_size_per_gpu")} == {"auto"}
    assert config["gradient_accumulation_steps"] == "auto"
    assert plugin.zero3_init_flag is False
