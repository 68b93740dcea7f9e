"""Methods: what every method promises the trainer, and DOPD's table of targets, divergences and strengths."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny, windows
from vlm_dopd import methods
from vlm_dopd.config import RunConfig, load_config, save_config
from vlm_dopd.divergences import Divergence
from vlm_dopd.errors import ConfigError
from vlm_dopd.methods import STUDENT_PRIVILEGED, TEACHER_PLAIN, TEACHER_PRIVILEGED, Component, Role, View
from vlm_dopd.methods.dopd import DOPD
from vlm_dopd.methods.opd import OPD
from vlm_dopd.routing import Regime

REST = [
    f"model.student={tiny.ASSETS / 'student'}",
    f"model.teacher={tiny.ASSETS / 'teacher'}",
    f"data.train={tiny.TEXT}",
]
every_method = pytest.mark.parametrize("name", methods.available())


def window(method, count, seed=0, privileged=None, ordinary=None):
    """A random window of `count` tokens: groups of up to three responses, of up to seven tokens."""
    lengths = [7] * (count // 7) + [count % 7]
    scores = windows.window(method, [lengths[i : i + 3] for i in range(0, len(lengths), 3)], seed)
    given = {"has_privilege_N": privileged, "ordinary_N": ordinary}
    flags = {name: torch.as_tensor(value, dtype=torch.bool) for name, value in given.items() if value is not None}
    return dataclasses.replace(scores, **flags)


def dopd_window(q_s, q_t, privileged=None, ordinary=None):
    """A window whose sampled tokens have these probabilities under S⁺ and T⁺."""
    count = len(q_s)
    scores = window(DOPD(), count, privileged=privileged or [True] * count, ordinary=ordinary or [True] * count)
    logp = {STUDENT_PRIVILEGED: torch.tensor(q_s).log(), TEACHER_PRIVILEGED: torch.tensor(q_t).log()}
    return dataclasses.replace(scores, logp_N=logp)


# Every method


@every_method
def test_options_round_trip(name, tmp_path):
    """A method is rebuilt from its own fields and from a saved configuration, and cannot change afterwards."""
    method = methods.find(name)()
    assert type(method)(**dataclasses.asdict(method)) == method
    config = RunConfig(method={"name": name})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", REST).build_method() == method
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.reduction = "other"


@every_method
def test_roles_and_components_fit_together(name):
    """Roles are distinct, every target is a role that gets scored, names are distinct, divergences are valid.

    Gradient flows where it is declared and nowhere else: one view of the student a component, and a target or none.
    """
    method = methods.find(name)()
    assert len(set(method.roles)) == len(method.roles)
    assert all(isinstance(role, Role) for role in method.roles)
    assert {component.target for component in method.components} <= {None, *method.roles}
    assert all((c.target is None) != c.divergence.has_target for c in method.components)
    assert all(role in method.roles for s in method.statistics for role in (s.first, s.second))
    assert {c.student_view for c in method.components} <= set(get_args(View))
    assert len({component.name for component in method.components}) == len(method.components) > 0
    assert all(isinstance(component.divergence, Divergence) for component in method.components)
    assert method.components == method.components and method.reduction in ("seq_mean", "token_mean", "sum")


@every_method
@pytest.mark.parametrize("count", [0, 1, 7, 60])
@pytest.mark.parametrize("privileged", [None, True, False], ids=["mixed", "all p", "no p"])
def test_weights_have_one_row_a_component_and_no_gradient(name, count, privileged):
    """[R, N], floating, finite, detached from scores that have a gradient; figures are finite floats.

    Only an advantage, the weight of a loss without target, may be negative: else a token is pushed off its target.
    """
    method = methods.find(name)()
    scores = window(method, count, privileged=None if privileged is None else [privileged] * count)
    for score_N in (*scores.logp_N.values(), *scores.entropy_N.values()):
        score_N.requires_grad_()
    weight_RN, figures = method.weights(scores)
    assert weight_RN.shape == (len(method.components), count)
    assert weight_RN.is_floating_point() and not weight_RN.requires_grad
    advantage_R = torch.tensor([component.target is None for component in method.components])
    assert weight_RN.isfinite().all() and (weight_RN[~advantage_R] >= 0).all()
    assert all(isinstance(value, float) and math.isfinite(value) for value in figures.values()), figures


@pytest.mark.parametrize("name", ["dopd", "opd"])
def test_hard_routing_loses_no_token(name):
    """Each column of the weights has exactly one positive entry."""
    method = methods.find(name)()
    weight_RN, _ = method.weights(window(method, 200, seed=1))
    assert ((weight_RN > 0).sum(0) == 1).all()


def reordered(responses, seed, siblings=True):
    """The responses in another order, and the order of the tokens that goes with it; else siblings stay together."""
    order_M = torch.randperm(responses.group_M.numel(), generator=torch.Generator().manual_seed(seed))
    if not siblings:
        order_M = order_M[responses.group_M].argsort(stable=True)
    rank_M = order_M.argsort()
    order_N = rank_M[responses.response_N].argsort(stable=True)
    columns = {field.name: getattr(responses, field.name) for field in dataclasses.fields(responses)}
    moved = {name: value[order_N if name.endswith("_N") else order_M] for name, value in columns.items()}
    return order_N, dataclasses.replace(responses, **moved | {"response_N": rank_M[moved["response_N"]]})


@every_method
def test_weights_do_not_depend_on_the_order_of_tokens(name):
    """Micro-batches and ranks may arrive in any order: a token's weights move with it, figures stay."""
    method = methods.find(name)()
    scores = window(method, 120, seed=2)
    order, responses = reordered(scores.responses, seed=3)
    columns = {
        name: {key: value_N[order] for key, value_N in getattr(scores, name).items()}
        for name in ("logp_N", "entropy_N", "statistic_N")
    }
    flags = {name: getattr(scores, name)[order] for name in ("has_privilege_N", "ordinary_N")}
    shuffled = dataclasses.replace(scores, responses=responses, **columns, **flags)
    (weight_RN, figures), (moved_RN, same) = method.weights(scores), method.weights(shuffled)
    assert torch.equal(moved_RN, weight_RN[:, order])
    assert same == pytest.approx(figures, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dodp", "did you mean 'dopd'"),
        ("opdd", "did you mean 'opd'"),
        ("", "dopd, dopd_plus"),
        ("../opd", "unknown"),
    ],
)
def test_unknown_name_is_answered_with_a_suggestion(name, message):
    """A ConfigError that names the setting, the value and what comes close, or all there is."""
    with pytest.raises(ConfigError, match=rf"method\.name: method '{name}' is unknown.*") as caught:
        methods.find(name)
    assert message in str(caught.value)


def test_shipped_methods_are_found_by_file_name():
    """The two files of this folder are listed, and the classes are theirs."""
    assert {"dopd", "opd"} <= set(methods.available())
    assert methods.find("dopd") is DOPD and methods.find("opd") is OPD


# OPD


def test_opd_supervises_every_token_alike():
    """One component, the teacher on the plain prompt, weight 1 everywhere: p and special tokens play no part."""
    method = OPD(divergence="js", support="full", closure="renorm", k=7)
    expected = Divergence(kind="js", support="full", closure="renorm", k=7)
    assert method.roles == (TEACHER_PLAIN,)
    assert method.components == (Component("OPD", TEACHER_PLAIN, expected),)
    weight_RN, _ = method.weights(window(method, 9))
    assert torch.equal(weight_RN, torch.ones(1, 9))


# DOPD

# Six tokens with p, and one without. Mean gap 10.3213/6 = 1.7202 nats, confidence threshold 5.71/6 = 0.9517.
# A        0.118 0.223 4.382 2.890 2.197 0.511
Q_S = [0.80, 0.20, 0.01, 0.90, 0.10, 0.50, 0.30]
Q_T = [0.90, 0.25, 0.80, 0.05, 0.90, 0.30, 0.90]
REGIMES = ["LH", "LL", "HT", "HS", "HT", "LL", "NP"]
PRIVILEGED = [True] * 6 + [False]


def test_dopd_components_are_the_papers_table():
    """Per regime: whose opinion is the target, and which divergence. In the order of Regime."""
    topk, js = Divergence(kind="rkl", support="topk", closure="raw_sg", k=32), Divergence(kind="js", support="full")
    assert DOPD(closure="raw_sg", k=32).components == (
        Component("LH", TEACHER_PRIVILEGED, topk),
        Component("LL", STUDENT_PRIVILEGED, topk),
        Component("HT", TEACHER_PRIVILEGED, js),
        Component("HS", STUDENT_PRIVILEGED, topk),
        Component("NP", TEACHER_PRIVILEGED, topk),
    )
    assert [component.name for component in DOPD().components] == [regime.name for regime in Regime]
    assert js.beta == 0.5 and DOPD().k == 128


@pytest.mark.parametrize(
    ("options", "strengths"),
    [
        ({}, {"LH": 0.6, "LL": 0.3, "HT": 1.0, "HS": 0.6, "NP": 1.0}),
        ({"beta_light": 0.5, "beta_weak": 0.2}, {"LH": 0.5, "LL": 0.2, "HT": 1.0, "HS": 0.5, "NP": 1.0}),
    ],
    ids=["paper", "other strengths"],
)
def test_dopd_gives_each_regime_its_own_strength(options, strengths):
    """A token of each regime has its β on its own component and nothing on the others."""
    weight_RN, figures = DOPD(**options).weights(dopd_window(Q_S, Q_T, PRIVILEGED))
    for n, name in enumerate(REGIMES):
        expected = [strengths[name] if regime.name == name else 0.0 for regime in Regime]
        assert weight_RN[:, n].tolist() == pytest.approx(expected), name
    shares = {f"share/{regime.name}": REGIMES.count(regime.name) / 7 for regime in Regime}
    assert {name: figures[name] for name in shares} == pytest.approx(shares)


def test_dopd_trims_as_told():
    """Without the largest half of the gaps the mean is 0.2839: the sixth token's 0.511 is high, its student surer."""
    weight_RN, _ = DOPD(trim=0.5).weights(dopd_window(Q_S, Q_T, PRIVILEGED))
    assert [Regime(row).name for row in weight_RN.argmax(0).tolist()] == ["LH", "LL", "HT", "HS", "HT", "HS", "NP"]


@given(st.lists(st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1), st.booleans(), st.booleans()), min_size=1))
def test_dopd_routes_each_token_once(tokens):
    """Exactly one component a token, special tokens too; NP at weight 1 just where p is missing; shares sum to 1."""
    weight_RN, figures = DOPD().weights(dopd_window(*map(list, zip(*tokens, strict=True))))
    assert ((weight_RN != 0).sum(0) == 1).all()
    assert weight_RN[Regime.NP].tolist() == [0.0 if privileged else 1.0 for _, _, privileged, _ in tokens]
    assert sum(figures[f"share/{regime.name}"] for regime in Regime) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("outsider", ["special", "without p"])
@pytest.mark.parametrize(("q_s", "q_t"), [(1e-9, 1.0), (1.0, 1e-9), (1.0, 1.0)])
def test_dopd_statistics_skip_special_tokens_and_rows_without_privilege(outsider, q_s, q_t):
    """Ten outsiders with extreme scores move no other token's weight. A special token is routed all the same."""
    alone_RN, _ = DOPD().weights(dopd_window(Q_S, Q_T, PRIVILEGED))
    special = outsider == "special"
    mixed_RN, _ = DOPD().weights(
        dopd_window(Q_S + [q_s] * 10, Q_T + [q_t] * 10, PRIVILEGED + [special] * 10, [True] * 7 + [not special] * 10)
    )
    assert torch.equal(mixed_RN[:, :7], alone_RN)
    regime = Regime.NP if not special else Regime.LH if q_s == q_t else Regime.HT if q_t > q_s else Regime.HS
    assert (mixed_RN[:, 7:].argmax(0) == regime).all() and (mixed_RN[:, 7:].sum(0) > 0).all()


def test_dopd_without_any_privilege_is_vanilla():
    """No p in the window: every token has weight 1 on NP, whose divergence is vanilla OPD's, and no gap is logged."""
    method = DOPD()
    weight_RN, figures = method.weights(window(method, 30, privileged=[False] * 30))
    assert torch.equal(weight_RN[Regime.NP], torch.ones(30)) and weight_RN.sum() == 30
    assert method.components[Regime.NP].divergence == OPD().components[0].divergence
    assert not any(name.startswith("gap/") for name in figures)


def test_dopd_with_equal_scores_is_self_distillation():
    """Teacher = student: all tokens are HT at strength 1."""
    weight_RN, figures = DOPD().weights(dopd_window(Q_S, Q_S))
    assert torch.equal(weight_RN[Regime.HT], torch.ones(7)) and weight_RN.sum() == 7
    assert (figures["gap/mean"], figures["gap/p50"], figures["gap/p95"]) == (0, 0, 0)


def test_dopd_logs_the_gaps_of_rows_with_privilege():
    """Gaps 1, 2, 3 with p and 9 without: mean 2, median 2, 95 % at 2.9."""
    scores = window(DOPD(), 4, privileged=[True, True, True, False], ordinary=[True] * 4)
    logp = {STUDENT_PRIVILEGED: -torch.tensor([2.0, 1.0, 4.0, 9.0]), TEACHER_PRIVILEGED: -torch.tensor([1.0, 3, 1, 0])}
    _, figures = DOPD().weights(dataclasses.replace(scores, logp_N=logp))
    assert [figures[f"gap/{name}"] for name in ("mean", "p50", "p95")] == pytest.approx([2, 2, 2.9])


@pytest.mark.parametrize(
    "options",
    [{"trim": -0.1}, {"trim": 1.0}, {"trim": 5.0}, {"beta_light": -0.1}, {"beta_weak": -0.1}],
    ids=str,
)
def test_dopd_refuses_impossible_options(options):
    """A strength below 0, or a trim that leaves no gap: NaN thresholds would make every token LL without a word."""
    with pytest.raises(ValueError, match=next(iter(options))):
        DOPD(**options)
