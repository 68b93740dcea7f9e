"""A ladder to plant defects in: the bundled pair, copied where a file is to be spoiled, and one check asked by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from vlm_dopd import scoring
from vlm_dopd.config import RunConfig, load_config
from vlm_dopd.preflight.finding import Finding
from vlm_dopd.preflight.ladder import CHEAP, MODEL
from vlm_dopd.preflight.trial import Trial
from vlm_dopd.preflight.wiring import Wiring
from vlm_dopd.run import build_trainer


def config(folder: Path, *overrides: str) -> RunConfig:
    """The demo, on few rows."""
    own = [f"output_dir={folder / 'run'}", "train.per_device_train_batch_size=2"]
    return load_config("demo", [*own, *overrides])


def spoiled(folder: Path, who: str, file: str, change: Callable[[Any], Any]) -> str:
    """`model.WHO=…`: the bundled model with one file changed; JSON comes as an object, all else as text."""
    path = folder / who
    if not path.exists():
        shutil.copytree(tiny.ASSETS / who, path)
    text = (path / file).read_text(encoding="utf-8")
    if file.endswith(".json"):
        content = json.loads(text)
        new = json.dumps(change(content) or content)
    else:
        new = change(text)
    (path / file).write_text(new, encoding="utf-8")
    return f"model.{who}={path}"


def set_stops(*ids: int) -> Callable[[Any], None]:
    """For `spoiled` of a generation_config.json."""

    def change(generation: Any) -> None:
        generation["eos_token_id"] = list(ids)

    return change


def found(name: str, subject: Any) -> Finding:
    """What the check of that name finds, as the ladder asks it."""
    (check,) = [check for check in (*CHEAP, *MODEL) if check.name == name]
    return check.find(subject)


def failing(config: RunConfig) -> set[str]:
    """Names of the cheap checks that fail."""
    from vlm_dopd.preflight import climb

    return {rung.name for rung in climb(config, None) if rung.finding.status == "FAIL"}


def wiring(folder: Path, *overrides: str, rows: int = 6) -> Wiring:
    return Wiring(config(folder, *overrides), rows=rows)


def trial(folder: Path, *overrides: str) -> Trial:
    """What the checks with a model look at."""
    given = config(folder, *overrides)
    return Trial(Wiring(given, rows=5), build_trainer(given))


def plant_dropout(made: Trial) -> None:
    """In the student, in training only."""
    for layer in made.student.model.base_model.language_model.layers:
        layer.self_attn.attention_dropout = 0.3


def plant_temperature(made: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one of the pass with gradient."""
    head = type(made.student).head

    def hotter(self, temperature=1.0):
        return head(self, 1.5 if torch.is_inference_mode_enabled() or self.model.training else temperature)

    monkeypatch.setattr(type(made.student), "head", hotter)


def plant_causal_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Siblings see those before them."""
    mask = scoring.shared_prefix_mask
    monkeypatch.setattr(scoring, "shared_prefix_mask", lambda g, s, flex: mask(g, torch.zeros_like(s), flex))


def plant_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of responses begin seven too late."""
    hidden = scoring._hidden

    def shifted(policy, packed):
        position = packed.inputs["position_ids"] + packed.segment_BL.clamp(max=1) * 7
        return hidden(policy, replace(packed, inputs=packed.inputs | {"position_ids": position}))

    monkeypatch.setattr(scoring, "_hidden", shifted)


@torch.no_grad()
def plant_drift(made: Trial, deviations: float) -> None:
    """The engine samples from weights that are not the trainer's, each so many standard deviations away."""
    engine = made.completions.engine
    stale = deepcopy(engine.policy.model)
    torch.manual_seed(0)
    for layer in stale.base_model.language_model.layers:
        weight = layer.mlp.down_proj.weight
        weight.add_(deviations * weight.std() * torch.randn_like(weight))
    engine.policy = replace(engine.policy, model=stale)
