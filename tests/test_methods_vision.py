"""Vision-OPD, OPD-V and VA-OPD: how much of what a policy sees decides which tokens count.

Every loss and gradient is compared with the formula written down once more, with loops over responses and tokens.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.method_case import case, check, js, with_tail
from tests.windows import responses_of, window
from vlm_dopd.divergences import Divergence
from vlm_dopd.methods import STUDENT_PLAIN, TEACHER_PLAIN, Component, Role, find
from vlm_dopd.methods.opd_v import MASKED, OPDV
from vlm_dopd.methods.va_opd import DEGRADED, VAOPD
from vlm_dopd.methods.vision_opd import CROPS, VisionOPD

NAMES = ["opd_v", "va_opd", "vision_opd"]
WITHOUT_P = ["va_opd", "cal_opd", "dapd", "gkd", "iw_opd", "opsa", "sft"]
every_method = pytest.mark.parametrize("name", sorted({*NAMES, *WITHOUT_P}))
JS_TAIL = Divergence(kind="js", support="topk", closure="tail", k=100, beta=0.5)


def js_with_tail(student_V, target_V, k):
    """JS_½ over the student's top k and one bin with the rest, from log-probabilities."""
    kept = student_V.detach().topk(k).indices.tolist()
    return js(with_tail(target_V, kept), with_tail(student_V, kept))


def scores_of(method, logp, lengths=None, privileged=True, ordinary=None, rollout=None):
    """A window of hand-made log-probabilities; one response unless `lengths` says otherwise."""
    count = len(next(iter(logp.values())))
    lengths = lengths or [[count]]
    scores = window(method, lengths)
    responses = scores.responses
    if rollout is not None:
        responses = dataclasses.replace(responses, rollout_logp_N=torch.tensor(rollout))
    return dataclasses.replace(
        scores,
        logp_N={role: torch.tensor(values) for role, values in logp.items()},
        has_privilege_N=torch.full((count,), privileged) if isinstance(privileged, bool) else torch.tensor(privileged),
        ordinary_N=torch.ones(count, dtype=torch.bool) if ordinary is None else torch.tensor(ordinary),
        responses=responses,
    )


def weights_of(method, *args, **options):
    (weight_N,), figures = method.weights(scores_of(method, *args, **options))
    return weight_N.tolist(), figures


# These three, and those of test_methods_controls.py


@every_method
@pytest.mark.parametrize("lengths", [[[0]], [[1]], [[1], [1]], [[0, 2], [3]], [[2, 2, 2]]], ids=str)
@pytest.mark.parametrize("privileged", [0.0, 0.5, 1.0])
def test_weights_are_finite_and_without_gradient_in_any_window(name, lengths, privileged):
    """No token, one token, a group of one, a response that is empty, no p: [R, N] float32, and figures are floats."""
    method = find(name)()
    scores = window(method, lengths, privileged=privileged)
    for score_N in (*scores.logp_N.values(), *scores.entropy_N.values()):
        score_N.requires_grad_()
    weight_RN, figures = method.weights(scores)
    assert weight_RN.shape == (len(method.components), sum(map(sum, lengths)))
    assert weight_RN.dtype == torch.float32 and not weight_RN.requires_grad and weight_RN.isfinite().all()
    assert name not in NAMES or (weight_RN >= 0).all()
    assert all(type(value) is float and math.isfinite(value) for value in figures.values())


@every_method
def test_order_of_groups_and_siblings_decides_nothing(name):
    """A window written from back to front has the same weights, back to front."""
    method, lengths = find(name)(), [[7, 3, 5], [4], [2, 6]]
    scores = window(method, lengths, seed=3)
    scores = dataclasses.replace(scores, logp_N={r: (2 * v).round() / 2 for r, v in scores.logp_N.items()})  # ties
    flat = [n for siblings in lengths for n in siblings]
    back = torch.cat(torch.arange(sum(flat)).split(flat)[::-1])
    responses = responses_of([siblings[::-1] for siblings in lengths[::-1]])
    turned = dataclasses.replace(
        scores,
        logp_N={role: logp_N[back] for role, logp_N in scores.logp_N.items()},
        entropy_N={role: entropy_N[back] for role, entropy_N in scores.entropy_N.items()},
        has_privilege_N=scores.has_privilege_N[back],
        ordinary_N=scores.ordinary_N[back],
        responses=dataclasses.replace(responses, reference_M=scores.responses.reference_M.flip(0)),
    )
    torch.testing.assert_close(method.weights(turned)[0], method.weights(scores)[0][:, back], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", WITHOUT_P)
def test_methods_that_show_no_p_do_not_ask_who_has_it(name):
    method = find(name)()
    scores = window(method, seed=4)
    without = dataclasses.replace(scores, has_privilege_N=torch.zeros_like(scores.has_privilege_N))
    assert torch.equal(method.weights(without)[0], method.weights(scores)[0])


# Vision-OPD


def test_vision_opd_has_the_settings_of_its_source():
    method = VisionOPD()
    assert method.roles == (CROPS, STUDENT_PLAIN) and Role("ema", "privileged") == CROPS
    assert method.components == (Component("crops", CROPS, JS_TAIL),)
    assert (method.ema_rate, method.ratio_cap, method.reduction) == (0.05, 2.0, "token_mean")
    assert VisionOPD(ratio_cap=None).roles == (CROPS,)


@pytest.mark.parametrize("reduction", ["token_mean", "seq_mean"])
@pytest.mark.parametrize("cap", [2.0, 1.3, None])
@pytest.mark.parametrize("seed", range(3))
def test_vision_opd_is_its_formula(seed, cap, reduction):
    """Mean of min(ρ, cap)·JS where there is p."""
    method = VisionOPD(k=3, ratio_cap=cap, reduction=reduction)

    def formula(given, student_NV):
        student_NV, target_NV, ratios = student_NV.log_softmax(-1), given.logp(CROPS), given.ratios()
        total = 0.0
        for tokens in given.responses():
            share = len(tokens) * len(given.responses()) if reduction == "seq_mean" else len(target_NV)
            for n in tokens:
                if given.scores.has_privilege_N[n]:
                    ratio = 1.0 if cap is None else min(ratios[n], cap)
                    total = total + ratio * js_with_tail(student_NV[n], target_NV[n], k=3) / share
        return total

    check(method, case(method, seed, noise=1.0), formula)


def test_vision_opd_by_hand():
    """ρ = 1 where the engine is silent, e^0.5, then e capped at 2; nothing without p."""
    logp = {CROPS: [-1.0] * 4, STUDENT_PLAIN: [-1.0, -1.0, -1.0, -1.0]}
    rollout = [math.nan, -1.5, -2.0, -1.5]
    weight_N, figures = weights_of(VisionOPD(), logp, privileged=[True, True, True, False], rollout=rollout)
    assert weight_N == pytest.approx([1, math.exp(0.5), 2, 0])
    assert figures == pytest.approx({"ratio/mean": (3 + math.exp(0.5)) / 3})


# OPD-V


def test_opd_v_has_the_settings_of_its_source():
    method = OPDV()
    assert method.roles == (MASKED, CROPS, STUDENT_PLAIN) and Role("ema", "masked") == MASKED
    assert OPDV(ratio_cap=None).roles == (MASKED, CROPS)
    assert method.components == (Component("crops", CROPS, JS_TAIL),)
    assert (method.ema_rate, method.ratio_cap, method.reduction) == (0.05, 2.0, "token_mean")


@pytest.mark.parametrize("cap", [2.0, None])
@pytest.mark.parametrize("seed", range(3))
def test_opd_v_is_its_formula(seed, cap):
    """Mean of relu(ℓ^{S⁺} − ℓ^{S⁻})·min(ρ, cap)·JS where there is p, over all tokens."""
    method = OPDV(k=3, ratio_cap=cap)

    def formula(given, student_NV):
        student_NV, target_NV, ratios = student_NV.log_softmax(-1), given.logp(CROPS), given.ratios()
        total = 0.0
        for n, (crops, masked) in enumerate(zip(given.sampled(CROPS), given.sampled(MASKED), strict=True)):
            if given.scores.has_privilege_N[n] and crops > masked:
                ratio = 1.0 if cap is None else min(ratios[n], cap)
                total = total + (crops - masked) * ratio * js_with_tail(student_NV[n], target_NV[n], k=3)
        return total / len(target_NV)

    check(method, case(method, seed, noise=1.0), formula)


def test_opd_v_by_hand():
    """A token the mask makes less likely by 0.7 nats weighs 0.7, one it makes likelier nothing, nor one without p."""
    logp = {CROPS: [-0.3, -1.0, -0.5, -0.2], MASKED: [-1.0, -0.4, -0.5, -3.0], STUDENT_PLAIN: [-1.0] * 4}
    weight_N, figures = weights_of(OPDV(), logp, privileged=[True, True, True, False])
    assert weight_N == pytest.approx([0.7, 0, 0, 0])
    assert figures == pytest.approx({"ratio/mean": 1, "visual/mean": 0.7 / 3, "share/kept": 0.25})


@pytest.mark.parametrize("cls", [VisionOPD, OPDV])
@pytest.mark.parametrize(
    "options",
    [{"ratio_cap": 0.0}, {"ratio_cap": math.nan}, {"ema_rate": 0.0}, {"ema_rate": 1.1}, {"ema_rate": math.nan}],
    ids=str,
)
def test_vision_opd_and_opd_v_refuse_impossible_options(cls, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        cls(**options)


# VA-OPD


def test_va_opd_has_the_settings_of_its_source():
    method = VAOPD()
    assert method.roles == (TEACHER_PLAIN, DEGRADED) and Role("teacher", "degraded") == DEGRADED
    assert method.components == (Component("OPD", TEACHER_PLAIN, Divergence(kind="rkl", support="full")),)
    assert (method.tau, method.high_share, method.high_weight, method.reduction) == (1.0, 0.2, 0.5, "sum")


def va_formula(method, given, student_NV):
    """METHODS 1.13 with loops: siblings by softmax of z-scores, ½ to the high tokens and ½ to the low ones."""
    student_NV, teacher_NV = student_NV.log_softmax(-1), given.logp(TEACHER_PLAIN)
    pairs = zip(given.sampled(TEACHER_PLAIN), given.sampled(DEGRADED), strict=True)
    visual, total = [max(teacher - degraded, 0.0) for teacher, degraded in pairs], 0.0
    group_M, ordinary_N = given.scores.responses.group_M.tolist(), given.scores.ordinary_N.tolist()
    for j in set(group_M):
        siblings = [tokens for m, tokens in enumerate(given.responses()) if group_M[m] == j]
        counted = [[visual[n] for n in tokens if ordinary_N[n]] for tokens in siblings]
        means = [sum(values) / len(values) if values else 0.0 for values in counted]
        middle = sum(means) / len(means)
        spread = math.sqrt(sum((x - middle) ** 2 for x in means) / len(means))
        powers = [math.exp((x - middle) / spread / method.tau) if spread else 1.0 for x in means]
        for tokens, values, power in zip(siblings, counted, powers, strict=True):
            border, part = -1.0, 0.0
            if values:
                budget = math.ceil(method.high_share * len(values))
                border = sorted(values, reverse=True)[budget - 1]
                part = (budget - sum(x > border for x in values)) / values.count(border)
            high = {n: 1.0 if visual[n] > border else part if visual[n] == border else 0.0 for n in tokens}
            size, rest = sum(high.values()), sum(1 - h for h in high.values())
            for n in tokens:
                p, q = student_NV[n], teacher_NV[n]
                weight = high[n] / size
                if rest:
                    weight = method.high_weight * weight + (1 - method.high_weight) * (1 - high[n]) / rest
                total = total + power / sum(powers) * weight * (p.exp() * (p - q)).sum() / len(set(group_M))
    return total


@pytest.mark.parametrize(
    "options", [{}, {"high_share": 0.5}, {"tau": 0.3}, {"high_weight": 0.8}, {"high_share": 1.0}], ids=str
)
@pytest.mark.parametrize("seed", range(3))
def test_va_opd_is_its_formula(seed, options):
    method = VAOPD(**options)
    check(method, case(method, seed), lambda given, student_NV: va_formula(method, given, student_NV))


def test_va_opd_by_hand():
    """Two siblings of five tokens, mean VA 0.2 and 0.6: z-scores ∓1. Their one high token has half of their weight."""
    visual = [1.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 1.0]
    logp = {TEACHER_PLAIN: [-1.0] * 10, DEGRADED: [-1.0 - x for x in visual]}
    weight_N, figures = weights_of(VAOPD(), logp, lengths=[[5, 5]])
    less = 1 / (1 + math.exp(2))
    more = 1 - less
    assert weight_N == pytest.approx([less / 2] + [less / 8] * 4 + [more / 8] * 4 + [more / 2])
    assert figures == pytest.approx({"visual/mean": 0.4, "visual/in_high": 0.5})
    alone, _ = weights_of(VAOPD(), {role: values[:5] for role, values in logp.items()})
    assert alone == pytest.approx([1 / 2] + [1 / 8] * 4)


def test_va_opd_takes_a_mask_that_helps_for_no_advantage():
    """Where the blurred image makes the token likelier, VA is 0, not negative: the three tokens tie."""
    logp = {TEACHER_PLAIN: [-1.0, -1.0, -1.0], DEGRADED: [-0.5, -0.1, -1.0]}
    assert weights_of(VAOPD(), logp)[0] == pytest.approx([1 / 3] * 3)


def test_va_opd_without_images_is_a_mean_over_responses():
    """VA = 0 everywhere: siblings weigh the same, tokens of a response weigh the same, prompts weigh the same."""
    logp = {TEACHER_PLAIN: [-1.0] * 9, DEGRADED: [-1.0] * 9}
    weight_N, figures = weights_of(VAOPD(), logp, lengths=[[1, 5], [3]], privileged=False)
    assert weight_N == pytest.approx([1 / 4] + [1 / 20] * 5 + [1 / 6] * 3)
    assert figures == {"visual/mean": 0.0, "visual/in_high": 0.0}


def test_va_opd_weights_are_a_mean_over_prompts():
    """Every prompt has 1/J of the weight, whatever its responses look like."""
    method, lengths = VAOPD(), [[7, 3, 5, 1], [4], [3, 3, 8, 2, 60]]
    scores = window(method, lengths, seed=5)
    (weight_N,), _ = method.weights(scores)
    sums = [part.sum().item() for part in weight_N.split([sum(siblings) for siblings in lengths])]
    assert sums == pytest.approx([1 / 3] * 3)


def test_va_opd_special_tokens_set_no_border():
    """An end-of-sequence token of huge VA is high itself, but the ordinary token of largest VA stays high, and no
    sibling gains by it."""
    visual = [0.1, 0.4, 0.2, 0.3, 9.0, 0.1, 0.4, 0.2, 0.3, 0.0]
    ordinary = [True] * 4 + [False] + [True] * 4 + [False]
    logp = {TEACHER_PLAIN: [-1.0] * 10, DEGRADED: [-1.0 - x for x in visual]}
    weight_N, _ = weights_of(VAOPD(), logp, lengths=[[5, 5]], ordinary=ordinary)
    assert weight_N == pytest.approx([1 / 12, 1 / 8, 1 / 12, 1 / 12, 1 / 8, *[1 / 16, 1 / 4], *[1 / 16] * 3])


def test_va_opd_with_a_tiny_tau_takes_the_best_sibling():
    """No overflow: e^{1/τ} is no float."""
    logp = {TEACHER_PLAIN: [-1.0] * 4, DEGRADED: [-1.0, -1.0, -2.0, -2.0]}
    assert weights_of(VAOPD(tau=1e-4), logp, lengths=[[2, 2]])[0] == pytest.approx([0, 0, 0.5, 0.5])


@pytest.mark.parametrize(
    "options",
    [
        {"tau": 0.0},
        {"tau": math.nan},
        {"high_share": 0.0},
        {"high_share": 1.5},
        {"high_weight": -0.1},
        {"high_weight": 2.0},
    ],
    ids=str,
)
def test_va_opd_refuses_impossible_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        VAOPD(**options)
