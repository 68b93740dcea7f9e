"""Seconds of a step on one GPU, by part: operations over peak × efficiency, or bytes over bandwidth × efficiency.

The efficiencies are assumptions, stated here and nowhere else. Not modelled: kernels other than matrix products, the
passes of the loss and attention over its keys; data loading and image decoding; uneven ranks (the slowest decides);
checkpoints and evaluation; overlap of communication with computation, so that sharded runs look slower than they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..methods import Role
from . import flops
from .gpus import GPU, GPUS_A_NODE, NODE_LINK
from .job import Job


@dataclass(frozen=True)
class Efficiency:
    """Shares of the peaks of `gpus.py`."""

    training: float = 0.40
    """Forward and backward: open trainers report 0.3 to 0.55 for models of this size on A100, H100 and H200."""
    forward: float = 0.45
    vision: float = 0.35
    head: float = 0.60
    """One large product, in the head's own dtype: float32 for the student's."""
    memory: float = 0.70
    link: float = 0.70
    layer_launch: float = 0.8e-3
    """Seconds that `generate` takes for one layer of one token at the least: a few dozen kernels, launched one by one.
    About 25 tokens a second and sequence for 36 layers, whatever the GPU."""


ASSUMED = Efficiency()
HOST_LINK = 12.0
"""GB/s from host memory that is not pinned, over PCIe 4.0 ×16. An assumption."""
SCORE_PASSES = 8
LOSS_PASSES = 25
"""Times that a chunk's [n, V] float32 numbers are read or written, counted in `chunked_loss.py`."""


def times(job: Job, gpu: GPU, how: Efficiency = ASSUMED) -> dict[str, float]:
    """Seconds by part."""
    half = gpu.bf16 if job.bf16 else _single(job, gpu)
    parts = {"rollout": rollout(job, gpu, how)}
    images = sum(flops.encoding(job, weights) for weights in job.seeing(job.method.roles))
    if images:
        parts["image encoding"] = images / (half * 1e12 * how.vision)
    for role in job.method.roles:
        products = flops.scoring(job, role) / (half * 1e12 * how.forward)
        responses = flops.passes(job, role.view).responses
        parts[f"score {role.weights}, {role.view}"] = (
            products
            + flops.score_head(job, role) / (_head(job, gpu, role.weights) * 1e12 * how.head)
            + SCORE_PASSES
            * 4.0
            * responses
            * job.shape(role.weights).text.vocabulary
            / (gpu.bandwidth * 1e9 * how.memory)
            + (
                _gathering(job, gpu, how, _passes(job))
                if role.weights == "student" and job.sharding == "zero3"
                else 0.0
            )
            + _fetching(job, gpu, how, role)
        )
    parts["forward and backward"] = flops.training(job) / (half * 1e12 * how.training)
    responses = flops.passes(job, "plain").responses
    parts["loss"] = (
        flops.student_head(job) / (_head(job, gpu, "student") * 1e12 * how.head)
        + sum(n / (_head(job, gpu, r.weights) * 1e12 * how.head) for r, n in flops.target_heads(job).items())
        + LOSS_PASSES * 4.0 * responses * job.student.text.vocabulary / (gpu.bandwidth * 1e9 * how.memory)
    )
    parts["optimizer"] = 28.0 * job.trained / _shards(job) / (gpu.bandwidth * 1e9 * how.memory)
    if job.gpus > 1:
        parts["communication"] = communication(job, gpu, how)
    return parts


def rollout(job: Job, gpu: GPU, how: Efficiency = ASSUMED) -> float:
    """Sequences `rollout.batch_size` at a time, as long as their longest response; a token reads all weights and keys.

    Under zero3 the weights are gathered for every token; under fsdp2 once, and stay.
    """
    text = job.student.text
    prompts = min(job.window, max(1, job.rollout_batch // job.siblings))
    batches = -(-job.window // prompts)
    sequences = prompts * job.siblings
    prompt, longest = job.prompt(job.method.rollout_view), job.max_new_tokens
    half = gpu.bf16 if job.bf16 else _single(job, gpu)
    prefill = flops.text_forward(text, prompts * prompt, prompts * prompt**2) / (half * 1e12 * how.forward)
    weights = text.layers * text.layer_products + text.head
    cache = sequences * (prompt + longest / 2) * text.layers * text.keys * (6 if job.bf16 else 8)
    read = (weights * job.compute_bytes + cache + 5 * 8 * sequences * text.vocabulary) / (
        gpu.bandwidth * 1e9 * how.memory
    )
    computed = 2.0 * sequences * weights / (half * 1e12 * how.forward)
    gathering = _gathering(job, gpu, how, 1)
    token = max(read, computed, text.layers * how.layer_launch) + (gathering if job.sharding == "zero3" else 0.0)
    return batches * (prefill + longest * token) + (gathering if job.sharding == "fsdp2" else 0.0)


def communication(job: Job, gpu: GPU, how: Efficiency = ASSUMED) -> float:
    """Gradients once a step; sharded weights for every pass with gradient, under zero3 once more for its backward."""
    low = 2 if job.bf16 and job.sharding != "none" else 4
    over = (job.gpus - 1) / job.gpus
    gradients = low * job.trained * over * (2 if job.sharding in ("none", "zero2") else 1)
    gathered = _passes(job) * (2 if job.sharding == "zero3" else 1)
    return gradients / _link(job, gpu, how) + _gathering(job, gpu, how, gathered)


def _passes(job: Job) -> int:
    """With gradient, of a window."""
    return job.accumulation * -(-job.micro // job.rows("plain", job.work.response_tokens))


def _fetching(job: Job, gpu: GPU, how: Efficiency, role: Role) -> float:
    """Seconds to bring the layers of an offloaded or sharded model to the GPU, once a pass."""
    if role.weights not in job.frozen or job.frozen_held not in ("offload", "sharded"):
        return 0.0
    text = job.shape(role.weights).text
    passes = job.accumulation * -(-job.micro // job.rows(role.view, job.work.response_tokens))
    moved = passes * job.frozen_bytes * text.layers * text.layer_products
    if job.frozen_held == "offload":
        return moved / (HOST_LINK * 1e9)
    return moved * (job.gpus - 1) / job.gpus / _link(job, gpu, how)


def _gathering(job: Job, gpu: GPU, how: Efficiency, times: int) -> float:
    """Seconds to gather all weights of the student so many times."""
    if job.sharding not in ("fsdp2", "zero3"):
        return 0.0
    moved = job.compute_bytes * job.student.parameters * (job.gpus - 1) / job.gpus
    return times * moved / _link(job, gpu, how)


def _link(job: Job, gpu: GPU, how: Efficiency) -> float:
    speed = gpu.link if job.gpus <= GPUS_A_NODE else min(gpu.link, NODE_LINK)
    return speed * 1e9 * how.link


def _single(job: Job, gpu: GPU) -> float:
    return gpu.tf32 if job.tf32 else gpu.fp32


def _head(job: Job, gpu: GPU, weights: str) -> float:
    """TFLOP/s of products with an LM head, which are taken in its own dtype."""
    return gpu.bf16 if (job.frozen_bytes if weights in job.frozen else job.base_bytes) == 2 else _single(job, gpu)


def _shards(job: Job) -> int:
    return 1 if job.sharding == "none" else job.gpus
