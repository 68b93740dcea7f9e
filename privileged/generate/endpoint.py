"""The way to an OpenAI-compatible endpoint, by the `openai` SDK: time-outs, retries with back-off, Retry-After are its.

What comes back is a Completion, or one of three ends: Lost (nothing came, another time it may), Rejected (this request
is not taken), or a DataError (no request will be). No message of ours holds a key or an image.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..errors import DataError
from .replies import Text
from .request import Request
from .settings import Settings

STOPPING = (401, 402, 403, 404)
"""Status codes that the next request would get as well. 3xx too: images go to the address the user gave only."""


class Lost(Exception):
    """No reply, after all attempts. `paid` says whether the endpoint may have made one all the same."""

    def __init__(self, message: str, *, paid: bool) -> None:
        super().__init__(message)
        self.paid = paid


class Rejected(Exception):
    """The endpoint takes requests, but not this one (400, 413, 422)."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One reply, with the raw body as it came."""

    reply: Text
    usage: tuple[int, int] | None
    """Input and output tokens, if the endpoint says."""
    created: str
    """UTC, by the endpoint's clock if it says."""
    raw: dict[str, Any]
    retries: int


class Endpoint:
    """Raises DataError if the SDK is not installed or there is no key for an endpoint that needs one."""

    def __init__(self, settings: Settings) -> None:
        openai = _sdk()
        self._settings, self._key = settings, _key(settings)
        # At level DEBUG the SDK writes whole requests: images, and what the data set says, do not belong into logs.
        logger = logging.getLogger("openai")
        logger.setLevel(max(logger.getEffectiveLevel(), logging.INFO))
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url,
            api_key=self._key or "none",
            timeout=settings.timeout,
            max_retries=settings.max_retries,
            # No redirect takes data elsewhere, and no proxy sees what is meant for this machine.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not settings.local),
        )

    async def complete(self, request: Request, *, structured: bool, idempotency_key: str) -> Completion:
        """Send `request` and wait for its reply. Raises Lost, Rejected or DataError."""
        openai = _sdk()
        settings = self._settings
        body: dict[str, Any] = {settings.limit_field: settings.max_tokens, **settings.parameters}
        if structured:
            form = {"name": re.sub(r"\W", "_", request.prompt), "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        chat: Any = await asyncio.to_thread(request.chat)
        try:
            async with asyncio.timeout(settings.deadline):
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=settings.model,
                    messages=chat,
                    extra_body=body,
                    extra_headers={"Idempotency-Key": idempotency_key},
                )
        except TimeoutError:
            raise Lost(f"no complete reply within {settings.deadline:g} s", paid=True) from None
        except openai.APIStatusError as error:
            raise self._status(error) from None
        except openai.APIConnectionError as error:  # time-outs among them
            refused = "Connect" in type(error.__cause__).__name__
            raise Lost(f"{self._line(error)} ({type(error.__cause__).__name__})", paid=not refused) from None
        except openai.OpenAIError as error:
            raise Lost(self._line(error), paid=True) from None
        return self._completion(raw.text, raw.retries_taken)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _status(self, error: Any) -> Exception:
        code, said = error.status_code, self._line(error)
        if code in STOPPING or code < 400 or error.code == "insufficient_quota":
            hint = {401: f"; check the key in {self._settings.key_env}", 404: "; check base_url and model"}.get(
                code, ""
            )
            return DataError(f"endpoint {self._settings.base_url}: expected a reply, got {code}: {said}{hint}")
        if code >= 500 or code in (408, 409, 425, 429):
            return Lost(f"{code}: {said}", paid=False)
        return Rejected(f"{code}: {said}")

    def _completion(self, text: str, retries: int) -> Completion:
        """The body of a reply with status 200. Raises Lost if it is not one: proxies answer with pages of their own."""
        try:
            raw = json.loads(text)
            choice = raw["choices"][0]
            message = choice["message"]
            content = message.get("content")
            if isinstance(content, list):
                content = "".join(part.get("text") or "" for part in content)
            texts = {"text": content or "", "finish": choice.get("finish_reason"), "refusal": message.get("refusal")}
            if not all(isinstance(value, str | None) for value in texts.values()):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Lost(f"expected a chat completion, got {self._line(text)!r}", paid=True) from None
        return Completion(
            reply=Text(**texts), usage=_usage(raw), created=_created(raw.get("created")), raw=raw, retries=retries
        )

    def _line(self, error: object) -> str:
        """What an endpoint said, on one line: without the key, and without images that it may repeat."""
        line = " ".join(str(error).split())
        if self._key:
            line = line.replace(self._key, "…")
        line = re.sub(r"data:[\w/+.-]*;base64,\S*|[A-Za-z0-9+/=_-]{60,}", "…", line)
        return line[:200]


def _sdk() -> Any:
    try:
        import openai
    except ImportError:
        raise DataError('generate: expected the openai SDK, got none: pip install "vlm-dopd[generate]"') from None
    return openai


def _key(settings: Settings) -> str:
    key = os.environ.get(settings.key_env, "").strip() if settings.key_env else ""
    if not (key.isascii() and key.isprintable()):
        raise DataError(f"generate: key_env: expected printable ASCII in {settings.key_env}, got something else")
    if not key and settings.key_env and not settings.local:
        raise DataError(
            f"generate: key_env: expected a key in the environment variable {settings.key_env}, got none; "
            'set it, or key_env="" for an endpoint without keys'
        )
    return key


def _usage(raw: dict[str, Any]) -> tuple[int, int] | None:
    usage = raw.get("usage")
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    found = [n for n in counts if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    return (found[0], found[1]) if len(found) == 2 else None


def _created(value: Any) -> str:
    try:
        when = datetime.fromtimestamp(value, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        when = datetime.now(UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
