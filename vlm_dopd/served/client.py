"""One rank's line to a served teacher: sends requests, and sends them again when the server was restarted.

A request says which model it is meant for, so that a server that came back with another one refuses it. ZeroMQ
reconnects by itself; what was under way when a server died is lost, so a broken connection is replaced by a new one
and every unanswered request sent again. A connection that lives and is silent for TIMEOUT is a server that hangs:
asking again would not wake it.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import zmq
from torch import Tensor
from zmq.utils.monitor import recv_monitor_message

from ..errors import ConfigError, TrainingError
from . import wire
from .wire import WireError

logger = logging.getLogger(__name__)

TIMEOUT = 600.0
"""Seconds without any answer after which a run gives up. A request waits its turn behind those of other ranks."""
CONNECT = 60.0
"""Seconds in which somebody must listen at the address when a run begins."""
RESTARTS = 3
"""How often one request is sent again: one that kills the server must not do so for ever."""
AHEAD = 2
"""Requests under way at one time: one in work, and one more so that the server need not wait for the next."""
HEARTBEAT = 5_000
"""Milliseconds between ZeroMQ's own signs of life: a machine that is gone is found out in half a minute."""

Message = tuple[dict[str, Any], dict[str, Tensor]]
Parts = Callable[[], Mapping[str, Tensor]]


@dataclass(eq=False)
class Request:
    """A message that wants an answer, and the images that must be there before it."""

    header: dict[str, Any]
    parts: Parts = dict
    """Makes the tensors when it is sent: only those under way exist twice."""
    images: Mapping[str, tuple[dict[str, Any], Parts]] = field(default_factory=dict)
    """By digest, header and tensors of the message with the image."""
    answer: Message | None = None
    sent: int = 0
    missed: bool = False


class Client:
    """A rank's connection to a server. In seconds: `timeout` without an answer, `connect` before the first."""

    def __init__(self, address: str, timeout: float = TIMEOUT, connect: float = CONNECT) -> None:
        self.address, self.timeout, self.connect = address, timeout, connect
        self.bytes_sent = 0
        self.images_sent = 0
        self._numbers = itertools.count(1)
        self._queue: deque[Request] = deque()
        self._flying: dict[int, Request] = {}
        self._there: set[str] = set()
        self._connected = self._ever = False
        self._open()

    def ask(self, kind: str, **header: Any) -> Message:
        """One answer, waited for."""
        request = Request({"kind": kind, **header})
        self.submit(request)
        return self.collect(request)

    def submit(self, request: Request) -> None:
        """Send it as soon as not more than AHEAD are under way."""
        self._watch()
        self._queue.append(request)
        self._pump()

    def collect(self, request: Request) -> Message:
        """The answer to `request`. Raises TrainingError where there will be none, ConfigError if there never was."""
        silent_since, told = time.monotonic(), False
        while request.answer is None:
            limit = self.timeout if self._ever else self.connect
            left = silent_since + limit - time.monotonic()
            if left <= 0:
                self._give_up(limit)
            if not told and left < limit - min(10, limit / 2):
                told = True
                logger.warning("waiting for the teacher at %s, %.0f s at most", self.address, limit)
            ready = dict(self._poller.poll(int(min(left, 1.0) * 1000)))
            if self._socket in ready:
                self._receive()
                silent_since = time.monotonic()
            if self._monitor in ready:
                was = self._connected
                self._watch()
                if self._connected and not was:
                    silent_since = time.monotonic()
        return request.answer

    def forget(self) -> None:
        """Send images again: a window begins."""
        self._there.clear()

    def close(self) -> None:
        """Close the sockets at once; what was not sent is lost."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def _open(self) -> None:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, 0),
            (zmq.IPV6, int("[" in self.address)),
            (zmq.RECONNECT_IVL_MAX, 5_000),
            (zmq.HEARTBEAT_IVL, HEARTBEAT),
            (zmq.HEARTBEAT_TIMEOUT, 6 * HEARTBEAT),
        ):
            socket.setsockopt(option, value)
        name = f"inproc://watch-{id(self)}-{next(self._numbers)}"
        self._monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED, name)
        try:
            socket.connect(self.address)
        except zmq.ZMQError as error:
            raise ConfigError(f"{self.address}: not an address to connect to: {error}") from None
        self._socket = socket
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._connected = False

    def _watch(self) -> None:
        """Take note of connections made and lost; replace a lost one and send again what was under way."""
        lost = False
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]  # type: ignore[index]  # not the awaitable kind
            lost |= self._connected and event == zmq.EVENT_DISCONNECTED  # of attempts ZeroMQ makes more by itself
            self._connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self._ever |= self._connected
        if lost:
            self._reconnect()

    def _reconnect(self) -> None:
        again = list(self._flying.values())
        if again:
            logger.warning("lost the teacher at %s; waiting for it, %.0f s at most", self.address, self.timeout)
        if any(request.sent > RESTARTS for request in again):
            raise TrainingError(
                f"teacher at {self.address}: expected an answer, lost the connection {RESTARTS + 1} times over one "
                "request; look at the server's log. The run can be resumed with resume=true"
            )
        for request in again:
            request.missed = False
        self.close()
        self._open()
        self._there.clear()
        self._flying.clear()
        self._queue.extendleft(reversed(again))
        self._pump()

    def _pump(self) -> None:
        while self._queue and len(self._flying) < AHEAD:
            request = self._queue.popleft()
            for name, (header, parts) in request.images.items():
                if name not in self._there:
                    self._send(header, parts())
                    self._there.add(name)
                    self.images_sent += 1
            number = self._send(request.header, request.parts())
            request.sent += 1
            self._flying[number] = request

    def _send(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
        number = next(self._numbers)
        frames = wire.encode({**header, "version": wire.VERSION, "id": number}, tensors)
        self.bytes_sent += sum(map(len, frames))
        self._socket.send_multipart(frames, copy=False)
        return number

    def _receive(self) -> None:
        try:
            header, tensors = wire.decode(self._socket.recv_multipart())
        except WireError as error:
            raise TrainingError(f"teacher at {self.address}: {error}; is it of the same version?") from None
        if header["kind"] == "error":
            raise TrainingError(f"teacher at {self.address} refused: {header.get('message')}")
        request = self._flying.pop(header.get("id", 0), None)
        if request is None:
            return
        if header["kind"] == "missing":
            self._send_images_again(request, header)
        else:
            request.answer = header, tensors
        self._pump()

    def _send_images_again(self, request: Request, header: Mapping[str, Any]) -> None:
        if request.missed:
            raise TrainingError(
                f"teacher at {self.address}: expected {len(request.images)} images to fit its store, got "
                f"{len(header['images'])} forgotten; start it with a larger --image-store"
            )
        request.missed = True
        self._there.difference_update(header["images"])
        self._queue.appendleft(request)

    def _give_up(self, seconds: float) -> None:
        if not self._ever:
            raise ConfigError(
                f"teacher at {self.address}: nobody answers there for {seconds:.0f} s; start it with "
                f"`vlm-dopd serve-teacher MODEL --address {self.address}`"
            )
        state = "it is connected and hangs" if self._connected else "it is gone"
        raise TrainingError(
            f"teacher at {self.address}: expected an answer within {seconds:.0f} s, got none ({state}); start it again "
            "and resume the run with resume=true"
        )
