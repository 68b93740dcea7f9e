"""Divergences: worked by hand on three tokens, against a float64 reference, at their limits and at extreme logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import reference
from vlm_dopd.divergences import MAX_RATIO, Divergence

LN2, LN3 = math.log(2), math.log(3)
KINDS = ("fkl", "rkl", "js")
CELLS = [
    {"kind": kind, "support": support, "closure": closure}
    for kind in KINDS
    for support, closure in (
        ("full", "tail"),
        ("topk", "tail"),
        ("topk", "renorm"),
        ("topk", "raw"),
        ("topk", "raw_sg"),
        ("sampled", "tail"),
    )
    if closure != "raw_sg" or kind == "rkl"
]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda c: "-".join(c.values()))
logits = st.lists(st.floats(-12, 12, width=32), min_size=6, max_size=6)


def evaluate(divergence, student, target, token=None, dtype=torch.float64):
    """Values and gradient in the student's logits, over rows of logits."""
    student_NV = torch.as_tensor(student, dtype=dtype).detach().clone().requires_grad_()
    target_NV = torch.as_tensor(target, dtype=dtype)
    token_N = torch.zeros(len(student_NV), dtype=torch.long) if token is None else torch.as_tensor(token)
    value_N = divergence(student_NV.log_softmax(-1), target_NV.log_softmax(-1), token_N)
    value_N.sum().backward()
    return value_N.detach(), student_NV.grad


def random_logits(seed, rows=4, columns=9, scale=2.0):
    return torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


# S = (1/2, 1/3, 1/6) and T = (1/4, 1/4, 1/2), so M = (3/8, 7/24, 1/3).
S3 = [math.log(1 / 2), math.log(1 / 3), math.log(1 / 6)]
T3 = [math.log(1 / 4), math.log(1 / 4), math.log(1 / 2)]
BY_HAND = {
    # Σ T log T/S: T/S = 1/2, 3/4, 3
    "fkl full": (Divergence(kind="fkl", support="full"), -LN2 / 4 + math.log(3 / 4) / 4 + LN3 / 2),
    # Σ S log S/T: S/T = 2, 4/3, 1/3
    "rkl full": (Divergence(kind="rkl", support="full"), LN2 / 2 + math.log(4 / 3) / 3 - LN3 / 6),
    # T/M = 2/3, 6/7, 3/2 and S/M = 4/3, 8/7, 1/2
    "js full": (
        Divergence(kind="js", support="full"),
        (math.log(2 / 3) / 4 + math.log(6 / 7) / 4 + math.log(3 / 2) / 2) / 2
        + (math.log(4 / 3) / 2 + math.log(8 / 7) / 3 - LN2 / 6) / 2,
    ),
    # Tail, K = 1: the student's best token and the rest, S = (1/2, 1/2), T = (1/4, 3/4), M = (3/8, 5/8)
    "fkl tail": (Divergence(kind="fkl", k=1), -LN2 / 4 + math.log(3 / 2) * 3 / 4),
    "rkl tail": (Divergence(kind="rkl", k=1), LN2 / 2 + math.log(2 / 3) / 2),
    "js tail": (
        Divergence(kind="js", k=1),
        (math.log(2 / 3) / 4 + math.log(6 / 5) * 3 / 4) / 2 + (math.log(4 / 3) / 2 + math.log(4 / 5) / 2) / 2,
    ),
    # Renorm, K = 2: S = (3/5, 2/5), T = (1/2, 1/2), M = (11/20, 9/20)
    "fkl renorm": (Divergence(kind="fkl", k=2, closure="renorm"), math.log(5 / 6) / 2 + math.log(5 / 4) / 2),
    "rkl renorm": (Divergence(kind="rkl", k=2, closure="renorm"), math.log(6 / 5) * 3 / 5 + math.log(4 / 5) * 2 / 5),
    "js renorm": (
        Divergence(kind="js", k=2, closure="renorm"),
        (math.log(10 / 11) / 2 + math.log(10 / 9) / 2) / 2 + (math.log(12 / 11) * 3 / 5 + math.log(8 / 9) * 2 / 5) / 2,
    ),
    # Raw, K = 2: the full sums without their last term
    "fkl raw": (Divergence(kind="fkl", k=2, closure="raw"), -LN2 / 4 + math.log(3 / 4) / 4),
    "rkl raw": (Divergence(kind="rkl", k=2, closure="raw"), LN2 / 2 + math.log(4 / 3) / 3),
    "rkl raw_sg": (Divergence(kind="rkl", k=2, closure="raw_sg"), LN2 / 2 + math.log(4 / 3) / 3),
    "js raw": (
        Divergence(kind="js", k=2, closure="raw"),
        (math.log(2 / 3) / 4 + math.log(6 / 7) / 4) / 2 + (math.log(4 / 3) / 2 + math.log(8 / 7) / 3) / 2,
    ),
    # Sampled, the third token: w = 3 and −log S(y) = ln 6, so A = 3, ln 3 and ½ ln((1 + 3)/2)
    "fkl sampled": (Divergence(kind="fkl", support="sampled"), 3 * math.log(6)),
    "rkl sampled": (Divergence(kind="rkl", support="sampled"), LN3 * math.log(6)),
    "js sampled": (Divergence(kind="js", support="sampled"), LN2 / 2 * math.log(6)),
}


@pytest.mark.parametrize(("divergence", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_three_tokens_by_hand(divergence, expected):
    """Every kind × support × closure gives the number worked out with pen and paper."""
    value_N, _ = evaluate(divergence, [S3], [T3], token=[2])
    assert value_N.item() == pytest.approx(expected, abs=1e-12)


GRADIENTS_BY_HAND = {
    # ∂ fkl = S − T
    "fkl full": (Divergence(kind="fkl", support="full"), [1 / 4, 1 / 12, -1 / 3]),
    # ∂ fkl of the bins S = (1/2, 1/2), T = (1/4, 3/4): the tail's −1/4 is shared out by S, 2 : 1
    "fkl tail": (Divergence(kind="fkl", k=1), [1 / 4, -1 / 6, -1 / 12]),
    # Inside the support S − T again, each renormalised; nothing outside
    "fkl renorm": (Divergence(kind="fkl", k=2, closure="renorm"), [1 / 10, -1 / 10, 0]),
    # ∂ rkl = S·(log S/T − rkl); bins: ln 2 and ln(2/3), so ±¼·ln 3, the tail's shared out 2 : 1
    "rkl tail": (Divergence(kind="rkl", k=1), [LN3 / 4, -LN3 / 6, -LN3 / 12]),
    # A·(S − onehot(y)), y the third token
    "rkl sampled": (Divergence(kind="rkl", support="sampled"), [LN3 / 2, LN3 / 3, -LN3 * 5 / 6]),
}


@pytest.mark.parametrize(("divergence", "expected"), GRADIENTS_BY_HAND.values(), ids=GRADIENTS_BY_HAND)
def test_three_token_gradients_by_hand(divergence, expected):
    """The gradient in the student's logits is the one worked out with pen and paper."""
    _, grad_NV = evaluate(divergence, [S3], [T3], token=[2])
    assert grad_NV[0].tolist() == pytest.approx(expected, abs=1e-12)


GRID = [
    {**cell, "k": k, "beta": beta}
    for cell in CELLS
    for k in ([2, 5, 8, 9, 40] if cell["support"] == "topk" else [5])
    for beta in ([0.5, 0.2] if cell["kind"] == "js" else [0.5])
]


@pytest.mark.parametrize("options", GRID, ids=lambda options: "-".join(map(str, options.values())))
def test_value_and_gradient_equal_the_reference(options):
    """Against loops over the vocabulary and central differences, in float64; K up to and past the vocabulary."""
    student, target = random_logits(seed=options["k"])
    tokens = [0, 3, 8, 5]
    value_N, grad_NV = evaluate(Divergence(**options), student, target, tokens)
    for n, (s, t, y) in enumerate(zip(student.tolist(), target.tolist(), tokens, strict=True)):
        assert value_N[n].item() == pytest.approx(reference.divergence(s, t, y, **options), rel=1e-10, abs=1e-12)
        naive = reference.gradient(lambda x, s=s, t=t, y=y: reference.divergence(x, t, y, frozen=s, **options), s)
        assert grad_NV[n].tolist() == pytest.approx(naive, rel=1e-6, abs=1e-8)


@every_cell
def test_float32_is_close_to_float64(cell):
    """The dtype that training uses loses no more than its own rounding, on 500 columns with wide tails."""
    student, target = random_logits(seed=1, rows=16, columns=500, scale=4.0)
    divergence = Divergence(**cell, k=20)
    token = torch.arange(16)
    for exact, single in zip(
        evaluate(divergence, student, target, token),
        evaluate(divergence, student, target, token, dtype=torch.float32),
        strict=True,
    ):
        torch.testing.assert_close(single.double(), exact, rtol=2e-5, atol=2e-6)


# Direction


def test_forward_kl_covers_modes_and_reverse_kl_seeks_one():
    """T has two modes, S sits on one: KL(T‖S) is dear, KL(S‖T) is ln 2. Swapped arguments would swap them."""
    target = [math.log(0.4999), math.log(0.4999), math.log(0.0002)]
    student = [math.log(0.9998), math.log(0.0001), math.log(0.0001)]
    (fkl,), (rkl,) = (evaluate(Divergence(kind=k, support="full"), [student], [target])[0] for k in ("fkl", "rkl"))
    assert fkl.item() == pytest.approx(-0.5 * LN2 + 0.5 * math.log(0.5 / 0.0001), abs=0.01)
    assert rkl.item() == pytest.approx(LN2, abs=0.01)


@pytest.mark.parametrize(("beta", "limit"), [(1e-4, "fkl"), (1 - 1e-4, "rkl")])
def test_beta_of_js_leans_towards_the_right_kl(beta, limit):
    """JS_β/(β(1−β)) tends to KL(T‖S) as β → 0 and to KL(S‖T) as β → 1."""
    js, _ = evaluate(Divergence(kind="js", support="full", beta=beta), [S3], [T3])
    kl, _ = evaluate(Divergence(kind=limit, support="full"), [S3], [T3])
    assert js.item() / (beta * (1 - beta)) == pytest.approx(kl.item(), rel=1e-3)


# S = T


@pytest.mark.parametrize(
    "cell",
    [c for c in CELLS if c["support"] != "sampled" and c["closure"] != "raw"],
    ids=lambda c: "-".join(c.values()),
)
def test_equal_distributions_have_no_value_and_no_gradient(cell):
    """At S = T there is nothing to learn: full, tail, renorm and raw_sg are exactly stationary."""
    student, _ = random_logits(seed=3)
    value_N, grad_NV = evaluate(Divergence(**cell, k=3), student, student)
    torch.testing.assert_close(value_N, torch.zeros_like(value_N), rtol=0, atol=1e-14)
    torch.testing.assert_close(grad_NV, torch.zeros_like(grad_NV), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("kind", "sign"), [("rkl", 1), ("fkl", -1), ("js", 0)])
def test_raw_moves_mass_across_the_support_even_at_equality(kind, sign):
    """raw at S = T still has ±∇Σ_K S: descent on rkl pushes mass off the support, on fkl onto it; js has none."""
    student, _ = random_logits(seed=4)
    value_N, grad_NV = evaluate(Divergence(kind=kind, k=3, closure="raw"), student, student)
    assert value_N.abs().max() < 1e-14
    for row, grad_V in zip(student.tolist(), grad_NV, strict=True):
        kept = reference.top(row, 3)
        mass = reference.gradient(lambda x, kept=kept: sum(reference.softmax(x)[v] for v in kept), row)
        assert grad_V.tolist() == pytest.approx([sign * slope for slope in mass], abs=1e-9)


def test_raw_is_raw_sg_plus_the_gradient_of_the_supports_mass():
    """∇raw = ∇raw_sg + ∇Σ_K S for any T, and the values are the same."""
    student, target = random_logits(seed=5)
    (raw_N, raw_NV), (sg_N, sg_NV) = (
        evaluate(Divergence(kind="rkl", k=3, closure=closure), student, target) for closure in ("raw", "raw_sg")
    )
    leaf_NV = student.detach().clone().requires_grad_()
    leaf_NV.softmax(-1).topk(3).values.sum().backward()
    torch.testing.assert_close(raw_N, sg_N)
    torch.testing.assert_close(raw_NV, sg_NV + leaf_NV.grad)


# Sampled


def expected_gradient(kind, student, target, beta=0.5):
    """Σ_y S(y) · ∇ of the sampled loss of y, one student row."""
    columns = student.numel()
    _, grad_YV = evaluate(
        Divergence(kind=kind, support="sampled", beta=beta),
        student.expand(columns, -1),
        target.expand(columns, -1),
        range(columns),
    )
    return student.softmax(-1) @ grad_YV


@pytest.mark.parametrize(("kind", "beta"), [("fkl", 0.5), ("rkl", 0.5), ("js", 0.5), ("js", 0.2)])
def test_expected_gradient_of_sampled_is_that_of_full(kind, beta):
    """Over all tokens y ~ S, the policy gradient averages to the full divergence's gradient (ratios below the cap)."""
    for student, target in random_logits(seed=6, rows=5, scale=0.6).unbind(1):
        assert (target.log_softmax(-1) - student.log_softmax(-1)).exp().max() < MAX_RATIO
        _, full_NV = evaluate(Divergence(kind=kind, support="full", beta=beta), student[None], target[None])
        torch.testing.assert_close(expected_gradient(kind, student, target, beta), full_NV[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_expected_gradient_of_sampled_is_zero_at_equality(kind):
    """One draw has a gradient even at S = T (fkl: A = 1), but on average it pulls nowhere."""
    student, _ = random_logits(seed=7)
    average_V = expected_gradient(kind, student[0], student[0])
    torch.testing.assert_close(average_V, torch.zeros_like(average_V), rtol=0, atol=1e-14)


def test_only_sampled_fkl_is_capped():
    """A ratio of 1000 counts as MAX_RATIO in fkl, as ln 1000 in rkl and as ½ ln(1001/2) in js."""
    student, target = [math.log(0.0009), math.log(0.9991)], [math.log(0.9), math.log(0.1)]
    expected = {"fkl": MAX_RATIO, "rkl": math.log(1000), "js": 0.5 * math.log(500.5)}
    for kind, advantage in expected.items():
        value_N, _ = evaluate(Divergence(kind=kind, support="sampled"), [student], [target])
        assert value_N.item() == pytest.approx(-advantage * math.log(0.0009), rel=1e-12)


# Bounds and limits


@given(logits, logits, st.sampled_from(KINDS), st.sampled_from([0.1, 0.5, 0.9]), st.integers(2, 5))
def test_divergences_are_not_negative_and_the_tail_is_a_lower_bound(student, target, kind, beta, k):
    """0 ≤ tail ≤ full for every kind, 0 ≤ renorm, and JS never exceeds ln 2."""
    full, tail, renorm = (
        evaluate(Divergence(kind=kind, k=k, beta=beta, **options), [student], [target])[0].item()
        for options in ({"support": "full"}, {"closure": "tail"}, {"closure": "renorm"})
    )
    assert -1e-13 <= tail <= full + 1e-13
    assert renorm >= -1e-13
    if kind == "js":
        assert full <= LN2 + 1e-13


def test_js_of_disjoint_distributions_is_ln_2():
    """The bound of ln 2 is reached, and there the gradient is gone: JS cannot pull distributions that share nothing."""
    value_N, grad_NV = evaluate(Divergence(kind="js", support="full"), [[1e4, 0.0]], [[0.0, 1e4]], dtype=torch.float32)
    assert value_N.item() == pytest.approx(LN2, abs=1e-6)
    assert grad_NV.abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_topk_grows_into_full(kind):
    """The tail's value rises with K, equals full from K = V − 1 on, and K ≥ V is full for every closure."""
    student, target = random_logits(seed=8)
    full_N, full_NV = evaluate(Divergence(kind=kind, support="full"), student, target)
    values = torch.stack([evaluate(Divergence(kind=kind, k=k), student, target)[0] for k in range(1, 10)])
    assert (values.diff(dim=0) > -1e-14).all()
    assert (values[0] < full_N - 1e-3).any()
    torch.testing.assert_close(values[7], full_N)
    for closure in ("tail", "renorm", "raw", "raw_sg") if kind == "rkl" else ("tail", "renorm", "raw"):
        for k in (9, 128):
            value_N, grad_NV = evaluate(Divergence(kind=kind, k=k, closure=closure), student, target)
            torch.testing.assert_close(value_N, full_N)
            torch.testing.assert_close(grad_NV, full_NV)


def test_support_is_the_students_top_k():
    """Tokens only the target likes are in the tail's bin: moving mass among them changes nothing."""
    student = [[3.0, 2.0, 0.0, 0.0, 0.0]]
    targets = [[0.0, 0.0, 5.0, 1.0, 1.0]], [[0.0, 0.0, 1.0, 1.0, 5.0]]
    for kind in KINDS:
        first, second = (evaluate(Divergence(kind=kind, k=2), student, target)[0] for target in targets)
        assert first.item() == pytest.approx(second.item(), rel=1e-12)


# Robustness


@every_cell
def test_target_gets_no_gradient(cell):
    """The target may come from live weights (S⁺): the divergence itself must stop its gradient."""
    student_NV, target_NV = random_logits(seed=9).requires_grad_().unbind(0)
    target_NV.retain_grad()
    value_N = Divergence(**cell, k=3)(student_NV.log_softmax(-1), target_NV.log_softmax(-1), torch.zeros(4).long())
    value_N.sum().backward()
    assert target_NV.grad is None


@every_cell
def test_extreme_logits_stay_finite(cell):
    """One-hot and ±1e4 logits in float32: probabilities underflow, value and gradient do not break."""
    rows = [[1e4, -1e4, 0.0, 0.0], [-1e4, 1e4, 0.0, 0.0], [1e4, 1e4, -1e4, -1e4], [0.0] * 4, [0.0, 0.0, 0.0, 200.0]]
    pairs = [(s, t, y) for s in rows for t in rows for y in range(4)]
    for k in (2, 3):
        value_N, grad_NV = evaluate(Divergence(**cell, k=k), *zip(*pairs, strict=True), dtype=torch.float32)
        assert value_N.isfinite().all() and grad_NV.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_tail_far_below_float32_epsilon(kind):
    """S's tail holds e⁻⁶⁰, which 1 − Σ_K would round to 0: value and gradient still equal the float64 reference."""
    tails = torch.linspace(-1.0, 1.0, 30).tolist()
    student, target = [60.0, *tails], [1.0, *reversed(tails)]
    options = {"kind": kind, "support": "topk", "closure": "tail", "k": 1}
    value_N, grad_NV = evaluate(Divergence(kind=kind, k=1), [student], [target], dtype=torch.float32)
    assert value_N.item() == pytest.approx(reference.divergence(student, target, 0, **options), rel=1e-5)
    naive = reference.gradient(lambda x: reference.divergence(x, target, 0, **options), student, step=1e-3)
    assert grad_NV[0].tolist() == pytest.approx(naive, rel=1e-4, abs=1e-6)
    if kind == "rkl":  # its tail's gradient, S(v)·(log S_tail/T_tail − rkl), is relatively exact however small
        p, q = reference.softmax(student), reference.softmax(target)
        slope = math.log(sum(p[1:]) / sum(q[1:])) - value_N.item()
        assert grad_NV[0, 1:].tolist() == pytest.approx([x * slope for x in p[1:]], rel=1e-4, abs=0)


INVALID = {
    "kind": ({"kind": "kl"}, "kind: expected one of fkl, rkl, js, nll, got 'kl'"),
    "support": ({"support": "top-k"}, "support: expected one of full, topk, sampled, got 'top-k'"),
    "closure": ({"closure": "bucket"}, "closure: expected one of tail, renorm, raw, raw_sg, got 'bucket'"),
    "k = 0": ({"k": 0}, "k: expected at least 1, got 0"),
    "beta = 0": ({"kind": "js", "beta": 0.0}, "beta: expected 0 < beta < 1"),
    "beta = 1": ({"kind": "js", "beta": 1.0}, "beta: expected 0 < beta < 1"),
    "renorm of one token": ({"closure": "renorm", "k": 1}, "renorm over one token is always zero"),
    "raw_sg of fkl": ({"kind": "fkl", "closure": "raw_sg"}, "raw_sg is defined for rkl only, got fkl"),
    "nll of several": ({"kind": "nll"}, "nll is that of the sampled token, got topk"),
    "owner": ({"owner": "teacher"}, "owner: expected one of student, target, got 'teacher'"),
    "cap = 0": ({"cap": 0.0}, "cap: expected more than 0"),
    "cap of one token": ({"support": "sampled", "cap": 0.1}, "cap: expected more than 0, and a sum over several"),
    "raw_sg of js": ({"kind": "js", "closure": "raw_sg"}, "raw_sg is defined for rkl only, got js"),
}


@pytest.mark.parametrize(("options", "message"), INVALID.values(), ids=INVALID)
def test_impossible_cells_are_refused(options, message):
    """A cell that is undefined, or zero by construction, is a ValueError that says what was expected."""
    with pytest.raises(ValueError, match="divergence .*" + message):
        Divergence(**options)


@every_cell
def test_no_tokens(cell):
    """Zero response tokens: an empty value whose gradient is empty too."""
    value_N, grad_NV = evaluate(Divergence(**cell, k=3), torch.zeros(0, 9), torch.zeros(0, 9))
    assert value_N.shape == (0,) and grad_NV.shape == (0, 9)
