"""What `evals` needs of us: samples as questions, and models that answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

import evals
from evals.model import HFModel
from evals.server import ServerModel, is_server, split_server
from privileged import build_views
from privileged.builders import Builder
from privileged.errors import DataError

from .data import SampleDataset
from .errors import ConfigError
from .lora import trained_as
from .roles import load_policy, load_processor, tokenizer_of

Dtype = Literal["auto", "float32", "bfloat16"]


def items(
    dataset: SampleDataset,
    builder: Builder,
    view: Literal["plain", "privileged"],
    placement: str = "before_question",
) -> list[evals.Item]:
    """The rows of `dataset` as questions to ask. Raises DataError for a row without a reference answer."""
    found = []
    for index in range(len(dataset)):
        sample = dataset[index]
        if sample.answer is None:
            raise DataError(f"{dataset.path} row {index}: answer: expected one, evaluation compares with it")
        shown = getattr(build_views(sample, builder, placement), view)
        found.append(
            evals.Item(
                id=sample.id,
                messages=shown.messages,
                images=shown.images,
                answer=sample.answer,
                group={"kind": dataset.kind(index)},
            )
        )
    return found


def open_model(path: str, *, dtype: Dtype = "auto", allow_download: bool = False, use_cpu: bool = False) -> OpenModel:
    """The model in folder `path`, on the GPU if there is one. Raises ConfigError if there is no such model here.

    `auto` is bfloat16 on a GPU, as models are deployed, and float32 on a CPU.
    """
    if (lora := trained_as(Path(path))) and lora.quantize:
        raise ConfigError(
            f"{path}: trained beside {lora.quantize} weights; `vlm-dopd merge {path} --out …` makes it whole"
        )
    cuda = torch.cuda.is_available() and not use_cpu
    processor = load_processor(path, allow_download)
    wanted = ("bfloat16" if cuda else "float32") if dtype == "auto" else dtype
    policy = load_policy(path, tokenizer_of(processor), wanted, allow_download)
    return OpenModel(policy.model.to("cuda" if cuda else "cpu"), processor)


class OpenModel(NamedTuple):
    """A model that can be asked, with its processor or tokenizer."""

    model: Any
    processor: Any

    def replier(self, max_new_tokens: int) -> HFModel:
        """Greedy replies of at most that many tokens."""
        return HFModel(self.model, self.processor, max_new_tokens=max_new_tokens, batch_size=evals.runner.CHUNK)

    def ask(
        self, questions: list[evals.Item], max_new_tokens: int, run: str, out: Path | None = None
    ) -> list[evals.Prediction]:
        """Answers to held-out questions; rows go to `out`, from which a killed evaluation goes on."""
        return evals.evaluate(self.replier(max_new_tokens), questions, out=out, run=run)


def headline(predictions: list[evals.Prediction]) -> dict[str, float]:
    """Accuracy and its 95 % interval, shares in 0..1."""
    result = evals.summarise(predictions)
    return {"accuracy": result.accuracy, "low": result.interval[0], "high": result.interval[1]}


def replier_of(
    model: str, *, dtype: Dtype = "auto", pixels: tuple[int, int] | None = None, allow_download: bool = False
) -> Callable[[int], evals.Model]:
    """By the number of tokens a reply may have: the checkpoint, hub model or server `model`, ready to answer.

    `pixels` replaces what the checkpoint's processor takes as the least and most of an image; a server has its own.
    """
    if is_server(model):
        if pixels:
            raise ConfigError(f"pixels: expected none for {model}: a server resizes as it was told when it was started")
        return partial(ServerModel, *split_server(model))
    opened = open_model(model, dtype=dtype, allow_download=allow_download)
    if pixels:
        resize(opened.processor, pixels)
    return opened.replier


def resize(processor: Any, pixels: tuple[int, int]) -> None:
    """Make `processor` resize images into `pixels`, least and most. Videos have a budget of their own."""
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        raise ConfigError("pixels: expected a vision-language model, got one without an image processor")
    image_processor.size = {"shortest_edge": pixels[0], "longest_edge": pixels[1]}
