"""The routed loss and the token scores, against plain autograd on full logits.

What is locked: 1) total, values, entropies, log-probabilities and both gradients, for mixes of terms, chunk sizes,
frozen and tied heads, dtypes and autocast; 2) how often logits are formed; 3) scores.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests import reference
from tests.naive_loss import naive_loss
from vlm_dopd import chunked_loss
from vlm_dopd.chunked_loss import LossOutput, Scored, Term, routed_loss, score_tokens
from vlm_dopd.divergences import Divergence
from vlm_dopd.head import Head

N, V, H = 11, 23, 6
JS = Divergence(kind="js", support="full")
TAIL = Divergence(kind="rkl", k=5)
SAMPLED = Divergence(kind="rkl", support="sampled")


class Case:
    """A student with gradient, a live target S⁺ of its width and a teacher T⁺ of another, and the sampled tokens."""

    def __init__(self, count: int = N, dtype: torch.dtype = torch.float32, head_dtype: torch.dtype | None = None):
        generator = torch.Generator().manual_seed(count)

        def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        self.hidden_NH = normal(count, H).requires_grad_()
        self.head_VH = normal(V, H, dtype=head_dtype or dtype).requires_grad_()
        self.token_N = torch.randint(V, (count,), generator=generator)
        self.self_target = score_tokens(
            normal(count, H), Head(normal(V, H, dtype=head_dtype or dtype), V), self.token_N
        )
        self.teacher = score_tokens(normal(count, 2 * H + 1), Head(normal(V, 2 * H + 1), V), self.token_N)

    def weights(self, *values: float) -> Tensor:
        """The values over and over, up to the number of tokens."""
        count = self.token_N.numel()
        return torch.tensor(values).repeat(count // len(values) + 1)[:count]

    def terms(self) -> dict[str, list[Term]]:
        hard, rest = self.weights(0.6, 0, 0), self.weights(0, 0.3, 1.0)
        return {
            "one term": [Term(TAIL, self.weights(1.0), self.teacher)],
            "hard routing": [Term(TAIL, hard, self.teacher), Term(JS, rest, self.self_target)],
            "soft, overlapping": [
                Term(TAIL, self.weights(0.6, 0.1, 0), self.teacher),
                Term(JS, self.weights(0.4, 0, 0.9), self.teacher),
                Term(SAMPLED, self.weights(0.25, 2.0), self.self_target),
            ],
            "negative weight": [Term(TAIL, self.weights(1.0, -0.5), self.teacher)],
            "a term without tokens": [Term(JS, self.weights(0.0), self.self_target), Term(TAIL, rest, self.teacher)],
            "one token": [Term(JS, torch.arange(self.token_N.numel()).eq(3).float(), self.teacher)],
        }

    @property
    def head(self) -> Head:
        return Head(self.head_VH, V)

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden_NH, self.head_VH


def plain(case: Case, terms: list[Term], dtype: torch.dtype = torch.float64) -> tuple[LossOutput, list[Tensor]]:
    """Outputs of the naive loss, and its gradients of hidden states and head."""
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in case.leaves()]
    output = naive_loss(*leaves, case.token_N, terms)
    return output, list(torch.autograd.grad(output.total, leaves))


def routed(case: Case, terms: list[Term], chunk: int = 4) -> tuple[LossOutput, list[Tensor]]:
    output = routed_loss(case.hidden_NH, case.head, case.token_N, terms, chunk)
    return output, list(torch.autograd.grad(output.total, case.leaves()))


def assert_same(actual, expected, rtol=2e-5, atol=2e-6):
    for a, b in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True):
        torch.testing.assert_close(a.detach().to(b.dtype), b.detach(), rtol=rtol, atol=atol)


every_mix = pytest.mark.parametrize("mix", Case().terms())


@every_mix
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_plain_autograd_on_full_logits(mix, dtype):
    """Total, per-token divergences, entropies and both gradients, for hard and soft mixes of terms."""
    case = Case()
    terms = case.terms()[mix]
    assert_same(routed(case, terms), plain(case, terms, dtype))


@every_mix
@pytest.mark.parametrize("chunk", [1, 3, N, N + 1, 1000])
def test_chunk_size_changes_nothing(mix, chunk):
    """One token at a time, or all at once: the same loss and gradients."""
    case = Case()
    terms = case.terms()[mix]
    assert_same(routed(case, terms, chunk), routed(case, terms, 4), rtol=1e-5, atol=1e-6)


def test_one_token_against_the_naive_reference():
    """The whole path from hidden state to divergence and hidden gradient, against loops in float64."""
    case = Case(count=1)
    options = {"kind": "rkl", "support": "topk", "closure": "tail", "k": 5}
    output, (grad_NH, _) = routed(case, [Term(TAIL, torch.ones(1), case.teacher)])
    head, target = case.head_VH.tolist(), (case.teacher.hidden_NH @ case.teacher.head.weight_VH.T)[0].tolist()

    def value(hidden):
        logits = [sum(x * w for x, w in zip(hidden, row, strict=True)) for row in head]
        return reference.divergence(logits, target, int(case.token_N), **options)

    hidden = case.hidden_NH[0].tolist()
    assert output.total.item() == pytest.approx(value(hidden), rel=1e-5)
    assert grad_NH[0].tolist() == pytest.approx(reference.gradient(value, hidden), rel=1e-4, abs=1e-5)


def test_gradient_is_scaled_by_what_comes_after():
    """Dividing by a count, scaling, or adding two losses acts on the gradients as on any other tensor."""
    case = Case()
    terms = case.terms()["hard routing"]
    _, once = routed(case, terms)
    for factor in (1 / 37, -2.0, 0.0):
        total = routed_loss(case.hidden_NH, case.head, case.token_N, terms).total
        for grad, expected in zip(torch.autograd.grad(total * factor, case.leaves()), once, strict=True):
            torch.testing.assert_close(grad, expected * factor)
    (routed_loss(case.hidden_NH, case.head, case.token_N, terms).total / 2).backward()
    (routed_loss(case.hidden_NH, case.head, case.token_N, terms).total / 2).backward()
    torch.testing.assert_close(case.hidden_NH.grad, once[0])
    torch.testing.assert_close(case.head_VH.grad, once[1])


def test_head_tied_to_the_embedding_collects_both_gradients():
    """The same weight makes the hidden states (as embedding) and the logits (as a slice, without its padded rows)."""
    case = Case()
    terms = case.terms()["soft, overlapping"]
    padded_VH = torch.cat([case.head_VH.detach(), torch.ones(3, H)])
    grads = []
    for loss in (routed_loss, naive_loss):
        weight_VH = padded_VH.clone().requires_grad_()
        hidden_NH = torch.tanh(weight_VH[case.token_N] * 1.5)
        head = Head(weight_VH, V) if loss is routed_loss else weight_VH[:V]
        loss(hidden_NH, head, case.token_N, terms).total.backward()
        grads.append(weight_VH.grad)
    torch.testing.assert_close(*grads, rtol=2e-5, atol=2e-6)
    assert (grads[0][V:] == 0).all()


def test_padded_vocabulary_rows_have_no_probability():
    """Rows past the vocabulary, however large, change nothing, and get a gradient of zero."""
    case = Case()
    terms = case.terms()["hard routing"]
    expected, (grad_NH, grad_VH) = routed(case, terms)

    def padded(weight_VH: Tensor) -> Head:
        return Head(torch.cat([weight_VH.detach(), torch.full((5, weight_VH.shape[1]), 50.0)]).requires_grad_(), V)

    targets = [replace(term.target, head=padded(term.target.head.weight_UH)) for term in terms]
    terms = [replace(term, target=target) for term, target in zip(terms, targets, strict=True)]
    head = padded(case.head_VH)
    output = routed_loss(case.hidden_NH, head, case.token_N, terms, 4)
    grads = torch.autograd.grad(output.total, (case.hidden_NH, head.weight_UH))
    assert_same((output, grads), (expected, (grad_NH, torch.cat([grad_VH, torch.zeros(5, H)]))))


@pytest.mark.parametrize("frozen", ["head", "hidden", "both"])
def test_frozen_parts_get_no_gradient(frozen, monkeypatch):
    """A frozen LM head (LoRA) or frozen trunk: the other's gradient is what it was, the head's is not even formed."""
    case = Case()
    terms = case.terms()["hard routing"]
    expected, grads = routed(case, terms)
    if frozen != "hidden":
        monkeypatch.setattr(chunked_loss, "_add_product", None)
    case.head_VH.requires_grad_(frozen == "hidden")
    case.hidden_NH.requires_grad_(frozen == "head")
    output = routed_loss(case.hidden_NH, case.head, case.token_N, terms, 4)
    torch.testing.assert_close(output.total.detach(), expected.total.detach())
    assert output.total.requires_grad == (frozen != "both")
    if frozen != "both":
        output.total.backward()
    for leaf, grad, free in zip(case.leaves(), grads, (frozen == "head", frozen == "hidden"), strict=True):
        assert leaf.grad is None if not free else torch.allclose(leaf.grad, grad)


def test_targets_get_no_gradient():
    """Even a target that is part of the student's graph (live S⁺, not detached) stays untouched."""
    case = Case()
    live_NH, live_VH = (
        x.clone().requires_grad_() for x in (case.self_target.hidden_NH, case.self_target.head.weight_VH)
    )
    target = Scored(live_NH * 1.0, Head(live_VH * 1.0, V), torch.zeros(N), torch.zeros(N))
    weight_N = torch.ones(N, requires_grad=True)
    output = routed_loss(
        case.hidden_NH, case.head, case.token_N, [Term(JS, weight_N, target), Term(TAIL, weight_N, target)]
    )
    output.total.backward()
    assert live_NH.grad is None and live_VH.grad is None and weight_N.grad is None
    assert not output.divergence_RN.requires_grad and not output.entropy_N.requires_grad


def unweighted(case: Case) -> list[Term]:
    return [Term(divergence, torch.zeros_like(case.teacher.logp_N), case.teacher) for divergence in (TAIL, JS, SAMPLED)]


NOTHING_TO_LEARN = {
    "no terms": (N, lambda case: []),
    "all weights zero": (N, unweighted),
    "no tokens": (0, unweighted),
    "no tokens, no terms": (0, lambda case: []),
}


@pytest.mark.parametrize(("count", "terms"), NOTHING_TO_LEARN.values(), ids=NOTHING_TO_LEARN)
@pytest.mark.parametrize("chunk", [1, 256])
def test_nothing_to_learn_is_a_zero_that_backward_accepts(count, terms, chunk):
    """Empty responses or everything masked: zero loss, zero (not missing, not NaN) gradients for both leaves."""
    case = Case(count)
    terms = terms(case)
    output = routed_loss(case.hidden_NH, case.head, case.token_N, terms, chunk)
    (output.total / 3).backward()
    assert output.total.item() == 0
    assert output.divergence_RN.shape == (len(terms), count) and (output.divergence_RN == 0).all()
    assert output.entropy_N.shape == (count,) and (output.entropy_N == 0).all()
    for leaf in case.leaves():
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


class Formed:
    """Counts the logits that are formed: rows of hidden states that meet each head."""

    def __init__(self, monkeypatch):
        self.rows: list[tuple[int, Tensor]] = []
        original = Head.logits

        def counted(head, hidden_nH, out_nV):
            self.rows.append((head.weight_UH.data_ptr(), hidden_nH.detach().clone()))
            original(head, hidden_nH, out_nV)

        monkeypatch.setattr(Head, "logits", counted)

    def of(self, weight_VH: Tensor) -> list[list[float]]:
        found = [hidden for pointer, hidden in self.rows if pointer == weight_VH.data_ptr()]
        return sorted(torch.cat(found).tolist()) if found else []


@pytest.mark.parametrize("chunk", [1, 4, N])
@every_mix
def test_logits_are_formed_once_a_token_and_target_and_only_where_needed(mix, chunk, monkeypatch):
    """Student's once an active token, a target's once a token that weighs it; never more than a chunk at a time."""
    case = Case()
    terms, formed = case.terms()[mix], Formed(monkeypatch)
    routed(case, terms, chunk)
    assert max(len(hidden) for _, hidden in formed.rows) <= chunk
    active_RN = torch.stack([term.weight_N != 0 for term in terms])
    assert formed.of(case.head_VH) == sorted(case.hidden_NH[active_RN.any(0)].tolist())
    for target in (case.teacher, case.self_target):
        weighed = [active_N for active_N, term in zip(active_RN, terms, strict=True) if term.target is target]
        mask_N = torch.stack(weighed).any(0) if weighed else torch.zeros(N, dtype=torch.bool)
        assert formed.of(target.head.weight_UH) == sorted(target.hidden_NH[mask_N].tolist())


def test_one_target_under_several_divergences_is_scored_once(monkeypatch):
    """Top-K, sampled and JS on the same token, targets in turn: one row of student and of each target's logits."""
    case = Case()
    divergences, targets = (TAIL, JS, SAMPLED, replace(TAIL, k=2), TAIL), (case.teacher, case.self_target)
    terms = [Term(d, case.weights(0.5, 1.0), target) for d in divergences for target in targets]
    expected, formed = plain(case, terms), Formed(monkeypatch)
    assert_same(routed(case, terms), expected)
    assert [len(formed.of(head.weight_UH)) for head in (case.head, *(t.head for t in targets))] == [N, N, N]


def test_terms_that_share_divergence_and_target_are_one(monkeypatch):
    """LH and NP of DOPD differ in weight only: evaluated together, reported apart, opposite weights cancel."""
    case = Case()
    terms = [Term(TAIL, case.weights(*w), case.teacher) for w in ((0.6, 0, 0.5), (0, 1.0, 0.5), (0.2, 0, -1.0))]
    calls = []
    original = chunked_loss._gradient
    monkeypatch.setattr(chunked_loss, "_gradient", lambda *a: calls.append(len(a[1])) or original(*a))
    output, grads = routed(case, terms, chunk=N)
    assert calls == [N]
    assert_same((output, grads), plain(case, terms))
    assert (grads[0][2::3] == 0).all() and (output.divergence_RN[:, 2::3] != 0).all()


def test_backward_runs_once():
    """Gradients are scaled where they lie: a second backward through a retained graph is refused, never wrong."""
    case = Case()
    output = routed_loss(case.hidden_NH, case.head, case.token_N, case.terms()["one term"])
    (output.total * 3).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (output.total * 3).backward()


def test_a_masked_token_cannot_spoil_the_loss():
    """Weight 0 means not evaluated: a token whose hidden state is NaN has no part in anything."""
    case = Case()
    terms = [Term(TAIL, case.weights(0.0, 1.0), case.teacher)]
    with torch.no_grad():
        case.hidden_NH[0] = float("nan")
    output, (grad_NH, grad_VH) = routed(case, terms)
    assert output.total.isfinite() and grad_NH.isfinite().all() and grad_VH.isfinite().all()
    assert (grad_NH[::2] == 0).all() and (grad_NH[1::2] != 0).any(-1).all()


def test_teacher_equal_to_student_has_no_loss():
    """The target is the student itself: loss and gradients vanish for every divergence that has a minimum there."""
    case = Case()
    itself = score_tokens(case.hidden_NH, case.head, case.token_N)
    output, grads = routed(case, [Term(d, case.weights(1.0), itself) for d in (TAIL, JS)])
    assert output.total.abs() < 1e-6 and all(grad.abs().max() < 1e-6 for grad in grads)


# Dtypes


@pytest.mark.parametrize(
    ("hidden", "head"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float64),
    ],
    ids=["bf16", "bf16 hidden, fp32 head", "fp32 hidden, bf16 head", "fp64"],
)
def test_other_dtypes(hidden, head):
    """Half precision is finite and near the float64 loss of the same numbers; gradients have their leaf's dtype."""
    case = Case(dtype=hidden, head_dtype=head)
    terms = case.terms()["hard routing"]
    output, grads = routed(case, terms)
    assert output.total.dtype == torch.float32
    assert [grad.dtype for grad in grads] == [hidden, head]
    tolerance = 1e-5 if torch.bfloat16 not in (hidden, head) else 0.05
    expected, exact = plain(case, terms)
    assert output.total.item() == pytest.approx(expected.total.item(), rel=tolerance)
    for grad, wanted in zip(grads, exact, strict=True):
        assert (grad.double() - wanted).norm() < tolerance * wanted.norm()


def test_autocast_does_not_touch_the_precision():
    """Inside an autocast region (`train.bf16`, float32 weights) loss and gradients are those computed outside."""
    case = Case()
    terms = case.terms()["soft, overlapping"]
    expected = routed(case, terms)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = routed(case, terms)
    assert_same(actual, expected)


# Scores


@pytest.mark.parametrize("chunk", [1, 3, N, 1000])
@pytest.mark.parametrize("count", [0, 1, N])
def test_score_tokens_equals_the_naive_reference(count, chunk):
    """Log-probability of the sampled token and entropy, in nats, without gradient; zero tokens give empty scores."""
    case = Case(count)
    scored = score_tokens(case.hidden_NH, case.head, case.token_N, chunk)
    rows = (case.hidden_NH.double() @ case.head_VH.double().T).tolist()
    logp = [reference.log_softmax(row)[token] for row, token in zip(rows, case.token_N.tolist(), strict=True)]
    assert scored.logp_N.tolist() == pytest.approx(logp, rel=1e-5)
    assert scored.entropy_N.tolist() == pytest.approx([reference.entropy(row) for row in rows], rel=1e-5)
    assert not scored.logp_N.requires_grad and not scored.entropy_N.requires_grad
    assert scored.hidden_NH is case.hidden_NH and scored.head.weight_UH is case.head_VH


def test_half_precision_scores_are_float32():
    """Softmax over bfloat16 logits would keep 3 digits: scores of the same logits agree to 1e-5."""
    case = Case(dtype=torch.bfloat16)
    scored = score_tokens(case.hidden_NH, case.head, case.token_N)
    logits_NV = (case.hidden_NH @ case.head_VH.T).double()
    expected_N = logits_NV.log_softmax(-1).gather(-1, case.token_N[:, None])[:, 0]
    assert scored.logp_N.dtype == scored.entropy_N.dtype == torch.float32
    torch.testing.assert_close(scored.logp_N.double(), expected_N.detach(), rtol=1e-5, atol=1e-5)
