"""A served teacher among the trainer's policies: it is submitted rows and gives `Scored`, as one loaded here does.

Shape letters: N response tokens, V vocabulary, H hidden.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..chunked_loss import Scored, score_tokens
from ..errors import ConfigError, TrainingError
from ..head import Head
from ..packing import Packed
from ..roles import check_pair
from ..scoring import response_tokens
from ..vision import EncodedImage
from . import addresses
from .client import Client, Request
from .requests import digest, image_to_tensors, rows_to_tensors

logger = logging.getLogger(__name__)


class RemoteProcessor:
    """As much of the teacher's processor as `roles.check_pair` looks at, from what the server said."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.chat_template = facts["chat_template"]
        self.image_processor = self if facts["images"] else None
        self._facts = facts

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, as tokenizers say it."""
        return self._facts["vocabulary"]

    def to_dict(self) -> dict[str, Any]:
        """Settings of the image processor, as it says them itself."""
        return self._facts["images"]


@dataclass(frozen=True)
class ServedTeacher:
    """Weights in another process. What is formed of its hidden states is formed here, by the code of local ones."""

    client: Client
    facts: Mapping[str, Any]
    """What the server said of itself."""
    weight_VH: Tensor
    merged: tuple[int, ...] = ()
    _digests: dict[EncodedImage, str] = field(default_factory=dict)

    @property
    def processor(self) -> RemoteProcessor:
        """For the checks that student and teacher fit each other."""
        return RemoteProcessor(self.facts)

    @property
    def fingerprint(self) -> str:
        """Of every weight: what tells two teachers apart."""
        return self.facts["fingerprint"]

    @property
    def device(self) -> torch.device:
        """Where the LM head lies: scores are formed there, beside the student's."""
        return self.weight_VH.device

    def head(self, temperature: float = 1.0) -> Head:
        """The LM head, sent over once; `temperature` divides its logits."""
        return Head(
            self.weight_VH,
            self.facts["vocab_size"],
            scale=self.facts["scale"],
            softcap=self.facts["softcap"],
            temperature=temperature,
            merged=self.merged,
        )

    def stops(self, tokenizer: Any) -> list[int]:
        """All ids that end a response for this model."""
        return self.facts["stops"]

    def forget(self) -> None:
        """To be called when a window begins: each of its images is sent once."""
        self.client.forget()
        self._digests.clear()

    def submit(self, passes: Sequence[Packed]) -> Callable[[], Scored]:
        """Send the rows off; what is returned waits for the hidden states and gives the scores."""
        autocast = None
        if torch.is_autocast_enabled(self.device.type):
            autocast = str(torch.get_autocast_dtype(self.device.type)).removeprefix("torch.")
        common = {"fingerprint": self.fingerprint, "autocast": autocast}
        images = {self._digest(image, autocast): image for packed in passes for image in packed.images}
        header = {
            **common,
            "kind": "score",
            "images": [[self._digest(image, autocast) for image in packed.images] for packed in passes],
        }
        request = Request(
            header,
            partial(rows_to_tensors, passes),
            {name: ({**common, "kind": "image"}, partial(self._pixels, image)) for name, image in images.items()},
        )
        self.client.submit(request)

        def collect() -> Scored:
            token_N = response_tokens(passes)
            _, tensors = self.client.collect(request)
            hidden_NH = tensors.get("hidden_NH")
            expected = [token_N.numel(), self.weight_VH.shape[1]]
            if hidden_NH is None or list(hidden_NH.shape) != expected:
                got = None if hidden_NH is None else list(hidden_NH.shape)
                raise TrainingError(
                    f"teacher at {self.client.address}: expected hidden states of the shape {expected}, got {got}"
                )
            return score_tokens(hidden_NH.to(self.device), self.head(), token_N.to(self.device))

        return collect

    def _pixels(self, image: EncodedImage) -> dict[str, Tensor]:
        return image_to_tensors(image, getattr(torch, self.facts["pixel_dtype"] or "float32"))

    def _digest(self, image: EncodedImage, autocast: str | None) -> str:
        if image not in self._digests:
            self._digests[image] = digest(self._pixels(image), autocast)
        return self._digests[image]


def connect(
    name: str, processor: Any, as_set: Mapping[str, str], device: Any, key: str = "model.teacher"
) -> ServedTeacher:
    """The teacher served at `name`. Of several addresses the ranks take turns; they must serve one model.

    `as_set`: the run's `dtype` and `load` of teachers. Raises ConfigError if nobody is there, or the model does not fit
    those or the student's `processor`.
    """
    clients = [Client(address) for address in addresses(name, key)]
    found = [client.ask("hello")[0] for client in clients]
    for client, facts in zip(clients, found, strict=True):
        check_pair(processor, RemoteProcessor(facts))
        for option, expected in as_set.items():
            if facts[option] != expected:
                raise ConfigError(
                    f"{key}: {client.address} serves {facts[option]}, expected model.teacher_{option}, {expected}; set "
                    f"it, or start the server with --{option} {expected}"
                )
        if facts["fingerprint"] != found[0]["fingerprint"]:
            raise ConfigError(
                f"{key}: expected one model, got another at {client.address} than at {clients[0].address}"
            )
    mine = (torch.distributed.get_rank() if torch.distributed.is_initialized() else 0) % len(clients)
    client, facts = clients[mine], found[mine]
    for other in clients:
        if other is not client:
            other.close()
    weight_VH = client.ask("head", fingerprint=facts["fingerprint"])[1]["weight_VH"]
    if len(weight_VH) != facts["vocab_size"]:
        raise ConfigError(f"{key}: expected an LM head of {facts['vocab_size']} rows, got {len(weight_VH)}")
    logger.info("teacher at %s: %s, %s", client.address, facts["name"], facts["dtype"])
    return ServedTeacher(client, facts, weight_VH.to(device))
