"""The formulas of METHODS.md (0 and c) once more: floats, loops over tokens and vocabulary, no torch, no tricks.

Distributions are lists of float64 logits. A stop-gradient is a second copy of the student, `frozen`, that central
differences do not move; the student's top K are chosen by it as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Logits = Sequence[float]


def log_softmax(logits: Logits) -> list[float]:
    top = max(logits)
    log_sum = top + math.log(math.fsum(math.exp(x - top) for x in logits))
    return [x - log_sum for x in logits]


def softmax(logits: Logits) -> list[float]:
    return [math.exp(x) for x in log_softmax(logits)]


def top(logits: Logits, k: int) -> list[int]:
    return sorted(range(len(logits)), key=lambda v: -logits[v])[:k]


def divergence(
    student: Logits,
    target: Logits,
    token: int,
    *,
    kind: str,
    support: str,
    closure: str = "tail",
    k: int = 128,
    beta: float = 0.5,
    frozen: Logits | None = None,
) -> float:
    """One token's divergence of `student` from `target`, in nats."""
    frozen = student if frozen is None else frozen
    if support == "sampled":
        return -advantage(frozen, target, token, kind, beta) * log_softmax(student)[token]
    ids = top(frozen, k) if support == "topk" else list(range(len(student)))
    s, t = close(student, ids, closure), close(target, ids, closure)
    if closure == "raw_sg":
        sg = [a - b for a, b in zip(close(frozen, ids, "raw"), t, strict=True)]
        return math.fsum(math.exp(a) * b for a, b in zip(s, sg, strict=True))
    if kind == "fkl":
        return kl(t, s)
    if kind == "rkl":
        return kl(s, t)
    m = [math.log(beta * math.exp(b) + (1 - beta) * math.exp(a)) for a, b in zip(s, t, strict=True)]
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


def kl(p: Logits, q: Logits) -> float:
    """Σ p log(p/q) over the columns of two lists of log-probabilities."""
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def close(logits: Logits, ids: Sequence[int], closure: str) -> list[float]:
    """Log-probabilities on the support `ids`, after the closure."""
    logp = log_softmax(logits)
    if closure == "renorm":
        mass = math.fsum(math.exp(logp[v]) for v in ids)
        return [logp[v] - math.log(mass) for v in ids]
    outside = [v for v in range(len(logits)) if v not in ids]
    if closure == "tail" and outside:
        return [*(logp[v] for v in ids), math.log(math.fsum(math.exp(logp[v]) for v in outside))]
    return [logp[v] for v in ids]


def advantage(student: Logits, target: Logits, token: int, kind: str, beta: float = 0.5) -> float:
    """A of the policy gradient −A·log S(y), with w = T(y)/S(y); fkl's is capped at 10."""
    w = softmax(target)[token] / softmax(student)[token]
    return {"rkl": math.log(w), "fkl": min(w, 10.0), "js": (1 - beta) * math.log(beta * w + 1 - beta)}[kind]


def gradient(function: Callable[[list[float]], float], at: Logits, step: float = 1e-5) -> list[float]:
    """Central differences."""
    slopes = []
    for v in range(len(at)):
        up, down = list(at), list(at)
        up[v] += step
        down[v] -= step
        slopes.append((function(up) - function(down)) / (2 * step))
    return slopes


def entropy(logits: Logits) -> float:
    return -math.fsum(math.exp(x) * x for x in log_softmax(logits))


def regimes(q_s: Sequence[float], q_t: Sequence[float], privileged: Sequence[bool], drop: int) -> list[str]:
    """Table c.1 with the thresholds of reading R1: the `drop` largest gaps are left out of the mean gap."""
    pairs = [pair for *pair, p in zip(q_s, q_t, privileged, strict=True) if p]
    kept = sorted(abs(math.log(t / s)) for s, t in pairs)[: len(pairs) - drop]
    mean_gap = sum(kept) / len(kept) if kept else math.inf
    confident = (sum(s for s, _ in pairs) + sum(t for _, t in pairs)) / len(pairs) if pairs else math.inf
    names = []
    for s, t, p in zip(q_s, q_t, privileged, strict=True):
        if not p:
            names.append("NP")
        elif abs(math.log(t / s)) >= mean_gap:
            names.append("HT" if t >= s else "HS")
        else:
            names.append("LH" if s + t >= confident else "LL")
    return names
