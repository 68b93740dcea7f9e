"""Controls, limits and edges of DOPD, of its improvements and of vanilla OPD's settings."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.test_methods import reordered
from tests.windows import window
from vlm_dopd.config import RunConfig, save_config
from vlm_dopd.errors import ConfigError
from vlm_dopd.methods import (
    STUDENT_PLAIN,
    STUDENT_PRIVILEGED,
    TEACHER_PLAIN,
    TEACHER_PRIVILEGED,
    Component,
    Role,
    available,
    find,
)
from vlm_dopd.methods._ablations import draws
from vlm_dopd.methods.dopd import DOPD
from vlm_dopd.methods.dopd_plus import DOPDPlus
from vlm_dopd.methods.opd import OPD
from vlm_dopd.routing import Regime

LENGTHS = [[40, 7, 13], [25], [30, 30, 9, 1], [60, 60]]
GAPS = (STUDENT_PRIVILEGED, TEACHER_PRIVILEGED)


def with_scores(method, student, teacher, privileged=None, ordinary=None, **fields):
    """One response whose tokens have these log-probabilities under S⁺ and T⁺."""
    scores = window(method, [[len(student)]])
    logp = {STUDENT_PRIVILEGED: torch.tensor(student), TEACHER_PRIVILEGED: torch.tensor(teacher)}
    flags = {"has_privilege_N": privileged, "ordinary_N": ordinary}
    flags = {name: torch.tensor(value or [True] * len(student)) for name, value in flags.items()}
    return dataclasses.replace(scores, logp_N=scores.logp_N | logp, **flags, **fields)


def names(weight_RN):
    return [Regime(row).name for row in weight_RN.argmax(0).tolist()]


# The random route


def regimes_of(scores, **options):
    return DOPD(**options).weights(scores)[0].argmax(0)


def test_the_random_route_deals_out_the_windows_own_regimes():
    """As many tokens of each regime as by the gap, on other tokens; rows without p stay vanilla; shares in the log."""
    scores = window(DOPD(), LENGTHS)
    by_gap_N, random_N = regimes_of(scores), regimes_of(scores, route="random")
    assert torch.equal(by_gap_N.bincount(minlength=5), random_N.bincount(minlength=5))
    assert torch.equal(by_gap_N == Regime.NP, random_N == Regime.NP)
    assert (by_gap_N != random_N).float().mean() > 0.3
    figures = [DOPD(route=route).weights(scores)[1] for route in ("gap", "random")]
    certain = [its.pop("guard/certain_in_HS") for its in figures]  # of the tokens that are in HS now
    assert figures[0] == figures[1] and certain[0] != certain[1]


def test_the_random_route_is_a_matter_of_seed_step_and_place_alone():
    """No shared generator is read or moved; another seed or step deals anew; the scores have no say in it."""
    scores = window(DOPD(), LENGTHS, privileged=2.0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first_N = regimes_of(scores, route="random")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(regimes_of(scores, route="random"), first_N)
    assert not torch.equal(regimes_of(scores, route="random", seed=1), first_N)
    assert not torch.equal(regimes_of(dataclasses.replace(scores, progress=0.26), route="random"), first_N)
    # A lot that knew of the scores would hit a token's own regime more often, or less, than chance does.
    hits = [
        (regimes_of(dataclasses.replace(scores, progress=i / 60), route="random") == regimes_of(scores)).float().mean()
        for i in range(60)
    ]
    share_R = regimes_of(scores).bincount(minlength=5) / sum(map(sum, LENGTHS))
    assert torch.stack(hits).mean().item() == pytest.approx(share_R.square().sum().item(), abs=0.02)


def test_lots_of_groups_siblings_and_positions_are_all_different():
    """No two responses draw alike, of one length in one place of their groups as they may be."""
    draw_1N = draws(window(DOPD(), [[5, 5, 5], [5, 5], [5]]), seed=0)
    assert draw_1N.shape == (1, 30) and draw_1N.unique().numel() == 30


def test_the_random_route_takes_in_rows_without_p_that_are_routed():
    """They are dealt regimes like all others, and the figures of the gap are over them as well."""
    scores = window(DOPD(), LENGTHS, seed=1, privileged=0.3)
    by_gap_N, random_N = (regimes_of(scores, route=route, route_without_p=True) for route in ("gap", "random"))
    assert torch.equal(by_gap_N.bincount(minlength=5), random_N.bincount(minlength=5))
    for side_N in (scores.has_privilege_N, ~scores.has_privilege_N):
        assert (by_gap_N != random_N)[side_N].float().mean() > 0.3
    figures = DOPD(route_without_p=True).weights(scores)[1]
    gap_N = (scores.logp_N[STUDENT_PRIVILEGED] - scores.logp_N[TEACHER_PRIVILEGED]).abs()
    assert figures["gap/mean"] == pytest.approx(gap_N.mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        DOPD(route="random"),
        DOPD(stat_mean="response", trim=0.3),
        DOPDPlus(route="random", softness=0.3, guard=True),
        DOPDPlus(gap="js", gap_quantile=0.6, confidence_quantile=0.5),
        DOPDPlus(gap="difference", route_without_p=True),
        OPD(drop="random"),
        OPD(drop="lowest_gap"),
        OPD(drop="highest_gap"),
    ],
    ids=str,
)
def test_nothing_depends_on_the_order_of_responses(method):
    """A token's weights move with its response, bit for bit, siblings in the order they had."""
    scores = window(method, LENGTHS, seed=4)
    order_N, responses = reordered(scores.responses, seed=0, siblings=False)
    columns = {
        name: {key: value_N[order_N] for key, value_N in getattr(scores, name).items()}
        for name in ("logp_N", "entropy_N", "statistic_N")
    }
    flags = {name: getattr(scores, name)[order_N] for name in ("has_privilege_N", "ordinary_N")}
    moved = dataclasses.replace(scores, responses=responses, **columns, **flags)
    assert torch.equal(method.weights(moved)[0], method.weights(scores)[0][:, order_N])


def test_gaps_are_compared_in_float64():
    """3 − 1e-8 and 3 are one float32, but the first is below their mean."""
    assert names(DOPD().weights(with_scores(DOPD(), [-1e-8, 0.0], [-3.0, -3.0]))[0]) == ["LL", "HS"]


def test_whose_top_k_is_a_setting_of_every_regime_that_has_one():
    """That of LH, LL and HS and of rows without p; the full vocabulary of HT has no K unless it is ablated."""
    for settings, owned in (({}, [True, True, False, True, True]), ({"strategy": "topk"}, [True] * 5)):
        owners = [component.divergence.owner for component in DOPD(owner="target", **settings).components]
        assert owners == ["target" if one else "student" for one in owned]


# Improvements


@given(st.integers(0, 2**16), st.sampled_from([0.6, 2.0]))
def test_softness_to_zero_is_the_hard_route(seed, privileged):
    """At 1e-9 nats only ties are undecided; every token's shares sum to 1, whatever the softness."""
    hard = DOPDPlus(beta_light=1.0, beta_weak=1.0)
    scores = window(hard, [[30]], seed, privileged=privileged)
    hard_RN, _ = hard.weights(scores)
    assert torch.allclose(dataclasses.replace(hard, softness=1e-9).weights(scores)[0], hard_RN, atol=1e-6)
    soft_RN, figures = dataclasses.replace(hard, softness=1.0).weights(scores)
    assert torch.allclose(soft_RN.sum(0), torch.ones(30)) and ((soft_RN >= 0) & (soft_RN <= 1)).all()
    assert sum(figures[f"share/{regime.name}"] for regime in Regime) == pytest.approx(1, rel=1e-5)


def test_guard_sends_a_certain_teachers_rejections_to_it():
    """Entropies 0.1 0.2 0.3 1 2: below the median 0.3 are two tokens, of which the first is HS. Two HS tokens stay."""
    student, teacher = [-0.1, -3.0, -0.2, -0.1, -1.0], [-6.0, -0.1, -6.0, -7.0, -1.1]
    entropy = dict(zip(GAPS, torch.tensor([[0.0] * 5, [0.1, 0.2, 0.3, 1.0, 2.0]]), strict=True))
    scores = with_scores(DOPDPlus(), student, teacher, entropy_N=entropy)
    at = {"gap_quantile": 0.25}
    off_RN, off = DOPDPlus(**at).weights(scores)
    on_RN, on = DOPDPlus(**at, guard=True).weights(scores)
    assert names(off_RN) == ["HS", "HT", "HS", "HS", "LL"] and names(on_RN) == ["HT", "HT", "HS", "HS", "LL"]
    assert on_RN[:, 0].tolist() == [0, 0, 1, 0, 0]
    assert on["guard/certain_in_HS"] == off["guard/certain_in_HS"] == pytest.approx(1 / 3)


def test_equal_opinions_are_nothing_for_the_guard():
    """q_T = q_S is HT by the paper's ≥, however certain the teacher is: the figure counts the one token of HS alone."""
    entropy = {TEACHER_PRIVILEGED: torch.tensor([0.1, 0.2, 3.0, 4.0]), STUDENT_PRIVILEGED: torch.zeros(4)}
    method = DOPDPlus(gap_quantile=0.0)
    scores = with_scores(method, [-1.0, -1.0, -1.0, -1.0], [-1.0, -1.0, -1.0, -3.0], entropy_N=entropy)
    weight_RN, figures = method.weights(scores)
    assert names(weight_RN) == ["HT", "HT", "HT", "HS"] and figures["guard/certain_in_HS"] == 0


def test_median_entropy_is_that_of_ordinary_tokens_with_p():
    """Two outsiders of low entropy do not lower the median: the certain token is still below it."""
    entropy = {
        TEACHER_PRIVILEGED: torch.tensor([0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 0.0]),
        STUDENT_PRIVILEGED: torch.zeros(7),
    }
    flags = [True, True, True, True, True, False, False], [True, True, True, False, False, True, True]
    method = DOPDPlus(guard=True, gap_quantile=0.0)
    weight_RN, _ = method.weights(with_scores(method, [-0.1] * 7, [-4.0] * 7, *flags, entropy_N=entropy))
    assert names(weight_RN) == ["HT", "HS", "HS", "HT", "HT", "NP", "NP"]


def test_thresholds_remember_earlier_windows():
    """Gap 2, then 6 at rate ¼: 2, then 2 + (6 − 2)/4 = 3, so that a gap of 4 is high. Confidence likewise."""
    method = DOPDPlus(threshold_rate=0.25, trim=0.0)
    state: dict[str, float] = {}
    method.weights(with_scores(method, [-1.0, -1.0], [-3.0, -3.0], state=state))
    first = math.exp(-1) + math.exp(-3)
    assert state == pytest.approx({"threshold/gap": 2.0, "threshold/confidence": first})
    scores = with_scores(method, [-1.0, -1.0], [-5.0, -9.0], state=state)
    assert names(DOPDPlus(trim=0.0).weights(scores)[0]) == ["LH", "HS"] and state["threshold/gap"] == 2.0
    assert names(method.weights(scores)[0]) == ["HS", "HS"]
    second = math.exp(-1) + (math.exp(-5) + math.exp(-9)) / 2
    assert state == pytest.approx({"threshold/gap": 3.0, "threshold/confidence": first + (second - first) / 4})
    before = dict(state)
    method.weights(with_scores(method, [-1.0], [-9.0], [False], state=state))
    assert state == before, "a window without p teaches no threshold"


@given(st.integers(0, 2**16), st.integers(0, 128), st.sampled_from(["log_ratio", "js", "difference"]))
def test_a_quantile_fixes_the_share_of_high_gaps(seed, level, gap):
    """Of 65 counted tokens those at or above the quantile are high, whatever gap it is of."""
    method = DOPDPlus(gap=gap, gap_quantile=level / 128)
    weight_RN, _ = method.weights(window(method, [[65]], seed, privileged=2.0, ordinary=2.0))
    high = ((weight_RN[Regime.HT] > 0) | (weight_RN[Regime.HS] > 0)).sum().item()
    assert high == 65 - math.ceil(level / 2)


def test_roles_are_what_the_switches_need():
    """Plain views for the difference, a copy where it is a target and only there; the gap stays the live student's."""
    ema = Role("ema", "privileged")
    assert DOPDPlus(gap="difference").roles == (*GAPS, STUDENT_PLAIN, TEACHER_PLAIN)
    assert DOPDPlus(self_teacher="ema").roles == (*GAPS, ema)
    assert DOPDPlus(self_teacher="ema", target="teacher").roles == GAPS
    targets = [component.target for component in DOPDPlus(self_teacher="ema").components]
    assert targets == [TEACHER_PRIVILEGED, ema, TEACHER_PRIVILEGED, ema, TEACHER_PRIVILEGED]
    assert [s.name for s in DOPDPlus(gap="js").statistics] == ["gap"] and not DOPDPlus(gap="difference").statistics


def test_merged_stops_are_off_unless_asked_for():
    """No method merges them of itself; it takes no part in routing."""
    assert not any(find(name)().merge_stops for name in available())
    method = DOPDPlus(merge_stops=True)
    assert (method.roles, method.components, method.strengths) == (GAPS, DOPD().components, DOPD().strengths)


def test_matched_scales_agree_where_student_and_target_do():
    """Near S = T four times JS is the reverse KL: their ratio goes to 1 with the square of the distance."""
    js, rkl = (DOPDPlus(match_scales=True).components[r].divergence for r in (Regime.HT, Regime.LH))
    student_V = torch.randn(1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bump_V = torch.randn(1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sides = [x.log_softmax(-1) for x in (student_V, student_V + 1e-4 * bump_V)]
    ratio = DOPDPlus(match_scales=True).strengths[Regime.HT] * js(*sides, None) / rkl(*sides, None)
    assert ratio.item() == pytest.approx(1, abs=1e-3)


# Vanilla OPD's settings

# Gaps 4 1 5 2 3 with p, then two rows without p that would be the extremes.
STUDENT, TEACHER = [-5.0, -2.0, -6.0, -3.0, -1.0, -9.0, -1.0], [-1.0, -1.0, -1.0, -1.0, -4.0, -1.0, -1.0]
P = [True] * 5 + [False] * 2


@pytest.mark.parametrize(
    ("drop", "share", "expected"),
    [
        ("none", 0.2, [1, 1, 1, 1, 1, 1, 1]),
        ("highest_gap", 0.2, [1, 1, 0, 1, 1, 1, 1]),
        ("lowest_gap", 0.2, [1, 0, 1, 1, 1, 1, 1]),
        ("highest_gap", 0.4, [0, 1, 0, 1, 1, 1, 1]),
        ("lowest_gap", 0.79, [1, 0, 1, 0, 0, 1, 1]),
    ],
)
def test_opd_drops_a_share_by_gap(drop, share, expected):
    """Rows without p have no gap: they are neither dropped nor counted. Rounding keeps a token rather than drops it."""
    weight_RN, figures = OPD(drop=drop, drop_share=share).weights(with_scores(OPD(drop=drop), STUDENT, TEACHER, P))
    assert weight_RN.tolist() == [expected] and weight_RN.dtype == torch.float32
    assert figures == ({} if drop == "none" else {"share/kept": pytest.approx(sum(expected) / 7)})


def test_opd_drops_special_tokens_by_the_border_of_the_others():
    """Gaps 4 1 5 2 3 with the 5 special: it does not count, but lies beyond the border that the 4 is the first over."""
    method = OPD(drop="highest_gap", drop_share=0.25)
    weight_RN, _ = method.weights(
        with_scores(method, STUDENT[:5], TEACHER[:5], ordinary=[True, True, False, True, True])
    )
    assert weight_RN.tolist() == [[0, 1, 0, 1, 1]]


@pytest.mark.parametrize("drop", ["random", "lowest_gap", "highest_gap"])
def test_opd_drops_as_much_as_told(drop):
    """A fifth of 100 ordinary tokens with p; equal gaps share the burden; nothing to drop from is nothing dropped."""
    method = OPD(drop=drop)
    scores = window(method, [[40, 60]], privileged=2.0, ordinary=2.0)
    weight_RN, figures = method.weights(scores)
    assert sorted(weight_RN[0].tolist()) == [0.0] * 20 + [1.0] * 80 and figures["share/kept"] == pytest.approx(0.8)
    if drop == "random":
        assert not torch.equal(OPD(drop=drop, seed=1).weights(scores)[0], weight_RN)
        return
    equal = dataclasses.replace(scores, logp_N={role: torch.zeros(100) for role in method.roles})
    assert torch.allclose(method.weights(equal)[0], torch.full((1, 100), 0.8))
    nobody = dataclasses.replace(scores, has_privilege_N=torch.zeros(100, dtype=torch.bool))
    assert torch.equal(method.weights(nobody)[0], torch.ones(1, 100))


def test_opd_views_are_those_of_the_illusion():
    """p to the teacher, the student or both: the target's view, the prompt of rollouts and of the gradient's pass."""
    for teacher, student in (("plain", "plain"), ("privileged", "plain"), ("plain", "privileged"), ("privileged",) * 2):
        method = OPD(teacher_view=teacher, student_view=student)
        assert method.roles == (Role("teacher", teacher),) and method.rollout_view == student
        assert method.components == (
            Component("OPD", Role("teacher", teacher), OPD().components[0].divergence, student_view=student),
        )
    assert OPD(drop="lowest_gap").roles == (TEACHER_PLAIN, *GAPS)
    assert set(OPD(drop="highest_gap", teacher_view="privileged").roles) == set(GAPS)
    assert OPD(drop="random").roles == (TEACHER_PLAIN,)


# Edges and options

EVERY_SWITCH = {"guard": True, "match_scales": True, "cap": 0.05, "self_teacher": "initial", "threshold_rate": 0.5}


@pytest.mark.parametrize("lengths", [[[0]], [[1]], [[2, 0], [1]]], ids=str)
@pytest.mark.parametrize("privileged", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("gap", ["log_ratio", "js", "difference"])
@pytest.mark.parametrize("softness", [0.0, 0.5])
@pytest.mark.parametrize("equal", [False, True])
def test_small_and_equal_windows_stay_finite(lengths, privileged, gap, softness, equal):
    """No token, one, none with p, all scores the same: finite weights without gradient, finite figures."""
    method = DOPDPlus(gap=gap, softness=softness, gap_quantile=0.5, confidence_quantile=0.5, **EVERY_SWITCH)
    scores = window(method, lengths, privileged=privileged)
    if equal:
        scores = dataclasses.replace(
            scores, logp_N={role: torch.full_like(x, -1.0) for role, x in scores.logp_N.items()}
        )
        scores = dataclasses.replace(
            scores, statistic_N={k: torch.zeros_like(x) for k, x in scores.statistic_N.items()}
        )
    for score_N in (*scores.logp_N.values(), *scores.entropy_N.values(), *scores.statistic_N.values()):
        score_N.requires_grad_()
    weight_RN, figures = method.weights(scores)
    assert weight_RN.isfinite().all() and weight_RN.dtype == torch.float32 and not weight_RN.requires_grad
    assert all(isinstance(x, float) and math.isfinite(x) for x in (*figures.values(), *scores.state.values()))


@pytest.mark.parametrize(
    ("method", "options", "field"),
    [
        (DOPD, {"regimes": ("LH", "NP")}, "regimes"),
        (DOPD, {"regimes": ()}, "regimes"),
        (DOPD, {"adaptive": False, "objective": "rkl"}, "adaptive"),
        (DOPD, {"adaptive": False, "strategy": "full"}, "adaptive"),
        *((DOPDPlus, {name: bad}, name) for name in ("gap_quantile", "confidence_quantile") for bad in (-0.1, 1.1)),
        *((DOPDPlus, {name: bad}, name) for name in ("threshold_rate", "ema_rate") for bad in (0.0, 1.1)),
        *((DOPDPlus, {"softness": bad}, "softness") for bad in (-1.0, math.inf, math.nan)),
        (DOPDPlus, {"trim": 1.0}, "trim"),
        *((OPD, {"drop_share": bad}, "drop_share") for bad in (0.0, 1.0)),
    ],
    ids=str,
)
def test_impossible_options_are_refused(method, options, field):
    """One line that names the field and the value."""
    with pytest.raises(ValueError, match=rf"^{field}: .*got [^\n]*$"):
        method(**options)


def test_settings_go_through_a_saved_configuration(tmp_path):
    """Lists become tuples, numbers and nulls stay; a wrong regime, or a divergence that is none, is a ConfigError."""
    options = {"name": "dopd_plus", "regimes": ["HT", "LH"], "gap_quantile": 0.75, "cap": None, "gap": "js"}
    method = RunConfig(method=options).build_method()
    assert method == DOPDPlus(regimes=("HT", "LH"), gap_quantile=0.75, gap="js")
    save_config(RunConfig(method=options), tmp_path / "config.yaml")
    saved = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    assert RunConfig(method=saved["method"]).build_method() == method
    for wrong, message in (({"regimes": ["HH"]}, "HH"), ({"strategy": "sampled", "cap": 0.05}, "cap")):
        with pytest.raises(ConfigError, match=message):
            RunConfig(method={"name": "dopd_plus", **wrong}).build_method()
