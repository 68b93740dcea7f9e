"""The gradient of the logits that the routed loss forms by hand.

What is locked: 1) every cell of the grid of divergences, with any weights, ties and K up to and past V, against
autograd of the definition in float64; 2) precision at the real vocabulary, in far tails and at extreme logits.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm_dopd import chunked_loss
from vlm_dopd.chunked_loss import Scored, Term, routed_loss
from vlm_dopd.divergences import Divergence
from vlm_dopd.head import Head

JS = Divergence(kind="js", support="full")
TAIL = Divergence(kind="rkl", k=5)
SAMPLED = Divergence(kind="rkl", support="sampled")


def fused(divergence, student_NV, target_NV, token_N, weight_N=None, chunk=256):
    """Values and gradient of the logits: with one-hot hidden states the head's columns are the rows of logits."""
    count = len(student_NV)
    head_VH = torch.cat([student_NV, target_NV]).float().T.contiguous().requires_grad_()
    head = Head(head_VH, len(head_VH))
    student_NH, target_NH = torch.eye(2 * count).split(count)
    target = Scored(target_NH, head.detach(), torch.zeros(count), torch.zeros(count))
    weight_N = torch.ones(count) if weight_N is None else weight_N
    output = routed_loss(student_NH, head, token_N, [Term(divergence, weight_N, target)], chunk)
    (grad_VH,) = torch.autograd.grad(output.total, head_VH)
    assert (grad_VH[:, count:] == 0).all()
    return output, grad_VH.T[:count]


def defined(divergence, student_NV, target_NV, token_N, weight_N=None):
    """The same from the definition, by autograd in float64."""
    leaf_NV = student_NV.double().requires_grad_()
    value_N = divergence(leaf_NV.log_softmax(-1), target_NV.double().log_softmax(-1), token_N)
    weight_N = torch.ones(len(student_NV)) if weight_N is None else weight_N
    (grad_NV,) = torch.autograd.grad((weight_N * value_N).sum(), leaf_NV)
    return value_N.detach(), grad_NV


CELLS = [
    {"kind": kind, "support": support, "closure": closure, "beta": beta}
    for kind in ("fkl", "rkl", "js")
    for support, closures in (
        ("full", ["tail"]),
        ("topk", ["tail", "renorm", "raw", "raw_sg"]),
        ("sampled", ["tail"]),
    )
    for closure in closures
    for beta in ([0.5, 0.2] if kind == "js" else [0.5])
    if closure != "raw_sg" or kind == "rkl"
]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell.values())))


@every_cell
@given(data=st.data())
def test_gradient_of_the_logits_equals_autograd_of_the_definition(cell, data):
    """Any K (to V and past it), weights (0 and negative), ties, chunk and block sizes, from one token up."""
    count, columns = data.draw(st.integers(1, 7)), data.draw(st.integers(2, 13))
    divergence = Divergence(**cell, k=data.draw(st.integers(2, 15)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    student_NV, target_NV = torch.randn(2, count, columns, generator=generator) * data.draw(st.sampled_from([1, 4, 12]))
    if data.draw(st.booleans()):  # ties, in the top K and across its border
        student_NV, target_NV = student_NV.round(), target_NV.round()
    token_N = torch.randint(columns, (count,), generator=generator)
    weight_N = torch.tensor(data.draw(st.lists(st.sampled_from([0, 1, -0.5, 2.5]), min_size=count, max_size=count)))
    value_N, grad_NV = defined(divergence, student_NV, target_NV, token_N, weight_N)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_loss, "BLOCK", data.draw(st.integers(1, 60)))
        output, fused_NV = fused(
            divergence, student_NV, target_NV, token_N, weight_N, chunk=data.draw(st.integers(1, 8))
        )
    scale = 1 + value_N.abs().max().item()
    torch.testing.assert_close(output.divergence_RN[0].double(), value_N * (weight_N != 0), rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(fused_NV.double(), grad_NV, rtol=2e-5, atol=2e-6 * scale)


@pytest.mark.parametrize(
    "divergence", [TAIL, replace(TAIL, kind="fkl"), JS, replace(JS, kind="rkl"), replace(JS, kind="fkl"), SAMPLED]
)
def test_float32_is_exact_over_the_real_vocabulary(divergence):
    """151,936 columns: sums in a row would be off by 1e-5 in the values and 1e-4 in the gradients (torch's softmax)."""
    student_NV, target_NV = torch.randn(2, 3, 151_936, generator=torch.Generator().manual_seed(0)) * 3
    token_N = torch.tensor([0, 70_000, 151_935])
    value_N, grad_NV = defined(divergence, student_NV, target_NV, token_N)
    output, fused_NV = fused(divergence, student_NV, target_NV, token_N)
    torch.testing.assert_close(output.divergence_RN[0].double(), value_N, rtol=2e-6, atol=0)
    assert (fused_NV.double() - grad_NV).norm() < 1e-5 * grad_NV.norm()
    logp_NV = student_NV.double().log_softmax(-1)
    torch.testing.assert_close(output.entropy_N.double(), -(logp_NV.exp() * logp_NV).sum(-1), rtol=1e-6, atol=0)
    torch.testing.assert_close(output.logp_N.double(), logp_NV[range(3), token_N], rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["fkl", "rkl", "js"])
@pytest.mark.parametrize("far", [60.0, 200.0])
def test_tail_far_below_float32_epsilon(kind, far):
    """A tail of e⁻⁶⁰, which 1 − Σ_K rounds to 0, and of e⁻²⁰⁰, which is no float32: the gradient is that of float64."""
    tails_V = torch.linspace(-1, 1, 30)
    student_NV = torch.cat([torch.tensor([far]), tails_V])[None]
    target_NV = torch.cat([torch.tensor([1.0]), -tails_V])[None]
    divergence = Divergence(kind=kind, k=1)
    value_N, grad_NV = defined(divergence, student_NV, target_NV, torch.tensor([0]))
    output, fused_NV = fused(divergence, student_NV, target_NV, torch.tensor([0]))
    torch.testing.assert_close(output.divergence_RN[0].double(), value_N, rtol=1e-6, atol=0)
    torch.testing.assert_close(fused_NV.double(), grad_NV, rtol=1e-5, atol=1e-6)
    if far < 80 and kind == "rkl":  # relatively exact however small
        torch.testing.assert_close(fused_NV[0, 1:].double(), grad_NV[0, 1:], rtol=1e-4, atol=0)


@every_cell
def test_extreme_logits_stay_finite(cell):
    """One-hot and ±1e4 logits: probabilities underflow, value, gradient, entropy and log-probability do not break."""
    rows = torch.tensor([[1e4, -1e4, 0, 0], [-1e4, 1e4, 0, 0], [1e4, 1e4, -1e4, -1e4], [0] * 4, [0, 0, 0, 200.0]])
    student_NV, target_NV = rows.repeat_interleave(20, 0), rows.repeat_interleave(4, 0).repeat(5, 1)
    for k in (2, 3):
        output, fused_NV = fused(Divergence(**cell, k=k), student_NV, target_NV, torch.arange(4).repeat(25))
        assert fused_NV.isfinite().all() and all(x.isfinite().all() for x in output)
