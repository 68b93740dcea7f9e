"""TA-OPD, token teachability (arXiv 2605.26844). Its delta from vanilla OPD:

1. D_t, what there is to teach: KL(T‖S) over the union of both sides' top K, both renormalised on it;
2. C_t, whether it can be taught: the teacher's mass on the student's top K;
3. each is scaled by clip((z − Q05)/(Q95 − Q05), 0, 1); the ⌈share·N⌉ tokens with the highest D̂·Ĉ are kept, and the
   best of every response that would have none; L = −mean over these of ρ_t·sg[ℓ^T − ℓ^S].

Not "Tail-Aware Top-k OPD" (arXiv 2608.14728), which has the same short name.
Special tokens are measured against the scale and the threshold of the others, and are part of neither.
p plays no part: all prompts are plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from . import STUDENT_PLAIN, TEACHER_PLAIN, Component, Method, Role, Statistic, WindowScores
from ._shared import POLICY_GRADIENT, fractions, importance, mean, quantile_scaled, top_share

OPEN = (
    "ta_opd: K of the union is not said, read as that of the mass; the mean is over kept tokens, and the tokens of "
    "responses that would have none come on top of the budget"
)


@dataclass(frozen=True, kw_only=True)
class TAOPD(Method):
    share: float = 0.05
    """Of the tokens that are kept (the paper's 5 to 10 %)."""
    k: int = 16
    """Of the student's top K (the code's), and of the union."""
    ratio_cap: float = 2.0
    """Of ρ, against a mismatch of the engine that samples. Ours."""
    reduction = "sum"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected more than 0 and at most 1, got {self.share}")
        if self.k < 1:
            raise ValueError(f"k: expected at least 1, got {self.k}")
        if not self.ratio_cap > 0:
            raise ValueError(f"ratio_cap: expected more than 0, got {self.ratio_cap}")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (STUDENT_PLAIN, TEACHER_PLAIN)

    @property
    def components(self) -> tuple[Component, ...]:
        return (POLICY_GRADIENT,)

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return (
            Statistic("disagreement", STUDENT_PLAIN, TEACHER_PLAIN, partial(union_fkl, k=self.k)),
            Statistic("compatibility", STUDENT_PLAIN, TEACHER_PLAIN, partial(shared_mass, k=self.k)),
        )

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        responses, ordinary_N = scores.responses, scores.ordinary_N
        score_N = quantile_scaled(scores.statistic_N["disagreement"], ordinary_N)
        score_N = score_N * quantile_scaled(scores.statistic_N["compatibility"], ordinary_N)
        kept_N = top_share(score_N, self.share, ordinary_N)
        best_N = top_share(score_N, 0.0, ordinary_N, responses.response_N)  # a budget of one token
        kept_N = kept_N.where((responses.sum_M(kept_N) > 0)[responses.response_N], best_N)
        advantage_N = scores.logp_N[TEACHER_PLAIN] - scores.logp_N[STUDENT_PLAIN]
        weight_N = importance(scores, self.ratio_cap) * advantage_N * fractions(kept_N)
        figures = {
            "share/kept": mean(kept_N),
            "advantage/kept": mean(advantage_N, kept_N),
            "disagreement/kept": mean(scores.statistic_N["disagreement"], kept_N),
            "compatibility/kept": mean(scores.statistic_N["compatibility"], kept_N),
        }
        return weight_N.unsqueeze(0), figures


def union_fkl(logp_student_nV: Tensor, logp_teacher_nV: Tensor, token_n: Tensor, k: int) -> Tensor:
    """KL(T‖S) over the union of both top K, both renormalised on it, [n]."""
    student_nK, teacher_nK = (
        logp_nV.topk(min(k, logp_nV.shape[-1])).indices for logp_nV in (logp_student_nV, logp_teacher_nV)
    )
    twice_nK = (teacher_nK.unsqueeze(-1) == student_nK.unsqueeze(-2)).any(-1)
    ids_nC = torch.cat([student_nK, teacher_nK], dim=-1)
    out_nC = torch.cat([torch.zeros_like(twice_nK), twice_nK], dim=-1)
    s_nC, t_nC = (
        logp_nV.gather(-1, ids_nC).masked_fill(out_nC, float("-inf")).log_softmax(-1).masked_fill(out_nC, 0.0)
        for logp_nV in (logp_student_nV, logp_teacher_nV)
    )
    return (t_nC.exp() * (t_nC - s_nC)).sum(-1)


def shared_mass(logp_student_nV: Tensor, logp_teacher_nV: Tensor, token_n: Tensor, k: int) -> Tensor:
    """The teacher's mass on the student's top K, [n]."""
    student_nK = logp_student_nV.topk(min(k, logp_student_nV.shape[-1])).indices
    return logp_teacher_nV.gather(-1, student_nK).exp().sum(-1)


METHOD = TAOPD
