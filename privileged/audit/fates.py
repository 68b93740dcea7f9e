"""What becomes of a row, and by which rule. Apart from the facts, so that a policy can change without a new audit."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..errors import DataError
from ..leaks import Grade

ACTIONS = ("keep", "warn", "drop")
FATES = ("kept", "warned", "dropped")
"""`warned` rows stay in the training file; the report lists them."""
_DECLARED = {"none": Grade.NONE, "cue": Grade.CUE, "derivable": Grade.DERIVABLE, "answer": Grade.STATED}


@dataclass(frozen=True, kw_only=True)
class DropPolicy:
    """What to do with rows by what was found: one of ACTIONS each. Rows that cannot be read are always dropped.

    A leak grade counts only above what the builder declares to disclose: hints may hold a conclusion, boxes may not.
    """

    stated: str = "drop"
    derivable: str = "warn"
    cue: str = "keep"
    empty: str = "warn"
    """No p: training then falls back to plain distillation, or drops the row itself."""
    over_budget: str = "warn"
    """More tokens in the privileged prompt than `max_tokens`: treated by training as no p."""
    overlap: str = "warn"
    """An image, or without images the question, that an evaluation file has too."""
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.name != "max_tokens"):
            if (value := getattr(self, name)) not in ACTIONS:
                raise DataError(f"drop policy: {name}: expected one of {', '.join(ACTIONS)}, got {value!r}")
        if self.max_tokens is not None and (not isinstance(self.max_tokens, int) or self.max_tokens < 1):
            raise DataError(f"drop policy: max_tokens: expected a number from 1, got {self.max_tokens!r}")


def decide(facts: dict[str, Any], policy: DropPolicy, discloses: str) -> dict[str, Any]:
    """`fate`, one of FATES, and `rules`, what decided it, for one row; no rules for a row that is kept."""
    if facts["error"] is not None:
        return {"fate": "dropped", "rules": ["unreadable"]}
    found = [(policy.empty, "empty p")] if facts["empty"] else []
    tokens = facts["tokens"][1]
    if policy.max_tokens is not None and tokens is not None and tokens > policy.max_tokens:
        found.append((policy.over_budget, "over budget"))
    if any(name.endswith("image") or not facts["images"] for name in facts.get("overlap", ())):
        found.append((policy.overlap, "in an evaluation file"))
    if (worst := Grade(facts["grade"])) > _DECLARED[discloses]:
        names = {
            f"{worst.name.lower()}: {hit['rule']}"
            for hit in facts["hits"]
            if (Grade.CUE if hit["weak"] else hit["grade"]) == worst
        }
        found += [(getattr(policy, worst.name.lower()), name) for name in sorted(names)]
    for action, fate in (("drop", "dropped"), ("warn", "warned")):
        if rules := [rule for how, rule in found if how == action]:
            return {"fate": fate, "rules": rules}
    return {"fate": "kept", "rules": []}
