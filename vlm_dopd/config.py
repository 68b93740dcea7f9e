"""One YAML file and dotted overrides (`method.beta_light=0.5`) into typed dataclasses.

OmegaConf checks names and types. Three sections belong to others and are checked against them: `method` (the fields of
the method named there), `data.builder_options` (those of the builder) and `train` (`transformers.TrainingArguments`).
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import HfArgumentParser, TrainingArguments

from privileged import get_builder
from privileged.errors import DataError
from privileged.image_policy import ImagePolicy

from . import methods
from .errors import ConfigError, closest
from .loading import Held
from .lora import LoraConfig, base_of
from .rollout.settings import RolloutConfig
from .served import addresses, is_address, is_url
from .served.topk import check_method as check_top_k

RECIPES = Path(__file__).parent / "recipes"
FIXED = {
    "output_dir": "set output_dir at the top level",
    "remove_unused_columns": "samples are not columns",
    "logging_nan_inf_filter": "it would hide a non-finite loss",
    "average_tokens_across_devices": "the loss is already divided by the count over all ranks",
    "resume_from_checkpoint": "set resume at the top level",
    "hub_token": "config.yaml would hold it; log in with `hf auth login` or set HF_TOKEN",
}
"""Fields of TrainingArguments that are not the user's to set, and why."""


@dataclass(kw_only=True)
class ModelConfig:
    """Who learns from whom, and how their weights are held."""

    student: str = ""
    teacher: str = ""
    """A folder, a hub name, or where `vlm-dopd serve-teacher` runs: tcp://host:port, several with commas."""
    teacher_top_k: int | None = None
    """For a plain server, https://host/v1#NAME: an approximation from so many log-probabilities a token (text only)."""
    teacher_base: str | None = None
    """What the teacher was before its own training, for methods that compare it with that."""
    teacher_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """The student's weights are float32 always: steps of 5e-6 vanish in bfloat16. `train.bf16` is its autocast."""
    teacher_load: Held = "full"
    """How teachers lie in memory: full on each device, int8 or nf4 (bitsandbytes), their layers offloaded, or sharded
    over devices; so are copies of the student then."""
    lora: LoraConfig | None = None
    """Train adapters instead of the student's own weights."""
    freeze_vision: bool = True
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """Of scoring and training passes: FlexAttention on a CUDA device and SDPA elsewhere, or always one of them."""
    allow_download: bool = False
    """Permit fetching a model by its hub name; without it only folders and the local hub cache are used."""


@dataclass(kw_only=True)
class DataConfig:
    """The rows, how their p is rendered, and how many tokens a prompt and a pass may have."""

    train: str = ""
    eval: str | None = None
    train_kinds: list[str] | None = None
    """Train on rows of these kinds only; the held-out file stays whole."""
    builder: str = "boxes"
    builder_options: dict[str, Any] = field(default_factory=dict)
    placement: Literal["before_question", "after_question", "system"] = "before_question"
    """Where the section with p stands in the privileged prompt."""
    without_p: Literal["fallback_none", "drop", "error"] = "fallback_none"
    """What becomes of a sample without p, or with more of it than fits: vanilla OPD, left out, or an end of the run."""
    shuffle_p: bool = False
    """A control: in training every row has the record of another one."""
    max_prompt_tokens: int = 4096
    max_pass_tokens: int = 16384
    """Tokens of one forward pass of scoring or training, unless a single prompt with its responses has more."""
    images: dict[str, Any] = field(default_factory=dict)
    """What may be opened as an image: fields of `privileged.image_policy.ImagePolicy`, such as allow_hosts."""
    eval_limit: int | None = None
    """Evaluate on the first N rows during training; the whole file at the end."""


@dataclass(kw_only=True)
class BenchmarkConfig:
    """Published benchmarks that the student is asked during training, whenever `train.eval_steps` says."""

    names: list[str] = field(default_factory=list)
    protocol: str = "toolkit"
    data: str = "hub"
    """Where their rows are: hub, fixture, a file or a folder."""
    limit: int | None = 100
    """Only the first N rows of each source: enough for a curve, too few for a result."""
    max_new_tokens: int | None = None


@dataclass(kw_only=True)
class ReportConfig:
    """What is kept for the pages of the report."""

    token_samples: int = 4
    """Responses of a saved step whose tokens are kept, with regime, scores and alternatives; 0 keeps none."""
    every: int = 20
    """Steps from one saved step to the next; the last step is always one."""


@dataclass(kw_only=True)
class RunConfig:
    """All of a run. `method` and `train` are checked against the method's fields and TrainingArguments."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    benchmarks: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    method: dict[str, Any] = field(default_factory=lambda: {"name": "dopd"})
    train: dict[str, Any] = field(default_factory=dict)
    output_dir: str = "runs/dopd"
    resume: bool = False
    """Go on from the last complete checkpoint in output_dir, if there is one."""
    preflight: bool = True
    """Training begins with the cheap checks of `vlm-dopd preflight`, and does not begin if one fails."""

    def build_method(self) -> methods.Method:
        """The method with its options; unknown options and wrong types raise ConfigError."""
        options = dict(self.method)
        name = options.pop("name", None)
        if name is None:
            raise ConfigError(f"method.name: expected a method, got nothing; known: {', '.join(methods.available())}")
        method = typed(methods.find(name), options, "method.")
        try:
            _ = method.components
        except ValueError as error:  # a divergence that does not exist
            raise ConfigError(f"method: {error}") from None
        return method

    def build_image_policy(self) -> ImagePolicy:
        """`data.images` with the defaults filled in. Raises ConfigError for a field or value that cannot be."""
        if unknown := sorted(set(self.data.images) - {f.name for f in fields(ImagePolicy)}):
            known = (f.name for f in fields(ImagePolicy))
            raise ConfigError(f"data.images.{unknown[0]}: no such setting; {closest(unknown[0], known)}")
        try:
            return ImagePolicy(**self.data.images)
        except DataError as error:
            raise ConfigError(f"data.{error}") from None

    def build_training_arguments(self) -> TrainingArguments:
        """`train` as TrainingArguments, with the settings this trainer cannot do without.

        Building them starts devices and process groups, so a run does it once; `check_training_arguments` does not.
        """
        parser, words = self._training_words()
        try:
            return parser.parse_args_into_dataclasses(words)[0]
        except ValueError as error:
            raise ConfigError(f"train: {_one_line(error)}") from None

    def check_training_arguments(self) -> None:
        """Raises ConfigError for a field that does not exist, is ours to set, or has the wrong type."""
        known = {f.name for f in fields(TrainingArguments) if f.init}
        for key in self.train:
            if key in FIXED:
                raise ConfigError(f"train.{key}: cannot be set here: {FIXED[key]}")
            if key not in known:
                raise ConfigError(f"train.{key}: no such field of TrainingArguments; {closest(key, known)}")
        if (strategy := self.train.get("hub_strategy", "end")) in ("checkpoint", "all_checkpoints"):
            raise ConfigError(
                f"train.hub_strategy: expected end or every_save, got {strategy}: checkpoints hold pickles"
            )
        parser, words = self._training_words()
        with contextlib.redirect_stderr(io.StringIO()) as complaint:
            try:
                parser.parse_args(words)
            except SystemExit:
                reason = complaint.getvalue().strip().splitlines()[-1].partition("error: ")[2]
                raise ConfigError(f"train: {reason}") from None

    def _training_words(self) -> tuple[HfArgumentParser, list[str]]:
        # Workers prepare the next windows while a GPU is busy; on a CPU they would take what the models need.
        workers = 2 if torch.cuda.is_available() else 0
        defaults = {"report_to": "none", "disable_tqdm": not sys.stderr.isatty(), "dataloader_num_workers": workers}
        settings = {**defaults, **self.train, "output_dir": self.output_dir}
        settings |= {"remove_unused_columns": False, "logging_nan_inf_filter": False}
        settings |= {"average_tokens_across_devices": False}
        words = [word for key, value in settings.items() if value is not None for word in (f"--{key}", *_words(value))]
        return HfArgumentParser(cast(Any, TrainingArguments), allow_abbrev=False), words


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """The file with the overrides applied, checked. Relative paths in it are relative to the working directory.

    Raises ConfigError with one line for a missing file, an unknown key, a wrong type or an impossible combination.
    """
    config = typed(RunConfig, read_settings(path, overrides), "")
    check(config)
    return config


def read_settings(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The file's mapping with the overrides applied, not yet checked. Raises ConfigError."""
    path = _recipe(path)
    if not path.is_file():
        shipped = closest(path.name, (recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise ConfigError(f"{path}: no such config file; of the shipped recipes: {shipped}")
    if bad := [word for word in overrides or [] if "=" not in word or word.startswith(("-", "="))]:
        raise ConfigError(f"override {bad[0]!r}: expected key=value, for example rollout.siblings=8")
    try:
        merged = OmegaConf.merge(_load(path), OmegaConf.from_dotlist(overrides or []))
        return cast(dict[str, Any], OmegaConf.to_container(merged))
    except ConfigError:
        raise
    except (OmegaConfBaseException, ValueError, OSError) as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from None
    except Exception as error:  # yaml raises its own family, with a mark of line and column
        raise ConfigError(f"{path}: expected YAML, got: {_one_line(error)}") from None


def _load(path: Path) -> Any:
    """The file's settings, over those of the file or shipped recipe that its `extends` names."""
    loaded = OmegaConf.load(path)
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: expected a mapping of settings at the top level, got a list or a word")
    base = loaded.pop("extends", None)
    if base is None:
        return loaded
    below = OmegaConf.load(_recipe(base))
    if not isinstance(below, DictConfig) or "extends" in below:
        raise ConfigError(f"{path}: extends: expected settings that extend no others in {base}")
    return OmegaConf.merge(below, loaded)


def _recipe(path: str | Path) -> Path:
    """`path`, or the shipped recipe of that bare name, with - or _."""
    shipped = RECIPES / f"{str(path).replace('-', '_')}.yaml"
    bare = str(path) == Path(path).name and not Path(path).is_file()
    return shipped if bare and shipped.is_file() else Path(path)


def check(config: RunConfig) -> None:
    """Everything that can be known before a model is loaded. Raises ConfigError."""
    for key in ("student", "teacher"):
        if not getattr(config.model, key):
            raise ConfigError(f"model.{key}: expected a model folder or hub name, got nothing")
    if Path(config.model.student).resolve() == Path(config.model.teacher).resolve():
        raise ConfigError("model.teacher: expected another model than the student; with one model every gap is zero")
    if base := base_of(config.model.student):
        raise ConfigError(
            f"model.student: {config.model.student} holds an adapter of {base}, expected a whole model; "
            "`vlm-dopd merge` makes one"
        )
    if config.model.lora and not config.model.freeze_vision:
        raise ConfigError(
            "model.freeze_vision: expected true with model.lora, which trains nothing of the vision tower"
        )
    if not config.output_dir:
        raise ConfigError("output_dir: expected a folder, got nothing")
    _check_ranges(config)
    for key in ("train", "eval"):
        file = getattr(config.data, key)
        if (file or key == "train") and not Path(file).is_file():
            raise ConfigError(f"data.{key}: {file or 'nothing'}: no such data file")
    try:
        get_builder(config.data.builder, **config.data.builder_options)
    except DataError as error:
        raise ConfigError(f"data.builder: {error}") from None
    config.build_image_policy()
    config.build_method()
    _check_teacher(config)
    config.check_training_arguments()


def _check_teacher(config: RunConfig) -> None:
    if config.model.teacher_top_k is not None and not is_url(config.model.teacher):
        raise ConfigError("model.teacher_top_k: expected a URL as model.teacher; other teachers give all of it")
    for key in ("teacher", "teacher_base"):
        name = getattr(config.model, key)
        if name and is_url(name):
            if config.model.teacher_top_k is None:
                raise ConfigError(
                    f"model.{key}: a plain server gives top-k log-probabilities, an approximation; set "
                    "model.teacher_top_k to have it, or start `vlm-dopd serve-teacher` for the loss itself"
                )
            check_top_k(config.build_method(), config.model.teacher_top_k)
        elif name and is_address(name):
            addresses(name, f"model.{key}")
    wants_text = config.build_method().wants_references and config.rollout.reference == "teacher"
    if wants_text and is_address(config.model.teacher):
        raise ConfigError(
            "model.teacher: a served teacher scores and writes nothing, and this method trains on its completions; "
            "give its folder, or set rollout.reference to a column of the data"
        )
    if wants_text and config.model.teacher_load == "sharded":
        raise ConfigError(
            "model.teacher_load: expected a teacher that is whole on each rank, as its completions differ in length; "
            "load it otherwise, or set rollout.reference to a column of the data"
        )


def _check_ranges(config: RunConfig) -> None:
    rollout, data, lora = config.rollout, config.data, config.model.lora or LoraConfig()
    report, vllm = config.report, rollout.vllm
    for name, value, fits, expected in (
        ("rollout.siblings", rollout.siblings, rollout.siblings >= 1, "at least 1"),
        ("rollout.max_new_tokens", rollout.max_new_tokens, rollout.max_new_tokens >= 1, "at least 1"),
        ("rollout.temperature", rollout.temperature, 0 < rollout.temperature < float("inf"), "above 0"),
        ("rollout.top_p", rollout.top_p, 0 < rollout.top_p <= 1, "above 0 and at most 1"),
        ("rollout.top_k", rollout.top_k, rollout.top_k >= 0, "0 (off) or more"),
        ("rollout.batch_size", rollout.batch_size, rollout.batch_size >= 1, "at least 1"),
        ("rollout.vllm.urls", vllm.urls, bool(vllm.urls) and all(map(_is_url, vllm.urls)), "http://HOST:PORT of each"),
        ("rollout.vllm.timeout", vllm.timeout, 0 < vllm.timeout < float("inf"), "above 0"),
        ("rollout.vllm.memory_share", vllm.memory_share, 0 < vllm.memory_share < 1, "above 0 and below 1"),
        ("rollout.vllm.check_steps", vllm.check_steps, vllm.check_steps >= 1, "at least 1"),
        ("rollout.vllm.tolerance", vllm.tolerance, 0 < vllm.tolerance < float("inf"), "above 0"),
        ("rollout.vllm.importance_cap", vllm.importance_cap, 0 < vllm.importance_cap < float("inf"), "above 0"),
        ("data.max_prompt_tokens", data.max_prompt_tokens, data.max_prompt_tokens >= 1, "at least 1"),
        ("data.max_pass_tokens", data.max_pass_tokens, data.max_pass_tokens >= 1, "at least 1"),
        ("data.eval_limit", data.eval_limit, data.eval_limit is None or data.eval_limit >= 1, "at least 1, or null"),
        ("model.lora.r", lora.r, lora.r >= 1, "at least 1"),
        ("model.lora.alpha", lora.alpha, 0 < lora.alpha < float("inf"), "above 0"),
        ("model.lora.dropout", lora.dropout, 0 <= lora.dropout < 1, "0 or more and below 1"),
        ("report.token_samples", report.token_samples, report.token_samples >= 0, "0 (none) or more"),
        ("report.every", report.every, report.every >= 1, "at least 1"),
        ("benchmarks.limit", config.benchmarks.limit, (config.benchmarks.limit or 1) >= 1, "at least 1, or null"),
    ):
        if not fits:
            raise ConfigError(f"{name}: expected {expected}, got {value}")
    if rollout.engine == "hf" and vllm.importance != "none":
        raise ConfigError(
            "rollout.vllm.importance: expected rollout.engine=vllm; hf samples with the trainer's weights"
        )


def _is_url(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def save_config(config: RunConfig, path: Path) -> None:
    """The resolved configuration, method defaults written out, as YAML that `load_config` reads back."""
    method = {"name": config.method["name"], **asdict(config.build_method())}  # type: ignore[call-overload]
    path.write_text(OmegaConf.to_yaml(OmegaConf.create({**asdict(config), "method": method})), encoding="utf-8")


def typed(cls: type, values: dict[str, Any], prefix: str) -> Any:
    """`values` as an instance of dataclass `cls`, names and types checked by OmegaConf. Raises ConfigError."""
    schema = OmegaConf.structured(cls)
    _check_sections(schema, values, prefix)
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, values))
    except OmegaConfBaseException as error:
        path, _, leaf = str(error.full_key).rpartition(".")
        known = OmegaConf.select(schema, path) if path else schema
        if known is None and is_dataclass(error.object_type):  # a section that is optional, as model.lora
            known = OmegaConf.structured(error.object_type)
        if OmegaConf.is_dict(known) and leaf not in known:
            raise ConfigError(f"{prefix}{error.full_key}: no such setting; {closest(leaf, map(str, known))}") from None
        raise ConfigError(f"{prefix}{error.full_key}: {_one_line(error)}") from None
    except ValueError as error:  # a dataclass's own check
        raise ConfigError(f"{prefix.rstrip('.')}: {error}") from None


def _check_sections(schema: Any, values: dict[str, Any], prefix: str) -> None:
    """OmegaConf's own message for a section that is a word or a list names no key."""
    for name, value in values.items():
        if name in schema and OmegaConf.is_dict(schema[name]):
            if not isinstance(value, dict):
                raise ConfigError(f"{prefix}{name}: expected a section of settings, got {value!r}")
            _check_sections(schema[name], value, f"{prefix}{name}.")


def _words(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [str(word) for word in value] if isinstance(value, list) else [str(value)]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("\n    full_key")[0].split())
