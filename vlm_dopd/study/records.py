"""What a task leaves in its folder: `result.json` when it is finished, `failure.json` when it failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .plan import Task


def result_of(task: Task) -> dict[str, Any] | None:
    """What a finished task has written; None if it is not finished, or was another task then."""
    result = read_json(task.folder / "result.json")
    return result if result.get("digest") == task.digest else None


def failure_of(task: Task) -> str | None:
    """The last line of a task that failed."""
    failure = read_json(task.folder / "failure.json")
    return failure["error"] if failure.get("digest") == task.digest else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """The file is there whole, or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
