"""Rollouts with vLLM: the engine that many use where there are GPUs, on servers or inside this process.

A prompt goes there once for its G siblings: its token ids with one placeholder an image, and the images as they are.
The engine's own processor cuts them into patches and repeats the placeholders; what it made of a prompt comes back and
must be what was trained on, to the id. Weights go there before the first rollout of every step, under a name that each
response repeats. Responses are ids with the log-probabilities that they were sampled with.

Sampling has a seed for every response, but which token comes out also depends on the engine's kernels, and so on what
else it computes at the time.
"""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL.Image import Image

from ..collate import Group, Prompt
from ..errors import TrainingError
from ..roles import Policy
from . import Response, sequence_seed
from .settings import RolloutConfig
from .weights import write_weights

BAN = -100.0
"""Added to a logit; the least that vLLM takes."""


@dataclass(frozen=True)
class Question:
    """One prompt."""

    ids: list[int]
    """With one placeholder an image."""
    images: list[Image]
    sampling: dict[str, Any]
    """Fields of `vllm.SamplingParams`."""


@dataclass(frozen=True)
class Sampled:
    """One response of vLLM's, as it came."""

    ids: list[int]
    logps: list[float]
    """Of the distribution that was sampled from: after temperature, top-k, top-p and what is banned."""
    finish: str
    """stop or length, or what went wrong."""
    versions: set[str]
    """Of the weights that it was sampled with."""


@dataclass(frozen=True)
class Answer:
    """The responses to one question, and the prompt as vLLM read it: to be compared with ours."""

    prompt_ids: list[int]
    """With all placeholders of an image."""
    responses: list[Sampled]


class Backend(Protocol):
    """Where vLLM is."""

    name: str
    """For messages."""
    on_every_rank: bool
    """Each rank has one of its own, or all ranks share."""
    max_length: int
    """Tokens of a prompt with its response, at most."""

    def load(self, folder: Path, version: str) -> None:
        """Take the weights in `folder`, call them `version`, and forget what was computed with others."""
        ...

    def generate(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order. Raises TrainingError where there will be none."""
        ...


class VLLMRollout:
    """The engine. `banned` ids and padded vocabulary rows get no probability to speak of."""

    def __init__(
        self,
        backend: Backend,
        policy: Policy,
        config: RolloutConfig,
        eos: list[int],
        banned: list[int],
        seed: int,
        folder: Path,
        dtype: torch.dtype,
        view: Literal["plain", "privileged"] = "plain",
    ) -> None:
        """Weights travel through a new folder in `folder`, in `dtype`."""
        self.backend, self.policy, self.config, self.eos, self.seed = backend, policy, config, eos, seed
        self.folder, self.dtype, self.view = folder.resolve(), dtype, view
        rows = policy.model.get_output_embeddings().weight.shape[0]
        self.banned = {*banned, *range(policy.vocab_size, rows)}
        self._synced: tuple[int, str] | None = None
        """Step and name of the weights that the engine has."""

    def __call__(self, groups: Sequence[Group], step: int) -> list[list[Response]]:
        if self._synced is None or self._synced[0] != step:
            self._synced = step, self._sync(step)
        answers = self.backend.generate([self._question(group, step) for group in groups])
        return [self._responses(group, answer) for group, answer in zip(groups, answers, strict=True)]

    def _sync(self, step: int) -> str:
        """On all ranks at once. Nobody samples meanwhile: routing made them meet after the last rollout."""
        version = _of_first_rank(f"{uuid.uuid4().hex[:8]}-{step}")
        folder, first = self.folder / f"weights-{version}", _rank() == 0
        try:
            write_weights(self.policy.model, folder, self.dtype, first)
            _meet()
            if first or self.backend.on_every_rank:
                self.backend.load(folder, version)
            _meet()
        finally:
            if first:
                shutil.rmtree(folder, ignore_errors=True)
        return version

    def _question(self, group: Group, step: int) -> Question:
        prompt: Prompt = getattr(group, self.view)
        needed = prompt.id_P.numel() + self.config.max_new_tokens
        if needed > self.backend.max_length:
            raise self._wrong(
                group,
                f"expected room for its {prompt.id_P.numel()} tokens and rollout.max_new_tokens={needed} in all, got "
                f"{self.backend.max_length}; raise --max-model-len",
            )
        config = self.config
        sampling = {
            "n": config.siblings,
            "seed": sequence_seed(self.seed, step, group.sample_id, 0),  # sibling i gets this + i
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
            "max_tokens": config.max_new_tokens,
            "stop_token_ids": self.eos,
            "ignore_eos": True,  # those that the engine knows of; ours are the line above
            "logprobs": 0,
            "detokenize": False,
            "logit_bias": dict.fromkeys(sorted(self.banned), BAN),
        }
        return Question(unexpanded(prompt), [picture(image, group.sample_id) for image in prompt.images], sampling)

    def _responses(self, group: Group, answer: Answer) -> list[Response]:
        """Raises TrainingError for an answer that must not be trained on."""
        expected = getattr(group, self.view).id_P.tolist()
        if answer.prompt_ids != expected:
            raise self._wrong(
                group,
                f"expected a prompt of {len(expected)} tokens, as the trainer has it, the engine made one of "
                f"{len(answer.prompt_ids)}; does it serve model.student, with the same processor_config.json?",
            )
        if len(answer.responses) != self.config.siblings:
            raise self._wrong(group, f"expected {self.config.siblings} responses, got {len(answer.responses)}")
        return [self._response(group, sampled) for sampled in answer.responses]

    def _response(self, group: Group, sampled: Sampled) -> Response:
        ids, logps = sampled.ids, sampled.logps
        assert self._synced is not None
        if sampled.versions != {self._synced[1]}:
            raise self._wrong(
                group,
                f"expected responses of the weights {self._synced[1]}, got {', '.join(sorted(sampled.versions))}: was "
                "the engine started anew, or does another run use it?",
            )
        if not 0 < len(ids) <= self.config.max_new_tokens or len(ids) != len(logps):
            raise self._wrong(group, f"expected 1 to {self.config.max_new_tokens} ids with a log-probability each")
        if bad := [i for i in ids if not 0 <= i < self.policy.vocab_size or i in self.banned]:
            raise self._wrong(group, f"expected ids that may be sampled, got {bad[0]}")
        if bad_logps := [logp for logp in logps if not -math.inf < logp < 0.01]:
            raise self._wrong(group, f"expected log-probabilities, got {bad_logps[0]}")
        ended = ids[-1] in self.eos
        if (sampled.finish, ended) not in (("stop", True), ("length", False)):
            raise self._wrong(group, f"expected a response that ends or is cut, it ends with {sampled.finish!r}")
        return Response(torch.tensor(ids), truncated=not ended, logp_T=torch.tensor(logps))

    def _wrong(self, group: Group, what: str) -> TrainingError:
        return TrainingError(f"{self.backend.name}: sample {group.sample_id}: {what}")


def unexpanded(prompt: Prompt) -> list[int]:
    """The ids with one placeholder an image, as the chat template writes them."""
    keep_P = torch.ones_like(prompt.type_P, dtype=torch.bool)
    keep_P[1:] = (prompt.type_P[1:] == 0) | (prompt.type_P[:-1] == 0)
    assert int((prompt.type_P[keep_P] != 0).sum()) == len(prompt.images)
    return prompt.id_P[keep_P].tolist()


def picture(image: Any, sample_id: str) -> Image:
    """The PIL image of an encoded one. Raises TrainingError, with the sample, if it was not kept."""
    if image.picture is None:
        raise TrainingError(f"sample {sample_id}: expected the pictures of its prompts, the encoder kept none")
    return image.picture


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _meet() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _of_first_rank(value: str) -> str:
    values: list[Any] = [value]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]
