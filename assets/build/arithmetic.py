"""Two-step arithmetic in words: the text-only set. p is the steps to take, not carried out."""

from __future__ import annotations

import numpy as np

from privileged.records import Note, PrivilegedRecord, Sample

from .scenes import LIMIT, Example

KINDS = ("plus", "mixed", "less", "story")
QUESTIONS = {
    "plus": "What is {a} plus {b} plus {c}?",
    "mixed": "What is {a} plus {b} minus {c}?",
    "less": "What is {c} less than {a} plus {b}?",
    "story": "Ann has {a} apples, finds {b} and eats {c}. How many are left?",
}


def all_problems() -> list[Example]:
    """Every problem of every kind with every sum up to 12, each once, in a fixed order."""
    problems = []
    for kind in KINDS:
        for a in range(1, 10):
            for b in range(1, 10):
                for c in range(1, 10):
                    total = a + b + c if kind == "plus" else a + b - c
                    if a + b <= LIMIT and 0 <= total <= LIMIT:
                        problems.append(_problem(kind, a, b, c, total))
    return problems


def split_problems(seed: int, train: int, heldout: int) -> tuple[list[Example], list[Example], list[Example]]:
    """(train, held-out, rest) without overlap, the kinds in equal shares."""
    rng = np.random.default_rng([seed, 2])
    parts: tuple[list[Example], list[Example], list[Example]] = ([], [], [])
    for kind in KINDS:
        mine = [problem for problem in all_problems() if problem.kind == kind]
        mine = [mine[i] for i in rng.permutation(len(mine))]
        cut = heldout // len(KINDS)
        stop = cut + train // len(KINDS)
        parts[1].extend(mine[:cut])
        parts[0].extend(mine[cut:stop])
        parts[2].extend(mine[stop:])
    return parts


def _problem(kind: str, a: int, b: int, c: int, total: int) -> Example:
    last = f"{a + b} plus {c} is {total}" if kind == "plus" else f"{a + b} minus {c} is {total}"
    hints = (
        f"Add {b} to {a}.",
        f"Then add {c}." if kind == "plus" else f"Then take {c} away.",
    )
    sample_id = f"{kind}-{a}-{b}-{c}"
    sample = Sample(
        id=sample_id,
        question=QUESTIONS[kind].format(a=a, b=b, c=c),
        answer=str(total),
        privileged=PrivilegedRecord(sample_id=sample_id, notes=tuple(Note(text=hint) for hint in hints)),
    )
    return Example(kind=kind, sample=sample, response=f"{a} plus {b} is {a + b}, and {last}.\nAnswer: {total}")
