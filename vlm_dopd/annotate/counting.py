"""Processors and models by folder, as the audit and the preview need them: without weights where none are needed."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import evals
from privileged.tokens import ImageGeometry, count_tokens
from privileged.views import View

from ..collate import Encoder
from ..evaluation import open_model
from ..roles import load_processor, tokenizer_of


def encoder_of(path: str) -> Encoder:
    """The encoder of the processor in folder `path`, to count tokens with."""
    return Encoder(load_processor(path))


def asker(path: str, max_new_tokens: int) -> evals.Model:
    """The model in folder `path`, to be asked for greedy answers."""
    return open_model(path).replier(max_new_tokens)


class TokenCounter:
    """Tokens of a view's prompt, by the processor in folder `path`. Goes to other processes as its path."""

    def __init__(self, path: str) -> None:
        """Raises ConfigError if there is no processor: later, it would be an error of each row."""
        self.path = path
        self._encoder = encoder_of(path)

    def __call__(self, view: View) -> int:
        tokenizer = tokenizer_of(self._encoder.processor)
        geometry = self._geometry if view.images else ImageGeometry()
        return count_tokens(view, geometry, self._encoder.render, lambda text: len(tokenizer.encode(text))).total

    def __reduce__(self) -> Any:
        return TokenCounter, (self.path,)

    @cached_property
    def _geometry(self) -> ImageGeometry:
        return ImageGeometry.from_processor(self._encoder.processor)
