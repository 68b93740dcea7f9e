"""The process with the teacher: one request after another, for as many runs and ranks as ask.

It keeps no state of a client but images, which anybody may use who knows their digest: after a restart with the same
model every request gets the answer it would have got.
"""

from __future__ import annotations

import hashlib
import logging
import signal
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
import zmq
from torch import Tensor

from .. import __version__
from ..errors import ConfigError
from ..loading import Held
from ..roles import Attention, Policy, load_policy, load_processor, tokenizer_of
from ..scoring import response_hidden
from ..vision import EncodedImage
from . import wire
from .requests import Limits, autocast_of, digest, image_from_tensors, rows_from_tensors
from .wire import WireError

logger = logging.getLogger(__name__)

MAX_TOKENS = 2**17
"""Of one pass, a request's largest part: a guard against nonsense; what fits the device is a matter of its memory."""
LOG_SECONDS = 30.0
HEARTBEAT = 5_000
"""Milliseconds between signs of life that ZeroMQ's own thread sends while a model computes."""


@dataclass
class Work:
    """What was done since the last line of the log."""

    requests: int = 0
    tokens: int = 0
    response_tokens: int = 0
    images: int = 0
    seconds: float = 0.0
    clients: set[bytes] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)

    def told(self) -> str:
        """One line: requests, tokens, images, tokens a second of computing, and the share of time spent computing."""
        return (
            f"{self.requests} requests of {len(self.clients)} ranks: {self.tokens} tokens, {self.response_tokens} of "
            f"responses, {self.images} images; {self.tokens / max(self.seconds, 1e-9):.0f} tokens/s, busy "
            f"{self.seconds / max(time.monotonic() - self.began, 1e-9):.0%}"
        )


class Teacher:
    """Answers messages. Its transport is somebody else's."""

    def __init__(self, policy: Policy, processor: Any, name: str, load: str = "full", image_bytes: int = 2**32) -> None:
        self.policy, self.name, self.load = policy, name, load
        self.images = ImageStore(policy, image_bytes)
        self.limits = _limits(policy)
        self.fingerprint = fingerprint(policy)
        self.language = _language(processor)
        self.stops = policy.stops(tokenizer_of(processor))
        self.work = Work()

    def answer(self, frames: Sequence[bytes], client: bytes = b"") -> list[bytes] | None:
        """The reply to a message; None to an image, of which only a refusal is told. Never raises for what it says."""
        number: Any = None
        try:
            header, tensors = wire.decode(frames)
            number = header.get("id")
            reply = self._reply(header, tensors)
        except WireError as error:
            logger.warning("refused: %s", error)
            reply = _refusal(str(error))
        except Exception as error:  # out of memory, say: the next request may be smaller
            logger.exception("a request failed")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            reply = _refusal(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        self.work.clients.add(client)
        if reply is None:
            return None
        answer, tensors = reply
        return wire.encode({"version": wire.VERSION, "id": number, **answer}, tensors)

    def _reply(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], Any] | None:
        kind = header["kind"]
        if kind == "hello":
            return self._hello(), None
        if header.get("fingerprint") != self.fingerprint:
            raise WireError(
                f"expected requests for {self.name} ({self.fingerprint[:12]}), got one for another model "
                f"({str(header.get('fingerprint'))[:12]}); a run must keep its teacher"
            )
        if kind == "head":
            return {"kind": "head"}, {"weight_VH": self.policy.head().weight_VH}
        if kind == "image":
            self._keep(header, tensors)
            return None
        if kind == "score":
            return self._score(header, tensors)
        raise WireError(f"expected hello, head, image or score, got {kind[:20]!r}")

    def _hello(self) -> dict[str, Any]:
        head = self.policy.head()
        tower = self.policy.vision.tower
        return {
            "kind": "hello",
            "name": self.name,
            "fingerprint": self.fingerprint,
            "software": __version__,
            "dtype": _name(head.weight_UH.dtype),
            "load": self.load,
            "pixel_dtype": None if tower is None else _name(tower.dtype),
            "vocab_size": head.vocab_size,
            "scale": head.scale,
            "softcap": head.softcap,
            "stops": self.stops,
            **self.language,
        }

    def _keep(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        autocast_of(header)
        image = image_from_tensors(tensors, self.limits)
        self.images.put(digest(tensors, header.get("autocast")), image)  # the digest of what came, not what was said
        self.work.images += 1

    def _score(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], Any]:
        shown = header.get("images")
        if not isinstance(shown, list) or not all(isinstance(own, list) for own in shown):
            raise WireError("images: expected the digests of each pass")
        names = [str(name) for own in shown for name in own]
        if missing := self.images.missing(names):
            return {"kind": "missing", "images": missing}, None
        passes = rows_from_tensors(tensors, [self.images.get(own) for own in shown], self.limits)
        began = time.monotonic()
        dtype, device = autocast_of(header), self.policy.device
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            hidden_NH = response_hidden(self.policy, passes).cpu()
        seconds = time.monotonic() - began
        self.work.requests += 1
        self.work.tokens += sum(packed.inputs["input_ids"].numel() for packed in passes)
        self.work.response_tokens += len(hidden_NH)
        self.work.seconds += seconds
        return {"kind": "hidden", "seconds": seconds}, {"hidden_NH": hidden_NH}


class ImageStore:
    """Images by digest, the least lately used of them gone when they are too many; with them go their features."""

    def __init__(self, policy: Policy, limit: int) -> None:
        self.policy, self.limit, self.held = policy, limit, 0
        self._images: OrderedDict[str, EncodedImage] = OrderedDict()

    def put(self, name: str, image: EncodedImage) -> None:
        """Keep `image` under its digest; the least lately used go until the rest is below the limit of bytes."""
        if name in self._images:
            return
        self._images[name] = image
        self.held += image.pixel_values.nbytes
        while self.held > self.limit and len(self._images) > 1:
            _, old = self._images.popitem(last=False)
            self.held -= old.pixel_values.nbytes
            self.policy.vision.drop(old)

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that are not here, each once."""
        return [name for name in dict.fromkeys(names) if name not in self._images]

    def get(self, names: Sequence[Any]) -> tuple[EncodedImage, ...]:
        """The images of `names`, all of which must be here; they are now the latest used."""
        for name in names:
            self._images.move_to_end(str(name))
        return tuple(self._images[str(name)] for name in names)


def serve(
    model: str,
    address: str,
    *,
    dtype: str = "bfloat16",
    load: Held = "full",
    device: str | None = None,
    attention: Attention = "auto",
    allow_download: bool = False,
    image_bytes: int = 2**32,
) -> None:
    """Load `model` and answer at `address` until Ctrl-C or SIGTERM.

    The address is taken before the model is loaded: a trainer that comes early waits. Raises ConfigError.
    """
    for name, value, known in (
        ("dtype", dtype, ("float32", "bfloat16")),
        ("load", load, ("full", "int8", "nf4")),
        ("attention", attention, get_args(Attention)),
    ):
        if value not in known:
            raise ConfigError(f"--{name}: expected one of {', '.join(known)}, got {value!r}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    socket = _bound(address)
    try:
        processor = load_processor(model, allow_download)
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        policy = load_policy(model, tokenizer_of(processor), dtype, allow_download, attention, load, place)
        policy.model.requires_grad_(False).eval()
        teacher = Teacher(policy, processor, model, load, image_bytes)
        kept = dtype if load == "full" else f"{load} and {dtype}"
        logger.info("%s, %s, on %s (%s): at %s", model, kept, place, teacher.fingerprint[:12], address)
        _answer_all(socket, teacher)
    except KeyboardInterrupt:
        logger.info("stopped; a run that asks on waits for a server at %s", address)
    finally:
        socket.close(linger=1000)


def _bound(address: str) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_FRAME)
    socket.setsockopt(zmq.RCVHWM, 8)  # of each client; further messages wait where they are
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6 * HEARTBEAT)
    socket.setsockopt(zmq.IPV6, int("[" in address))
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise ConfigError(f"--address {address}: cannot serve there: {error}; is another server at it?") from None
    if not address.startswith(("ipc://", "tcp://127.", "tcp://localhost:", "tcp://[::1]")):
        logger.warning("%s: no authentication: whoever reaches this address can use the model", address)
    return socket


def _answer_all(socket: zmq.Socket[bytes], teacher: Teacher) -> None:
    while True:
        if socket.poll(int(1000 * LOG_SECONDS)):
            client, *frames = socket.recv_multipart()
            reply = teacher.answer(frames, client)
            if reply is not None:
                socket.send_multipart([client, *reply], copy=False)
        if time.monotonic() - teacher.work.began > LOG_SECONDS and teacher.work.requests:
            logger.info("%s", teacher.work.told())
            teacher.work = Work()


def fingerprint(policy: Policy) -> str:
    """Digest of every weight and of what turns weights into logits. The same on any device."""
    head = policy.head()
    found = hashlib.sha256(repr((head.vocab_size, head.scale, head.softcap)).encode())
    for name, tensor in sorted(policy.model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        bits = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
        some = bits[:: max(1, bits.numel() // 64)].tolist()  # whole-number sums do not depend on their order
        found.update(repr((name, list(tensor.shape), str(tensor.dtype), int(bits.sum()), some)).encode())
    return found.hexdigest()


def _language(processor: Any) -> dict[str, Any]:
    """What a trainer needs to see that both models' prompts are the same: `policy.RemoteProcessor`."""
    images = getattr(processor, "image_processor", None)
    return {
        "vocabulary": tokenizer_of(processor).get_vocab(),
        "chat_template": processor.chat_template,
        "images": images and {name: images.to_dict().get(name) for name in ("size", "patch_size", "merge_size")},
    }


def _limits(policy: Policy) -> Limits:
    config = policy.model.config
    tower = getattr(config, "vision_config", None) if policy.vision.tower is not None else None
    return Limits(
        embeddings=policy.model.get_input_embeddings().weight.shape[0],
        channels=3 if hasattr(policy.model.base_model, "get_rope_index") else 1,
        max_tokens=MAX_TOKENS,
        image_id=None if tower is None else config.image_token_id,
        patch_numbers=0 if tower is None else tower.in_channels * tower.temporal_patch_size * tower.patch_size**2,
        merge=1 if tower is None else tower.spatial_merge_size,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _refusal(message: str) -> tuple[dict[str, Any], None]:
    return {"kind": "error", "message": message}, None
