"""Text benchmarks through lm-eval: C-Eval, MATH-500 and AIME 2025, read into rows like those of the visual ones.

lm-eval runs as a child process with `--log_samples`, never with code of the data set or of the model, and is imported
nowhere. Its files are kept under `out/NAME/`; `out/NAME.jsonl` has our rows. lm-eval says whether a reply is right, not
what it read in it nor whether it was cut off, so the fates unparsed and truncated do not occur here.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .logs.lm_eval import Sample, protocol_of, samples_of
from .records import Prediction

logger = logging.getLogger(__name__)

EXTRA = "text benchmarks need lm-eval: `pip install 'vlm-dopd[text]'`"
SEED = 1234
"""lm-eval's own seed for torch; sample k is drawn with SEED + k."""
ENOUGH = 8
"""Samples of each question below which a benchmark of few questions says little."""


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """A text benchmark: the task of lm-eval, its metric, and what is told to it."""

    task: str
    metric: str
    questions: int
    sampled: bool = True
    """Whether replies are generated; else options are ranked by likelihood, where a second sample says nothing new."""
    decoding: Mapping[str, Any] = field(default_factory=dict)


TASKS: dict[str, TextTask] = {
    "ceval": TextTask(task="ceval-valid", metric="acc", questions=1346, sampled=False),
    # lm-eval's own budget of 256 tokens ends most solutions before their answer.
    "math500": TextTask(task="minerva_math500", metric="math_verify", questions=500, decoding={"max_gen_toks": 4096}),
    "aime25": TextTask(task="aime25", metric="exact_match", questions=30),
}


@dataclass(frozen=True, kw_only=True)
class TextAsking:
    """What a user may choose."""

    limit: int | None = None
    """First questions of every subtask only."""
    samples: int = 1
    """Replies to each question, drawn with one seed each; a question's score is their mean."""
    temperature: float = 0.6
    """Where there is more than one sample; a single one is as the task says, which is greedy."""
    chat: bool = True
    """Whether prompts go through the chat template of the checkpoint."""
    vision: bool | None = None
    """Whether the checkpoint takes images; None: as its config.json says, which only a folder has."""
    batch_size: int = 1
    device: str | None = None
    tasks: Path | None = None
    """A folder with task files of your own that come before lm-eval's, say with the same task over local data."""


def run(
    model: str, names: Sequence[str], out: Path, asking: TextAsking = TextAsking(), who: str = ""
) -> dict[str, list[Prediction]]:
    """Ask the checkpoint folder or hub id `model` the benchmarks `names`; predictions by name, one a question.

    A sample that an earlier run with the same settings has finished under `out` is not asked again. Raises ValueError
    with one line if a name is unknown, if lm-eval is missing or fails, or if `out` holds a run with other settings.
    """
    for name in names:
        if name not in TASKS:
            raise ValueError(f"text benchmark {name!r} is unknown: known: {', '.join(TASKS)}")
    if asking.samples < 1:
        raise ValueError(f"samples: expected 1 or more, got {asking.samples}")
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(EXTRA)
    _check_tasks(asking.tasks)
    backend = _backend(model, asking.vision)
    predictions = {}
    for name in names:
        samples = asking.samples if TASKS[name].sampled else 1
        folders = [_ask(model, backend, name, k, out / name, asking) for k in range(samples)]
        predictions[name] = read(name, folders, who or model)
        _write(out / f"{name}.jsonl", predictions[name])
        if TASKS[name].questions < 100 and samples < ENOUGH:
            logger.warning(
                "%s has %d questions: with %d of %d samples each, chance alone moves its score by 10 points and more",
                name, TASKS[name].questions, samples, ENOUGH,
            )  # fmt: skip
    return predictions


def read(name: str, folders: Sequence[Path], who: str = "") -> list[Prediction]:
    """Predictions from what lm-eval wrote: one folder a sample, scores averaged over samples first.

    Raises ValueError with one line if a folder holds no complete run of the benchmark, or if the samples were asked
    differently or are not of the same questions.
    """
    told = TASKS[name]
    runs = [samples_of(folder, told.metric) for folder in folders]
    protocols = {protocol_of(name, folder, told.metric, len(folders)) for folder in folders}
    if len(protocols) > 1:
        raise ValueError(f"{folders[0].parent}: expected samples that were asked alike, got {len(protocols)} protocols")
    if any(run.keys() != runs[0].keys() for run in runs):
        raise ValueError(f"{folders[0].parent}: expected samples of the same questions, got different ones")
    return [_prediction(name, key, [run[key] for run in runs], protocols.copy().pop(), who) for key in runs[0]]


def _prediction(name: str, key: str, samples: Sequence[Sample], protocol: str, who: str) -> Prediction:
    first = samples[0]
    if any(sample.digest != first.digest for sample in samples):
        raise ValueError(f"{name}: question {key!r}: expected one question in all samples, got different ones")
    score = sum(sample.score for sample in samples) / len(samples)
    several = len(samples) > 1
    return Prediction(
        id=f"{name}-{key}",
        question=first.question,
        response=json.dumps([sample.reply for sample in samples], ensure_ascii=False) if several else first.reply,
        truncated=False,
        answer=first.answer,
        parsed=f"right {score:.0%}" if several else first.letter or ("right" if score else "wrong"),
        score=score,
        fate="parsed",
        method=f"lm-eval {TASKS[name].metric}" + (f", mean of {len(samples)} samples" if several else ""),
        digest=first.digest,
        protocol=protocol,
        run=who,
        group=first.group,
        cluster=f"{name}-{key}",
    )


def _ask(model: str, backend: str, name: str, number: int, out: Path, asking: TextAsking) -> Path:
    """Folder of a finished sample; asks for it unless it is there."""
    told = TASKS[name]
    decoding = dict(told.decoding)
    if asking.samples > 1 and told.sampled:
        decoding |= {"do_sample": True, "temperature": asking.temperature}
    # JSON, not a=b,c=d: a comma in the name of a checkpoint would add settings of its own.
    options = [
        "--model", backend, "--model_args", json.dumps({"pretrained": model, "dtype": "auto"}), "--tasks", told.task,
        "--log_samples", "--seed", f"0,1234,{SEED + number},1234", "--batch_size", str(asking.batch_size),
    ]  # fmt: skip
    options += ["--gen_kwargs", json.dumps(decoding)] if decoding else []
    options += ["--limit", str(asking.limit)] if asking.limit is not None else []
    options += ["--apply_chat_template"] if asking.chat else []
    options += ["--device", asking.device] if asking.device else []
    options += ["--include_path", str(asking.tasks)] if asking.tasks else []
    folder = out / f"sample-{number}"
    asked = folder / "asked.json"
    if asked.exists():
        if json.loads(asked.read_bytes()) != options:
            raise ValueError(f"{folder} holds a run with other settings; choose another folder")
        return folder
    part = out / f"sample-{number}.part"
    shutil.rmtree(part, ignore_errors=True)  # what a kill has left
    part.mkdir(parents=True)
    _child([*options, "--output_path", str(part)], part / "lm-eval.log", name)
    (part / "asked.json").write_text(json.dumps(options), encoding="utf-8")
    part.replace(folder)
    return folder


def _child(options: Sequence[str], log: Path, name: str) -> None:
    # -P: what lies in the current folder must not pass for a library.
    command = [sys.executable, "-P", "-m", "lm_eval", *options]
    environment = {key: value for key, value in os.environ.items() if key != "HF_ALLOW_CODE_EVAL"}
    with log.open("wb") as file:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file, env=environment
        )
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        raise ValueError(f"{name}: lm-eval ended with code {done.returncode}: {last[:300]} (all of it: {log})")


def _backend(model: str, vision: bool | None) -> str:
    """`hf-multimodal` for a vision-language checkpoint, which lm-eval's `hf` cannot load; text goes through both."""
    config = Path(model) / "config.json"
    if vision is None:
        try:
            found = json.loads(config.read_bytes())
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise ValueError(
                f"{model}: expected a checkpoint folder with config.json, or `vision` for a hub id ({reason})"
            ) from None
        vision = isinstance(found, dict) and "vision_config" in found
    return "hf-multimodal" if vision else "hf"


def _check_tasks(folder: Path | None) -> None:
    if folder is None:
        return
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of task files, got none")
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".py" or (file.suffix in (".yaml", ".yml") and b"!function" in file.read_bytes()):
            raise ValueError(f"{file}: expected task files without code, got one that runs some")


def _write(path: Path, predictions: Sequence[Prediction]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text("".join(row.to_json() + "\n" for row in predictions), encoding="utf-8", newline="\n")
    part.replace(path)
