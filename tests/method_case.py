"""Cases for tests of methods: random logits under every role, and what training makes of a method on them.

The method's weights and components go through the routed loss and the reduction; what comes out is compared with
autograd of a formula in float64. Divergences of one token are written here as loops once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tests.windows import responses_of
from vlm_dopd.chunked_loss import Scored, Term, routed_loss
from vlm_dopd.head import Head
from vlm_dopd.methods import STUDENT_PLAIN, TEACHER_PLAIN, Method, Role, WindowScores

LENGTHS = ((5, 3, 4), (4, 6, 2), (1, 7), (3,))
REWARDS = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]
VOCABULARY = 24


@dataclass(frozen=True)
class Case:
    logits: dict[Role, Tensor]
    """[N, V] by role, float64."""
    scores: WindowScores

    def logp(self, role: Role) -> Tensor:
        return self.logits[role].log_softmax(-1)

    def sampled(self, role: Role) -> list[float]:
        """Log-probability of every sampled token."""
        tokens = self.scores.responses.token_N.tolist()
        return [self.logp(role)[n, y].item() for n, y in enumerate(tokens)]

    def ratios(self) -> list[float]:
        """ρ of every token, 1 where the engine says nothing."""
        old = self.scores.responses.rollout_logp_N.tolist()
        return [math.exp(s - o) if o == o else 1.0 for s, o in zip(self.sampled(STUDENT_PLAIN), old, strict=True)]

    def responses(self) -> list[list[int]]:
        """The tokens of each response."""
        owner = self.scores.responses.response_N.tolist()
        return [[n for n, i in enumerate(owner) if i == m] for m in range(max(owner) + 1)]


def case(method: Method, seed: int, spread: float = 1.5, noise: float = 0.3) -> Case:
    """Rows of the second group have no p, each last token is a special one, and every fifth has no S_old."""
    generator = torch.Generator().manual_seed(seed)
    responses = responses_of(LENGTHS, REWARDS, generator=generator)
    count = responses.token_N.numel()
    responses = replace(responses, token_N=responses.token_N % VOCABULARY)
    logits = {
        role: spread * torch.randn(count, VOCABULARY, generator=generator, dtype=torch.float64)
        for role in dict.fromkeys((*method.roles, STUDENT_PLAIN))
    }
    logp = {role: logits_NV.log_softmax(-1).float() for role, logits_NV in logits.items()}
    rows = torch.arange(count)
    old_N = logp[STUDENT_PLAIN][rows, responses.token_N] + noise * torch.randn(count, generator=generator)
    scores = WindowScores(
        logp_N={role: logp[role][rows, responses.token_N] for role in method.roles},
        entropy_N={role: -(logp[role].exp() * logp[role]).sum(-1) for role in method.roles},
        has_privilege_N=responses.group_M[responses.response_N] != 1,
        ordinary_N=responses.response_N.diff(append=torch.tensor([-1])) == 0,
        responses=replace(responses, rollout_logp_N=old_N.where(rows % 5 != 0, float("nan"))),
        statistic_N={
            one.name: one.function(logp[one.first], logp[one.second], responses.token_N) for one in method.statistics
        },
    )
    return Case(logits, scores)


def trained(method: Method, given: Case) -> tuple[Tensor, Tensor]:
    """The loss as training reduces it, and its gradient in the student's logits."""
    responses = given.scores.responses
    weight_RN, _ = method.weights(given.scores)
    if method.reduction == "seq_mean":
        weight_RN = weight_RN / responses.length_M[responses.response_N] / responses.length_M.numel()
    elif method.reduction == "token_mean":
        weight_RN = weight_RN / responses.token_N.numel()
    # One-hot hidden states: the columns of the head are the tokens' logits.
    hidden_NH = torch.eye(responses.token_N.numel())
    heads = {role: (z_NV / method.temperature).float().T.contiguous() for role, z_NV in given.logits.items()}
    student_VH = heads[STUDENT_PLAIN].requires_grad_()
    scored = {
        role: Scored(hidden_NH, Head(head_VH.detach(), VOCABULARY), hidden_NH[0], hidden_NH[0])
        for role, head_VH in heads.items()
    }
    terms = [
        Term(component.divergence, weight_N, scored[component.target] if component.target else None)
        for component, weight_N in zip(method.components, weight_RN, strict=True)
    ]
    output = routed_loss(hidden_NH, Head(student_VH, VOCABULARY), responses.token_N, terms)
    (grad_VH,) = torch.autograd.grad(output.total, student_VH)
    return output.total.detach(), grad_VH.T / method.temperature


def check(method: Method, given: Case, reference: Callable[[Case, Tensor], Tensor], value: bool = True) -> None:
    """`reference(given, logits of the student)` is the loss. PPO's has a value of its own, and the same gradient."""
    leaf_NV = given.logits[STUDENT_PLAIN].clone().requires_grad_()
    expected = reference(given, leaf_NV)
    (grad_NV,) = torch.autograd.grad(expected, leaf_NV)
    loss, found_NV = trained(method, given)
    assert grad_NV.abs().max() > 1e-4
    torch.testing.assert_close(found_NV.double(), grad_NV, rtol=1e-4, atol=1e-7)
    if value:
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)


def mean(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).mean()


def forward_kl(t_V: Tensor, s_V: Tensor) -> Tensor:
    return sum(t.exp() * (t - s) for t, s in zip(t_V, s_V, strict=True))


def js(t_V: Tensor, s_V: Tensor) -> Tensor:
    m_V = (0.5 * t_V.exp() + 0.5 * s_V.exp()).log()
    return 0.5 * forward_kl(t_V, m_V) + 0.5 * forward_kl(s_V, m_V)


def with_tail(logp_V: Tensor, ids: list[int]) -> Tensor:
    rest = [v for v in range(VOCABULARY) if v not in ids]
    return torch.cat([logp_V[ids], logp_V[rest].logsumexp(0, keepdim=True)])


def renormalised(logp_V: Tensor, ids: list[int]) -> Tensor:
    return logp_V[ids] - logp_V[ids].exp().sum().log()


def highest(value_V: Tensor, k: int) -> list[int]:
    return sorted(range(len(value_V)), key=lambda v: -value_V[v].item())[:k]


# Windows by hand


def scores_of(student, teacher=None, lengths=None, rewards=None, privileged=None, **changes) -> WindowScores:
    """Sampled log-probabilities of the plain student and teacher; one response unless `lengths` says otherwise."""
    student_N = torch.tensor(student)
    count = len(student)
    zeros_N = torch.zeros(count)
    teacher_N = zeros_N if teacher is None else torch.tensor(teacher)
    base = WindowScores(
        logp_N={STUDENT_PLAIN: student_N, TEACHER_PLAIN: teacher_N},
        entropy_N={STUDENT_PLAIN: zeros_N, TEACHER_PLAIN: zeros_N},
        has_privilege_N=torch.tensor([True] * count if privileged is None else privileged),
        ordinary_N=torch.ones(count, dtype=torch.bool),
        responses=responses_of(lengths or ((count,),), rewards),
        statistic_N={},
    )
    return replace(base, **changes)


def sampled_with(scores: WindowScores, old: list[float]) -> WindowScores:
    """The same, where `old` are the log-probabilities of the policy that sampled."""
    return replace(scores, responses=replace(scores.responses, rollout_logp_N=torch.tensor(old)))
