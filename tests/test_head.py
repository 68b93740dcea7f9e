"""LM heads of other families and with other stops: padded, scaled, capped, merged.

What is locked: 1) scores equal the log-probabilities of transformers' own forward, for models that scale or cap their
logits; 2) gradients of scale and cap against autograd on full logits; 3) merged tokens are one token of a
smaller vocabulary.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from vlm_dopd.chunked_loss import Term, compare_tokens, routed_loss, score_tokens
from vlm_dopd.divergences import Divergence
from vlm_dopd.head import Head
from vlm_dopd.roles import Policy, with_merged_stops

SIZES = {
    "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.5, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "gemma2": (Gemma2Config, {"final_logit_softcapping": 2.0}),
    "cohere": (CohereConfig, {"logit_scale": 0.3}),
    "granite": (GraniteConfig, {"logits_scaling": 1.7}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_models_own_logits(family):
    """Whatever the family does between hidden state and softmax; without it the scores would differ."""
    config_class, extra = FAMILIES[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**SIZES | extra)).float().eval()
    policy = Policy(model, 59)
    ids = torch.randint(3, 59, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden_NH = model.base_model(ids).last_hidden_state[0, :-1]
        logp_NV = model(ids).logits[0, :-1, :59].log_softmax(-1)
    expected_N = logp_NV.gather(-1, ids[0, 1:, None])[:, 0]
    scored = score_tokens(hidden_NH, policy.head(), ids[0, 1:], chunk=4)
    torch.testing.assert_close(scored.logp_N, expected_N, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scored.entropy_N, -(logp_NV.exp() * logp_NV).sum(-1), rtol=1e-5, atol=1e-5)
    plain = score_tokens(hidden_NH, Head(policy.head().weight_UH, 59), ids[0, 1:])
    assert (plain.logp_N - expected_N).abs().max() > 0.01


@given(
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    softcap=st.sampled_from([None, 4.0, 30.0]),
    padding=st.integers(0, 3),
    cell=st.sampled_from(
        [{"kind": "js", "support": "full"}, {"kind": "rkl", "k": 4}, {"kind": "fkl", "support": "sampled"}]
    ),
    chunk=st.integers(1, 8),
)
def test_gradients_of_scaled_and_capped_logits(scale, softcap, padding, cell, chunk):
    """Both leaves, against autograd through the formula; student and target each have a head of their own."""
    generator = torch.Generator().manual_seed(0)
    count, vocab, width = 5, 13, 4
    hidden_NH, target_NH = torch.randn(2, count, width, generator=generator, dtype=torch.float32)
    weight_UH = torch.randn(vocab + padding, width, generator=generator)
    token_N = torch.randint(vocab, (count,), generator=generator)
    weight_N = torch.tensor([1.0, 0.5, 0.0, -2.0, 0.3])
    target = score_tokens(target_NH, Head(weight_UH.clone(), vocab, scale=2.0, softcap=1.5), token_N)
    divergence = Divergence(**cell)

    leaves = [x.double().requires_grad_() for x in (hidden_NH, weight_UH)]
    sides = [leaves[0] @ leaves[1][:vocab].T * scale, target_NH.double() @ weight_UH[:vocab].double().T * 2.0]
    sides = [x if c is None else c * torch.tanh(x / c) for x, c in zip(sides, (softcap, 1.5), strict=True)]
    value_N = divergence(*(x.log_softmax(-1) for x in sides), token_N)
    expected = torch.autograd.grad((value_N * weight_N).sum(), leaves)

    mine = [x.clone().requires_grad_() for x in (hidden_NH, weight_UH)]
    head = Head(mine[1], vocab, scale=scale, softcap=softcap)
    output = routed_loss(mine[0], head, token_N, [Term(divergence, weight_N, target)], chunk)
    assert output.total.item() == pytest.approx((value_N * weight_N).sum().item(), rel=1e-4, abs=1e-5)
    for grad, wanted in zip(torch.autograd.grad(output.total, mine), expected, strict=True):
        torch.testing.assert_close(grad.double(), wanted, rtol=1e-4, atol=1e-5)


MERGED = (7, 2, 11)
CELLS = [
    {"kind": "js", "support": "full"},
    {"kind": "fkl", "support": "full"},
    {"kind": "js", "support": "full", "cap": 0.05},
    {"kind": "rkl", "k": 4},
    {"kind": "rkl", "k": 4, "owner": "target"},
    {"kind": "js", "k": 3, "closure": "renorm"},
    {"kind": "rkl", "k": 5, "closure": "raw_sg"},
    {"kind": "fkl", "k": 5, "closure": "raw"},
    {"kind": "rkl", "k": 11},
    {"kind": "js", "k": 12},
    {"kind": "rkl", "k": 200},
    {"kind": "rkl", "support": "sampled"},
    {"kind": "js", "support": "sampled"},
    {"kind": "nll", "support": "sampled"},
]
"""12 and 11 of 13 tokens: what the support takes in, or leaves, are merged tokens without probability."""


def smaller(logits_NV):
    """Log-probabilities over a vocabulary in which the merged tokens are one, the last."""
    rest = [v for v in range(logits_NV.shape[1]) if v not in MERGED]
    one_N1 = logits_NV[:, list(MERGED)].exp().sum(-1, keepdim=True).log()
    return torch.cat([logits_NV[:, rest], one_N1], dim=-1).log_softmax(-1), rest


@given(
    cell=st.sampled_from(CELLS),
    scale=st.sampled_from([1.0, 0.25]),
    softcap=st.sampled_from([None, 3.0]),
    temperature=st.sampled_from([1.0, 1.4]),
    padding=st.integers(0, 3),
    chunk=st.integers(1, 8),
)
def test_merged_tokens_are_one_token_of_a_smaller_vocabulary(cell, scale, softcap, temperature, padding, chunk):
    """Scores, loss and the gradients of both leaves, against autograd in float64 with the smaller vocabulary."""
    generator = torch.Generator().manual_seed(1)
    vocab, width = 13, 4
    token_N = torch.tensor([0, 2, 7, 11, 12, 5, 7, 2])
    hidden_NH, target_NH = torch.randn(2, len(token_N), width, generator=generator)
    weight_UH, target_UH = torch.randn(2, vocab + padding, width, generator=generator)
    weight_N = torch.tensor([1.0, 0.5, 2.0, -2.0, 0.3, 0.0, 1.0, 1.0])
    divergence = Divergence(**cell)

    leaves = [x.double().requires_grad_() for x in (hidden_NH, weight_UH)]
    sides = []
    for h_NH, w_UH in (leaves, (target_NH.double(), target_UH.double())):
        logits_NV = h_NH @ w_UH[:vocab].T * scale
        sides.append(logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap))
    (student_NV, rest), (teacher_NV, _) = (smaller(logits_NV / temperature) for logits_NV in sides)
    place_N = torch.tensor([rest.index(v) if v in rest else len(rest) for v in token_N.tolist()])
    value_N = divergence(student_NV, teacher_NV, place_N)
    expected = torch.autograd.grad((value_N * weight_N).sum(), leaves)

    mine = [x.clone().requires_grad_() for x in (hidden_NH, weight_UH)]
    options = {"scale": scale, "softcap": softcap, "temperature": temperature, "merged": MERGED}
    head, theirs = Head(mine[1], vocab, **options), Head(target_UH, vocab, **options)
    target = score_tokens(target_NH, theirs, token_N, chunk)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(target.logp_N.double(), teacher_NV.gather(-1, place_N[:, None])[:, 0], **close)
    torch.testing.assert_close(target.entropy_N.double(), -(teacher_NV.exp() * teacher_NV).sum(-1), **close)
    if divergence.has_target:
        student = score_tokens(hidden_NH, head.detach(), token_N)
        (compared_N,) = compare_tokens(student, target, token_N, [divergence], chunk)
        torch.testing.assert_close(compared_N.double(), value_N.detach(), **close)
    output = routed_loss(mine[0], head, token_N, [Term(divergence, weight_N, target)], chunk)
    assert output.total.item() == pytest.approx((value_N * weight_N).sum().item(), rel=1e-4, abs=1e-5)
    for grad, wanted in zip(torch.autograd.grad(output.total, mine), expected, strict=True):
        torch.testing.assert_close(grad.double(), wanted, **close)


@pytest.mark.parametrize("cell", [{"kind": "js", "support": "full"}, {"kind": "rkl", "k": 4}], ids=str)
def test_stopping_with_another_id_is_no_mistake_where_stops_are_merged(cell):
    """A teacher that is the student but for the names of its two stops: no loss, no gradient, the same scores. Where
    they are not merged there is a loss, and it takes the student's own stop away from it."""
    generator = torch.Generator().manual_seed(2)
    hidden_NH, weight_VH = torch.randn(4, 3, generator=generator), torch.randn(9, 3, generator=generator)
    names = [0, 1, 2, 8, 4, 5, 6, 7, 3]
    token_N, loss, found = torch.tensor([3, 8, 0, 3]), {}, {}
    for merged in ((), (3, 8)):
        leaf_VH = weight_VH.clone().requires_grad_()
        target = score_tokens(hidden_NH, Head(weight_VH[names], 9, merged=merged), token_N)
        terms = [Term(Divergence(**cell), torch.ones(4), target)]
        output = routed_loss(hidden_NH, Head(leaf_VH, 9, merged=merged), token_N, terms)
        loss[merged] = output.total.item()
        found[merged] = torch.autograd.grad(output.total, leaf_VH)[0].abs().max().item()
        if merged:
            torch.testing.assert_close(output.logp_N, target.logp_N)
    assert loss[3, 8] == pytest.approx(0, abs=1e-6)
    assert found[3, 8] == pytest.approx(0, abs=1e-6)
    assert loss[()] > 0.1
    assert found[()] > 0.1


def test_one_id_that_ends_a_turn_is_merged_with_itself():
    """No other logit moves, and of several but one has any probability; a policy hands its merged ids to its head."""
    generator = torch.Generator().manual_seed(3)
    hidden_NH, weight_VH = torch.randn(4, 3, generator=generator), torch.randn(9, 3, generator=generator)
    plain_NV, merged_NV = torch.empty(2, 4, 9)
    Head(weight_VH, 9).logits(hidden_NH, plain_NV)
    Head(weight_VH, 9, merged=(5,)).logits(hidden_NH, merged_NV)
    torch.testing.assert_close(merged_NV, plain_NV)
    Head(weight_VH, 9, merged=(5, 2, 8)).logits(hidden_NH, merged_NV)
    probability_V = merged_NV.softmax(-1).sum(0)
    assert [v for v in range(9) if not probability_V[v]] == [2, 8]
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SIZES))
    assert Policy(model, 59, merged=(1, 2)).head().merged == (1, 2)
    assert Policy(model, 59).head().merged == ()


def test_ids_that_end_a_response_for_any_policy_are_one_token_for_all():
    """Of lists, single ids and none; the tokenizer's own is among them."""

    def policy(ends):
        return Policy(SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ends)), 59)

    policies = {"student": policy([9, 4]), "teacher": policy(7), "teacher_base": policy(None)}
    merged = with_merged_stops(policies, SimpleNamespace(eos_token_id=4))
    assert {name: its.merged for name, its in merged.items()} == dict.fromkeys(policies, (4, 7, 9))
    assert all(merged[name].model is its.model and its.merged == () for name, its in policies.items())
