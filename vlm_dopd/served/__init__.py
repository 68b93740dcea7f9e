"""A teacher in a process of its own: on other GPUs, or another node. The loss is the one of a teacher in the trainer.

    vlm-dopd serve-teacher MODEL --address tcp://127.0.0.1:5555         model.teacher=tcp://127.0.0.1:5555

A request is the shared-prefix rows that a teacher in the trainer would score; the answer is the last hidden states of
the response positions, [N, H]. The LM head comes once, when a run begins: log-probabilities, entropies and divergences
are formed by the trainer's own chunked code, so nothing of vocabulary size travels and no support is cut off.

The transport is ZeroMQ: `tcp://` between nodes, `ipc://` on one. A group of torch.distributed would have to be one
world with the trainer, which ends when the teacher is restarted, and could not serve two runs.

  wire.py     what a message is: a JSON header and safetensors     requests.py   rows in messages, and what is let in
  server.py   the process with the teacher                         client.py     asking again when the server restarts
  policy.py   the served teacher among the trainer's policies
  topk.py     an approximate one: top-k log-probabilities of any OpenAI-compatible server, text only

There is no authentication and no encryption: whoever reaches the address can use the model, and read its LM head. The
default is this machine alone; between nodes use a private network, or `ssh -L 5555:127.0.0.1:5555 NODE`.
"""

from __future__ import annotations

import re

from ..errors import ConfigError

ADDRESS = "tcp://127.0.0.1:5555"
_SHAPE = re.compile(r"tcp://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}|ipc://[^\s,]+")


def is_address(name: str) -> bool:
    """Whether a model is named by where it is served: tcp://host:port, ipc://file, several with commas, or a URL."""
    return name.startswith(("tcp://", "ipc://")) or is_url(name)


def is_url(name: str) -> bool:
    """Whether that is a plain server, which gives top-k log-probabilities and no hidden states."""
    return name.startswith(("http://", "https://"))


def addresses(name: str, key: str = "model.teacher") -> list[str]:
    """The addresses in a setting. Raises ConfigError for what is none."""
    found = [part.strip() for part in name.split(",")]
    for part in found:
        if not _SHAPE.fullmatch(part):
            raise ConfigError(f"{key}: expected tcp://host:port or ipc://file, or several with commas, got {part!r}")
    return found
