"""One YAML file and overrides -> a checked configuration, or one line that says what to change.

What is locked: 1) every shipped recipe loads; 2) a name that does not exist, a wrong type, a missing file or an
impossible value is a ConfigError of one line that names the setting, before any model is loaded; 3) the resolved
configuration, written and read again, is the same configuration.
"""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_dopd.config import FIXED, RunConfig, load_config, read_settings, save_config
from vlm_dopd.errors import ConfigError
from vlm_dopd.methods import available

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "vlm_dopd" / "recipes").glob("*.yaml"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with the files that a configuration names."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "eval.jsonl"):
        (tmp_path / name).write_text('{"question": "q"}\n')
    return tmp_path


def base():
    return {
        "model": {"student": "small", "teacher": "large"},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "method": {"name": "dopd"},
        "train": {"max_steps": 3, "use_cpu": True},
    }


def write(text):
    """`config.yaml` with this text, or with this mapping as YAML."""
    Path("config.yaml").write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return "config.yaml"


def load(settings=None, overrides=()):
    """The base configuration with dotted `settings` put in."""
    values = base()
    for path, value in (settings or {}).items():
        *sections, leaf = path.split(".")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        section[leaf] = value
    return load_config(write(values), list(overrides))


def complaint(settings=None, overrides=()):
    """The one line with which the configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        load(settings, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert message.strip() == message != ""
    return message


def test_there_are_recipes():
    """At least the demonstration's."""
    assert "demo.yaml" in [path.name for path in RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_loads(path, monkeypatch, tmp_path):
    """Strictly, from the repository's root; the models and data that it finds by path are there, and it survives
    being written and read again."""
    monkeypatch.chdir(ROOT)
    open_data = read_settings(path)["data"]["train"] == "???"
    needed = ["data.train=assets/scenes/train.parquet"] if open_data else []
    config = load_config(path, needed)
    for name in (config.model.student, config.model.teacher):
        if name.startswith("assets/"):
            assert (Path(name) / "config.json").is_file(), f"{name}: no bundled model; run `make assets`"
    save_config(config, tmp_path / "saved.yaml")
    again = load_config(tmp_path / "saved.yaml")
    assert again.build_method() == config.build_method()
    assert (again.train, again.data, again.rollout) == (config.train, config.data, config.rollout)


@pytest.mark.parametrize("method", available())
def test_every_method_has_vetted_defaults(method):
    """A configuration that only names the method is complete."""
    assert load({"method.name": method}).build_method().components


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        pytest.param("modle", ["modle", "did you mean 'model'?"], id="section"),
        pytest.param("model.studnet", ["model.studnet", "did you mean 'student'?"], id="model"),
        pytest.param("data.trian", ["data.trian", "did you mean 'train'?"], id="data"),
        pytest.param("data.builder_options.stile", ["stile", "style"], id="builder option"),
        pytest.param("data.images.max_pixel", ["data.images.max_pixel", "did you mean 'max_pixels'?"], id="images"),
        pytest.param("rollout.sibling", ["rollout.sibling", "did you mean 'siblings'?"], id="rollout"),
        pytest.param("rollout.zzz", ["rollout.zzz", "known: ", "siblings"], id="nothing like it"),
        pytest.param("method.beta_lite", ["method.beta_lite", "did you mean 'beta_light'?"], id="method"),
        pytest.param("train.lerning_rate", ["train.lerning_rate", "did you mean 'learning_rate'?"], id="train"),
    ],
)
def test_an_unknown_key_is_named_at_every_level(setting, words):
    """With its path and what was probably meant; in the file and as an override alike."""
    for message in (complaint({setting: 1}), complaint(overrides=[f"{setting}=1"])):
        assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model", 3),
        ("model", None),
        ("model.student", None),
        ("model.teacher_dtype", "float16"),
        ("model.freeze_vision", "perhaps"),
        ("data.max_prompt_tokens", "many"),
        ("data.builder_options", 3),
        ("data.builder_options", ["style"]),
        ("data.builder_options.max_regions", "ten"),
        ("data.images", 3),
        ("data.images.allow_hosts", "img.example.org"),
        ("data.images.min_side", "eight"),
        ("data.placement", "middle"),
        ("data.without_p", "ignore"),
        ("rollout", 3),
        ("rollout", [1]),
        ("rollout.siblings", "four"),
        ("rollout.siblings", 2.5),
        ("rollout.temperature", "hot"),
        ("method", "dopd"),
        ("method.beta_light", "x"),
        ("method.reduction", "mean"),
        ("method.k", [1]),
        ("train", 3),
        ("train", [1]),
        ("train.learning_rate", "fast"),
        ("train.max_steps", "all"),
        ("train.use_cpu", "maybe"),
        ("train.eval_strategy", "sometimes"),
        ("output_dir", None),
        ("resume", "maybe"),
    ],
    ids=str,
)
def test_a_wrong_type_is_named(setting, value):
    """Every section and leaf: the message holds the name of the setting."""
    assert setting.rpartition(".")[2] in complaint({setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rollout.siblings", 0),
        ("rollout.max_new_tokens", 0),
        ("rollout.temperature", 0.0),
        ("rollout.temperature", float("nan")),
        ("rollout.top_p", 0.0),
        ("rollout.top_p", 1.5),
        ("rollout.top_k", -1),
        ("rollout.batch_size", 0),
        ("data.max_prompt_tokens", 0),
        ("data.max_pass_tokens", 0),
        ("data.images.min_side", 0),
        ("data.images.allow_hosts", ["127.0.0.1"]),
        ("data.eval_limit", 0),
        ("data.eval_limit", -1),
        ("data.builder_options.max_regions", 0),
        ("data.builder_options.style", "xml"),
        ("method.k", 0),
        ("method.beta_light", -1.0),
        ("method.trim", 1.5),
        ("output_dir", ""),
    ],
    ids=str,
)
def test_a_value_that_cannot_work_is_refused_before_a_model_is_loaded(setting, value):
    """Not in step 1, after minutes of loading, and not by quietly doing something else."""
    assert setting.rpartition(".")[2] in complaint({setting: value})


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("model.student", "", ["model.student", "nothing"]),
        ("model.teacher", "", ["model.teacher", "nothing"]),
        ("model.teacher", "./small/", ["model.teacher", "another model"]),
        ("data.train", "", ["data.train", "no such"]),
        ("data.train", "nope.parquet", ["data.train", "nope.parquet", "no such"]),
        ("data.train", ".", ["data.train", "no such"]),
        ("data.eval", "nope.parquet", ["data.eval", "nope.parquet", "no such"]),
        ("data.builder", "boxs", ["data.builder", "did you mean 'boxes'?"]),
        ("method.name", "dopdd", ["method.name", "did you mean 'dopd'?"]),
        ("method.name", None, ["method.name"]),
    ],
)
def test_what_contradicts_or_is_missing_is_named(setting, value, words):
    """Files, models, builder and method."""
    message = complaint({setting: value})
    assert all(word in message for word in words)


@pytest.mark.parametrize("setting", [{"model.teacher_load": "sharded"}, {"model.teacher": "tcp://127.0.0.1:5555"}])
def test_a_teacher_that_cannot_write_is_refused_where_it_must(setting):
    """Sharded ones would hang where lengths differ; served ones only score. A column of references needs neither."""
    message = complaint({"method.name": "sft"} | setting)
    assert "rollout.reference" in message and message.startswith(*setting)
    load({"method.name": "sft", "rollout.reference": "solution"} | setting)


@pytest.mark.parametrize("key", FIXED)
def test_what_the_trainer_decides_cannot_be_set(key):
    """The message says why, or where to set it instead."""
    assert complaint({f"train.{key}": "x"}) == f"train.{key}: cannot be set here: {FIXED[key]}"


def test_the_trainers_own_decisions():
    """Without these the loss would be wrong or hidden; nothing reports to a tracker unless asked."""
    args = load().build_training_arguments()
    assert args.remove_unused_columns is False
    assert args.logging_nan_inf_filter is False
    assert args.average_tokens_across_devices is False
    assert args.report_to == []
    assert args.output_dir == "runs/dopd"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("a: [", ["YAML", "line"], id="open bracket"),
        pytest.param("a: b: c", ["YAML", "line 1"], id="two colons"),
        pytest.param("\tmodel: 1", ["YAML", "line 1"], id="tab"),
        pytest.param("model: {student: a, student: b}", ["YAML", "duplicate", "student"], id="key twice"),
        pytest.param("!!python/object/apply:os.system ['touch pwned']", ["YAML"], id="a tag that would run code"),
        pytest.param("- model\n- data\n", ["mapping"], id="a list"),
        pytest.param("3", ["config.yaml"], id="a number"),
        pytest.param("", ["model.student"], id="empty"),
        pytest.param("\x00", ["YAML"], id="binary"),
    ],
)
def test_a_file_that_is_no_mapping_of_settings(text, words):
    """Each says what is wrong with the file, and runs nothing."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(text))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)
    assert not Path("pwned").exists()


def test_a_config_that_is_not_there_or_not_text():
    """A missing file, a folder, and bytes in no encoding."""
    Path("bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.yaml", ".", "bytes.yaml"):
        with pytest.raises(ConfigError, match=name.replace(".", r"\.")) as caught:
            load_config(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "word", ["foo", "--x=1", "=1", "rollout.siblings=[1", "rollout..siblings=1", "model.student=["]
)
def test_a_malformed_override_is_refused(word):
    """With the form that was expected, or the place of the mistake."""
    complaint(overrides=[word])


def test_overrides_replace_the_file():
    """Typed like the file: numbers, floats in any notation, strings, new keys of open sections."""
    overrides = ["rollout.siblings=8", "train.learning_rate=5e-6", "method.beta_light=0.5", "method.k=16"]
    config = load(overrides=[*overrides, "data.builder_options.style=lines", "data.eval=null", "output_dir=runs/x"])
    assert config.rollout.siblings == 8
    assert config.build_training_arguments().learning_rate == 5e-6
    assert (config.build_method().beta_light, config.build_method().k) == (0.5, 16)
    assert config.data.builder_options == {"style": "lines"}
    assert config.data.eval is None
    assert config.build_training_arguments().output_dir == "runs/x"


def test_scientific_notation_is_a_number():
    """PyYAML reads `5e-6` as text (it wants `5.0e-6`); people write it all the same."""
    text = yaml.safe_dump(base()).replace("max_steps: 3", "learning_rate: 5e-6")
    config = load_config(write(text.replace("name: dopd", "name: dopd\n  beta_light: 5e-1")))
    assert config.train["learning_rate"] == 5e-6
    assert isinstance(config.train["learning_rate"], float)
    assert config.build_method().beta_light == 0.5


def test_training_arguments_of_every_shape():
    """Booleans, negative numbers, lists, mappings and null, as the documentation of TrainingArguments has them."""
    given = {
        "train.max_steps": -1,
        "train.gradient_checkpointing_kwargs": {"use_reentrant": False},
        "train.lr_scheduler_kwargs": {"num_cycles": 2},
        "train.report_to": ["tensorboard"],
        "train.save_total_limit": None,
        "train.seed": 7,
    }
    args = load(given).build_training_arguments()
    assert args.max_steps == -1
    assert args.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert args.report_to == ["tensorboard"]
    assert args.save_total_limit is None
    assert args.seed == 7


def test_a_saved_configuration_is_the_same_configuration():
    """Method defaults are written out; after that, reading and writing change nothing."""
    first = load({"train.learning_rate": 5e-6, "data.builder_options": {"style": "lines"}, "output_dir": "runs/ü x"})
    save_config(first, Path("one.yaml"))
    second = load_config("one.yaml")
    save_config(second, Path("two.yaml"))
    assert load_config("two.yaml") == second
    assert Path("one.yaml").read_text() == Path("two.yaml").read_text()
    defaults = vars(first.build_method()).items()
    assert second.method == {"name": "dopd"} | {k: list(v) if isinstance(v, tuple) else v for k, v in defaults}
    assert second == RunConfig(**{**vars(first), "method": second.method})


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_as_a_config_loads_or_is_one_line(text):
    """No text whatever makes it crash with another error."""
    Path("any.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:  # never complete: no model
        load_config("any.yaml")
    assert "\n" not in str(caught.value)


def test_a_file_may_stand_on_another(folder):
    """What it says itself goes first, section by section; overrides go before both; nothing of it is left over."""
    (folder / "below.yaml").write_text(yaml.safe_dump(base() | {"output_dir": "runs/below"}))
    above = {"extends": "below.yaml", "train": {"max_steps": 7}, "model": {"lora": {"r": 4}}}
    config = load_config(write(above), ["model.lora.alpha=8"])
    assert (config.train["max_steps"], config.train["use_cpu"], config.output_dir) == (7, True, "runs/below")
    assert (config.model.student, config.model.lora.r, config.model.lora.alpha) == ("small", 4, 8)
    save_config(config, folder / "saved.yaml")
    assert "extends:" not in (folder / "saved.yaml").read_text() and load_config("saved.yaml").model == config.model


@pytest.mark.parametrize(
    ("below", "message"),
    [
        (None, "gone.yaml"),
        ("- a\n", "extends: expected settings that extend no others in gone.yaml"),
        ("extends: demo\n", "extends: expected settings that extend no others in gone.yaml"),
    ],
    ids=["no file", "a list", "a third one"],
)
def test_an_extended_file_that_is_none_is_one_line(folder, below, message):
    if below is not None:
        (folder / "gone.yaml").write_text(below)
    with pytest.raises(ConfigError) as refused:
        load_config(write({"extends": "gone.yaml"}))
    assert message in str(refused.value) and "\n" not in str(refused.value)
