"""`rollout` of a configuration: how the student's responses are sampled, and by which engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class VLLMConfig:
    """`rollout.vllm`: read if `rollout.engine` is vllm."""

    mode: Literal["server", "colocate"] = "server"
    """Servers that are started beforehand (`vlm-dopd rollout-server` prints how), or an engine inside this process."""
    urls: list[str] = field(default_factory=lambda: ["http://127.0.0.1:8000"])
    """One server or several, which share the prompts."""
    weights: str | None = None
    """Folder through which the engine gets the student's weights, which it must see under the same path: memory, as
    /dev/shm, or a shared file system. Default: the run folder. What is written there is removed once it is read."""
    timeout: float = 600.0
    """Seconds for a reply."""
    memory_share: float = 0.3
    """Of a GPU, for a colocated engine."""
    check_steps: int = 10
    """The engine's log-probabilities are compared with the trainer's in the first step and in every so many."""
    tolerance: float = 0.05
    """Nats a token, on average: beyond it the run stops."""
    importance: Literal["none", "token", "sequence"] = "none"
    """Multiply the loss's weights by min(π_trainer / π_engine, cap), of each token or of its response. Not for methods
    with a ratio of their own, which take it from the same figures."""
    importance_cap: float = 2.0


@dataclass(kw_only=True)
class RolloutConfig:
    """How many responses a prompt gets, how they are sampled, and what they earn."""

    engine: Literal["hf", "vllm"] = "hf"
    """`transformers.generate`, or vLLM: several times faster where there are GPUs."""
    siblings: int = 4
    """G, responses a prompt (section 4.1 of the paper)."""
    max_new_tokens: int = 1024
    temperature: float = 1.0
    """Of sampling. Scores and losses are always taken at temperature 1."""
    top_p: float = 1.0
    top_k: int = 0
    reference: str = "teacher"
    """Reference completions, for methods that train on them: written by the teacher, or this column of the data."""
    reward: str = "answer"
    """For methods that need rewards: 1 if the final answer is the reference answer, or `package.module:function`."""
    batch_size: int = 64
    """Sequences that hf generates together, at least the siblings of one prompt: a matter of memory, not of results."""
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
