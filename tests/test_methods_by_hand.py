"""Methods of distillation where the answer is known: windows worked by hand, and edges.

Whether losses and gradients follow the published formulas is asked in test_methods_distillation.py.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
import torch

from tests.method_case import sampled_with, scores_of
from tests.windows import responses_of, window
from vlm_dopd import methods
from vlm_dopd.methods import STUDENT_PLAIN, TEACHER_PLAIN, TEACHER_PRIVILEGED, Role
from vlm_dopd.methods._responses import Responses
from vlm_dopd.methods.eopd import EOPD
from vlm_dopd.methods.exopd import ExOPD
from vlm_dopd.methods.opcd import OPCD
from vlm_dopd.methods.opsd import OPSD
from vlm_dopd.methods.reopold import REOPOLD
from vlm_dopd.methods.sdft import SDFT
from vlm_dopd.methods.sdpo import SDPO
from vlm_dopd.methods.ta_opd import TAOPD, shared_mass, union_fkl
from vlm_dopd.methods.tip import TIP
from vlm_dopd.methods.uni_opd import UniOPD

NAN = float("nan")
DEFAULTS = {
    "opcd": {"teacher": "initial", "k": 256, "closure": "raw", "reduction": "token_mean"},
    "exopd": {"scale": 1.25, "reference": "initial", "ratio_cap": 5.0, "cap": 10.0, "reduction": "token_mean"},
    "uni_opd": {
        "margin": 0.4,
        "gap": "mean",
        "shift": "both",
        "balance": True,
        "limit": 10.0,
        "clip_low": 0.2,
        "clip_high": 0.28,
        "success": 1.0,
    },
    "sdft": {"divergence": "fkl", "ema_rate": 0.01, "skip": 3, "ratio_cap": 2.0},
    "opsd": {
        "version": "late",
        "cap": 0.05,
        "support": "full",
        "k": 50,
        "self_teacher": "initial",
        "ema_rate": 0.001,
        "temperature": 1.1,
        "reduction": "token_mean",
    },
    "sdpo": {"divergence": "js", "k": 100, "closure": "tail", "ema_rate": 0.05, "ratio_cap": 2.0, "success": 1.0},
    "eopd": {"alpha": 1.0, "threshold": 0.8, "k": 16, "closure": "raw", "clip": 0.2, "reduction": "token_mean"},
    "tip": {"share": 0.5, "disagreement": "rkl", "scaling": "min_max"},
    "ta_opd": {"share": 0.05, "k": 16, "ratio_cap": 2.0},
    "reopold": {"mixture": 0.2, "share": 0.5, "switch": 0.5, "ratio_cap": 2.0},
}
every_method = pytest.mark.parametrize("name", DEFAULTS)


# Windows worked by hand


def test_exopd_extrapolates():
    """ℓ^S −2, ℓ^T −1, ℓ^R −3 at λ 1.25: 1.25·2 − 1 = 1.5; at λ 1 it is ℓ^T − ℓ^S = 1; −50 is cut to −10."""
    anchor = Role("initial", "plain")
    scores = scores_of([-2.0, 0.0], [-1.0, -40.0])
    scores = replace(scores, logp_N=scores.logp_N | {anchor: torch.tensor([-3.0, 0.0])})
    assert ExOPD().weights(scores)[0].tolist() == [pytest.approx([1.5, -10])]
    assert ExOPD(scale=1.0, cap=math.inf).weights(scores)[0].tolist() == [pytest.approx([1, -40])]
    assert ExOPD().weights(scores)[1] == pytest.approx({"advantage/mean": -4.25, "share/capped": 0.5})


def uni_window(gaps, lengths, rewards, references=False):
    scores = scores_of([0.0] * len(gaps), gaps)
    return replace(scores, responses=responses_of(lengths, rewards, references))


def test_uni_opd_moves_both_sides_to_the_margin():
    """Right: mean −1. Wrong: means −1 and −0.6, so −0.8. g = −0.2, δ − g = 0.6: ±0.3; the wrong ones count half."""
    scores = uni_window([-1.5, -0.5, -1, -0.6], [[2, 1, 1]], [1.0, 0.0, 0.0])
    weight_RN, figures = UniOPD().weights(scores)
    assert weight_RN.tolist() == [pytest.approx([-1.2 / 3, -0.2 / 3, -1.3 / 6, -0.9 / 6])]
    assert figures["share/mixed"] == figures["share/shifted"] == 1


@pytest.mark.parametrize(
    ("rewards", "references"),
    [([1.0, 1.0], False), ([0.0, 0.5], False), ([NAN, NAN], False), ([1.0, 0.0], True), ([1.0, NAN], False)],
    ids=["all right", "all wrong", "nobody asked", "the wrong one is a reference", "one unknown"],
)
def test_uni_opd_without_two_outcomes_is_the_mean_advantage(rewards, references):
    """Nothing to compare: no shift, all tokens alike."""
    weight_RN, figures = UniOPD().weights(uni_window([-0.5, 1, 2], [[1, 2]], rewards, references))
    assert weight_RN.tolist() == [pytest.approx([-0.5 / 3, 1 / 3, 2 / 3])]
    assert figures["share/mixed"] == figures["share/shifted"] == 0


def test_uni_opd_leaves_a_good_order_and_an_empty_response_alone():
    """g = 1.5 is above δ: nothing moves. An empty response is no second outcome."""
    weight_RN, figures = UniOPD().weights(uni_window([1.0, -0.5], [[1, 1]], [1.0, 0.0]))
    assert weight_RN.tolist() == [pytest.approx([0.5, -0.25])] and figures["share/mixed"] == 1
    for lengths, rewards in (([[1, 0]], [1.0, 0.0]), ([[0, 1]], [1.0, 0.0])):
        weight_RN, figures = UniOPD().weights(uni_window([-1.0], lengths, rewards))
        assert weight_RN.tolist() == [pytest.approx([-1])] and figures["share/mixed"] == 0


def test_uni_opd_compares_the_worst_of_both_sides():
    """Right 2 and 0, wrong −1 and 0.5: g = 0 − 0.5, so δ − g = 0.9 and each token moves by 0.45."""
    weight_RN, _ = UniOPD(gap="worst").weights(uni_window([2.0, 0.0, -1.0, 0.5], [[1] * 4], [1.0, 1.0, 0.0, 0.0]))
    assert weight_RN.tolist() == [pytest.approx([2.45 / 4, 0.45 / 4, -1.45 / 4, 0.05 / 4])]


def test_uni_opd_gives_extreme_tokens_no_loss():
    """|gap| of 10 and more: weight 0, but still a token of the mean."""
    weight_RN, figures = UniOPD().weights(uni_window([1.0, 10.0, -30.0, 9.0], [[4]], [1.0]))
    assert weight_RN.tolist() == [pytest.approx([0.25, 0, 0, 2.25])] and figures["share/limited"] == 0.5


def test_sdft_skips_the_first_tokens_of_each_response():
    """5, 3 and 4 tokens, none, and 4 without p: 2 kept of the first, 1 of the third; four responses have tokens."""
    logp = {role: torch.zeros(16) for role in SDFT().roles}
    lengths = ((5, 3), (4, 0), (4,))
    scores = scores_of([0.0] * 16, lengths=lengths, privileged=[True] * 12 + [False] * 4, logp_N=logp)
    weight_RN, figures = SDFT().weights(scores)
    assert weight_RN.tolist() == [pytest.approx([0, 0, 0, 1 / 8, 1 / 8, 0, 0, 0, 0, 0, 0, 1 / 4, 0, 0, 0, 0])]
    assert figures["share/kept"] == pytest.approx(3 / 16)
    assert SDFT().roles == (Role("ema", "privileged"), STUDENT_PLAIN)


def test_sdft_truncates_the_ratio_of_the_whole_response():
    """Four tokens with log ρ 0.1 give e^0.4; four with 0.3 give e^1.2, which is more than 2."""
    old = [-0.1] * 4 + [-0.3] * 4
    scores = sampled_with(scores_of([0.0] * 8, lengths=((4, 4),)), old)
    expected = [0, 0, 0, math.exp(0.4) / 2, 0, 0, 0, 1]
    assert SDFT().weights(scores)[0].tolist() == [pytest.approx(expected)]


def test_sdpo_needs_another_right_response_or_p():
    """One right of two: only the wrong one sees it. Two right: all see one. None right: p or nothing."""
    lengths = ((2, 2), (2, 2), (2, 2), (2,))
    rewards = [1.0, 0.0, 1.0, 1.0, 0.0, 0.9, 1.0]
    privileged = [False] * 8 + [True] * 4 + [False] * 2
    scores = scores_of([0.0] * 14, lengths=lengths, rewards=rewards, privileged=privileged)
    weight_RN, figures = SDPO().weights(scores)
    kept = [0, 0] + [1] * 10 + [0, 0]
    assert weight_RN.tolist() == [pytest.approx([k / 10 for k in kept])]
    assert figures == pytest.approx({"share/sibling": 6 / 14, "share/kept": 10 / 14})
    weight_RN, _ = SDPO(success=0.9).weights(scores)
    assert (weight_RN > 0).tolist() == [[False] * 2 + [True] * 10 + [False] * 2]


def test_sdpo_without_rewards_or_p_trains_nothing():
    """NaN is not right: no feedback at all, and no division by zero."""
    scores = scores_of([0.0] * 4, lengths=((2, 2),), privileged=[False] * 4)
    assert SDPO().weights(scores)[0].tolist() == [[0, 0, 0, 0]]


def test_eopd_adds_the_second_term_strictly_above_the_threshold():
    """Entropies 0.7, 0.8 and 0.9 at τ = 0.8; the policy gradient is on all three."""
    scores = scores_of([-1.0] * 3, [0.0] * 3)
    entropy_N = {TEACHER_PLAIN: torch.tensor([0.7, 0.8, 0.9]), STUDENT_PLAIN: torch.full((3,), 5.0)}
    weight_RN, figures = EOPD(alpha=0.5).weights(replace(scores, entropy_N=entropy_N))
    assert weight_RN.tolist() == [[1, 1, 1], [0, 0, 0.5]]
    assert figures == pytest.approx({"advantage/mean": 1, "share/unsure": 1 / 3})


def tip_window(entropy, disagreement, ordinary=None):
    count = len(entropy)
    scores = scores_of([0.0] * count, entropy_N={STUDENT_PLAIN: torch.tensor(entropy)})
    ordinary_N = torch.tensor([True] * count if ordinary is None else ordinary)
    return replace(scores, statistic_N={"disagreement": torch.tensor(disagreement)}, ordinary_N=ordinary_N)


def test_tip_keeps_the_unsure_and_the_overconfident():
    """h 0, 1, 0, 0.5 and d 0, 0, 1, 0.5 give s 0, 1, 1, 0.75: half of four are the second and third."""
    weight_RN, figures = TIP().weights(tip_window([1.0, 3.0, 1.0, 2.0], [0.0, 0.0, 8.0, 4.0]))
    assert weight_RN.tolist() == [pytest.approx([0, 0.5, 0.5, 0])]
    assert figures == pytest.approx({"share/kept": 0.5, "entropy/kept": 2, "disagreement/kept": 4})


def test_tip_special_tokens_set_no_scale():
    """The fifth token is special, with an extreme entropy: the others keep their weights among themselves."""
    weight_RN, _ = TIP().weights(tip_window([1.0, 3, 1, 2, 900], [0.0, 0, 8, 4, 0], [True] * 4 + [False]))
    assert weight_RN.tolist() == [pytest.approx([0, 1 / 3, 1 / 3, 0, 1 / 3])]


def test_tip_where_all_tokens_are_equal_weighs_them_alike():
    """No scale: each token gets its share of the budget, in any order."""
    assert TIP().weights(tip_window([1.0] * 3, [2.0] * 3))[0].tolist() == [pytest.approx([1 / 3] * 3)]


def test_union_and_shared_mass_by_hand():
    """S .5 .3 .1 .1, T .1 .1 .2 .6, top 2: union {0, 1, 2, 3}; with top 1 it is {0, 3} and S has 5:1, T 1:6."""
    s_nV, t_nV = torch.tensor([[0.5, 0.3, 0.12, 0.08]]).log(), torch.tensor([[0.1, 0.1, 0.2, 0.6]]).log()
    token_n = torch.tensor([0])
    everything = sum(t * math.log(t / s) for t, s in [(0.1, 0.5), (0.1, 0.3), (0.2, 0.12), (0.6, 0.08)])
    assert union_fkl(s_nV, t_nV, token_n, k=2).item() == pytest.approx(everything, rel=1e-5)
    s, t = 0.5 / 0.58, 0.1 / 0.7
    expected = t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s))
    assert union_fkl(s_nV, t_nV, token_n, k=1).item() == pytest.approx(expected, rel=1e-5)
    assert union_fkl(s_nV, t_nV, token_n, k=99).item() == pytest.approx(everything, rel=1e-5)
    assert union_fkl(s_nV, s_nV, token_n, k=2).item() == 0
    assert [shared_mass(s_nV, t_nV, token_n, k=k).item() for k in (1, 2, 3, 99)] == pytest.approx([0.1, 0.2, 0.4, 1])


def test_ta_opd_gives_every_response_a_token():
    """The budget of one goes to the second response's last; in the first a tie shares its place, the third has one.

    Ĉ is 0 for all but the second's last. The third response is one special token.
    """
    disagreement_N, compatibility_N = torch.tensor([[1.0, 2, 3, 4, 5, 9], [1, 1, 1, 1, 2, 0]])
    scores = replace(
        scores_of([0.0] * 6, [1.0] * 6, ((2, 3), (1,))),
        statistic_N={"disagreement": disagreement_N, "compatibility": compatibility_N},
        ordinary_N=torch.tensor([True] * 5 + [False]),
    )
    weight_RN, figures = TAOPD(share=0.2).weights(scores)
    assert weight_RN.tolist() == [pytest.approx([1 / 6, 1 / 6, 0, 0, 1 / 3, 1 / 3])]
    expected = {"share/kept": 0.5, "advantage/kept": 1, "disagreement/kept": 15.5 / 3, "compatibility/kept": 1}
    assert figures == pytest.approx(expected)


def test_reopold_explores_then_refines():
    """R = 1, −1.3, −1.5, −9 against −ln 4 = −1.386; entropies 1, 2, 3, 4 with half of them kept."""
    scores = scores_of([0.0] * 4, [1.0, -1.3, -1.5, -9.0])
    scores = replace(scores, entropy_N={STUDENT_PLAIN: torch.tensor([1.0, 2.0, 3.0, 4.0])})
    floor = -math.log(4)
    for progress, expected in ((0.0, [0.5, -0.65, 0, 0]), (0.5, [0, 0, floor / 2, floor / 2])):
        weight_RN, figures = REOPOLD().weights(replace(scores, progress=progress))
        assert weight_RN.tolist() == [pytest.approx(expected)]
        assert figures["share/floor"] == 0.5
    assert REOPOLD(switch=1.0).weights(replace(scores, progress=0.99))[0][0, 0] == 0.5
    assert REOPOLD(switch=0.0).weights(scores)[0][0, 0] == 0


def test_reopold_with_every_token_under_the_floor_trains_nothing():
    """ΣM = 0 is no division by zero."""
    assert REOPOLD().weights(scores_of([0.0] * 3, [-9.0] * 3))[0].tolist() == [[0, 0, 0]]


# Every method of the file


def test_self_teachers_need_p_and_teachers_do_not():
    """A self-target on the same prompt teaches nothing: weight 0; OPCD from the larger model is vanilla there."""
    for method in (OPCD(), SDFT(), OPSD(), OPSD(self_teacher="student")):
        weight_RN, _ = method.weights(window(method, privileged=0.0))
        assert (weight_RN == 0).all(), method
    assert (OPCD(teacher="teacher").weights(window(OPCD(teacher="teacher"), privileged=0.0))[0] == 1).all()
    assert OPCD(teacher="teacher").roles == (TEACHER_PRIVILEGED,)


@pytest.mark.parametrize("name", ["exopd", "uni_opd", "eopd", "tip", "ta_opd", "reopold"])
def test_p_plays_no_part_for_methods_of_plain_prompts(name):
    """All roles are plain, and which rows have p changes no weight."""
    method = methods.find(name)()
    assert {role.view for role in method.roles} == {"plain"}
    scores = window(method)
    flipped = replace(scores, has_privilege_N=~scores.has_privilege_N)
    assert torch.equal(method.weights(scores)[0], method.weights(flipped)[0])


@pytest.mark.parametrize("name", ["exopd", "uni_opd", "eopd", "ta_opd", "reopold"])
def test_nothing_is_learned_from_a_teacher_that_agrees(name):
    """ℓ^T = ℓ^S = ℓ^R, nobody right: A = 0 everywhere."""
    method = methods.find(name)()
    scores = window(method)
    equal = dict.fromkeys(method.roles, scores.logp_N[STUDENT_PLAIN])
    scores = replace(scores, logp_N=equal, responses=replace(scores.responses, reward_M=torch.zeros(12)))
    assert (method.weights(scores)[0][0] == 0).all()


@every_method
def test_weights_follow_tokens_to_any_place_in_the_window(name):
    """Groups, and responses within them, come in another order: weights move along, figures stay."""
    method = methods.find(name)()
    scores = window(method, seed=4)
    old = scores.responses
    old = replace(old, rollout_logp_N=scores.logp_N[method.roles[0]] - torch.rand(old.token_N.numel()))
    scores = replace(scores, responses=old)
    order_M = [9, 8, 11, 10, 1, 3, 0, 2, 4, 7, 6, 5]
    order_N = torch.cat([(old.response_N == m).nonzero()[:, 0] for m in order_M])
    moved = Responses(
        token_N=old.token_N[order_N],
        response_N=torch.arange(12).repeat_interleave(old.length_M[order_M]),
        group_M=torch.arange(3).repeat_interleave(4),
        reward_M=old.reward_M[order_M],
        truncated_M=old.truncated_M[order_M],
        reference_M=old.reference_M[order_M],
        rollout_logp_N=old.rollout_logp_N[order_N],
    )
    shuffled = replace(
        scores,
        logp_N={role: logp_N[order_N] for role, logp_N in scores.logp_N.items()},
        entropy_N={role: entropy_N[order_N] for role, entropy_N in scores.entropy_N.items()},
        statistic_N={key: value_N[order_N] for key, value_N in scores.statistic_N.items()},
        has_privilege_N=scores.has_privilege_N[order_N],
        ordinary_N=scores.ordinary_N[order_N],
        responses=moved,
    )
    (weight_RN, figures), (moved_RN, same) = method.weights(scores), method.weights(shuffled)
    torch.testing.assert_close(moved_RN, weight_RN[:, order_N], rtol=1e-6, atol=0)
    assert same == pytest.approx(figures, rel=1e-5)


@every_method
@pytest.mark.parametrize("lengths", [((),), ((0,),), ((1,),), ((0, 3), (2,)), ((1, 1, 1, 1),)], ids=str)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_edges_are_finite(name, lengths, share):
    """No token, one token, empty responses, groups of one; no p and all p, only special tokens and none."""
    method = methods.find(name)()
    for ordinary in (0.0, 1.0):
        scores = window(method, lengths, privileged=share, ordinary=ordinary)
        unasked = replace(scores.responses, reward_M=torch.full_like(scores.responses.reward_M, NAN))
        for one in (scores, replace(scores, responses=unasked)):
            weight_RN, figures = method.weights(one)
            assert weight_RN.shape == (len(method.components), sum(map(sum, lengths)))
            assert weight_RN.isfinite().all() and weight_RN.dtype == torch.float32
            assert all(isinstance(value, float) and math.isfinite(value) for value in figures.values()), figures


@every_method
def test_defaults_are_the_published_settings(name):
    """To be changed for a better source only; the methods that divide by tokens of their own choice are sums."""
    method = methods.find(name)()
    assert asdict(method) == DEFAULTS[name]
    assert method.reduction == DEFAULTS[name].get("reduction", "sum")
    assert method.needs_reward == (name in ("uni_opd", "sdpo"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("exopd", {"scale": -1.0}),
        ("exopd", {"cap": 0.0}),
        ("exopd", {"ratio_cap": 0.0}),
        ("uni_opd", {"margin": -0.1}),
        ("uni_opd", {"limit": 0.0}),
        ("uni_opd", {"clip_low": 1.5}),
        ("uni_opd", {"clip_high": -0.1}),
        ("sdft", {"ema_rate": 0.0}),
        ("sdft", {"skip": -1}),
        ("sdft", {"ratio_cap": 0.0}),
        ("opsd", {"temperature": 0.0}),
        ("opsd", {"ema_rate": 1.5}),
        ("sdpo", {"ema_rate": 0.0}),
        ("sdpo", {"ratio_cap": -1.0}),
        ("eopd", {"alpha": -1.0}),
        ("eopd", {"clip": 2.0}),
        ("tip", {"share": 0.0}),
        ("tip", {"share": 1.1}),
        ("ta_opd", {"share": 0.0}),
        ("ta_opd", {"k": 0}),
        ("ta_opd", {"ratio_cap": 0.0}),
        ("reopold", {"mixture": 0.0}),
        ("reopold", {"mixture": 0.7}),
        ("reopold", {"share": 2.0}),
        ("reopold", {"switch": 1.5}),
        ("reopold", {"ratio_cap": 0.0}),
    ],
    ids=str,
)
def test_impossible_options_are_refused(name, options):
    """One line that names the option."""
    with pytest.raises(ValueError, match=next(iter(options))):
        methods.find(name)(**options)
