"""The routed loss as its formula, with all logits at once: what the chunked one is compared with."""

import torch
from torch import Tensor

from vlm_dopd.chunked_loss import LossOutput, Term
from vlm_dopd.divergences import Divergence


def naive_loss(hidden_NH: Tensor, head_VH: Tensor, token_N: Tensor, terms: list[Term]) -> LossOutput:
    """The formula with all logits at once, in the dtype of `hidden_NH`, for ordinary autograd."""
    logp_NV = (hidden_NH @ head_VH.T).log_softmax(-1)
    total, values, covered = hidden_NH.new_zeros(()), [], []
    for term in terms:
        target_NH, target_VH = term.target.hidden_NH.to(logp_NV), term.target.head.weight_VH.to(logp_NV)
        target_NV = (target_NH @ target_VH.T).log_softmax(-1)
        values.append(term.divergence(logp_NV, target_NV, token_N))
        covered.append(covered_by(term.divergence, logp_NV, target_NV, token_N))
        total = total + (term.weight_N * values[-1]).sum()
    active_RN = torch.stack([term.weight_N != 0 for term in terms])
    entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
    sampled_N = logp_NV.gather(-1, token_N[:, None])[:, 0]
    any_N = active_RN.any(0)
    return LossOutput(
        total,
        torch.stack(values) * active_RN,
        entropy_N * any_N,
        sampled_N * any_N,
        torch.stack(covered) * active_RN,
    )


def covered_by(divergence: Divergence, logp_NV: Tensor, target_NV: Tensor, token_N: Tensor) -> Tensor:
    """The target's probability of the ids that the divergence looks at one by one."""
    if divergence.support == "full":
        return target_NV.exp().sum(-1)
    owner_NV = logp_NV if divergence.owner == "student" else target_NV
    ids_NK = token_N[:, None] if divergence.support == "sampled" else owner_NV.topk(divergence.k).indices
    return target_NV.exp().gather(-1, ids_NK).sum(-1)
