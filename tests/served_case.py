"""Servers for tests of the served teacher: real processes, and threads that count or misbehave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import zmq

from tests import tiny
from vlm_dopd.errors import ConfigError
from vlm_dopd.packing import Packed, pack
from vlm_dopd.roles import load_policy, load_processor, tokenizer_of
from vlm_dopd.served.server import Teacher, _bound


class Process:
    """`vlm-dopd serve-teacher` as a user starts it."""

    def __init__(self, model: Path, address: str, dtype: str = "float32") -> None:
        self.command = [sys.executable, "-m", "vlm_dopd", "serve-teacher", str(model), "--address", address]
        self.command += ["--dtype", dtype]
        self.start()

    def start(self, model: Path | None = None) -> None:
        if model is not None:
            self.command[4] = str(model)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; children would inherit it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            self.command, cwd=tiny.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait(timeout=300)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.send(number)
        said, _ = self.process.communicate(timeout=300)
        return self.process.returncode, said.decode()


@contextmanager
def process(model: Path, address: str, dtype: str = "float32") -> Iterator[Process]:
    server = Process(model, address, dtype)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate(timeout=300)


Answer = Callable[[list[bytes]], list[bytes] | None]


class Thread:
    """A server in this process, whose replies are `answer`'s. It can die and come back at its address."""

    def __init__(self, answer: Answer) -> None:
        self.address = "tcp://127.0.0.1:*"
        self.start(answer)

    def start(self, answer: Answer) -> None:
        self.ended = threading.Event()
        deadline = time.monotonic() + 20
        while True:  # ZeroMQ's own thread gives an address back a little after `close`
            try:
                self.socket = _bound(self.address)
                break
            except ConfigError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.thread = threading.Thread(target=self._run, args=[answer, self.socket, self.ended], daemon=True)
        self.thread.start()

    @staticmethod
    def _run(answer: Answer, socket: zmq.Socket, ended: threading.Event) -> None:
        while not ended.is_set():
            if socket.poll(20):
                client, *frames = socket.recv_multipart()
                reply = answer(frames)
                if reply is not None and not ended.is_set():
                    socket.send_multipart([client, *reply])
        socket.close(linger=0)

    def kill(self) -> None:
        self.ended.set()
        self.thread.join(timeout=60)


@contextmanager
def in_thread(answer: Answer) -> Iterator[Thread]:
    server = Thread(answer)
    try:
        yield server
    finally:
        server.kill()


def teacher(folder: Path, **options: Any) -> Teacher:
    """What answers in a server's process, of the model in `folder`."""
    processor = load_processor(str(folder))
    policy = load_policy(str(folder), tokenizer_of(processor))
    return Teacher(policy, processor, str(folder), **options)


def responses(lengths: list[list[int]], seed: int = 0) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randint(30, 200, (n,), generator=generator) for n in siblings] for siblings in lengths]


def rows(prompts, seed: int = 0, max_tokens: int | None = None) -> list[Packed]:
    """Two responses of unequal length for every prompt."""
    lengths = [[1 + (3 * i + seed) % 5, 2 + (i + seed) % 4] for i in range(len(prompts))]
    return pack(prompts, responses(lengths, seed), 0, max_tokens)
