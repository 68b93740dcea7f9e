"""The routed loss and the token scores, without ever holding logits of more than one chunk.

Shape letters: N response tokens, V vocabulary, H hidden size of a model, R loss components.

Hidden states go in, sums come out. Inside a chunk the logits are formed, every component that has a token there adds
its weighted divergence, and the gradients of the student's hidden states and LM head are formed on the spot (two
matrix products), so that memory is one chunk's logits however many tokens a step has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from .divergences import Divergence

CHUNK = 256
"""Tokens whose logits exist at one time: 256 × 151,936 float32 are 156 MB."""


@dataclass(frozen=True)
class Scored:
    """One role's opinion on N response tokens. Everything a method may ask for later comes from these."""

    hidden_NH: Tensor
    """Last hidden state of the position that predicts the token."""
    head_VH: Tensor
    """LM head without the padded rows, so that logits are `hidden @ head.T`."""
    logp_N: Tensor
    """Log-probability of the sampled token, nats."""
    entropy_N: Tensor
    """Entropy of the next-token distribution, nats."""


@dataclass(frozen=True)
class Term:
    """One loss component on the tokens of a micro-batch: Σ_n weight_n · divergence_n(student, target)."""

    divergence: Divergence
    weight_N: Tensor
    target: Scored


class LossOutput(NamedTuple):
    total: Tensor
    """Scalar with gradient: the sum over terms and tokens. Division by a global count is the caller's."""
    divergence_RN: Tensor
    """Unweighted value a term and token; 0 where the term has no weight. No gradient."""
    entropy_N: Tensor
    """Entropy of the student's distribution, nats; 0 where no term has weight. No gradient."""


def log_softmax(hidden_NH: Tensor, head_VH: Tensor) -> Tensor:
    """Log-probabilities in float32, [N, V]: a bfloat16 softmax over 150k tokens loses the small ones."""
    return _logits(hidden_NH, head_VH).log_softmax(-1)


@torch.no_grad()
def score_tokens(hidden_NH: Tensor, head_VH: Tensor, token_N: Tensor, chunk: int = CHUNK) -> Scored:
    """Sampled log-probability and entropy of N tokens, chunk by chunk."""
    logp_N = hidden_NH.new_zeros(token_N.shape, dtype=torch.float32)
    entropy_N = torch.zeros_like(logp_N)
    for start in range(0, token_N.numel(), chunk):
        rows = slice(start, start + chunk)
        logp_NV = log_softmax(hidden_NH[rows], head_VH)
        logp_N[rows] = logp_NV.gather(-1, token_N[rows, None])[:, 0]
        entropy_N[rows] = _entropy(logp_NV)
    return Scored(hidden_NH, head_VH, logp_N, entropy_N)


def routed_loss(
    hidden_NH: Tensor, head_VH: Tensor, token_N: Tensor, terms: Sequence[Term], chunk: int = CHUNK
) -> LossOutput:
    """Σ_r Σ_n weight · divergence(student, target of r), differentiable in the student's hidden states and LM head.

    A term is evaluated only where its weight is not zero. No active token gives a zero that backward accepts.
    """
    with torch.autocast(hidden_NH.device.type, enabled=False):  # its gradient products too are in the head's dtype
        total, divergence_RN, entropy_N = _RoutedLoss.apply(hidden_NH, head_VH, token_N, tuple(terms), chunk)
    return LossOutput(total, divergence_RN, entropy_N)


class _RoutedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, head_VH, token_N, terms, chunk):  # type: ignore[override]
        grad_hidden_NH = torch.zeros_like(hidden_NH, dtype=torch.float32)
        grad_head_VH = torch.zeros_like(head_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        divergence_RN = torch.zeros(len(terms), token_N.numel(), device=hidden_NH.device)
        entropy_N = torch.zeros(token_N.numel(), device=hidden_NH.device)
        for row, term in enumerate(terms):
            active = term.weight_N.nonzero()[:, 0]
            for index in active.split(chunk) if active.numel() else ():
                h_nH, weight_n = hidden_NH[index].to(head_VH.dtype), term.weight_N[index].float()
                target_nV = log_softmax(term.target.hidden_NH[index], term.target.head_VH)
                with torch.enable_grad():
                    logits_nV = _logits(h_nH, head_VH).detach().requires_grad_()
                    logp_nV = logits_nV.log_softmax(-1)
                    value_n = term.divergence(logp_nV, target_nV, token_N[index])
                    weighted = (weight_n * value_n).sum()
                (grad_nV,) = torch.autograd.grad(weighted, logits_nV)
                total += weighted.detach()
                divergence_RN[row, index] = value_n.detach()
                entropy_N[index] = _entropy(logp_nV.detach())
                grad_nV = grad_nV.to(head_VH.dtype)
                grad_hidden_NH.index_add_(0, index, (grad_nV @ head_VH).float())
                if grad_head_VH is not None:
                    grad_head_VH += (grad_nV.T @ h_nH).float()
        ctx.save_for_backward(grad_hidden_NH, grad_head_VH)
        ctx.dtypes = hidden_NH.dtype, head_VH.dtype
        ctx.mark_non_differentiable(divergence_RN, entropy_N)
        return total, divergence_RN, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, *_):  # type: ignore[override]
        grads = [
            None if g is None else (grad_total * g).to(d) for g, d in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *grads, None, None, None


def _logits(hidden_NH: Tensor, head_VH: Tensor) -> Tensor:
    """float32 logits, computed in the head's own dtype even inside an autocast region."""
    with torch.autocast(hidden_NH.device.type, enabled=False):
        return linear(hidden_NH.to(head_VH.dtype), head_VH).float()


def _entropy(logp_NV: Tensor) -> Tensor:
    return -(logp_NV.exp() * logp_NV).sum(-1)
