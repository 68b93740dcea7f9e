"""vLLM on servers: its own HTTP interface, nothing of ours runs there.

GET  /v1/models              which model, and how long a prompt with its response may be
POST /inference/v1/generate  ids and images in, ids and log-probabilities out     --enable-scale-out
POST /collective_rpc         reload_weights from a folder                         VLLM_SERVER_DEV_MODE=1
POST /reset_prefix_cache, /reset_mm_cache, /reset_encoder_cache, /update_weight_version    the same

Whoever reaches such a server can load weights into it: it belongs on a private network.
"""

from __future__ import annotations

import base64
import io
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
from PIL.Image import Image
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from ..errors import ConfigError, TrainingError
from .vllm import Answer, Question, Sampled

AT_ONCE = 64
"""Prompts of one rank on their way to a server; it queues what it cannot take yet."""
CACHES = ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache")
"""Keys and values, patches and features of images: all but the patches hang on the weights."""


class Servers:
    """The backend. Prompts are dealt to the servers in turn."""

    on_every_rank = False

    def __init__(self, urls: Sequence[str], timeout: float, start: str) -> None:
        """`start`: the command that starts such a server, for messages. Raises ConfigError if one cannot be used."""
        self.urls, self.timeout, self.start = [url.rstrip("/") for url in urls], timeout, start
        self.name = "rollout.vllm.urls"
        self.session = requests.Session()
        self.session.trust_env = False  # proxies are for the world outside
        if key := os.environ.get("VLLM_API_KEY"):
            self.session.headers["Authorization"] = f"Bearer {key}"
        again = Retry(total=3, read=1, backoff_factor=0.5, status_forcelist=(502, 503, 504), allowed_methods=None)
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # what is tried again is no news
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=AT_ONCE, max_retries=again))
        try:
            self.max_length = min(self._length(url) for url in self.urls)
        except TrainingError as error:
            raise ConfigError(str(error)) from None

    def _length(self, url: str) -> int:
        reply = self._send("GET", url, "/v1/models")
        try:
            length = int(reply["data"][0]["max_model_len"])
        except (KeyError, IndexError, TypeError, ValueError):
            raise TrainingError(f"{url}: expected a server of vLLM; start one: {self.start}") from None
        for path in ("/inference/v1/generate", "/collective_rpc"):
            # Only POST is served there: 405 says that it is, 404 that it is not.
            if self._status(url, path) == 404:
                raise TrainingError(f"{url}: expected {path}, this server has none; start it anew: {self.start}")
        return length

    def load(self, folder: Path, version: str) -> None:
        """Reload on every server, and drop what the old weights computed. Raises TrainingError if one is not idle."""
        for url in self.urls:
            arguments = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            self._send("POST", url, "/collective_rpc", arguments)
            for path in CACHES:
                reply = self._send("POST", url, path)
                if isinstance(reply, dict) and reply.get("success") is False:
                    raise TrainingError(
                        f"{url}{path}: expected an idle server, it has requests: does another run use it?"
                    )
            self._send("POST", url, "/update_weight_version", {"new_version": version})

    def generate(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order; the servers take turns. Raises what the first failure raised."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            urls = [self.urls[i % len(self.urls)] for i in range(len(questions))]
            answers = [pool.submit(self._ask, *pair) for pair in zip(urls, questions, strict=True)]
            try:
                return [answer.result() for answer in answers]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, url: str, question: Question) -> Answer:
        body: dict[str, Any] = {
            "token_ids": question.ids,
            "sampling_params": question.sampling,
            "return_token_ids": True,
        }
        if question.images:
            body["content_parts"] = [{"type": "image_url", "url": data_uri(image)} for image in question.images]
        reply = self._send("POST", url, "/inference/v1/generate", body)
        try:
            return Answer(list(reply["prompt_token_ids"]), [_sampled(choice) for choice in reply["choices"]])
        except (KeyError, TypeError, ValueError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise TrainingError(
                f"{url}: expected ids with their log-probabilities, as vLLM 0.32 gives them, got a reply with {what}"
            ) from None

    def _send(self, method: str, url: str, path: str, body: Any = None) -> Any:
        """The reply, decoded. Raises TrainingError of one line, whatever goes wrong."""
        try:
            reply = self.session.request(method, url + path, json=body, timeout=(10, self.timeout))
        except requests.Timeout:
            raise TrainingError(
                f"{url}{path}: no reply within rollout.vllm.timeout={self.timeout:g} s: is the server alive?"
            ) from None
        except requests.RequestException as error:
            raise TrainingError(f"{url}: {_reason(error)}: is there a server? To start one: {self.start}") from None
        if reply.status_code >= 400:
            raise TrainingError(f"{url}{path}: {reply.status_code}: {_complaint(reply)}")
        if not reply.content:
            return None
        try:
            return reply.json()
        except ValueError:
            raise TrainingError(f"{url}{path}: expected JSON, got {reply.text[:80]!r}") from None

    def _status(self, url: str, path: str) -> int:
        try:
            return self.session.get(url + path, timeout=(10, self.timeout)).status_code
        except requests.RequestException as error:
            raise TrainingError(f"{url}: {_reason(error)}") from None


def data_uri(image: Image) -> str:
    """PNG, so that the engine sees the very pixels that we have."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def serve_command(model: str, url: str, max_length: int, dtype: str) -> str:
    """What starts a server on which this run can roll out."""
    address = url.partition("://")[2] or url
    host, _, port = address.partition("/")[0].partition(":")
    return (
        f"VLLM_SERVER_DEV_MODE=1 vllm serve {model} --host {host} --port {port or 8000} --enable-scale-out "
        f"--logprobs-mode processed_logprobs --generation-config vllm --dtype {dtype} --max-model-len {max_length}"
    )


def _sampled(choice: dict[str, Any]) -> Sampled:
    return Sampled(
        ids=[int(i) for i in choice["token_ids"]],
        logps=[float(entry["logprob"]) for entry in choice["logprobs"]["content"]],
        finish=str(choice["finish_reason"]),
        versions={str(span["version"]) for span in choice["weight_versions"]},
    )


def _reason(error: requests.RequestException) -> str:
    """The innermost cause, which says what happened: `Connection refused`."""
    cause: BaseException = error
    while nested := (getattr(cause, "reason", None) or next((a for a in cause.args if isinstance(a, Exception)), None)):
        cause = nested
    return " ".join(str(cause).split()).rpartition(": ")[2] or type(cause).__name__


def _complaint(reply: requests.Response) -> str:
    try:
        message = reply.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = reply.text
    return " ".join(str(message).split())[:300]
