"""A model behind an OpenAI-compatible server that answers items. Needs the `openai` SDK, an optional extra.

Time-outs, retries with back-off and Retry-After are the SDK's. What a request can end in: an answer; a rejection of
this one request, which costs one item; or `ServerGone`, which ends the run and carries all that was answered. Where it
is not clear whether the server or the request is to blame, a request for one word decides (`_check_alive`). No message
of ours holds a key or an image.
"""

from __future__ import annotations

import asyncio
import base64
import io
import ipaddress
import json
import logging
import os
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from PIL import Image
from tqdm import tqdm

from .records import Item, Reply
from .runner import Interrupted

logger = logging.getLogger(__name__)

T = TypeVar("T")
Messages = list[dict[str, Any]]
Parameters = Mapping[str, Any]

_STOPPING = (401, 402, 403, 404, 429)
"""Status codes that the next request would get as well. 3xx too: images go to the address the user gave only."""
_HINTS = {401: "; check the key in {key}", 404: "; check the address, which often ends in /v1, and the model's name"}
_REPLACED = {"max_tokens": "max_completion_tokens", "temperature": "", "seed": "", "response_format": ""}
"""What a server may refuse to know, and its other name if it has one."""
_UNKNOWN = re.compile(r"un(?:known|supported|recogni[sz]ed|expected|available)|not (?:supported|permitted)|extra", re.I)
_LONGEST_PAUSE = 120.0
"""Seconds that the SDK waits at most when a server says Retry-After."""


class ServerGone(Interrupted):
    """The server answers no requests. `replies` holds what it answered before, None for what it did not."""


class _Lost(Exception):
    """No answer, after all attempts."""


class _Rejected(Exception):
    """This request is not taken."""


@dataclass(frozen=True)
class Answer:
    """What came back for one request."""

    text: str
    finish: str
    """The server's reason to end; empty: nothing came."""
    error: str = ""
    """Why there is no answer: the request was rejected or refused."""


Keep = Callable[[int, Answer], None]


class Server:
    """One model behind an OpenAI-compatible server.

    `timeout` is in seconds without a byte, `max_retries` of one request. Without a `model` the server's only one is
    taken. The key, where one is needed, stands in the environment variable `key_env`. Raises ValueError for an address
    that is none and for a server with several models, ServerGone if it has to be asked for them and does not answer.
    """

    def __init__(
        self,
        base_url: str,
        model: str = "",
        *,
        key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 300.0,
        max_retries: int = 5,
    ) -> None:
        if concurrency < 1 or timeout <= 0 or max_retries < 0:
            given = f"{concurrency}, {timeout} and {max_retries}"
            raise ValueError(f"server: expected concurrency from 1, timeout above 0, max_retries from 0, got {given}")
        self._local = _check_url(base_url)
        self._sdk = _sdk()
        self.base_url, self.concurrency, self.timeout, self.max_retries = base_url, concurrency, timeout, max_retries
        self._key_env, self._key = key_env, _key(key_env)
        self._refused: set[str] = set()
        self._took: set[bool] = set()
        # At level DEBUG older SDKs write whole requests, images among them.
        sdk_logger = logging.getLogger("openai")
        sdk_logger.setLevel(max(sdk_logger.getEffectiveLevel(), logging.INFO))
        self.model = model or _run(self._only_model())

    def ask(self, chats: Sequence[Callable[[], Messages]], parameters: Parameters, keep: Keep) -> None:
        """Send `chats`, at most `concurrency` at a time; `keep(index, answer)` is called once for each, as they come.

        `parameters` are further fields of the request. Raises ServerGone, once all that was on its way is kept.
        """
        _run(self._ask_all(chats, parameters, keep))

    async def _ask_all(self, chats: Sequence[Callable[[], Messages]], parameters: Parameters, keep: Keep) -> None:
        waiting = iter(enumerate(chats))
        gone: list[ServerGone] = []

        async def work(client: Any) -> None:
            for at, chat in waiting:
                if gone:
                    return
                try:
                    keep(at, await self._answer(client, await asyncio.to_thread(chat), parameters))
                except ServerGone as error:
                    gone.append(error)

        async with self._client() as client:
            await asyncio.gather(*(work(client) for _ in range(min(self.concurrency, len(chats)))))
        if gone:
            raise gone[0]

    async def _answer(self, client: Any, messages: Messages, parameters: Parameters) -> Answer:
        """The answer, or a rejection that is the request's own fault. Raises ServerGone."""
        for _ in range(2):
            try:
                return await self._fitting(client, messages, parameters)
            except _Rejected as error:
                if _pictured(messages) not in self._took:
                    await self._check_alive(client, messages, parameters, str(error))
                return Answer("", "", str(error))
            except _Lost as error:
                lost = str(error)
                await self._check_alive(client, messages, parameters, lost)
        return Answer("", "", lost)

    async def _check_alive(self, client: Any, messages: Messages, parameters: Parameters, said: str) -> None:
        """Raises ServerGone with what the server `said` unless it answers a small request, with a picture if `messages`
        have one: a server that has died or rejects everything must not turn a whole benchmark into errors."""
        content: list[dict[str, Any]] = [{"type": "text", "text": "Reply with the word OK."}]
        if _pictured(messages):
            content.append(_picture(Image.new("RGB", (64, 64), "white")))
        try:
            small = client.with_options(max_retries=min(1, self.max_retries))
            await self._fitting(small, [{"role": "user", "content": content}], parameters)
        except (_Lost, _Rejected) as error:
            same = "" if str(error) == said else f" (then, for a small request: {error})"
            raise self._gone(said + same) from None

    async def _fitting(self, client: Any, messages: Messages, parameters: Parameters) -> Answer:
        """`_once` without the parameters that the server has refused. Raises _Lost, _Rejected or ServerGone."""
        while True:
            sent = {_REPLACED[name] if name in self._refused else name: value for name, value in parameters.items()}
            sent.pop("", None)
            try:
                answer = await self._once(client, messages, sent)
                self._took.add(_pictured(messages))
                return answer
            except self._sdk.APIStatusError as error:
                raised, refused = self._status(error), _refused(error, sent)
                if refused is None or isinstance(raised, ServerGone):
                    raise raised from None
                if refused not in self._refused:
                    logger.warning("%s does not take %r: asked without", self.base_url, refused)
                self._refused.add(refused)

    async def _once(self, client: Any, messages: Messages, sent: dict[str, Any]) -> Answer:
        # The time-out of the SDK is between bytes: a reply that only drips ends here.
        deadline = (self.timeout + _LONGEST_PAUSE) * (self.max_retries + 1)
        try:
            async with asyncio.timeout(deadline):
                create = client.chat.completions.with_raw_response.create
                raw = await create(model=self.model, messages=messages, extra_body=sent)
        except TimeoutError:
            raise _Lost(f"no complete reply within {deadline:g} s") from None
        except UnicodeEncodeError:
            return Answer("", "", "the question holds half a surrogate pair, which cannot be sent")
        except self._sdk.APIStatusError:
            raise
        except self._sdk.APIConnectionError as error:  # time-outs among them
            raise _Lost(f"{self._line(error)} ({type(error.__cause__).__name__})") from None
        except self._sdk.OpenAIError as error:
            raise _Lost(self._line(error)) from None
        return self._read(raw.text)

    def _status(self, error: Any) -> Exception:
        code = error.status_code
        said = f"{code}: {self._line(_said(error))}"
        if code in _STOPPING or code < 400:
            return self._gone(said + _HINTS.get(code, "").format(key=self._key_env))
        return _Lost(said) if code >= 500 or code in (408, 409, 425) else _Rejected(said)

    def _read(self, text: str) -> Answer:
        """The body of a reply with status 200. Raises _Lost if it is not one: proxies answer with pages of their own.
        `reasoning_content` is not part of the answer, as a `<think>` block is not."""
        try:
            choice = json.loads(text)["choices"][0]
            message = choice["message"]
            content, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")
            if isinstance(content, list):
                content = "".join(part.get("text") or "" for part in content)
            if not all(isinstance(value, str | None) for value in (content, refusal, finish)):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _Lost(f"expected a chat completion, got {self._line(text)!r}") from None
        if finish == "content_filter" or (refusal and not content):
            return Answer("", finish or "stop", f"refused: {self._line(refusal or finish)}")
        return Answer(content or "", finish or "stop")

    async def _only_model(self) -> str:
        try:
            async with self._client() as client:
                raw = await client.models.with_raw_response.list()
            names = [entry["id"] for entry in json.loads(raw.text)["data"]]
        except self._sdk.APIStatusError as error:
            raised = self._status(error)
            raise raised if isinstance(raised, ServerGone) else self._gone(str(raised)) from None
        except self._sdk.OpenAIError as error:
            raise self._gone(self._line(error)) from None
        except (ValueError, LookupError, TypeError, RecursionError):
            raise self._gone(f"expected a list of models, got {self._line(raw.text)!r}") from None
        if len(names) != 1:
            listed = ", ".join(map(str, names)) or "none"
            raise ValueError(f"{self.base_url}: expected one model or a name, as in {self.base_url}#NAME; has {listed}")
        return str(names[0])

    def _client(self) -> Any:
        return self._sdk.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key or "none",
            timeout=self.timeout,
            max_retries=self.max_retries,
            # No redirect takes data elsewhere, and no proxy sees what is meant for this machine or its network.
            http_client=self._sdk.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not self._local),
        )

    def _gone(self, said: str) -> ServerGone:
        return ServerGone(f"{self.base_url}: {said}; nothing answered is lost: the same command goes on from there")

    def _line(self, error: object) -> str:
        """What a server said, on one line: without the key, and without images that it may repeat."""
        line = " ".join(str(error).split())
        if self._key:
            line = line.replace(self._key, "…")
        return re.sub(r"data:[\w/+.-]*;base64,\S*|[A-Za-z0-9+/=_-]{60,}", "…", line)[:200]


class ServerModel:
    """`Server` as a model of `evals.runner`: greedy and seeded, as far as the server allows.

    There is no standard form for videos. Their frames are sent as pictures in order, each behind the time at which it
    stands, `<0.5 seconds>`, as Qwen3-VL's processor writes it; a server's own video input may give other replies.
    """

    def __init__(
        self, base_url: str, model: str, max_new_tokens: int, *, temperature: float = 0.0, seed: int = 0, **server: Any
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
        self.server = Server(base_url, model, **server)
        self.parameters = {"max_tokens": max_new_tokens, "temperature": temperature, "seed": seed}

    def generate(self, items: Sequence[Item]) -> list[Reply]:
        """One reply for each item, in the order of `items`; a request that is rejected alone has its `error`.

        Raises ServerGone with the replies that came.
        """
        replies: list[Reply | None] = [None] * len(items)
        with tqdm(total=len(items), desc="ask", leave=False, disable=None) as bar:

            def keep(at: int, answer: Answer) -> None:
                replies[at] = Reply(answer.text, answer.finish == "length", answer.error)
                bar.update()

            try:
                self.server.ask([partial(chat, item) for item in items], self.parameters, keep)
            except ServerGone as error:
                error.replies = replies
                raise
        return [reply for reply in replies if reply is not None]


def is_server(model: str) -> bool:
    """Whether `model` names a server: an http address."""
    return model.startswith(("http://", "https://"))


def split_server(model: str) -> tuple[str, str]:
    """Address and model's name of `http://host:8000/v1#name`; no name is empty."""
    base_url, _, name = model.partition("#")
    return base_url, name


def chat(item: Item) -> Messages:
    """The messages of `item` with its pictures, as data URIs of PNG, in their places."""
    images, videos = iter(item.images), iter(item.videos)
    messages = []
    for message in item.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [sent for part in content for sent in _parts(part, images, videos)]
        messages.append({"role": message["role"], "content": content})
    return messages


def _parts(part: dict[str, Any], images: Iterator[Any], videos: Iterator[Any]) -> Iterator[dict[str, Any]]:
    if part["type"] == "image":
        yield _picture(next(images))
    elif part["type"] == "video":
        video = next(videos)
        for frame, second in zip(video.frames, video.seconds, strict=True):
            yield {"type": "text", "text": f"<{second:.1f} seconds>"}
            yield _picture(frame)
    else:
        yield {"type": "text", "text": part["text"]}


def _picture(image: Image.Image) -> dict[str, Any]:
    png = io.BytesIO()
    image.save(png, "PNG", compress_level=1)
    data = base64.b64encode(png.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def _pictured(messages: Messages) -> bool:
    contents = (message["content"] for message in messages)
    return any(part["type"] == "image_url" for content in contents if not isinstance(content, str) for part in content)


def _said(error: Any) -> str:
    """The server's own words: OpenAI's `message`, else the whole body, which the SDK leaves out."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return message if isinstance(message, str) else error.response.text or str(error)


def _refused(error: Any, sent: Parameters) -> str | None:
    """The parameter that the server does not know, by its own account."""
    if error.status_code not in (400, 422):
        return None
    said = _said(error)
    for name in (name for name in _REPLACED if name in sent):
        # A question that the server repeats may well be about a seed or a temperature.
        named = error.param == name or re.search(rf"['\"`]{name}['\"`]", said) or ("_" in name and name in said)
        if named and (_UNKNOWN.search(said) or str(error.code).startswith("unsupported")):
            return name
    return None


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of `coroutine`; in a notebook, which has a loop of its own, by way of a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def _sdk() -> Any:
    try:
        import openai
    except ImportError:
        raise ValueError('server: expected the openai SDK, got none: pip install "vlm-dopd[generate]"') from None
    return openai


def _key(key_env: str) -> str:
    key = os.environ.get(key_env, "").strip() if key_env else ""
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"server: expected a key in printable ASCII in {key_env}, got something else")
    return key


def _check_url(base_url: str) -> bool:
    """Whether the server is on this machine or its private network. Raises ValueError for what is no address."""
    try:
        url = urlsplit(base_url)
        secret = url.username is not None or url.password is not None or bool(url.query)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and not url.fragment and (url.port or 1) > 0
    except ValueError:
        secret, usable = False, False
    if secret:  # never repeat it
        raise ValueError("server: expected no user, password or query in the address; keys stand in the environment")
    if not usable:
        raise ValueError(f"server: expected http(s)://host[:port]/v1, got {base_url!r}")
    host = url.hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
