"""What a run of the generator may be told. Everything is checked when it is made, nothing later in the run."""

from __future__ import annotations

import ipaddress
import json
import math
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from ..errors import DataError
from .profiles import PROFILES

KINDS = ("boxes", "hints")
LIMIT_FIELDS = ("max_completion_tokens", "max_tokens")
RESERVED = (*LIMIT_FIELDS, "model", "messages", "stream", "n", "response_format", "tools", "tool_choice")
"""Fields of a request that the run itself sets."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Raises DataError for a value that cannot be meant. Holds no key: keys come from the environment alone."""

    base_url: str
    """Of an OpenAI-compatible endpoint, with its version: `http://127.0.0.1:8000/v1`."""
    model: str
    """As the endpoint names it."""
    kind: str = "boxes"
    """`boxes` (regions for image questions) or `hints` (steps without execution, for text questions)."""
    coords: str = "qwen3"
    """The convention in which the model gives boxes, a name of `profiles.PROFILES`. Declared, and proven by the
    probe; never guessed."""
    recheck: bool = True
    """Have every p checked by a second call, which is shown the reference answer. Rows without one are dropped."""
    keep_implied: bool = False
    """Keep p of which the re-check says that the answer follows (the number of boxes, the only candidate)."""
    probe: bool = True
    """Ask for known boxes on three drawn images first, and stop if they are not found where they are."""
    max_regions: int = 8
    """So many regions, or steps, are asked for at most."""
    max_side: int = 2048
    """Images are sent with no side longer than this, in px."""
    allow_upload: bool = False
    """Needed for any endpoint that is not on this machine: the data leaves it."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key. "" for an endpoint without keys; this machine needs none."""
    max_tokens: int = 2048
    """The longest reply, in tokens."""
    limit_field: str = "max_completion_tokens"
    """How the endpoint calls this limit. Old servers: `max_tokens`."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request, such as `{"temperature": 0, "seed": 1}`. Part of what replies are kept by."""
    structured: bool = True
    """Ask for JSON of our schema (`response_format`). Switched off for the run, with a warning, if refused."""
    concurrency: int = 8
    """So many rows are worked on at a time."""
    timeout: float = 120.0
    """Seconds without a byte after which one attempt is given up."""
    deadline: float = 600.0
    """Seconds for one call, attempts and waits together: a reply that only drips ends here."""
    max_retries: int = 5
    """Further attempts after 408, 409, 429, 5xx and broken connections, with back-off, jitter and Retry-After."""
    max_failures: int = 20
    """So many calls in a row without any reply end the run: the endpoint is down. Nothing is lost."""
    retry_failed: bool = False
    """Ask again where the kept reply was refused, cut off or unreadable."""
    price_in: float = 0.0
    """Of a million input tokens, in any currency. 0: not known, costs are then not counted."""
    price_out: float = 0.0
    """Of a million output tokens."""
    max_spend: float | None = None
    """Nothing is asked that could take the spend above this, earlier runs with the same replies folder included.
    Shards that run at the same time do not see each other: give each its part."""
    dry_run: bool = False
    """Count calls, tokens and costs at most; send nothing, write nothing."""
    replies: str = ""
    """Folder for the kept replies; default `<name of the data file>.replies` beside the output. Shards and runs of
    other settings may share it."""

    def __post_init__(self) -> None:
        self._check_types()
        self._check_choices()
        self._check_numbers()
        self._check_url()
        if self.max_spend is not None and not (self.price_in or self.price_out):
            raise DataError("generate: max_spend: expected price_in and price_out with it, got neither")
        if reserved := sorted(set(self.parameters) & set(RESERVED)):
            raise DataError(f"generate: parameters: {reserved[0]!r} is set by the run itself; leave it out")
        try:
            json.dumps(self.parameters, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"generate: parameters: expected what JSON can hold ({error})") from None

    @property
    def local(self) -> bool:
        """Whether the endpoint is on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """Of so many tokens."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def _check_types(self) -> None:
        kinds: dict[str, Any] = {"str": str, "bool": bool, "int": int, "float": (int, float), "dict[str, Any]": dict}
        for f in fields(self):
            value = getattr(self, f.name)
            kind = kinds[str(f.type).removesuffix(" | None")]
            if value is None and str(f.type).endswith("| None"):
                continue
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise DataError(f"generate: {f.name}: expected {f.type}, got {value!r}")

    def _check_choices(self) -> None:
        for name, known in (("kind", KINDS), ("coords", tuple(PROFILES)), ("limit_field", LIMIT_FIELDS)):
            if (value := getattr(self, name)) not in known:
                raise DataError(f"generate: {name}: expected one of {', '.join(known)}, got {value!r}")
        if not self.model.strip():
            raise DataError("generate: model: expected a name, got nothing")

    def _check_numbers(self) -> None:
        lowest = {
            "max_regions": 1, "max_side": 56, "max_tokens": 1, "concurrency": 1, "max_retries": 0, "max_failures": 1,
            "price_in": 0, "price_out": 0, "max_spend": 0, "timeout": 0.01, "deadline": 0.01,
        }  # fmt: skip
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= low):
                raise DataError(f"generate: {name}: expected a number from {low}, got {value!r}")

    def _check_url(self) -> None:
        try:
            url = urlsplit(self.base_url)
            secret = url.username is not None or url.password is not None or bool(url.query)
            usable = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
        except ValueError:
            secret, usable = False, False
        if secret:  # never repeat it
            raise DataError("generate: base_url: expected none of user, password, query in it; use key_env for keys")
        if not usable:
            raise DataError(f"generate: base_url: expected http(s)://host[:port]/v1, got {self.base_url!r}")
        if not self.local and not self.allow_upload:
            raise DataError(
                f"generate: {url.hostname} is not this machine: questions, images and answers would leave it; "
                "set allow_upload if they may"
            )
