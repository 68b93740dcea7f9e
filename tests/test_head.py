"""LM heads of other families and other places: padded, scaled, capped, sharded.

What is locked: 1) scores equal the log-probabilities of transformers' own forward, for models that scale or cap their
logits; 2) gradients of scale and cap against autograd on full logits; 3) a head of which each rank holds a part.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CohereConfig, Gemma2Config, GraniteConfig

from tests import tiny
from vlm_dopd.chunked_loss import Term, routed_loss, score_tokens
from vlm_dopd.divergences import Divergence
from vlm_dopd.head import Head
from vlm_dopd.roles import Policy

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
    from transformers import AutoModelForCausalLM

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


def test_sharded_head():
    """Two ranks, half of the rows each and tokens of their own: the mean of their losses and of its gradients."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "-m", "tests.sharded_head"],
        cwd=tiny.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("equal") == 2
