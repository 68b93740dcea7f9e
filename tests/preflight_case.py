"""A ladder to plant defects in: the bundled pair, copied where a file is to be spoiled, and one check asked by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import tiny
from vlm_dopd.config import RunConfig, load_config
from vlm_dopd.preflight.finding import Finding
from vlm_dopd.preflight.ladder import CHEAP, MODEL
from vlm_dopd.preflight.wiring import Wiring


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
