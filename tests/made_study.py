"""A study folder as if its cells had run: answers, metrics and results from a seed, in the form that workers write."""

import json

import numpy as np

from vlm_dopd.study.records import write_json

from .predicted import predicted

KINDS = ("which", "sum")


def answers(path, share, count, seed, kinds=KINDS):
    """Replies to `count` questions, a `share` of them right; the hard questions are the same ones for everybody."""
    generator = np.random.default_rng(seed)
    hard = np.random.default_rng(0).random(count)
    rows = []
    for q in range(count):
        right = 0.7 * hard[q] + 0.3 * generator.random() < share
        group = {"kind": kinds[q % len(kinds)]}
        rows.append(predicted(f"q{q}", "correct" if right else "wrong", run="r", group=group).to_json() + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(rows))


def finish(study, count=40, leave_out=(), kinds=KINDS):
    """Every task of the study done, except those whose titles begin with one of `leave_out`."""
    for number, task in enumerate(study.tasks):
        if task.title.startswith(tuple(leave_out)):
            continue
        share = {"teacher": 0.96, "student before": 0.45}.get(task.title, 0.55 + 0.04 * (number % 9))
        result = {"digest": task.digest, "versions": {"vlm-dopd": "0.1.0", "commit": "abc"}}
        if not task.steps:
            answers(task.folder / "answers.jsonl", share, count, number, kinds)
        for stage in range(1, len(task.work.get("stages", [])) + 1):
            answers(task.folder / f"stage-{stage}.jsonl", share + 0.02 * stage, count, 10 * number + stage, kinds)
            run = task.folder / f"stage-{stage}"
            run.mkdir(parents=True, exist_ok=True)
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics(share, number)))
            result |= {"seconds": 60.0 + number, "memory": {"host": 2**30}}
        write_json(task.folder / "result.json", result)


def metrics(share, seed):
    """Of ten steps: logged every second, evaluated every fifth."""
    noise = np.random.default_rng(seed).normal(0, 0.02, 11)
    lines = []
    for step in range(2, 11, 2):
        entropy, length = 0.5 - 0.02 * step + noise[step], 20 + step + 40 * noise[step]
        lines.append({"step": step, "entropy/student": entropy, "rollout/length": length, "rollout/tokens": 100.0})
        if step in (4, 10):
            lines.append({"step": step, "eval/accuracy": share * (1 - 2 / step) + noise[step] + 0.1})
    return lines
