"""Divergences between the student's and a target's next-token distribution, token by token.

Shape letters: N response tokens, V vocabulary, K support, C columns (V, K or K + 1).
Notation of the paper: S student, T target, both over the same prefix. p is always the first argument of KL(p‖q).

    fkl   KL(T‖S)                             mode covering
    rkl   KL(S‖T)                             mode seeking, the usual choice on the student's own samples
    js    β·KL(T‖M) + (1−β)·KL(S‖M),          M = β·T + (1−β)·S; bounded by ln 2 at β = ½
    nll   −log S(y), of the sampled token: no target. Weighted by an advantage it is a policy gradient.

The support says over which tokens the sum runs, the closure what becomes of the rest:

    full      all V tokens
    topk      the K most probable tokens of the student (the expectation of rkl is under it), or of the target if it
              is the `owner`, closed by
                tail     one more bin with the remaining mass of each side; a lower bound of the full divergence
                renorm   both sides divided by their mass on the support
                raw      full-softmax probabilities, the rest dropped. The gradient of rkl then has an extra ∇Σ_K S,
                         which pushes mass off the support even where S = T (fkl pulls it on): for comparison only
                raw_sg   Σ_K S·sg[log S − log T], the raw gradient without that term (rkl only)
    sampled   the one token that was drawn, as a policy gradient −sg[A]·log S(y) whose expected gradient is that of the
              full divergence (w = T(y)/S(y)): rkl A = log w, fkl A = min(w, MAX_RATIO), js A = (1−β)·log(β·w + 1 − β).

`cap` bounds each token's term of the sum from above, one-sided; what is cut has no gradient.
sg is the stop-gradient. Targets never get a gradient. Values are in nats, in the input's dtype: pass float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["fkl", "rkl", "js", "nll"]
Support = Literal["full", "topk", "sampled"]
Closure = Literal["tail", "renorm", "raw", "raw_sg"]
Owner = Literal["student", "target"]

MAX_RATIO = 10.0
"""Cap of w = T(y)/S(y) in the sampled fkl, whose advantage is otherwise heavy-tailed."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """One cell of the kind × support × closure grid. Call it to get the value of every token.

    >>> student, target = torch.tensor([[0.8, 0.1, 0.1]]), torch.tensor([[0.4, 0.5, 0.1]])
    >>> for kind in ("rkl", "fkl", "js"):  # rkl: 0.8·ln 2 + 0.1·ln ⅕ + 0; fkl: 0.4·ln ½ + 0.5·ln 5 + 0
    ...     value_N = Divergence(kind=kind, support="full")(student.log(), target.log(), torch.tensor([0]))
    ...     print(kind, round(value_N.item(), 4))
    rkl 0.3936
    fkl 0.5275
    js 0.1068
    """

    kind: Kind = "rkl"
    support: Support = "topk"
    closure: Closure = "tail"
    k: int = 128
    beta: float = 0.5
    owner: Owner = "student"
    cap: float | None = None

    def __post_init__(self) -> None:
        for name, value, options in (
            ("kind", self.kind, get_args(Kind)),
            ("support", self.support, get_args(Support)),
            ("closure", self.closure, get_args(Closure)),
            ("owner", self.owner, get_args(Owner)),
        ):
            if value not in options:
                raise ValueError(f"divergence {name}: expected one of {', '.join(options)}, got {value!r}")
        if self.k < 1:
            raise ValueError(f"divergence k: expected at least 1, got {self.k}")
        if not 0 < self.beta < 1:
            raise ValueError(f"divergence beta: expected 0 < beta < 1 (its limits are fkl and rkl), got {self.beta}")
        if self.support == "topk" and self.closure == "renorm" and self.k == 1:
            raise ValueError("divergence k: renorm over one token is always zero; use k >= 2 or closure tail")
        if self.support == "topk" and self.closure == "raw_sg" and self.kind != "rkl":
            raise ValueError(f"divergence closure: raw_sg is defined for rkl only, got {self.kind}")
        if self.kind == "nll" and self.support != "sampled":
            raise ValueError(f"divergence support: nll is that of the sampled token, got {self.support}")
        if self.cap is not None and (self.cap <= 0 or self.support == "sampled" or self.closure == "raw_sg"):
            raise ValueError(
                f"divergence cap: expected more than 0, and a sum over several tokens to bound the terms of, got "
                f"{self.cap} with support {self.support}, closure {self.closure}"
            )

    @property
    def has_target(self) -> bool:
        """False for `nll`, which is of the student's distribution alone."""
        return self.kind != "nll"

    def __call__(self, logp_student_NV: Tensor, logp_target_NV: Tensor, token_N: Tensor) -> Tensor:
        """Value of every token, [N]. `logp_*` are log-softmax outputs; `token_N` are the sampled ids.

        This is the definition. `chunked_loss` takes the same steps without a softmax of its own.
        """
        ids_NK = self.support_ids(logp_student_NV.detach(), logp_target_NV, token_N)
        if ids_NK is None:
            return self.value(logp_student_NV, logp_target_NV)
        # The rest is summed over the complement, not 1 − Σ_K: the tail of a peaked distribution is far below float32's
        # epsilon.
        sides = (
            (logp_NV.gather(-1, ids_NK), logp_NV.scatter(-1, ids_NK, float("-inf")).logsumexp(-1, keepdim=True))
            for logp_NV in (logp_student_NV, logp_target_NV)
        )
        return self.value(*(self.close(*side) for side in sides))

    def support_ids(self, student_NV: Tensor, target_NV: Tensor, token_N: Tensor) -> Tensor | None:
        """Tokens the sum runs over, [N, K], or None for all V. Logits and log-probabilities give the same ids."""
        if self.support == "sampled":
            return token_N.unsqueeze(-1)
        if self.support == "full" or self.k >= student_NV.shape[-1]:
            return None
        return (student_NV if self.owner == "student" else target_NV).topk(self.k, dim=-1).indices

    def close(self, logp_NK: Tensor, rest_N1: Tensor) -> Tensor:
        """Log-probabilities of the columns that the value is a sum over, [N, C].

        `logp_NK` are full-softmax log-probabilities of the support, `rest_N1` is the log of all other tokens' mass.
        """
        if self.support == "topk" and self.closure == "renorm":
            return logp_NK - logp_NK.logsumexp(-1, keepdim=True)
        if self.support == "topk" and self.closure == "tail":
            return torch.cat([logp_NK, rest_N1], dim=-1)
        return logp_NK

    def value(self, student_NC: Tensor, target_NC: Tensor) -> Tensor:
        """Value of every token, [N], from log-probabilities of its columns: a sum of one term a column.

        The gradient of the student's columns is that of the divergence; the target's have none.
        """
        target_NC = target_NC.detach()
        if self.support == "sampled":
            return self._sampled(student_NC, target_NC).sum(-1)
        if self.support == "topk" and self.closure == "raw_sg":
            return (student_NC.exp() * (student_NC - target_NC).detach()).sum(-1)
        term_NC = self._terms(student_NC, target_NC)
        return (term_NC if self.cap is None else term_NC.clamp(max=self.cap)).sum(-1)

    def _terms(self, s_NC: Tensor, t_NC: Tensor) -> Tensor:
        if self.kind == "fkl":
            return _kl(t_NC, s_NC)
        if self.kind == "rkl":
            return _kl(s_NC, t_NC)
        m_NC = torch.logaddexp(t_NC + math.log(self.beta), s_NC + math.log1p(-self.beta))
        return self.beta * _kl(t_NC, m_NC) + (1 - self.beta) * _kl(s_NC, m_NC)

    def _sampled(self, s_N1: Tensor, t_N1: Tensor) -> Tensor:
        if self.kind == "nll":
            return -s_N1
        log_w_N1 = t_N1 - s_N1.detach()
        if self.kind == "rkl":
            advantage_N1 = log_w_N1
        elif self.kind == "fkl":
            advantage_N1 = log_w_N1.clamp(max=math.log(MAX_RATIO)).exp()
        else:
            no_target = torch.full_like(log_w_N1, math.log1p(-self.beta))
            advantage_N1 = (1 - self.beta) * torch.logaddexp(log_w_N1 + math.log(self.beta), no_target)
        return -advantage_N1 * s_N1


def _kl(logp_NC: Tensor, logq_NC: Tensor) -> Tensor:
    """Terms of KL(p‖q) by column. Inputs are finite: a log-softmax of finite logits is, even where p underflows."""
    return logp_NC.exp() * (logp_NC - logq_NC)
