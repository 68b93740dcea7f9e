"""Bytes on one GPU, by part, at the fullest moment of each phase of a step.

A phase is as full as its fullest moment, so each is a choice among few: what stays, plus what that moment adds.
Passes and rollouts are planned with responses of full length, the window's store of hidden states with the mean
length, and the optimizer's states are there (from the second step on).

Sharding of the student over N GPUs, of P parameters of which Q are trained (P, Q in the text and vision parts alike):

    none    weights 4·P, gradients 4·Q, AdamW 8·Q; with N > 1 DDP's buckets are a second copy of the gradients
    fsdp2   all of these / N; with `recipes/accelerate/fsdp2.yaml` the weights, gathered in the dtype of autocast, stay
            whole from the first rollout to the backward
    zero2   as ZeRO's paper counts in bf16: weights 2·P whole; gradients 2·Q / N, AdamW and a float32 copy 12·Q / N
    zero3   as zero2, with the weights / N too; the layer in use and the next are whole, embedding and LM head always

Frozen models are whole on every GPU; 8 bits are one byte a weight, nf4 half a byte and a float32 number for each 64
weights, of offloaded layers one is there at a time, of sharded ones a share and two. A copy of the student (`ema`,
`initial`, `snapshot`) has 4·Q of its own, but for `initial` under LoRA, which is the base. Under LoRA P keeps the dtype
of `model.lora.dtype` and Q, the adapters, comes on top; autocast keeps no copies of what is not trained, but a float32
matrix's bfloat16 form waits for the backward.

Not modelled: the allocator's fragments (a share of the GPU is left free for them, see `suggest.ROOM`); workspaces of
kernels; saving a checkpoint; evaluation; prefetched batches; images that only probes or builders show (`crops`,
`degraded`, `masked`); padding of uneven rows (up to a tenth of a pass); the logits of two targets for one token (one
more buffer of the loss); a 4-bit matrix while it is spelt out for its product; rollout engines in other processes.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..chunked_loss import BLOCK, CHUNK
from ..loading import Held
from ..methods import Role
from ..vision import PATCHES
from .job import Job
from .shapes import Shape, Text, Vision

PHASES = ("rollout", "score", "loss", "backward", "update")
GIB = 2**30
CONTEXT = 2 * GIB
"""CUDA's context, its libraries' workspaces, and NCCL's buffers. An assumption."""
COLUMNS = 12
"""Temporaries of BLOCK numbers that autograd has for a full-vocabulary divergence."""

Parts = dict[str, float]


def memory(job: Job) -> dict[str, Parts]:
    """By phase: bytes of each part at its fullest moment."""
    stays = _resident(job)
    moments = {
        "rollout": _rollout(job),
        "score": _score(job),
        "loss": [_loss(job)],
        "backward": _backward(job),
        "update": [{"gradients": _gradients(job), "gathered weights": 0.0}],
    }
    return {phase: stays | max(found, key=lambda parts: sum(parts.values())) for phase, found in moments.items()}


def peak(job: Job) -> float:
    """Bytes of one GPU at the fullest moment of the whole step."""
    return max(sum(parts.values()) for parts in memory(job).values())


def layer_activations(text: Text, job: Job) -> int:
    """Bytes a token that autograd keeps of one layer, but for dense masks.

    In float32, six vectors of the residual's width (each norm's input, its normalised form and its output), four of
    the MLP's, and of attention the projections, their norms and what the attention itself keeps. SDPA with a mask
    takes keys and values repeated for all query heads. Under autocast, residual and norms are float32, and every
    product has a bfloat16 copy of its input.
    """
    h, q, k, m = text.hidden, text.queries, text.keys, text.intermediate
    if job.lora_rank:
        return _adapted(text, job)
    if not job.bf16:
        return 4 * (6 * h + (4 * q + 4 * k if job.flex else 6 * q + 2 * k) + 4 * m)
    attention = 10 * q + 10 * k if job.flex else 12 * q + 6 * k
    return (26 if job.sharding == "none" else 16) * h + attention + 8 * m


def _adapted(text: Text, job: Job) -> int:
    """The same under LoRA, where a frozen matrix keeps no input and a frozen norm only its own, in float32.

    Each pair keeps the input of A, in its own dtype, and what A makes of it. In bfloat16 that input is a copy for each
    pair; in float32 pairs with one input share it, and that of the output projection is attention's own result.
    """
    h, q, k, m = text.hidden, text.queries, text.keys, text.intermediate
    low = job.bf16 or job.base_bytes == 2
    pair, product = 2 if job.bf16 else 4, 2 if low else 4
    inputs = pair * (5 * h + q + m) if low else 4 * (2 * h + m)
    attention = product * (2 * q + 2 * k if job.flex else 4 * q)
    return inputs + 8 * h + 4 * (q + k) + attention + 3 * product * m + 7 * pair * job.lora_rank


def vision_activations(vision: Vision, job: Job, checkpointing: bool = False) -> int:
    """The same of a tower that is trained, bytes a patch: pixels, all layers (or their inputs), mergers."""
    d, i = vision.hidden, vision.intermediate
    layer = 26 * d + 4 * i if job.bf16 else 44 * d + 8 * i
    mergers = (1 + vision.levels) * 3 * d * job.compute_bytes
    return vision.patch * job.compute_bytes + vision.layers * (4 * d if checkpointing else layer) + mergers


def activations(job: Job) -> float:
    """What one pass with gradient keeps until its backward; of checkpointed layers their inputs."""
    text, vision = job.student.text, job.student.vision
    rows, length = job.rows("plain", job.max_new_tokens), job.group("plain", job.max_new_tokens)
    residual = float(rows * length * _residual_bytes(job) * text.hidden)
    # Beside the layers: the last norm, and the first one's input, which under LoRA has no gradient to wait for.
    total = residual * 3 if not job.lora_rank else 4.0 * rows * length * text.hidden * job.checkpointing
    total += residual * text.layers * job.checkpointing
    if not job.checkpointing:
        total += text.layers * _layer(job)
    if vision and not job.freeze_vision:
        patches = rows * job.images * job.work.image_tokens * vision.merge
        total += patches * vision_activations(vision, job, job.checkpointing)
    return total


def _layer(job: Job) -> float:
    rows, length = job.rows("plain", job.max_new_tokens), job.group("plain", job.max_new_tokens)
    return rows * length * layer_activations(job.student.text, job) + _dense_mask(job, rows, length)


def _resident(job: Job) -> Parts:
    n, whole = job.gpus, job.sharding == "none"
    low = 2 if job.bf16 else 4
    zero = job.sharding.startswith("zero")
    weights = held_bytes(job.student, low if zero else job.base_bytes, job.base_held)
    weights += (low if zero else 4) * job.trained if job.lora_rank else 0.0
    states = (8 + (4 if zero and job.bf16 else 0)) * job.trained
    parts: Parts = {
        "student weights": weights / (1 if job.sharding in ("none", "zero2") else n),
        "optimizer": states / (1 if whole else n),
    }
    if job.sharding == "fsdp2":
        parts["gathered weights"] = float(job.compute_bytes * job.student.parameters)
    if job.sharding == "zero3":
        text = job.student.text
        parts["gathered weights"] = job.compute_bytes * (2.0 * text.layer_products + text.head * (2 - text.tied))
    if whole and n > 1:
        parts["DDP buckets"] = 4.0 * job.trained
    for name, shape in job.frozen.items():
        parts[f"{name} weights"] = held_bytes(shape, job.frozen_bytes, job.frozen_held, n)
    for kind in job.copies:
        parts[f"{kind} copy"] = 0.0 if job.lora_rank and kind == "initial" else 4.0 * job.trained
    if job.cpu:
        vision = job.student.vision
        patches = job.window * job.images * job.work.image_tokens * (vision.merge if vision else 0)
        parts["pixels"] = 4.0 * patches * (vision.patch if vision else 0)
    else:
        parts["CUDA and NCCL"] = float(CONTEXT)
    return parts


def held_bytes(shape: Shape, dense: int, held: Held, ranks: int = 1) -> float:
    """Of a model's weights on one GPU: the matrices of its layers as `held`, all others with `dense` bytes each."""
    layers = shape.text.layers
    matrices = layers * shape.text.layer_products
    sharded = dense * (1 / ranks + 2 / layers) if ranks > 1 else dense
    each = {"full": dense, "int8": 1.0, "nf4": 0.5 + 4 / 64, "offload": dense / layers, "sharded": sharded}[held]
    return dense * (shape.parameters - matrices) + each * matrices


def _rollout(job: Job) -> list[Parts]:
    """The image encoder, the prompts, the last token."""
    text = job.student.text
    prompt, longest = job.prompt(job.method.rollout_view), job.max_new_tokens
    prompts = min(job.window, max(1, job.rollout_batch // job.siblings))
    sequences = prompts * job.siblings
    has: Parts = {"autocast copies": _autocast(job, head=True), "vision features": _features(job, ["student"])}
    token = text.layers * text.keys * (4 if job.base_bytes == 2 else 6 if job.bf16 else 8)
    filled = has | {
        "KV cache": float(prompts * prompt * token),
        "rollout buffers": prompts * prompt * _forward_bytes(job, "student") + _dense_mask(job, prompts, prompt),
    }
    length = prompt + longest
    of_a_layer = sequences * length * job.compute_bytes * (2 * text.queries + 2 * text.keys)
    sampled = has | {
        "KV cache": float(sequences * length * token),
        "rollout buffers": float(of_a_layer + sequences * text.vocabulary * (4 + 3 * 8)),
    }
    return [has | {"rollout buffers": _encoder(job, "student", prompts)}, filled, sampled]


def _score(job: Job) -> list[Parts]:
    """For each role the image encoder, a pass, the logits; at last, all targets' hidden states cut into passes."""
    has: Parts = {
        "autocast copies": _autocast(job) if any(r.weights not in job.frozen for r in job.method.roles) else 0.0,
        "vision features": _features(job, job.seeing(job.method.roles)),
        "hidden states": _store(job),
    }
    moments = []
    for role in job.method.roles:
        vocabulary = job.shape(role.weights).text.vocabulary
        rows, length = job.rows(role.view, job.max_new_tokens), job.group(role.view, job.max_new_tokens)
        one_pass = rows * length * _forward_bytes(job, role.weights) + 2 * _dense_mask(job, rows, length)
        tokens = min(CHUNK, job.micro * job.siblings * job.max_new_tokens)
        logits = tokens * vocabulary * (2 * 4 + (2 if _weight_bytes(job, role.weights) == 2 else 0))
        own = _hidden(job, [role], job.micro * job.max_new_tokens)
        moments += [
            has | {"score pass": _encoder(job, role.weights, job.micro)},
            has | {"score pass": one_pass + own},
            has | {"score pass": own, "logits of a chunk": float(logits)},
        ]
    return [*moments, has | {"hidden states": 2 * has["hidden states"]}]


def _kept(job: Job) -> Parts:
    """What is there from the forward of one pass to its backward; gradients, if it is not the step's first."""
    rows = job.rows("plain", job.max_new_tokens)
    responses = rows * job.siblings * job.max_new_tokens
    return {
        "vision features": _features(job, job.seeing(job.method.roles)),
        "hidden states": _store(job) + 4.0 * 2 * responses * job.student.text.hidden,
        "autocast copies": 0.0 if job.checkpointing else _autocast(job, head=True) + _waiting(job),
        "gradients": _gradients(job) if _several(job) else 0.0,
        "activations": activations(job),
        "LM head's gradient": 0.0 if job.lora_rank else 4.0 * job.student.text.head,
    }


def _loss(job: Job) -> Parts:
    """The buffers of a chunk: the student's logits, a target's and their gradient, and what makes them."""
    text = job.student.text
    numbers = min(CHUNK, job.rows("plain", job.max_new_tokens) * job.siblings * job.max_new_tokens) * text.vocabulary
    low = any(_weight_bytes(job, role.weights) == 2 for role in job.targets)
    return _kept(job) | {"loss chunk": float(numbers * (3 * 4 + (2 if low else 0)) + COLUMNS * min(BLOCK, numbers) * 4)}


def _backward(job: Job) -> list[Parts]:
    """Of the last layer, when all activations are still there, and of the embedding, when all gradients are."""
    text, kept = job.student.text, _kept(job)
    rows, length = job.rows("plain", job.max_new_tokens), job.group("plain", job.max_new_tokens)
    slopes = rows * length * job.compute_bytes * 3 * (text.intermediate + text.hidden)
    again = _layer(job) if job.checkpointing else 0.0
    # Its part of the embedding's gradient waits for the other where the two are tied; each is as large as the matrix.
    waiting = kept["LM head's gradient"] * (text.tied + _several(job))
    last = {
        "gradients": _gradients(job),
        "LM head's gradient": waiting,
        "autocast copies": 0.0,
        "activations": float(rows * length * _residual_bytes(job) * text.hidden * 3),
    }
    return [kept | {"backward of a layer": slopes + again}, kept | last]


def _several(job: Job) -> bool:
    """Whether a step has several passes with gradient."""
    return job.accumulation * -(-job.micro // job.rows("plain", job.max_new_tokens)) > 1


def _gradients(job: Job) -> float:
    low = 2 if job.sharding.startswith("zero") and job.bf16 else 4
    return low * job.trained / (1 if job.sharding == "none" else job.gpus)


def _autocast(job: Job, head: bool = False) -> float:
    """Autocast keeps a bfloat16 copy of every trained matrix for as long as it is on."""
    if not job.bf16 or job.lora_rank or job.sharding != "none":
        return 0.0
    text = job.student.text
    return 2.0 * (text.layers * text.layer_products + (text.head if head else 0))


def _waiting(job: Job) -> float:
    """Bfloat16 forms of frozen float32 matrices: autocast makes them anew for every pass, the backward needs them."""
    if not (job.bf16 and job.lora_rank and job.base_bytes == 4 and job.base_held == "full"):
        return 0.0
    return 2.0 * (job.student.text.layers * job.student.text.layer_products + job.student.text.head)


def _features(job: Job, models: Iterable[str]) -> float:
    """Of all images of the window, once a model."""
    total = 0
    for weights in models:
        vision = job.shape(weights).vision
        if vision:
            total += vision.out * (1 + vision.levels) * _product_bytes(job, weights)
    return float(total * job.window * job.images * job.work.image_tokens)


def _store(job: Job) -> float:
    """Targets' hidden states of the window."""
    return _hidden(job, job.targets, job.window * job.work.response_tokens)


def _hidden(job: Job, roles: Iterable[Role], tokens: int) -> float:
    """Of `tokens` tokens of every sibling. The student's are float32: so is its last norm."""
    widths = sum(job.shape(role.weights).text.hidden * _weight_bytes(job, role.weights) for role in roles)
    return float(job.siblings * tokens * widths)


def _encoder(job: Job, weights: str, prompts: int) -> float:
    """What the tower has beside its features while it encodes one block of the images of so many prompts."""
    vision = job.shape(weights).vision
    if vision is None or not job.images:
        return 0.0
    image = job.work.image_tokens * vision.merge
    patches = image * min(job.images * prompts, max(1, PATCHES // image))
    wide = max(2 * vision.intermediate + 2 * vision.hidden, 9 * vision.hidden)
    return float(patches * (4 * vision.patch + _product_bytes(job, weights) * wide))


def _forward_bytes(job: Job, weights: str) -> int:
    """A token of a forward pass without gradient: the residual, and the wider of attention and MLP."""
    text = job.shape(weights).text
    widest = max(3 * text.intermediate, 4 * text.queries + 2 * text.keys)
    return _product_bytes(job, weights) * widest + 3 * text.hidden * _weight_bytes(job, weights)


def _dense_mask(job: Job, rows: int, length: int) -> float:
    """SDPA makes a mask of numbers of the boolean one, in every layer."""
    return 0.0 if job.flex else float(rows * length**2 * job.compute_bytes)


def _residual_bytes(job: Job) -> int:
    return 2 if (job.bf16 and job.sharding != "none") or job.base_bytes == 2 else 4


def _weight_bytes(job: Job, weights: str) -> int:
    return job.frozen_bytes if weights in job.frozen else job.base_bytes


def _product_bytes(job: Job, weights: str) -> int:
    """Of an output of a matrix product."""
    return min(job.compute_bytes, _weight_bytes(job, weights))
