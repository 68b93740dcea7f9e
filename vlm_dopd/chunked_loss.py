"""The routed loss and the token scores, without ever holding logits of more than one chunk.

Shape letters: N response tokens (n of one chunk), V vocabulary, H hidden size of a model, U rows of its LM head,
R loss components, P pairs of a divergence and a target, K support, C its columns and one for the rest of V.

Hidden states go in, sums come out. A chunk's student logits are formed once, its target logits once a target, whatever
the number of components; the gradients of the student's hidden states and LM head are formed on the spot (two matrix
products), so that memory is one chunk's logits however many tokens a step has.

What is left beside the matrix products are passes over [n, V], so there are few of them, into buffers that every chunk
uses again. No autograd runs over [n, V]: a divergence is a function of few columns, C, or a sum over columns. Autograd
gives its slope g in their log-probabilities, and with the softmax p the gradient of the logits is g − p·Σg.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .divergences import Divergence
from .head import Head

CHUNK = 384
"""Tokens whose logits exist at one time: 384 × 151,936 float32 are 233 MB, and there are three such buffers. Products
of fewer rows are slower on a CPU (at 256 and a width of 512 by a fifth), more rows cost memory and gain little."""
BLOCK = 2**20
"""Numbers of a full-vocabulary divergence that autograd sees at one time: its dozen of temporaries are 4 MB each."""


@dataclass(frozen=True)
class Scored:
    """One role's opinion on N response tokens. Everything a method may ask for later comes from these."""

    hidden_NH: Tensor
    """Last hidden state of the position that predicts the token."""
    head: Head
    logp_N: Tensor
    """Log-probability of the sampled token, nats."""
    entropy_N: Tensor
    """Entropy of the next-token distribution, nats."""


@dataclass(frozen=True)
class Term:
    """One loss component on the tokens of a micro-batch: Σ_n weight_n · divergence_n(student, target)."""

    divergence: Divergence
    weight_N: Tensor
    target: Scored | None
    """None where the divergence has none."""


class LossOutput(NamedTuple):
    """What `chunked_loss` returns; R terms, N tokens. Only `total` has a gradient."""

    total: Tensor
    """Scalar with gradient: the sum over terms and tokens. Division by a global count is the caller's."""
    divergence_RN: Tensor
    """Unweighted value a term and token; 0 where the term has no weight. No gradient."""
    entropy_N: Tensor
    """Entropy of the student's distribution, nats; 0 where no term has weight. No gradient."""
    logp_N: Tensor
    """The student's log-probability of the sampled token, nats; 0 where no term has weight. No gradient."""
    covered_RN: Tensor
    """Probability that a term's target gives to its support, all of it for `full`; 0 where the term has no weight."""


@torch.no_grad()
def score_tokens(hidden_NH: Tensor, head: Head, token_N: Tensor, chunk: int = CHUNK) -> Scored:
    """Sampled log-probability and entropy of N tokens, chunk by chunk, in float32."""
    token_N = head.scored_as(token_N)
    logp_N = hidden_NH.new_zeros(token_N.shape, dtype=torch.float32)
    entropy_N = torch.zeros_like(logp_N)
    buffers = _buffers(2, min(chunk, token_N.numel()), head)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for start in range(0, token_N.numel(), chunk):
            rows = slice(start, start + chunk)
            token_n = token_N[rows]
            logp_nV, scratch_nV = buffers[:, : len(token_n)]
            entropy_N[rows], _ = _log_probabilities(hidden_NH[rows], head, logp_nV, scratch_nV)
            logp_N[rows] = _pick(logp_nV, token_n)
    return Scored(hidden_NH, head, logp_N, entropy_N)


@torch.no_grad()
def compare_tokens(
    first: Scored, second: Scored, token_N: Tensor, functions: Sequence[Callable[..., Tensor]], chunk: int = CHUNK
) -> list[Tensor]:
    """For each function of (logp_nV of the first, logp_nV of the second, token_n) -> [n] its values, [N]."""
    token_N = first.head.scored_as(token_N)
    values = [torch.zeros(token_N.shape, device=first.hidden_NH.device) for _ in functions]
    buffers = _buffers(3, min(chunk, token_N.numel()), first.head)
    with torch.autocast(first.hidden_NH.device.type, enabled=False):
        for start in range(0, token_N.numel(), chunk):
            rows = slice(start, start + chunk)
            *sides, scratch_nV = buffers[:, : len(token_N[rows])]
            for scored, logp_nV in zip((first, second), sides, strict=True):
                scored.head.logits(scored.hidden_NH[rows], logp_nV)
                _log_softmax(logp_nV, scratch_nV)
            for value_N, function in zip(values, functions, strict=True):
                value_N[rows] = function(*sides, token_N[rows])
    return values


def routed_loss(
    hidden_NH: Tensor, head: Head, token_N: Tensor, terms: Sequence[Term], chunk: int = CHUNK
) -> LossOutput:
    """Σ_r Σ_n weight · divergence(student, target of r), differentiable in the student's hidden states and LM head.

    A term is evaluated only where its weight is not zero. No active token gives a zero that backward accepts.
    Backward runs once: it scales the gradients where they lie, since a second copy of the head's may be gigabytes.
    """
    with torch.autocast(hidden_NH.device.type, enabled=False):  # its gradient products too are in the head's dtype
        token_N, detached = head.scored_as(token_N), head.detach()
        return LossOutput(*_RoutedLoss.apply(hidden_NH, head.weight_UH, detached, token_N, tuple(terms), chunk))


class _RoutedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, weight_UH, head, token_N, terms, chunk):  # type: ignore[override]
        grad_hidden_NH = torch.zeros_like(hidden_NH, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        grad_weight_UH = torch.zeros_like(weight_UH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        entropy_N, logp_N = torch.zeros(2, token_N.numel(), device=hidden_NH.device)
        pairs, pair_of = _pairs(terms)
        weight_RN = torch.stack([entropy_N, *(term.weight_N.float() for term in terms)])[1:]  # R may be 0
        pair_R = torch.tensor(pair_of, dtype=torch.long, device=hidden_NH.device)
        value_PN, covered_PN = torch.zeros(2, len(pairs), token_N.numel(), device=hidden_NH.device)
        weight_PN = torch.zeros_like(value_PN).index_add_(0, pair_R, weight_RN)
        active_PN = torch.zeros_like(value_PN).index_add_(0, pair_R, (weight_RN != 0).float()) > 0
        chunks = list(_chunks(active_PN, chunk))
        several = any(len(present) > 1 for _, runs in chunks for _, present in runs)
        buffers = _buffers(4 if several else 3, max((len(index) for index, _ in chunks), default=0), head)
        for index_n, runs in chunks:
            h_nH, token_n = hidden_NH[index_n].to(weight_UH.dtype), token_N[index_n]
            logp_nV, target_nV, grad_nV, *spare = buffers[:, : len(index_n)]
            entropy_N[index_n], log_total_n1 = _log_probabilities(h_nH, head, logp_nV, scratch_nV=grad_nV)
            logp_N[index_n] = _pick(logp_nV, token_n)
            for rows, present in runs:
                held = None
                for p in present:
                    divergence, target = pairs[p]
                    if target is not None and target is not held:
                        held = target
                        target.head.logits(target.hidden_NH[index_n[rows]], target_nV[rows])
                    out_nV = grad_nV[rows] if p == present[0] else spare[0][rows]
                    weight_n = weight_PN[p, index_n[rows]]
                    value_PN[p, index_n[rows]], covered_PN[p, index_n[rows]] = _gradient(
                        divergence, weight_n, token_n[rows], logp_nV[rows], target_nV[rows], out_nV
                    )
                    if p != present[0]:
                        grad_nV[rows] += out_nV
            head.product_gradient(grad_nV, logp_nV, log_total_n1, h_nH)
            if grad_hidden_NH is not None:
                grad_hidden_NH[index_n] = (grad_nV.to(weight_UH.dtype) @ head.weight_VH).float()
            if grad_weight_UH is not None:
                _add_product(grad_weight_UH[: head.vocab_size], grad_nV, h_nH)
        ctx.save_for_backward(grad_hidden_NH, grad_weight_UH)
        ctx.dtypes = hidden_NH.dtype, weight_UH.dtype
        divergence_RN, covered_RN = (of_PN[pair_R].where(weight_RN != 0, 0.0) for of_PN in (value_PN, covered_PN))
        ctx.mark_non_differentiable(divergence_RN, entropy_N, logp_N, covered_RN)
        return (weight_PN * value_PN).sum(), divergence_RN, entropy_N, logp_N, covered_RN

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, *_):  # type: ignore[override]
        grads = [
            None if g is None else g.mul_(grad_total).to(d) for g, d in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *grads, None, None, None, None


def _gradient(
    divergence: Divergence, weight_n: Tensor, token_n: Tensor, logp_nV: Tensor, target_nV: Tensor, grad_nV: Tensor
) -> tuple[Tensor, Tensor]:
    """Value of every token, and the target's probability of the support; `grad_nV` becomes the gradient of the weighted
    sum in the student's logits.

    `logp_nV` are the student's log-probabilities, `target_nV` the target's logits up to a shift of each row.
    """
    ids_nK = divergence.support_ids(logp_nV, target_nV, token_n)
    if ids_nK is None:
        return _full_gradient(divergence, weight_n, logp_nV, target_nV, grad_nV), torch.ones_like(weight_n)
    target_nC = _columns(target_nV, ids_nK, scratch_nV=grad_nV)[0] if divergence.has_target else None
    logp_nC, total_n1 = _columns(logp_nV, ids_nK, scratch_nV=grad_nV)
    if target_nC is None:
        target_nC = logp_nC  # nothing looks at it

    def value(student_nC: Tensor) -> Tensor:
        sides = (divergence.close(side_nC[:, :-1], side_nC[:, -1:]) for side_nC in (student_nC, target_nC))
        return divergence.value(*sides)

    value_n, slope_nC = _slope(value, logp_nC, weight_n)
    slope_nC -= logp_nC.exp() * slope_nC.sum(-1, keepdim=True)
    # The last column's share goes to the tokens outside the support in proportion to their probability.
    grad_nV.mul_(slope_nC[:, -1:] / total_n1).scatter_(-1, ids_nK, slope_nC[:, :-1])
    return value_n, target_nC[:, :-1].exp().sum(-1)


def _full_gradient(
    divergence: Divergence, weight_n: Tensor, logp_nV: Tensor, target_nV: Tensor, grad_nV: Tensor
) -> Tensor:
    """As `_gradient`, over the whole vocabulary: value and slopes block by block of columns, of which it is a sum."""
    _log_softmax(target_nV, scratch_nV=grad_nV)
    value_n = torch.zeros_like(weight_n)
    width = max(1, BLOCK // len(logp_nV))
    blocks = list(zip(*(x.split(width, -1) for x in (logp_nV, target_nV, grad_nV)), strict=True))
    for logp_nC, target_nC, grad_nC in blocks:
        value, slope_nC = _slope(partial(divergence.value, target_NC=target_nC), logp_nC, weight_n)
        value_n += value
        grad_nC.copy_(slope_nC)
    total_n1 = grad_nV.sum(-1, keepdim=True)
    for logp_nC, _, grad_nC in blocks:
        grad_nC.addcmul_(logp_nC.exp(), total_n1, value=-1)
    return value_n


def _slope(function: Callable[[Tensor], Tensor], logp_nC: Tensor, weight_n: Tensor) -> tuple[Tensor, Tensor]:
    """Value of every token, and the derivative of the weighted sum in each column's log-probability."""
    logp_nC = logp_nC.detach().requires_grad_()
    with torch.enable_grad():
        value_n = function(logp_nC)
    return value_n.detach(), torch.autograd.grad(value_n, logp_nC, weight_n)[0]


def _columns(logits_nV: Tensor, ids_nK: Tensor, scratch_nV: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the support and, last, of all other tokens together, [n, K + 1].

    The rest is summed over the complement, not 1 − Σ_K: the tail of a peaked distribution is far below float32's
    epsilon. `scratch_nV` becomes the other tokens' probabilities times the returned [n, 1], and 0 in the support.
    """
    kept_nK = logits_nV.gather(-1, ids_nK)
    logits_nV.scatter_(-1, ids_nK, float("-inf"))
    top_n1, total_n1 = _exp(logits_nV, scratch_nV)
    logits_nV.scatter_(-1, ids_nK, kept_nK)
    return torch.cat([kept_nK - top_n1, total_n1.log()], dim=-1).log_softmax(-1), total_n1


def _pairs(terms: Sequence[Term]) -> tuple[list[tuple[Divergence, Scored | None]], list[int]]:
    """The distinct pairs of divergence and target, those of one target side by side, and the pair of every term."""
    targets = [id(term.target) for term in terms]
    keys = [(targets.index(id(term.target)), term.divergence) for term in terms]
    distinct = sorted(dict.fromkeys(keys), key=lambda key: key[0])
    return [(divergence, terms[first].target) for first, divergence in distinct], [distinct.index(key) for key in keys]


def _chunks(active_PN: Tensor, size: int) -> Iterator[tuple[Tensor, list[tuple[slice, list[int]]]]]:
    """The tokens with an active pair, at most `size` at a time: their indices, and runs of rows with the same pairs.

    Tokens of the same pairs are side by side, so that a run is a slice of the chunk's logits. Chunks are of one size,
    or nearly: a short one costs as much memory traffic for the weights and their gradient as a full one.
    """
    active_N = active_PN.any(0).nonzero()[:, 0]
    if not active_N.numel():
        return
    pattern_PG, group_N, count_G = active_PN[:, active_N].unique(dim=1, return_inverse=True, return_counts=True)
    ends = count_G.cumsum(0).tolist()
    present = [[p for p, active in enumerate(pattern) if active] for pattern in pattern_PG.T.tolist()]
    start = 0
    for index_n in active_N[group_N.argsort(stable=True)].tensor_split(-(-active_N.numel() // size)):
        stop, runs, row = start + len(index_n), [], start
        while row < stop:
            group = bisect_right(ends, row)
            end = min(ends[group], stop)
            runs.append((slice(row - start, end - start), present[group]))
            row = end
        yield index_n, runs
        start = stop


def _log_probabilities(hidden_nH: Tensor, head: Head, logp_nV: Tensor, scratch_nV: Tensor) -> tuple[Tensor, Tensor]:
    """Fills `logp_nV`, in float32: a bfloat16 softmax over 150k tokens loses the small ones.

    Returns the entropies [n], and the log of the softmax's denominator [n, 1].
    """
    head.logits(hidden_nH, logp_nV)
    top_n1, total_n1 = _shift(logp_nV, scratch_nV)
    log_total_n1 = total_n1.log()
    entropy_n = log_total_n1[:, 0] - scratch_nV.mul_(logp_nV).sum(-1) / total_n1[:, 0]
    logp_nV.sub_(log_total_n1)
    return entropy_n, top_n1 + log_total_n1


def _log_softmax(logits_nV: Tensor, scratch_nV: Tensor) -> None:
    """In place."""
    _, total_n1 = _shift(logits_nV, scratch_nV)
    logits_nV.sub_(total_n1.log())


def _shift(logits_nV: Tensor, scratch_nV: Tensor) -> tuple[Tensor, Tensor]:
    """Takes each row's maximum off, in place; `scratch_nV` becomes exp of that. The maximum and the sum, [n, 1].

    `Tensor.sum` adds pairwise; torch's own softmax adds 150k numbers in a row on a CPU, and is off by 1e-5.
    """
    top_n1 = logits_nV.amax(-1, keepdim=True)
    torch.exp(logits_nV.sub_(top_n1), out=scratch_nV)
    return top_n1, scratch_nV.sum(-1, keepdim=True)


def _exp(logits_nV: Tensor, out_nV: Tensor) -> tuple[Tensor, Tensor]:
    """As `_shift`, but the logits stay as they are, at the price of one more pass."""
    top_n1 = logits_nV.amax(-1, keepdim=True)
    torch.sub(logits_nV, top_n1, out=out_nV).exp_()
    return top_n1, out_nV.sum(-1, keepdim=True)


def _add_product(grad_weight_VH: Tensor, grad_nV: Tensor, h_nH: Tensor) -> None:
    """Adds a chunk's gradient of the head: the product in the head's dtype, the sum over chunks in float32."""
    if h_nH.dtype == torch.float32:
        grad_weight_VH.addmm_(grad_nV.T, h_nH)
    else:
        grad_weight_VH += grad_nV.T.to(h_nH.dtype) @ h_nH


def _pick(logp_nV: Tensor, token_n: Tensor) -> Tensor:
    return logp_nV.gather(-1, token_n.unsqueeze(-1))[:, 0]


def _buffers(count: int, rows: int, head: Head) -> Tensor:
    """[count, rows, V] float32 for all chunks: on a CPU, touching fresh memory costs as much as several passes."""
    return torch.empty(count, rows, head.vocab_size, device=head.weight_UH.device)
