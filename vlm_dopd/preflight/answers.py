"""What the student says: does it end, is it right, and does it look as it should?"""

from __future__ import annotations

from ..health import TRUNCATED
from .finding import Check, Finding, judged, skipped
from .trial import Trial

SHOWN = 3
LINE = 200
"""Characters of a response that are shown."""


def responses_end(trial: Trial) -> Finding:
    """Whether responses end by a stop token, or are cut off by the budget."""
    own = [response for siblings in trial.responses for response in siblings if not response.reference]
    if not own:
        return skipped("the method trains on reference completions alone")
    cut = sum(response.truncated for response in own)
    lengths = sorted(response.id_T.numel() for response in own)
    figure = f"{cut} of {len(own)} cut off at {trial.wiring.config.rollout.max_new_tokens} tokens"
    return judged(
        f"{figure}; half have at most {lengths[len(lengths) // 2]}",
        f"at most {TRUNCATED:.0%}",
        fail=cut == len(own),
        warn=cut > TRUNCATED * len(own),
        fix="raise rollout.max_new_tokens, or see below why they do not stop: a stop token the student never learnt?",
    )


def answers(trial: Trial) -> Finding:
    """A few responses for a person to read, and how many are right."""
    shown: list[str] = []
    for place, (sample, siblings) in enumerate(zip(trial.samples, trial.responses, strict=True)):
        if len(shown) < SHOWN and siblings:
            mark = "" if trial.right is None else " ✓" if trial.right[place][0] else f" ✗ (answer: {sample.answer})"
            text = " ".join(trial.text(siblings[0].id_T).split())
            shown.append(f"{' '.join(sample.question.split())[:LINE]} → {text[:LINE]}{mark}")
    if trial.right is None:
        return judged("rows have no reference answers", "responses as you mean them", shown=tuple(shown))
    flat = [ok for siblings in trial.right for ok in siblings]
    figure = f"{sum(flat)} of {len(flat)} responses of the student are right"
    fix = "a student that is never right learns little on its own responses: does the question say how to answer?"
    return judged(figure, "some right", warn=not any(flat), fix=fix, shown=tuple(shown))


CHECKS = (
    Check("responses end", "model", responses_end),
    Check("answers", "model", answers),
)
