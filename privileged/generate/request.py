"""One request: what is asked with which images, and the digest that its reply is kept under."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .pictures import Picture
from .prompts import Messages
from .settings import Settings
from .spend import image_tokens, text_tokens


@dataclass(frozen=True, kw_only=True)
class Request:
    """`prompt` is the version of the wording, `schema` that of the reply."""

    prompt: str
    messages: Messages
    pictures: tuple[Picture, ...]
    schema: dict[str, Any]
    about: str
    """The sample id, for people who read the kept replies."""

    @cached_property
    def tokens_in(self) -> int:
        """At most, as far as we can tell: bytes of text, and an estimate for the images."""
        system, parts = self.messages
        texts = [system, *(part for part in parts if isinstance(part, str))]
        return sum(map(text_tokens, texts)) + sum(image_tokens(picture.size) for picture in self.pictures)

    def key(self, settings: Settings) -> str:
        """sha256 of everything that the reply depends on: text and its version, images, model, parameters.

        Not of the address, so that a server may move, nor of `max_tokens`, which complete replies do not depend on.
        """
        system, parts = self.messages
        said = {
            "model": settings.model,
            "parameters": settings.parameters,
            "prompt": self.prompt,
            "system": system,
            "parts": parts,
            "images": [[picture.identity, *picture.size] for picture in self.pictures],
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def chat(self) -> list[dict[str, Any]]:
        """The messages as they are sent, images as data URIs. Encodes the images."""
        system, parts = self.messages
        content: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                content.append({"type": "image_url", "image_url": {"url": self.pictures[part].data_uri()}})
        return [{"role": "system", "content": system}, {"role": "user", "content": content}]
