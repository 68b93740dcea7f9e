"""What a response earns, for methods that ask: 1 if its answer is the reference answer, or a function of yours."""

from __future__ import annotations

import importlib
from typing import cast

import evals
from privileged import Sample
from privileged.errors import DataError

from .completions import Reward
from .errors import ConfigError


def answer(sample: Sample, text: str, truncated: bool) -> float:
    """As the evaluation of the run judges it. Raises DataError for a sample without a reference answer."""
    if sample.answer is None:
        raise DataError(f"sample {sample.id}: answer: expected one, the reward of this run compares with it")
    return evals.exact_match(sample.answer, text, truncated).score


def find(name: str) -> Reward:
    """`answer`, or `package.module:function`. Raises ConfigError if there is no such function."""
    if name == "answer":
        return answer
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"rollout.reward: expected 'answer' or package.module:function, got {name!r}: {error}"
        ) from None
    if not callable(found):
        raise ConfigError(f"rollout.reward: {name!r} is not a function of (sample, text, truncated)")
    return cast(Reward, found)
