"""Gap routing: six tokens by hand, the partition, the trim, and windows with nothing to compare."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests import reference
from vlm_dopd.routing import Regime, Thresholds, gaps, quantile, route, soft_route, thresholds

NOTHING = torch.empty(0)
probability = st.floats(2**-20, 1.0, width=32)
tokens = st.lists(st.tuples(probability, probability, st.booleans()), min_size=1, max_size=60)


def log(values):
    return torch.tensor(values, dtype=torch.float64).log()


def names(regime_N):
    return [Regime(regime).name for regime in regime_N.tolist()]


def route_window(student_N, teacher_N, privileged_N=None, trim=0.05):
    """Thresholds from the tokens with p, then the regime of all: what a method does."""
    privileged_N = torch.ones_like(student_N, dtype=torch.bool) if privileged_N is None else privileged_N
    at = thresholds(student_N[privileged_N], teacher_N[privileged_N], trim)
    return route(student_N, teacher_N, privileged_N, at)


# token     1       2       3       4       5       6
# q_S       0.8     0.2     0.1     0.6     0.5     0.9      sum 3.1, mean 0.5167
# q_T       0.9     0.25    0.8     0.2     0.45    0.001    sum 2.601, mean 0.4335; confidence threshold 0.9502
# A         0.1178  0.2231  2.0794  1.0986  0.1054  6.8024   sum 10.4267
# q_S+q_T   1.7     0.45    0.9     0.8     0.95    0.901
Q_S = [0.8, 0.2, 0.1, 0.6, 0.5, 0.9]
Q_T = [0.9, 0.25, 0.8, 0.2, 0.45, 0.001]
BY_HAND = {
    # mean gap 10.4267/6 = 1.7378: tokens 3 and 6 are high. 5 just misses the confidence: 0.95 < 0.9502
    "5 % of six drops nothing": (0.05, 1.7378, ["LH", "LL", "HT", "LL", "LL", "HS"]),
    # without token 6's gap 3.6243/5 = 0.7249: token 4 is high too, and its student is surer
    "20 % of six drops one": (0.2, 0.7249, ["LH", "LL", "HT", "HS", "LL", "HS"]),
}


@pytest.mark.parametrize(("trim", "gap", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_six_tokens_by_hand(trim, gap, expected):
    """Gaps, thresholds and regimes are those worked out with pen and paper, outlier kept and dropped."""
    student_N, teacher_N = log(Q_S), log(Q_T)
    assert gaps(student_N, teacher_N).tolist() == pytest.approx(
        [0.1178, 0.2231, 2.0794, 1.0986, 0.1054, 6.8024], abs=1e-4
    )
    at = thresholds(student_N, teacher_N, trim)
    assert (at.gap, at.confidence) == pytest.approx((gap, 0.9502), abs=1e-4)
    assert names(route_window(student_N, teacher_N, trim=trim)) == expected


# Token by token, at fixed thresholds: gap ln 2, confidence 1
AT = Thresholds(gap=math.log(2), confidence=1.0)
ONE_TOKEN = {
    "agree, sure": (0.6, 0.7, "LH"),
    "agree, unsure": (0.3, 0.2, "LL"),
    "agree, exactly as sure as the threshold": (0.5, 0.5, "LH"),
    "teacher surer": (0.1, 0.3, "HT"),
    "student surer": (0.3, 0.1, "HS"),
    "student surer, both unsure": (0.03, 0.01, "HS"),
    "gap exactly at the threshold, teacher surer": (0.25, 0.5, "HT"),
    "gap exactly at the threshold, student surer": (0.5, 0.25, "HS"),
}


@pytest.mark.parametrize(("q_s", "q_t", "expected"), ONE_TOKEN.values(), ids=ONE_TOKEN)
def test_table_of_regimes(q_s, q_t, expected):
    """Each condition of the table, and its ≥ on the boundary."""
    assert names(route(log([q_s]), log([q_t]), torch.tensor([True]), AT)) == [expected]
    assert names(route(log([q_s]), log([q_t]), torch.tensor([False]), AT)) == ["NP"]


@given(tokens)
def test_regimes_partition_the_tokens_and_equal_the_reference(window):
    """Every token has exactly one regime, NP just where p is missing, and it is the one of the naive loops."""
    q_s, q_t, privileged = map(list, zip(*window, strict=True))
    student_N, teacher_N, privileged_N = log(q_s), log(q_t), torch.tensor(privileged)
    regime_N = route_window(student_N, teacher_N, privileged_N)
    assert sum((regime_N == regime).sum().item() for regime in Regime) == len(window)
    assert torch.equal(regime_N == Regime.NP, ~privileged_N)
    at = thresholds(student_N[privileged_N], teacher_N[privileged_N])
    margins = torch.stack([gaps(student_N, teacher_N) - at.gap, student_N.exp() + teacher_N.exp() - at.confidence])
    assume((margins.abs() > 1e-9).all())  # ties are rounding's to decide
    assert names(regime_N) == reference.regimes(q_s, q_t, privileged, drop=sum(privileged) // 20)


@given(tokens, st.randoms(use_true_random=False), st.integers(1, 7))
def test_a_regime_does_not_depend_on_order_or_splitting(window, random, pieces):
    """Shuffled tokens have bit-identical thresholds; routing micro-batches one by one gives the same as all at once."""
    student_N, teacher_N = (torch.tensor([w[i] for w in window]).log() for i in (0, 1))
    privileged_N = torch.tensor([w[2] for w in window])
    regime_N = route_window(student_N, teacher_N, privileged_N)
    order = torch.tensor(random.sample(range(len(window)), len(window)))
    shuffled = student_N[order], teacher_N[order], privileged_N[order]
    assert torch.equal(route_window(*shuffled), regime_N[order])
    kept = shuffled[2]
    at = thresholds(shuffled[0][kept], shuffled[1][kept])
    assert at == thresholds(student_N[privileged_N], teacher_N[privileged_N])
    parts = [route(*part, at) for part in zip(*(x.chunk(pieces) for x in shuffled), strict=True)]
    assert torch.equal(torch.cat(parts), regime_N[order])


@pytest.mark.parametrize(("count", "dropped"), [(1, 0), (2, 0), (19, 0), (20, 1), (39, 1), (40, 2), (100, 5)])
def test_trim_drops_the_largest_five_percent_rounded_down(count, dropped):
    """Gaps 1..n: the mean is that of 1..n−dropped, and confidence is not trimmed."""
    gap_N = torch.arange(count, 0, -1, dtype=torch.float64)
    student_N = -gap_N - 1
    at = thresholds(student_N, torch.full_like(student_N, -1.0))
    assert at.gap == pytest.approx((count - dropped + 1) / 2, rel=1e-14)
    assert at.confidence == pytest.approx(student_N.exp().mean().item() + math.exp(-1), rel=1e-14)


EQUAL_GAPS = {
    "powers of two": (-2.0, -1.0, 50),
    "one token": (-0.3, -3.1, 1),
    "float32 scores": (-1.7, -0.9, 999),
    "a sure teacher": (-3.628286123275757, -7.902622556343886e-09, 5),
    "a sure student": (-7.072473717784078e-09, -2.9672319889068604, 7),
}


@pytest.mark.parametrize(("student", "teacher", "count"), EQUAL_GAPS.values(), ids=EQUAL_GAPS)
def test_equal_gaps_are_all_high(student, teacher, count):
    """With every gap the same, ≥ makes all tokens high: the mean may not round above its own values."""
    student_N, teacher_N = torch.full((count,), student), torch.full((count,), teacher)
    assert thresholds(student_N, teacher_N).gap == gaps(student_N.double(), teacher_N.double())[0].item()
    assert set(names(route_window(student_N, teacher_N))) == {"HT" if teacher > student else "HS"}


@given(st.lists(st.tuples(st.floats(-30, 0, width=32), st.floats(-30, 0, width=32)), min_size=1, max_size=19))
def test_the_largest_gap_is_always_high(scores):
    """No window is without a high token: a mean never exceeds the largest of its values."""
    student_N, teacher_N = (torch.tensor(column) for column in zip(*scores, strict=True))
    largest = gaps(student_N.double(), teacher_N.double()).argmax()
    assert route_window(student_N, teacher_N)[largest] in (Regime.HT, Regime.HS)


def test_teacher_equal_to_student_is_all_high_teacher():
    """No gap anywhere: the mean gap is 0, every token reaches it, and no student is surer (self-distillation)."""
    score_N = -torch.rand(50, generator=torch.Generator().manual_seed(0)) * 5
    assert thresholds(score_N, score_N).gap == 0
    assert set(names(route_window(score_N, score_N))) == {"HT"}


def test_nobody_has_privilege():
    """Nothing to compare: all tokens are NP, and thresholds of no tokens are out of reach instead of NaN."""
    assert thresholds(NOTHING, NOTHING) == Thresholds(gap=math.inf, confidence=math.inf)
    student_N, teacher_N = log(Q_S), log(Q_T)
    assert set(names(route_window(student_N, teacher_N, torch.zeros(6, dtype=torch.bool)))) == {"NP"}


def test_tokens_without_privilege_do_not_move_the_others():
    """NP tokens with any scores leave the regimes of the rest as they are by hand."""
    student_N = torch.cat([log(Q_S), log([1e-9, 1.0, 0.5])])
    teacher_N = torch.cat([log(Q_T), log([1.0, 1e-9, 0.5])])
    privileged_N = torch.tensor([True] * 6 + [False] * 3)
    assert names(route_window(student_N, teacher_N, privileged_N)) == [
        *BY_HAND["5 % of six drops nothing"][2],
        *["NP"] * 3,
    ]


def test_empty_window():
    """Zero response tokens give zero regimes, of the integer type that indexing needs."""
    regime_N = route_window(NOTHING, NOTHING)
    assert regime_N.shape == (0,) and regime_N.dtype == torch.int64


# Other readings of the thresholds

# Gaps 1 2 3 4 10, so trimming a fifth leaves 1 2 3 4. Responses: 1 | 2 3 | 4 10
FIVE = -torch.tensor([1.5, 2.5, 3.5, 4.5, 10.5], dtype=torch.float64)
RESPONSE = torch.tensor([0, 1, 1, 2, 2])
READINGS = {
    "mean of four": ({}, 2.5, 5),
    "10 lowered to 4": ({"winsor": True}, 2.8, 5),
    "means 1, 2.5 and 4": ({"response_N": RESPONSE}, 2.5, 5),
    "means 1 and 3, as if 4 were of the second": ({"response_N": torch.tensor([0, 1, 1, 1, 2])}, 2.0, 5),
    "means 1, 2.5 and 4 of five": ({"response_N": RESPONSE, "winsor": True}, 2.5, 5),
    "the surest student is not counted": ({"trim_all": True}, 2.5, 4),
}


@pytest.mark.parametrize(("options", "gap", "students"), READINGS.values(), ids=READINGS)
def test_readings_by_hand(options, gap, students):
    """Dropped, lowered, by response, and q trimmed as well: the four least sure students are the last."""
    teacher_N = torch.full_like(FIVE, -0.5)
    at = thresholds(FIVE, teacher_N, 0.2, **options)
    assert at.gap == pytest.approx(gap, rel=1e-14)
    q_N = FIVE.exp()[-students:]
    if "response_N" in options:
        number_N = options["response_N"]
        q_N = torch.stack([FIVE.exp()[number_N == number].mean() for number in number_N.unique()])
    assert at.confidence == pytest.approx(q_N.mean().item() + math.exp(-0.5), rel=1e-14)


@given(tokens, st.booleans(), st.booleans(), st.sampled_from([0.05, 0.5]), st.randoms(use_true_random=False))
def test_readings_do_not_depend_on_order(window, winsor, trim_all, trim, random):
    """Bit for bit, ties included, with tokens of seven responses in any order, and the responses in any order."""
    options = {"trim": trim, "winsor": winsor, "trim_all": trim_all}
    student_N, teacher_N = (torch.tensor([round(8 * w[i]) / 8 + 0.01 for w in window]).log() for i in (0, 1))
    response_N = torch.tensor([random.randrange(7) for _ in window])
    order = torch.tensor(random.sample(range(len(window)), len(window)))
    renamed_N = torch.tensor(random.sample(range(7), 7))[response_N][order]
    for number_N, moved_N in ((None, None), (response_N, renamed_N)):
        here = thresholds(student_N, teacher_N, **options, response_N=number_N)
        assert here == thresholds(student_N[order], teacher_N[order], **options, response_N=moved_N)
        assert here.gap <= gaps(student_N.double(), teacher_N.double()).max()


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30), st.floats(0, 1))
def test_quantile_is_that_of_torch(values, level):
    """Linear between order statistics; its ends are the extremes."""
    value_N = torch.tensor(values)
    assert quantile(value_N, level) == pytest.approx(value_N.double().quantile(level).item(), abs=1e-12)
    assert (quantile(value_N, 0), quantile(value_N, 1)) == (value_N.min().item(), value_N.max().item())


def test_quantile_of_nothing_reaches_nothing():
    """NaN: no value is below it, none above."""
    assert math.isnan(quantile(NOTHING, 0.5))


# Soft routing


def test_soft_shares_by_hand():
    """Softness ½ nat, q_S = 0.2, q_T = 0.6, thresholds at gap ln 2 and confidence 1, and at a gap of its own."""
    sides = log([0.2]), log([0.6]), torch.tensor([True]), AT, 0.5
    sure, teacher = 1 / (1 + (1 / 0.8) ** 2), 1 / (1 + (0.2 / 0.6) ** 2)
    for gap in (math.log(3), 0.1):
        high = 1 / (1 + (math.log(2) / gap) ** 2)
        expected = [(1 - high) * sure, (1 - high) * (1 - sure), high * teacher, high * (1 - teacher), 0]
        share_RN = soft_route(*sides, gap_N=None if gap > 1 else torch.tensor([gap]))
        assert share_RN[:, 0].tolist() == pytest.approx(expected, rel=1e-6)
    assert soft_route(*sides[:2], torch.tensor([False]), AT, 0.5)[:, 0].tolist() == [0, 0, 0, 0, 1]


@given(st.floats(1e-3, 10), st.floats(0.01, 5), st.floats(0.05, 3), st.floats(0.1, 10))
def test_soft_shares_grow_with_what_they_stand_for(gap, more, softness, scale):
    """A larger gap moves share from LH and LL to HT and HS; only its ratio to the threshold matters."""
    pair, p = (log([0.3]), log([0.5])), torch.tensor([True])
    at = Thresholds(gap=1.0, confidence=0.7)

    def shares(gap, at=at):
        return soft_route(*pair, p, at, softness, torch.tensor([gap], dtype=torch.float64))[:, 0]

    here, there = shares(gap), shares(gap + more)
    assert (there[: Regime.HT] <= here[: Regime.HT]).all() and (there[Regime.HT :] >= here[Regime.HT :]).all()
    scaled = shares(gap * scale, Thresholds(gap=scale, confidence=0.7))
    assert torch.allclose(scaled, here, rtol=1e-9) and here.sum() == pytest.approx(1)
