"""`python -m assets.build` makes everything in `assets/`; `python -m assets.build teacher` only the teacher.

The steps do not depend on each other's output, so `teacher` and `student` may run side by side, a core each. `scaling`
makes the further models of `studies/scaling.yaml`, in `assets/scaling/`; they are not shipped: it runs if named only.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from .arithmetic import split_problems
from .curriculum import COURSES
from .evaluate import measure
from .models import SIZES
from .processing import build_processor
from .tables import TEXT_HELDOUT, TEXT_TRAIN, heldout_scenes, write_data
from .train import make_model

ASSETS = Path(__file__).resolve().parent.parent
BUNDLED = ("teacher", "student")
SCALING = ("middle", "small")
STEPS = ("data", *BUNDLED, "evaluate")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m assets.build", description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="step", help=f"of {', '.join(STEPS)} (default: these), scaling")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads; numbers repeat for a fixed count")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write to (default: assets/)")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.steps) - {*STEPS, "scaling"}):
        parser.error(f"unknown step {unknown[0]!r}: expected {', '.join(STEPS)}, scaling")
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    steps = arguments.steps or STEPS
    if "data" in steps:
        write_data(arguments.out, arguments.seed)
    for name in BUNDLED:
        if name in steps:
            save_model(name, arguments.out, arguments.seed)
    if "evaluate" in steps:
        for name in BUNDLED:
            note(arguments.out, name, "accuracy", evaluate(arguments.out / name, arguments.seed))
    if "scaling" in steps:
        folder = arguments.out / "scaling"
        for name in SCALING:
            save_model(name, folder, arguments.seed)
            note(folder, name, "accuracy", evaluate(folder / name, arguments.seed))


def save_model(name: str, out: Path, seed: int) -> None:
    """Trains model `name` and saves it with its processor, as any Qwen3-VL checkpoint is saved."""
    processor = build_processor(seed)
    model, report = make_model(SIZES[name], COURSES[name], processor, seed)
    model.save_pretrained(out / name)
    processor.save_pretrained(out / name)
    note(out, name, "training", report)


def evaluate(folder: Path, seed: int) -> dict[str, dict]:
    """Accuracy of the checkpoint in `folder`, loaded as a user would load it."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    _, problems, _ = split_problems(seed, TEXT_TRAIN, TEXT_HELDOUT)
    return {
        "scenes": measure(model, processor, heldout_scenes(seed)),
        "text": measure(model, processor, problems),
    }


def note(out: Path, name: str, section: str, report: dict) -> None:
    """Writes `report` into `results.json`, which keeps what other steps have written."""
    path = out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results.setdefault(name, {})[section] = report
    path.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n")
    print(name, section, json.dumps(report))


if __name__ == "__main__":
    main()
