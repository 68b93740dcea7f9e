"""What lm-eval 0.4.13 writes with `--log_samples`: `MODEL/results_DATE.json`, and `samples_TASK_DATE.jsonl` beside it.

For each question a row of samples holds the row of the data set (`doc`), the requests (`arguments`: prompt and, where
options are ranked, one option each), the replies (`filtered_resps`: text, or log-likelihood and whether it is greedy),
and each metric under its name. With `repeats` above 1 lm-eval scores only the first reply; we draw samples as runs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One reply to one question."""

    question: str
    reply: str
    answer: str
    letter: str
    """The option that was taken; empty where a reply was generated."""
    score: float
    digest: str
    group: dict[str, str] = field(default_factory=dict)


def samples_of(folder: Path, metric: str) -> dict[str, Sample]:
    """Samples by subtask, if there are several, and number of the question.

    Raises ValueError with one line unless all that was asked is there and scored.
    """
    file, results = _results(folder)
    date = file.name.removeprefix("results_").removesuffix(".json")
    found: dict[str, Sample] = {}
    subtasks = len(results["configs"]) > 1
    for task in sorted(results["configs"]):
        before = len(found)
        path = file.with_name(f"samples_{task}_{date}.jsonl")
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                key, sample = str(row["doc_id"]), _sample(row, task, metric)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}: line {number}: expected a sample of lm-eval with {metric!r}, got {line[:60]!r} "
                    f"({type(error).__name__}: {error})"
                ) from None
            key = f"{task.partition('_')[2]}-{key}" if subtasks else key
            if key in found:
                raise ValueError(f"{path}: line {number}: expected one row a question, got question {key!r} twice")
            found[key] = sample
        asked = results["n-samples"][task]["effective"]
        if len(found) - before != asked:
            raise ValueError(f"{path}: expected {asked} questions, got another number: was the run ended early?")
    if not found:
        raise ValueError(f"{folder}: expected samples of lm-eval, got none")
    return found


def protocol_of(name: str, folder: Path, metric: str, samples: int) -> str:
    """`name:lm-eval:hash`, the hash over what decides a score besides the model: versions, shots, decoding, metric."""
    _, results = _results(folder)
    told = [
        [
            [task, results["versions"].get(task), results["n-shot"].get(task), config.get("generation_kwargs")]
            for task, config in sorted(results["configs"].items())
        ],
        results["config"].get("gen_kwargs"),
        results.get("lm_eval_version"),
        results.get("chat_template_sha") is not None,
        results.get("fewshot_as_multiturn"),
        results.get("system_instruction"),
        metric,
        samples,
    ]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    return f"{name}:lm-eval:{digest}"


def _results(folder: Path) -> tuple[Path, dict[str, Any]]:
    files = sorted(folder.rglob("results_*.json"))
    if len(files) != 1:
        raise ValueError(f"{folder}: expected one results_*.json of lm-eval, got {len(files)}")
    try:
        results = json.loads(files[0].read_bytes())
        if not all(isinstance(results[key], dict) for key in ("configs", "versions", "n-shot", "n-samples", "config")):
            raise TypeError("other types")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{files[0]}: expected the results of lm-eval, got something else ({error})") from None
    return files[0], results


def _sample(row: dict[str, Any], task: str, metric: str) -> Sample:
    requests = [row["arguments"][f"gen_args_{number}"] for number in range(len(row["arguments"]))]
    replies, doc = row["filtered_resps"], row["doc"]
    answer, letter, reply = str(row["target"]), "", replies[0]
    if len(requests) > 1:
        options = [request["arg_1"].strip() for request in requests]
        likelihoods = [float(likelihood) for likelihood, _ in replies]
        answer = options[int(row["target"])]
        reply = letter = options[likelihoods.index(max(likelihoods))]
    score = float(row[metric])
    if not isinstance(reply, str) or not 0 <= score <= 1:
        raise ValueError(f"expected a text and a score in 0..1, got {type(reply).__name__} and {score}")
    group = {name: str(doc[name]) for name in ("subject", "level") if name in doc}
    if "ceval" in task:
        group = {"subject": task.partition("_")[2]}
    return Sample(
        question=requests[0]["arg_0"],
        reply=reply,
        answer=answer,
        letter=letter,
        score=score,
        digest=row["doc_hash"][:16],
        group=group,
    )
