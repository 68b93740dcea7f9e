"""Floating-point operations of matrix products: 2·m·n·k each, as `torch.utils.flop_counter` counts them.

Not counted: norms, rotations, softmax, masks and everything else without a matrix product; padding; the random order
in which groups of different lengths share passes. Under FlexAttention the pairs are those a token may look at, without
the rest of the blocks at the border; under SDPA all of a row's L².
"""

from __future__ import annotations

from dataclasses import dataclass

from ..methods import Role
from .job import Job
from .shapes import Text, Vision

BACKWARD_ATTENTION = 2.5
"""Five products in the backward of fused attention, for two in the forward: the scores are formed again."""


@dataclass(frozen=True)
class Passes:
    """A view's forward passes over one rank's window: tokens, response tokens, pairs that look at each other, rows."""

    tokens: int
    responses: int
    pairs: int
    rows: int


def passes(job: Job, view: str, response: int | None = None) -> Passes:
    """With responses of the mean length, or of `response`."""
    n = job.work.response_tokens if response is None else response
    prompt, group = job.prompt(view), job.group(view, n)
    seen = prompt * (prompt + 1) // 2 + job.siblings * (n * prompt + n * (n + 1) // 2)
    return Passes(
        tokens=job.window * group,
        responses=job.window * job.siblings * n,
        pairs=job.window * (seen if job.flex else group**2),
        rows=job.window,
    )


def text_forward(text: Text, tokens: int, pairs: int) -> float:
    """Of all layers, without the LM head."""
    return text.layers * (2.0 * tokens * text.layer_products + 4.0 * pairs * text.queries)


def vision_forward(vision: Vision, tokens: int, images: int) -> float:
    """Of images with `tokens` tokens each: a patch sees its own image."""
    return images * sum(_vision_parts(vision, tokens))


def _vision_parts(vision: Vision, tokens: int) -> tuple[float, float, float]:
    """Of one image: cutting it into vectors, attention, all other matrices."""
    patches = tokens * vision.merge
    attention = 4.0 * vision.layers * patches**2 * vision.hidden
    mergers = 2.0 * tokens * (1 + vision.levels) * vision.merger_products
    matrices = 2.0 * patches * vision.layers * vision.layer_products + mergers
    return 2.0 * patches * vision.patch * vision.hidden, attention, matrices


def training(job: Job) -> float:
    """Forward and backward of the student over the window, up to its hidden states; logits of one position a row.

    A frozen matrix (LoRA) costs its input's gradient only. Checkpointing computes each layer's forward again, but for
    the last product, whose output nobody asks for.
    """
    text, over = job.student.text, passes(job, "plain")
    linear = 2.0 * text.layers * over.tokens * text.layer_products
    attention = 4.0 * text.layers * over.pairs * text.queries
    total = linear * (2 if job.lora_rank else 3) + attention * (1 + BACKWARD_ATTENTION)
    total += 6.0 * over.tokens * text.lora_parameters(job.lora_rank)
    if job.checkpointing:
        total += linear + attention - 2.0 * text.layers * over.tokens * text.hidden * text.intermediate
    vision = job.student.vision
    if vision and not job.freeze_vision:
        cut, looks, matrices = _vision_parts(vision, job.work.image_tokens)
        again = 1 if job.checkpointing else 0
        own = 2 * cut + looks * (1 + BACKWARD_ATTENTION + again) + matrices * (3 + again)
        total += job.window * job.images * own
    return (total + 2.0 * over.rows * text.head) * _student_views(job)


def scoring(job: Job, role: Role) -> float:
    """One role's forward over the window, without its LM head."""
    over = passes(job, role.view)
    return text_forward(job.shape(role.weights).text, over.tokens, over.pairs)


def score_head(job: Job, role: Role) -> float:
    """Logits of one role's response tokens, chunk by chunk; once more for each pair of roles that is compared."""
    pairs = {(s.first, s.second) for s in job.method.statistics}
    times = 1 + sum(role in pair for pair in pairs)
    return 2.0 * times * passes(job, role.view).responses * job.shape(role.weights).text.head


def student_head(job: Job) -> float:
    """The student's logits in the loss, and their two gradients: of hidden states and, where it is trained, head."""
    products = 2 if job.lora_rank else 3
    return 2.0 * products * passes(job, "plain").responses * job.student.text.head * _student_views(job)


def target_heads(job: Job) -> dict[Role, float]:
    """Logits of targets in the loss. A token has one target where a method routes, so each gets an equal share."""
    responses = passes(job, "plain").responses * _student_views(job)
    targets = job.targets
    return {role: 2.0 * responses * job.shape(role.weights).text.head / len(targets) for role in targets}


def encoding(job: Job, weights: str) -> float:
    """All images of the window, by one model."""
    vision = job.shape(weights).vision
    return vision_forward(vision, job.work.image_tokens, job.window * job.images) if vision else 0.0


def _student_views(job: Job) -> int:
    """Passes with gradient over the same responses: one a view that components ask for."""
    return max(1, len({component.student_view for component in job.method.components}))
