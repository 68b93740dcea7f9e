"""IW-OPD, Cal-OPD, DAPD, GKD, and the controls SFT and OPSA. What all methods share is in test_methods_vision.py.

Every loss and gradient is compared with the formula written down once more, with loops over responses and tokens.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.method_case import case, check, mean
from tests.windows import window
from vlm_dopd.divergences import Divergence
from vlm_dopd.methods import STUDENT_PLAIN, TEACHER_PLAIN, Component, Role
from vlm_dopd.methods.cal_opd import BLAMED, PRAISED, CalOPD
from vlm_dopd.methods.dapd import DAPD
from vlm_dopd.methods.gkd import GKD
from vlm_dopd.methods.iw_opd import IWOPD
from vlm_dopd.methods.opsa import OPSA
from vlm_dopd.methods.sft import SFT

PG = Divergence(kind="nll", support="sampled")


def scores_of(method, logp, lengths=None, entropy=None, ordinary=None):
    """A window of hand-made log-probabilities; one response unless `lengths` says otherwise."""
    count = len(next(iter(logp.values())))
    scores = window(method, lengths or [[count]])
    return dataclasses.replace(
        scores,
        logp_N={role: torch.tensor(values) for role, values in logp.items()},
        entropy_N={role: torch.tensor(entropy) for role in logp} if entropy else scores.entropy_N,
        ordinary_N=torch.ones(count, dtype=torch.bool) if ordinary is None else torch.tensor(ordinary),
    )


def weights_of(method, *args, **options):
    (weight_N,), figures = method.weights(scores_of(method, *args, **options))
    return weight_N.tolist(), figures


def ppo_weight(ratio, advantage, clip):
    """Slope of min(ρ·A, clip(ρ)·A) in log S: ρ·A, 0 where the clip is flat. The code bounds ρ by 10 besides."""
    if (advantage > 0 and ratio > 1 + clip) or (advantage <= 0 and ratio < 1 - clip):
        return 0.0
    return min(ratio, 10.0) * advantage


def shares(method, given):
    """What every token's loss is divided by."""
    if method.reduction == "token_mean":
        return [given.scores.responses.token_N.numel()] * given.scores.responses.token_N.numel()
    return [len(tokens) * len(given.responses()) for tokens in given.responses() for _ in tokens]


# IW-OPD


def test_iw_opd_has_the_settings_of_its_source():
    method = IWOPD()
    assert method.roles == (STUDENT_PLAIN, TEACHER_PLAIN) and method.components == (Component("PG", None, PG),)
    assert (method.gamma, method.clip, method.reduction) == (0.5, 0.2, "token_mean")


@pytest.mark.parametrize("options", [{}, {"gamma": 0.0}, {"gamma": 2.0, "clip": 0.5}, {"reduction": "seq_mean"}])
@pytest.mark.parametrize("seed", range(3))
def test_iw_opd_is_its_formula(seed, options):
    """−ω·(ℓ^T − ℓ^{S_old})·log S, with PPO's clip, ω from the gaps before the token."""
    method = IWOPD(**options)

    def formula(given, student_NV):
        student_NV, y, share = student_NV.log_softmax(-1), given.scores.responses.token_N, shares(method, given)
        rollout = given.scores.responses.rollout_logp_N.tolist()
        old = [b if b == b else a for a, b in zip(given.sampled(STUDENT_PLAIN), rollout, strict=True)]
        ratios, teacher, total = given.ratios(), given.sampled(TEACHER_PLAIN), 0.0
        for tokens in given.responses():
            gaps = [teacher[n] - old[n] for n in tokens]
            for t, n in enumerate(tokens):
                omega = 1 + method.gamma * (1 - sum(map(abs, gaps[:t])) / sum(map(abs, gaps)))
                weight = ppo_weight(ratios[n], omega * gaps[t], method.clip)
                total = total - weight * student_NV[n, y[n]] / share[n]
        return total

    check(method, case(method, seed, noise=0.4), formula)


def test_iw_opd_by_hand():
    """Gaps 1, −2, 1: before the tokens lie 0, ¼ and ¾ of them, so ω is 1.5, 1.375 and 1.125. A response of its own
    starts anew."""
    logp = {STUDENT_PLAIN: [-2.0, -1.0, -2.0, -2.0], TEACHER_PLAIN: [-1.0, -3.0, -1.0, -1.5]}
    weight_N, figures = weights_of(IWOPD(), logp, lengths=[[3, 1]])
    assert weight_N == pytest.approx([1.5, -2.75, 1.125, 0.75])
    assert figures == pytest.approx({"advantage/mean": 0.125, "trust/mean": 5.5 / 4})


def test_iw_opd_drift_is_a_share_however_small_the_gaps():
    """Gaps of 0.01 and 0.03: a quarter lies before the second token."""
    weight_N, _ = weights_of(IWOPD(), {STUDENT_PLAIN: [-1.0, -1.0], TEACHER_PLAIN: [-0.99, -0.97]})
    assert weight_N == pytest.approx([0.015, 0.03 * 1.375], rel=1e-4)


def test_iw_opd_where_the_teacher_agrees_has_no_loss():
    weight_N, figures = weights_of(IWOPD(), {STUDENT_PLAIN: [-1.0] * 3, TEACHER_PLAIN: [-1.0] * 3})
    assert weight_N == [0, 0, 0] and figures == {"advantage/mean": 0.0, "trust/mean": 1.5}


def test_iw_opd_gaps_are_from_the_policy_that_sampled():
    """The engine said −3 where the live student says −2.95: the gap is 2, ρ = e^0.05."""
    scores = scores_of(IWOPD(gamma=0.0), {STUDENT_PLAIN: [-2.95, -2.0], TEACHER_PLAIN: [-1.0, -1.0]})
    responses = dataclasses.replace(scores.responses, rollout_logp_N=torch.tensor([-3.0, math.nan]))
    (weight_N,), _ = IWOPD(gamma=0.0).weights(dataclasses.replace(scores, responses=responses))
    assert weight_N.tolist() == pytest.approx([2 * math.exp(0.05), 1])


# Cal-OPD


def test_cal_opd_has_the_settings_of_its_source():
    method = CalOPD()
    assert method.roles == (STUDENT_PLAIN, TEACHER_PLAIN, PRAISED, BLAMED)
    assert (Role("teacher", "praised"), Role("teacher", "blamed")) == (PRAISED, BLAMED)
    assert method.components == (Component("PG", None, PG),)
    assert (method.width, method.clip, method.reduction) == (5.0, 0.2, "sum")


@pytest.mark.parametrize("options", [{}, {"width": 0.3}, {"width": 0.0}, {"width": 3.0, "clip": 1.0}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_cal_opd_is_its_formula(seed, options):
    method = CalOPD(**options)

    def formula(given, student_NV):
        student_NV, y, advantages = student_NV.log_softmax(-1), given.scores.responses.token_N, []
        for s, t, a, b in zip(*map(given.sampled, method.roles), strict=True):
            down, up = max(0.0, t - a, t - b), max(0.0, a - t, b - t)
            low, high = t - method.width * down, t + method.width * up
            advantages.append(max(low - s, 0.0) - max(s - high, 0.0))
        kept = [n for tokens in given.responses() if any(advantages[n] for n in tokens) for n in tokens]
        ratios = given.ratios()
        weights = [ppo_weight(ratios[n], advantages[n], method.clip) for n in kept]
        return mean([-w * student_NV[n, y[n]] for n, w in zip(kept, weights, strict=True)])

    check(method, case(method, seed), formula)


def test_cal_opd_by_hand():
    """The teacher's −1 moves up by 0.1 and down by 0.2: λ = 5 makes the band [−2, −0.5]. The student is above it,
    below it, inside; and a response that is inside throughout leaves the mean."""
    logp = {
        STUDENT_PLAIN: [-0.3, -3.0, -1.5, -1.0, -0.6],
        TEACHER_PLAIN: [-1.0] * 5,
        PRAISED: [-0.9] * 5,
        BLAMED: [-1.2] * 5,
    }
    weight_N, figures = weights_of(CalOPD(), logp, lengths=[[3, 2]])
    assert weight_N == pytest.approx([-0.2 / 3, 1 / 3, 0, 0, 0])
    assert figures == pytest.approx({"advantage/mean": 0.8 / 3, "share/kept": 0.6, "share/outside": 0.4})


@pytest.mark.parametrize(("praised", "blamed", "band"), [(-0.7, -0.9, (-1, 0.5)), (-1.3, -1.2, (-2.5, -1))])
def test_cal_opd_band_has_one_side_where_both_move_the_teacher_the_same_way(praised, blamed, band):
    """The further of the two counts, on the side it went to."""
    logp = {STUDENT_PLAIN: [-4.0, -0.8], TEACHER_PLAIN: [-1.0] * 2, PRAISED: [praised] * 2, BLAMED: [blamed] * 2}
    weight_N, _ = weights_of(CalOPD(), logp)
    assert weight_N == pytest.approx([(band[0] + 4) / 2, -max(-0.8 - band[1], 0) / 2])


def test_cal_opd_with_nothing_outside_the_band_has_no_loss():
    logp = {role: [-1.0, -2.0] for role in CalOPD().roles}
    weight_N, figures = weights_of(CalOPD(), logp)
    assert weight_N == [0, 0] and figures == {"advantage/mean": 0.0, "share/kept": 0.0, "share/outside": 0.0}


# DAPD

# name: (over references, anchor, student's view, strength), of METHODS 1.15
TABLE = {
    "entangled_rollout": (False, Role("snapshot", "reference"), "plain", 2 / 15),
    "entangled_reference": (True, Role("snapshot", "rollout"), "plain", 2 / 5),
    "inference_rollout": (False, Role("initial", "plain"), "rollout", 2 / 5),
    "inference_reference": (True, Role("initial", "plain"), "reference", 2 / 15),
    "privileged_rollout": (False, Role("initial", "reference"), "rollout", 2 / 15),
    "privileged_reference": (True, Role("initial", "rollout"), "reference", 4 / 5),
}


def test_dapd_has_the_settings_of_its_source():
    """Five roles for six anchors, four passes with gradient, strengths that sum to 2."""
    method = DAPD()
    divergence = Divergence(kind="fkl", support="full", cap=0.05)
    expected = [Component(name, anchor, divergence, view) for name, (_, anchor, view, _) in TABLE.items()]
    assert list(method.components) == expected
    assert set(method.roles) == {anchor for _, anchor, _, _ in TABLE.values()} and len(method.roles) == 5
    assert (method.temperature, method.snapshot_steps, method.references, method.reduction) == (1.1, 100, True, "sum")
    assert sum(strength for *_, strength in TABLE.values()) == pytest.approx(2)


class OneView(DAPD):
    """The part of the loss that is over one of the student's prompts, with its gradient."""

    view = "plain"

    @property
    def components(self):
        return tuple(component for component in super().components if component.student_view == self.view)

    def weights(self, scores):
        weight_RN, figures = super().weights(scores)
        return weight_RN[[view == self.view for _, _, view, _ in TABLE.values()]], figures


@pytest.mark.parametrize("shown", ["plain", "rollout", "reference"])
@pytest.mark.parametrize("options", [{}, {"cap": None}, {"cap": 0.2, "temperature": 2.0}], ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_dapd_is_its_formula(seed, options, shown):
    """Six token means of Σ_v min(T·(log T − log S), cap), each over the completions of its kind."""
    method = type("", (OneView,), {"view": shown})(**options)
    given = case(method, seed)
    reference_M = torch.tensor([False, False, True, False, False, True, False, True, True])
    responses = dataclasses.replace(given.scores.responses, reference_M=reference_M)
    given = dataclasses.replace(given, scores=dataclasses.replace(given.scores, responses=responses))

    def formula(given, student_NV):
        student_NV, total = (student_NV / method.temperature).log_softmax(-1), 0.0
        for references, anchor, view, strength in TABLE.values():
            if view == shown:
                anchor_NV = (given.logits[anchor] / method.temperature).log_softmax(-1)
                own = [n for m, tokens in enumerate(given.responses()) if reference_M[m] == references for n in tokens]
                term_nV = anchor_NV[own].exp() * (anchor_NV[own] - student_NV[own])
                bound_nV = torch.full_like(term_nV, method.cap or math.inf)
                total = total + strength * term_nV.where(term_nV < bound_nV, bound_nV).sum() / len(own)
        return total

    check(method, given, formula)


def test_dapd_by_hand():
    """Two rollouts of three tokens together and a reference of two: each term weighs its strength over 3, or over 2."""
    method = DAPD()
    weight_RN, figures = method.weights(window(method, [[1, 2, 2]]))
    for row_N, (references, _, _, strength) in zip(weight_RN.tolist(), TABLE.values(), strict=True):
        expected = [0, 0, 0, strength / 2, strength / 2] if references else [strength / 3] * 3 + [0, 0]
        assert row_N == pytest.approx(expected)
    assert figures == pytest.approx({"share/reference": 0.4})


# GKD


def test_gkd_has_the_settings_of_its_source():
    method = GKD()
    assert method.roles == (TEACHER_PLAIN,) and method.own_share == 1.0 and method.reduction == "seq_mean"
    assert method.components == (Component("GKD", TEACHER_PLAIN, Divergence(kind="js", support="full", beta=0.5)),)
    assert GKD(own_share=0.0).own_share == 0.0


@pytest.mark.parametrize(
    "options",
    [{}, {"divergence": "fkl"}, {"divergence": "rkl"}, {"beta": 0.1}, {"beta": 0.9, "reduction": "token_mean"}],
    ids=str,
)
def test_gkd_is_its_formula(options):
    """The divergence over the whole vocabulary."""
    method = GKD(**options)

    def kl(p_NV, q_NV):
        return (p_NV.exp() * (p_NV - q_NV)).sum(-1)

    def formula(given, student_NV):
        s, t, beta = student_NV.log_softmax(-1), given.logp(TEACHER_PLAIN), method.beta
        m = (beta * t.exp() + (1 - beta) * s.exp()).log()
        value_N = {"fkl": kl(t, s), "rkl": kl(s, t), "js": beta * kl(t, m) + (1 - beta) * kl(s, m)}[method.divergence]
        return (value_N / torch.tensor(shares(method, given))).sum()

    check(method, case(method, seed=1), formula)


def test_gkd_learns_from_either_source_alike():
    """Weight 1 on the student's own responses and on reference completions; the log says how many are its own."""
    scores = window(GKD(), [[2, 1], [3]])
    responses = dataclasses.replace(scores.responses, reference_M=torch.tensor([False, False, True]))
    weight_RN, figures = GKD(own_share=0.5).weights(dataclasses.replace(scores, responses=responses))
    assert weight_RN.tolist() == [[1] * 6] and figures == pytest.approx({"share/own": 2 / 3})


# SFT


def test_sft_has_neither_roles_nor_rollouts():
    method = SFT()
    assert method.roles == () and method.components == (Component("SFT", None, PG),)
    assert (method.own_share, method.reduction) == (0.0, "token_mean")


@pytest.mark.parametrize("reduction", ["token_mean", "seq_mean"])
def test_sft_is_cross_entropy(reduction):
    """torch's own, with the mean over tokens; or the mean over completions of it."""
    method = SFT(reduction=reduction)

    def formula(given, student_NV):
        entropy, token_N = torch.nn.functional.cross_entropy, given.scores.responses.token_N
        if reduction == "token_mean":
            return entropy(student_NV, token_N)
        return mean([entropy(student_NV[tokens], token_N[tokens]) for tokens in given.responses()])

    check(method, case(method, seed=0), formula)


# OPSA


def test_opsa_has_the_settings_of_its_source():
    method = OPSA()
    assert method.roles == (STUDENT_PLAIN,) and method.components == (Component("PG", None, PG),)
    assert (method.share, method.advantage, method.clip, method.reduction) == (0.2, "entropy", 0.2, "sum")


@pytest.mark.parametrize("options", [{}, {"advantage": "constant"}, {"share": 0.5, "clip": 0.9}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_opsa_is_its_formula(seed, options):
    method = OPSA(**options)

    def formula(given, student_NV):
        student_NV, y = student_NV.log_softmax(-1), given.scores.responses.token_N
        logp, ratios, p_NV = given.sampled(STUDENT_PLAIN), given.ratios(), given.logp(STUDENT_PLAIN).exp()
        entropy = [float(-(p_V * p_V.log()).sum()) for p_V in p_NV]
        ordinary = sorted((n for n in range(len(y)) if given.scores.ordinary_N[n]), key=lambda n: logp[n])
        lowest = ordinary[: math.ceil(method.share * len(ordinary))]
        least, most = min(entropy[n] for n in lowest), max(entropy[n] for n in lowest)
        terms = []
        for n in (n for n in range(len(y)) if logp[n] <= logp[lowest[-1]]):
            level = min(max((entropy[n] - least) / (most - least), 0.0), 1.0)
            advantage = -0.5 if method.advantage == "constant" else -0.5 - level / 2
            terms.append(-ppo_weight(ratios[n], advantage, method.clip) * student_NV[n, y[n]])
        return mean(terms)

    check(method, case(method, seed), formula)


def test_opsa_by_hand():
    """Of ten tokens the two least likely are pushed down, the one of lower entropy by ½ and the other by 1; halved,
    since it is their mean."""
    logp, entropy = [-0.1, -3.0, -0.2, -0.3, -5.0, -0.4, -0.5, -0.6, -0.7, -0.8], [9.0] * 10
    entropy[1], entropy[4] = 1.0, 0.2
    weight_N, figures = weights_of(OPSA(), {STUDENT_PLAIN: logp}, entropy=entropy)
    assert weight_N == pytest.approx([0, -0.5, 0, 0, -0.25, 0, 0, 0, 0, 0])
    assert figures == pytest.approx({"advantage/mean": -0.75, "share/kept": 0.2})
    weight_N, _ = weights_of(OPSA(advantage="constant"), {STUDENT_PLAIN: logp}, entropy=entropy)
    assert weight_N == pytest.approx([0, -0.25, 0, 0, -0.25, 0, 0, 0, 0, 0])


def test_opsa_equal_entropies_are_the_released_codes_case():
    """All as unsure as any: −1 each. Equal log-probabilities share the 20 %, so a window in any order is the same."""
    weight_N, _ = weights_of(OPSA(), {STUDENT_PLAIN: [-1.0] * 5}, entropy=[0.7] * 5)
    assert weight_N == pytest.approx([-0.2] * 5)


def test_opsa_special_tokens_set_no_border():
    """Two improbable ends of sequence are pushed down with the one ordinary token below the border, and neither their
    number nor their entropy counts for it."""
    logp = [-9.0, -8.0, -3.0, -0.1, -0.2, -0.3, -0.4]
    entropy = [0.0, 5.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    ordinary = [False, False, True, True, True, True, True]
    weight_N, figures = weights_of(OPSA(), {STUDENT_PLAIN: logp}, entropy=entropy, ordinary=ordinary)
    assert weight_N == pytest.approx([-1 / 3, -1 / 3, -1 / 3, 0, 0, 0, 0]) and figures["share/kept"] > 0.4
    # With a second ordinary token below it there is a range, and what lies outside of it is at its ends.
    weight_N, _ = weights_of(OPSA(share=0.4), {STUDENT_PLAIN: logp}, entropy=entropy, ordinary=ordinary)
    assert weight_N == pytest.approx([-0.5 / 4, -1 / 4, -1 / 4, 0, 0, 0, -0.5 / 4])


# Options


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (IWOPD, {"gamma": -0.1}),
        (IWOPD, {"gamma": math.nan}),
        (IWOPD, {"clip": 1.1}),
        (CalOPD, {"width": -1.0}),
        (CalOPD, {"clip": -0.1}),
        (DAPD, {"cap": 0.0}),
        (DAPD, {"temperature": 0.0}),
        (DAPD, {"snapshot_steps": 0}),
        (GKD, {"own_share": 1.1}),
        (GKD, {"own_share": math.nan}),
        (GKD, {"divergence": "nll"}),
        (OPSA, {"share": 0.0}),
        (OPSA, {"share": 1.1}),
        (OPSA, {"advantage": "random"}),
        (OPSA, {"clip": 2.0}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_impossible_options_are_refused(cls, options):
    """With one line that names the option."""
    with pytest.raises(ValueError, match=rf"^{next(iter(options))}: expected [^\n]*, got"):
        cls(**options)
