"""One training run: from a checked configuration to a folder of results.

run folder
  config.yaml       the resolved configuration        versions.json   what ran it
  metrics.jsonl     one object a log event            checkpoint-N/   to resume from
  tokens/           what a few responses were taught, token by token
  report.html       the run page, with report.json; tokens.html beside it
  *.safetensors, …  the student, a plain transformers checkpoint with its processor
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled

from privileged import get_builder

from . import __version__, health, preflight, rewards
from .benchmarks import BenchmarkCurves
from .callbacks import MetricsFile, StopOnNonFiniteGradient, read_metrics
from .collate import Collator, Encoder
from .completions import Completions, ReferenceColumn
from .config import RunConfig, save_config
from .copies import StudentCopies
from .data import SampleDataset
from .engines import engine_of, watching
from .errors import ConfigError
from .evaluation import OpenModel, headline, items
from .methods import STUDENT_PRIVILEGED, Method
from .pair import load_pair
from .reporting import RunPage
from .roles import banned_ids, eos_ids, load_processor, tokenizer_of, with_merged_stops
from .rollout import Engine
from .rollout.hf import HFRollout
from .sharding import shard
from .token_files import TokenFiles
from .token_samples import TokenSamples
from .trackers import TrackerSamples
from .trainer import DopdTrainer
from .window import WindowBuilder, gather_object
from .wiring import builder_of, collator_of, training_data

logger = logging.getLogger(__name__)


def train(config: RunConfig) -> Path:
    """Run `config` to its end, from the last complete checkpoint if `resume` is set; returns the run folder.

    Raises ConfigError before anything is written if the folder already holds a run that is not to be resumed.
    """
    run = Path(config.output_dir)
    checkpoint = last_checkpoint(run)
    if checkpoint and not config.resume:
        raise ConfigError(f"output_dir: {run} holds a run already; set resume=true to go on with it, or choose another")
    if config.preflight and os.environ.get("RANK", "0") == "0":  # no process group yet
        preflight.refuse(config)
    trainer = build_trainer(config)
    checkpoint = gather_object(checkpoint)[0]  # ranks may see another state of a disk that they share
    served = served_models(trainer.window_builder.policies)
    if checkpoint:
        check_served(run / "versions.json", served)
    if trainer.is_world_process_zero():
        save_config(config, run / "config.yaml")
        (run / "versions.json").write_text(json.dumps(versions() | served, indent=2) + "\n", encoding="utf-8")
    if checkpoint and _finished(checkpoint, trainer.args):
        trainer._load_from_checkpoint(str(checkpoint))  # `train` would do one step more
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model(str(run))
    if trainer.is_world_process_zero():
        logger.info("health\n%s", health.table(health.check(read_metrics(run / "metrics.jsonl"))))
    return run


def build_trainer(config: RunConfig) -> DopdTrainer:
    """Load the pair and the data, check that they fit, and connect them. Raises ConfigError or DataError."""
    args = config.build_training_arguments()
    if is_deepspeed_zero3_enabled():  # would cut every model as it is loaded, the teacher's LM head too
        raise ConfigError(
            "DeepSpeed ZeRO-3: expected a student whose weights are whole while it answers; take FSDP2 "
            "(recipes/accelerate/fsdp2.yaml) with model.teacher_load=sharded, or ZeRO-2"
        )
    run = Path(config.output_dir)
    run.mkdir(parents=True, exist_ok=True)
    set_seed(args.seed)
    processor = load_processor(config.model.student, config.model.allow_download)
    student, frozen = load_pair(config, processor, args.device)
    method, tokenizer = config.build_method(), tokenizer_of(processor)
    if method.merge_stops:
        frozen = with_merged_stops({"student": student, **frozen}, tokenizer)
        student = frozen.pop("student")
    if note := getattr(sys.modules[type(method).__module__], "OPEN", None):
        logger.info("%s", note)
    copies = StudentCopies(student, method)
    for copied in copies.policies.values():
        if config.model.teacher_load == "sharded":
            shard(copied.model)
        copied.model.to(args.device)
    policies = {"student": student, **frozen, **copies.policies}
    if missing := {role.weights for role in method.roles} - set(policies):
        raise ConfigError(f"model.{missing.pop()}: expected a model, method {config.method['name']} scores with it")
    collator = collator_of(config, method, Encoder(processor, student.model, config.rollout.engine == "vllm"))
    samples = _token_samples(config, method, collator)
    special = [*(student.merged or eos_ids(student.model, tokenizer)), *banned_ids(student.model, tokenizer)]
    completions = _completions(config, method, policies, collator, args.seed)

    def build_window(ranks: Any) -> WindowBuilder:
        pad, budget = tokenizer.pad_token_id, config.data.max_pass_tokens
        watched = watching(config, method, student, pad, banned_ids(student.model, tokenizer))
        return WindowBuilder(
            policies, method, completions, pad, special, ranks, budget, copies.state, samples=samples, **watched
        )

    eval_data = None
    if config.data.eval:
        eval_data = SampleDataset(config.data.eval, config.data.eval_limit, config.build_image_policy())
    trainer = DopdTrainer(
        student=student,
        build_window=build_window,
        copies=copies,
        samples=samples,
        evaluate_student=_evaluator(config, method, OpenModel(student.model, processor), eval_data),
        args=args,
        train_dataset=training_data(config),
        # What is asked is the evaluator's; Trainer only wants to know whether there is anything.
        eval_dataset=[] if eval_data is None and config.benchmarks.names else eval_data,
        data_collator=collator,
        processing_class=processor,
        callbacks=[MetricsFile(run / "metrics.jsonl"), StopOnNonFiniteGradient(), RunPage(run)],
    )
    if samples is not None and args.report_to:  # after `samples`, whose files it reads
        trainer.add_callback(TrackerSamples(run / "tokens", args.report_to, trainer.callback_handler.callbacks))
    return trainer


def _token_samples(config: RunConfig, method: Method, collator: Collator) -> TokenSamples | None:
    if not config.report.token_samples:
        return None
    folder, tokenizer = Path(config.output_dir) / "tokens", tokenizer_of(collator.encoder.processor)
    files = TokenFiles(folder, tokenizer, collator.builder, config.data.placement)
    return TokenSamples(files, method, config.report.token_samples, config.report.every)


def _completions(
    config: RunConfig, method: Method, policies: dict[str, Any], collator: Collator, seed: int
) -> Completions:
    student, teacher = policies["student"], policies["teacher"]
    tokenizer = tokenizer_of(collator.encoder.processor)
    pad, banned = tokenizer.pad_token_id, banned_ids(student.model, tokenizer)
    eos = list(student.merged) or eos_ids(student.model, tokenizer)
    if config.rollout.temperature != 1:
        logger.warning("rollouts at temperature %s; scores and losses at temperature 1", config.rollout.temperature)
    references: Engine | None = None
    if method.wants_references:
        one = replace(config.rollout, siblings=1)
        references = (
            HFRollout(teacher, one, pad, eos, banned, seed)
            if config.rollout.reference == "teacher"
            else ReferenceColumn(
                config.rollout.reference, tokenizer, tokenizer.eos_token_id, config.rollout.max_new_tokens
            )
        )
    return Completions(
        method=method,
        engine=engine_of(config, method, student, pad, eos, banned, seed),
        references=references,
        collator=collator,
        tokenizer=tokenizer,
        reward=rewards.find(config.rollout.reward) if method.needs_reward else None,
        seed=seed,
    )


def _evaluator(
    config: RunConfig, method: Method, student: OpenModel, data: SampleDataset | None
) -> Callable[[int], dict[str, float]] | None:
    """What to ask the student at a step. Raises DataError or ConfigError now for what could not be asked then.

    Where the live student with p is a target, its accuracy stands beside the plain one's: a student that is wrong with
    p as well, and surer than the teacher, is held to its own mistakes (see the guard of `dopd_plus`).
    """
    questions = items(data, get_builder("none"), "plain") if data else []
    own_target = any(component.target == STUDENT_PRIVILEGED for component in method.components)
    with_p = items(data, builder_of(config), "privileged", config.data.placement) if data and own_target else []
    benchmarks = BenchmarkCurves(config.benchmarks, Path(config.output_dir)) if config.benchmarks.names else None
    if not questions and benchmarks is None:
        return None

    def evaluate(step: int) -> dict[str, float]:
        figures: dict[str, float] = {}
        if questions:
            figures |= headline(student.ask(questions, config.rollout.max_new_tokens, "held-out"))
        if with_p:
            told = headline(student.ask(with_p, config.rollout.max_new_tokens, "held-out, with p"))
            figures["accuracy_with_p"] = told["accuracy"]
        if benchmarks is not None:
            figures |= benchmarks.ask(student, step)
        return figures

    return evaluate


def last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that was written to its end. Trainer writes trainer_state.json last; a kill may cut it."""
    found = [path for path in run.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return path
        except (OSError, ValueError):
            logger.warning("%s is incomplete: left out", path)
    return None


def _finished(checkpoint: Path, args: TrainingArguments) -> bool:
    """Whether the last step was done already: the kill came between the last checkpoint and the end.

    A run that is to be longer now than when the checkpoint was written is not finished.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    if args.max_steps > 0:
        return state["global_step"] >= args.max_steps
    return state["global_step"] >= state["max_steps"] and state["num_train_epochs"] >= args.num_train_epochs


def served_models(policies: Mapping[str, Any]) -> dict[str, str]:
    """`served teacher` -> fingerprint of its weights, for every model in another process that can tell it."""
    found = {role: getattr(policy, "fingerprint", None) for role, policy in policies.items()}
    return {f"served {role}": fingerprint for role, fingerprint in found.items() if fingerprint}


def check_served(path: Path, served: Mapping[str, str]) -> None:
    """Raises ConfigError if the run of `path`, its versions.json, began with other served models."""
    try:
        began = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # killed before it was written to its end
        return
    for name, fingerprint in served.items():
        if began.get(name, fingerprint) != fingerprint:
            role = name.removeprefix("served ")
            raise ConfigError(
                f"model.{role}: expected the weights this run began with ({began[name][:12]}), got others at that "
                f"address ({fingerprint[:12]}); serve the first ones, or choose another output_dir"
            )


def versions() -> dict[str, str | None]:
    """What a result depends on: our version and commit, and the libraries'."""
    here = Path(__file__).resolve().parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    names = ["torch", "torchvision", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "pillow"]
    names += [extra for extra in ("peft", "bitsandbytes") if find_spec(extra)]
    return {
        "vlm-dopd": __version__,
        "commit": git.stdout.strip() or None,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: version(name) for name in names},
    }
