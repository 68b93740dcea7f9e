"""Ten methods of distillation: loss and gradient against their formulas, written once more as loops in float64.

Cases that have an answer by hand, options that make no sense and the shared arithmetic are in
test_methods_by_hand.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.method_case import LENGTHS, Case, case, check, forward_kl, highest, js, mean, renormalised, with_tail
from vlm_dopd.methods import STUDENT_PLAIN, TEACHER_PLAIN, TEACHER_PRIVILEGED, Role
from vlm_dopd.methods.eopd import EOPD
from vlm_dopd.methods.exopd import ExOPD
from vlm_dopd.methods.opcd import OPCD
from vlm_dopd.methods.opsd import OPSD
from vlm_dopd.methods.reopold import REOPOLD
from vlm_dopd.methods.sdft import SDFT
from vlm_dopd.methods.sdpo import SDPO
from vlm_dopd.methods.ta_opd import TAOPD
from vlm_dopd.methods.tip import TIP
from vlm_dopd.methods.uni_opd import UniOPD

INITIAL_PRIVILEGED = Role("initial", "privileged")
EMA_PRIVILEGED, EMA_SIBLING = Role("ema", "privileged"), Role("ema", "sibling")
seeds = pytest.mark.parametrize("seed", [0, 1, 2])


# Targets with privilege


@seeds
@pytest.mark.parametrize(("teacher", "closure"), [("initial", "raw"), ("teacher", "raw"), ("initial", "tail")])
def test_opcd(seed, teacher, closure):
    """mean_t Σ_top-7 S·(log S − log T⁺), raw; the frozen student teaches nothing without p, the teacher does."""
    method = OPCD(teacher=teacher, k=7, closure=closure)
    target = INITIAL_PRIVILEGED if teacher == "initial" else TEACHER_PRIVILEGED
    assert method.roles == (target,)

    def reference(c, leaf_NV):
        terms = []
        for n, s_V in enumerate(leaf_NV.log_softmax(-1)):
            ids = highest(s_V, 7)
            t_V = c.logp(target)[n]
            s_C, t_C = (s_V[ids], t_V[ids]) if closure == "raw" else (with_tail(s_V, ids), with_tail(t_V, ids))
            trains = teacher == "teacher" or bool(c.scores.has_privilege_N[n])
            terms.append(float(trains) * forward_kl(s_C, t_C))
        return mean(terms)

    check(method, case(method, seed), reference)


@seeds
@pytest.mark.parametrize("kind", ["fkl", "rkl"])
@pytest.mark.parametrize("cap", [2.0, None])
def test_sdft(seed, kind, cap):
    """Mean over the 9 responses of min(Π ρ, cap) times the mean KL over the full vocabulary after 2 tokens."""
    method = SDFT(divergence=kind, skip=2, ratio_cap=cap)

    def reference(c, leaf_NV):
        total, ratio = torch.zeros((), dtype=torch.float64), c.ratios()
        for tokens in c.responses():
            kept = [n for n in tokens[2:] if c.scores.has_privilege_N[n]]
            w = 1.0 if cap is None else min(math.prod(ratio[n] for n in tokens), cap)
            for n in kept:
                s_V, t_V = leaf_NV[n].log_softmax(-1), c.logp(EMA_PRIVILEGED)[n]
                total = total + w * (forward_kl(t_V, s_V) if kind == "fkl" else forward_kl(s_V, t_V)) / len(kept)
        return total / len(c.responses())

    check(method, case(method, seed, noise=0.8), reference)


@seeds
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"version": "early"},
        {"cap": 0.2, "self_teacher": "ema"},
        {"support": "topk", "k": 5, "cap": 0.1},
        {"support": "topk", "k": 5, "version": "early"},
        {"support": "sampled"},
        {"self_teacher": "student", "temperature": 2.0},
    ],
    ids=str,
)
def test_opsd(seed, options):
    """Token mean at logits / 1.1: Σ_v min(T·(log T − log S), cap), or JS; full, over the target's top 5, or sampled."""
    method = OPSD(**options)
    target = Role(options.get("self_teacher", "initial"), "privileged")
    assert method.roles == (target,)

    def reference(c, leaf_NV):
        terms = []
        for n, z_V in enumerate(leaf_NV):
            s_V, t_V = (x_V.div(options.get("temperature", 1.1)).log_softmax(-1) for x_V in (z_V, c.logits[target][n]))
            if method.support == "topk":
                ids = highest(t_V, 5)
                s_V, t_V = renormalised(s_V, ids), renormalised(t_V, ids)
            if method.support == "sampled":
                y = c.scores.responses.token_N[n]
                value = -(t_V[y] - s_V[y]).detach() * s_V[y]
            elif method.version == "early":
                value = js(t_V, s_V)
            else:
                cap = torch.tensor(options.get("cap", 0.05), dtype=torch.float64)
                value = sum(torch.minimum(t.exp() * (t - s), cap) for t, s in zip(t_V, s_V, strict=True))
            terms.append(c.scores.has_privilege_N[n] * value)
        return mean(terms)

    check(method, case(method, seed), reference)


@seeds
@pytest.mark.parametrize(
    "options", [{"k": 6}, {"divergence": "rkl", "k": 4, "ratio_cap": 1.2}, {"k": 6, "ratio_cap": None}], ids=str
)
def test_sdpo(seed, options):
    """Mean over tokens with feedback of min(ρ, cap)·D on the student's top K and the tail.

    Group 0: p, so all. Group 1: no p and nobody right, none. Group 2 (both right) and 3 have p.
    """
    method = SDPO(**options)
    cap = options.get("ratio_cap", 2.0)

    def reference(c, leaf_NV):
        terms = []
        for n, s_V in enumerate(leaf_NV.log_softmax(-1)):
            if c.scores.has_privilege_N[n]:
                ids = highest(s_V, options["k"])
                s_C, t_C = with_tail(s_V, ids), with_tail(c.logp(EMA_SIBLING)[n], ids)
                rho = 1.0 if cap is None else min(c.ratios()[n], cap)
                terms.append(rho * (forward_kl(s_C, t_C) if method.divergence == "rkl" else js(t_C, s_C)))
        assert len(terms) == sum(map(sum, LENGTHS)) - sum(LENGTHS[1])
        return mean(terms)

    check(method, case(method, seed), reference)


# Policy gradients against the plain teacher


@seeds
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 1.0}, {"reference": "teacher_base", "cap": math.inf}, {"scale": 2.0, "cap": 1.0, "ratio_cap": 1.1}],
    ids=str,
)
def test_exopd(seed, options):
    """−mean min(ρ, 5)·A·log S(y), A = λ·ℓ^T − (λ − 1)·ℓ^R − ℓ^S bounded by ±10."""
    method = ExOPD(**options)
    scale, cap, ratio_cap = options.get("scale", 1.25), options.get("cap", 10.0), options.get("ratio_cap", 5.0)

    def reference(c, leaf_NV):
        terms = []
        rows = (c.sampled(role) for role in (STUDENT_PLAIN, TEACHER_PLAIN, Role(method.reference, "plain")))
        for n, (s, t, r) in enumerate(zip(*rows, strict=True)):
            a = min(max(scale * t - (scale - 1) * r - s, -cap), cap)
            terms.append(-min(c.ratios()[n], ratio_cap) * a * leaf_NV[n].log_softmax(-1)[c.scores.responses.token_N[n]])
        return mean(terms)

    check(method, case(method, seed), reference)


def ppo(c: Case, leaf_NV: Tensor, advantage: list[float], low: float, high: float) -> list[Tensor]:
    """−min(ρ·A, clip(ρ)·A) of every token. A missing S_old is the very S: ρ = 1, with its slope."""
    terms = []
    for n, (s_V, old) in enumerate(zip(leaf_NV.log_softmax(-1), c.scores.responses.rollout_logp_N, strict=True)):
        s = s_V[c.scores.responses.token_N[n]]
        rho = (s - (s.detach() if old.isnan() else old)).exp()
        terms.append(-torch.minimum(rho * advantage[n], rho.clamp(1 - low, 1 + high) * advantage[n]))
    return terms


def advantages(c: Case) -> list[float]:
    return [t - s for s, t in zip(c.sampled(STUDENT_PLAIN), c.sampled(TEACHER_PLAIN), strict=True)]


@seeds
@pytest.mark.parametrize("options", [{}, {"alpha": 0.3, "threshold": 1.5, "clip": 0.05}], ids=str)
def test_eopd(seed, options):
    """PPO on all tokens, and α·Σ_top-4 T·(log T − log S) where the teacher's entropy is above τ; both over N."""
    method = EOPD(k=4, **options)
    alpha, tau, clip = options.get("alpha", 1.0), options.get("threshold", 0.8), options.get("clip", 0.2)

    def reference(c, leaf_NV):
        cover = []
        for t_V, s_V in zip(c.logp(TEACHER_PLAIN), leaf_NV.log_softmax(-1), strict=True):
            unsure = -(t_V.exp() * t_V).sum() > tau
            ids = highest(t_V, 4)
            cover.append(alpha * unsure * forward_kl(t_V[ids], s_V[ids]))
        assert 0 < sum(bool(x != 0) for x in cover) < len(cover)
        return mean(ppo(c, leaf_NV, advantages(c), clip, clip)) + mean(cover)

    check(method, case(method, seed, spread=3.0), reference, value=False)


@seeds
@pytest.mark.parametrize(
    "options",
    [{}, {"balance": False}, {"gap": "worst", "margin": 3.0}, {"shift": "right"}, {"shift": "wrong", "limit": 2.0}],
    ids=str,
)
def test_uni_opd(seed, options):
    """Groups 0 (one right of three) and 2 (one each) have both outcomes; 1 and 3 (all right, all wrong) stay."""
    rewards = torch.tensor([0.0, 1, 0, 1, 1, 1, 0, 1, 0])
    method = UniOPD(**options)
    delta, limit = options.get("margin", 0.4), options.get("limit", 10.0)
    up, down = {"both": (0.5, 0.5), "right": (1, 0), "wrong": (0, 1)}[options.get("shift", "both")]

    def reference(c, leaf_NV):
        plain = advantages(c)
        moved, share = list(plain), [1.0] * len(plain)
        means = [sum(plain[n] for n in tokens) / len(tokens) for tokens in c.responses()]
        for group, (right, wrong) in {0: ([1], [0, 2]), 2: ([7], [6])}.items():
            if method.gap == "worst":
                g = min(means[i] for i in right) - max(means[i] for i in wrong)
            else:
                g = sum(means[i] for i in right) / len(right) - sum(means[i] for i in wrong) / len(wrong)
            for i in (*right, *wrong):
                for n in c.responses()[i]:
                    moved[n] += max(delta - g, 0) * (up if i in right else -down)
                    share[n] = 0.5 if group == 0 and i in wrong and method.balance else 1.0
        terms = ppo(c, leaf_NV, moved, 0.2, 0.28)
        kept = [abs(a) < limit for a in plain]
        return sum(b * k * term for b, k, term in zip(share, kept, terms, strict=True)) / sum(share)

    given = case(method, seed)
    responses = replace(given.scores.responses, reward_M=rewards)
    given = replace(given, scores=replace(given.scores, responses=responses))
    check(method, given, reference, value=False)


@seeds
@pytest.mark.parametrize("progress", [0.0, 0.49, 0.5, 0.9])
def test_reopold(seed, progress):
    """−Σ Mρ·max(R, −ln 4)/ΣM; M: R ≥ −ln 4 in the first half, then the higher half of the ordinary entropies."""
    method = REOPOLD()

    def reference(c, leaf_NV):
        floor = math.log(0.25)
        entropy = [-(p_V.exp() * p_V).sum().item() for p_V in c.logp(STUDENT_PLAIN)]
        ordinary = [e for e, counts in zip(entropy, c.scores.ordinary_N, strict=True) if counts]
        border = sorted(ordinary, reverse=True)[math.ceil(len(ordinary) / 2) - 1]
        terms = []
        for n, (r, rho) in enumerate(zip(advantages(c), c.ratios(), strict=True)):
            if r >= floor if progress < 0.5 else entropy[n] >= border:
                y = c.scores.responses.token_N[n]
                terms.append(-min(rho, 2.0) * max(r, floor) * leaf_NV[n].log_softmax(-1)[y])
        assert 0 < len(terms) < len(entropy)
        return mean(terms)

    given = case(method, seed)
    check(method, replace(given, scores=replace(given.scores, progress=progress)), reference)


# Selections


def scaled(values: list[float], counted: list[bool], low: float, high: float) -> list[float]:
    """clip((z − Q_low)/(Q_high − Q_low)) with the linear quantiles of the counted values."""
    ranked = sorted(v for v, counts in zip(values, counted, strict=True) if counts)

    def quantile(q):
        at = q * (len(ranked) - 1)
        below = math.floor(at)
        return ranked[below] + (at - below) * (ranked[min(below + 1, len(ranked) - 1)] - ranked[below])

    return [min(max((v - quantile(low)) / (quantile(high) - quantile(low)), 0.0), 1.0) for v in values]


@seeds
@pytest.mark.parametrize(
    "options", [{}, {"share": 0.2, "disagreement": "fkl"}, {"scaling": "quantile", "share": 0.3}], ids=str
)
def test_tip(seed, options):
    """Mean over kept tokens of KL(S‖T); kept: h + d − h·d at least the ⌈ρ·n⌉-th highest of the ordinary ones."""
    method = TIP(**options)

    def reference(c, leaf_NV):
        student, teacher, counted = c.logp(STUDENT_PLAIN), c.logp(TEACHER_PLAIN), c.scores.ordinary_N.tolist()
        entropy = [-(p_V.exp() * p_V).sum().item() for p_V in student]
        pairs = zip(student, teacher, strict=True)
        gap = [(forward_kl(t, s) if method.disagreement == "fkl" else forward_kl(s, t)).item() for s, t in pairs]
        ends = (0.05, 0.95) if method.scaling == "quantile" else (0.0, 1.0)
        h, d = scaled(entropy, counted, *ends), scaled(gap, counted, *ends)
        score = [a + b - a * b for a, b in zip(h, d, strict=True)]
        ranked = sorted((x for x, counts in zip(score, counted, strict=True) if counts), reverse=True)
        border = ranked[math.ceil(method.share * len(ranked)) - 1]
        kept = [n for n, x in enumerate(score) if x >= border - 1e-9]
        assert 0 < len(kept) < len(score)
        return mean([forward_kl(leaf_NV[n].log_softmax(-1), teacher[n]) for n in kept])

    check(method, case(method, seed), reference)


@seeds
@pytest.mark.parametrize("share", [0.05, 0.25])
def test_ta_opd(seed, share):
    """Kept: the highest D̂·Ĉ, and the best token of a response without one. Loss: −mean min(ρ, 2)·A·log S(y)."""
    method = TAOPD(k=3, share=share)

    def reference(c, leaf_NV):
        counted, d, m = c.scores.ordinary_N.tolist(), [], []
        for s_V, t_V in zip(c.logp(STUDENT_PLAIN), c.logp(TEACHER_PLAIN), strict=True):
            union = sorted({*highest(s_V, 3), *highest(t_V, 3)})
            d.append(forward_kl(renormalised(t_V, union), renormalised(s_V, union)).item())
            m.append(sum(t_V[v].exp().item() for v in highest(s_V, 3)))
        pairs = zip(scaled(d, counted, 0.05, 0.95), scaled(m, counted, 0.05, 0.95), strict=True)
        score = [a * b for a, b in pairs]
        ranked = sorted((x for x, counts in zip(score, counted, strict=True) if counts), reverse=True)
        border = ranked[math.ceil(share * len(ranked)) - 1]
        kept = {n for n, x in enumerate(score) if x >= border - 1e-9}
        for tokens in c.responses():
            if not kept & set(tokens):
                own = [n for n in tokens if counted[n]] or tokens
                best = max(score[n] for n in own)
                kept |= {n for n in tokens if score[n] >= best - 1e-9}
        ids, rho, a = c.scores.responses.token_N, c.ratios(), advantages(c)
        return mean([-min(rho[n], 2.0) * a[n] * leaf_NV[n].log_softmax(-1)[ids[n]] for n in sorted(kept)])

    check(method, case(method, seed), reference)
