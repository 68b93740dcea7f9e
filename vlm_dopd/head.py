"""The LM head of a model: what turns a hidden state into logits, and the gradient of logits back into its product.

Shape letters: n tokens of a chunk, N tokens, V vocabulary, U ≥ V rows of the weight (the rest pads to a round number),
H hidden, m merged tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

APART = 200.0
"""Nats from merged tokens to those they are merged into: a probability of 0 in float32, where 0 · −inf would be NaN."""


@dataclass(frozen=True)
class Head:
    """logits = c · tanh(scale · h·Wᵀ / c) / temperature, or without the cap scale · h·Wᵀ / temperature.

    Padded rows have no logits.
    """

    weight_UH: Tensor
    """Tied to the embedding or not."""
    vocab_size: int
    scale: float = 1.0
    """`logit_scale` of Cohere's models, 1 / `logits_scaling` of Granite's."""
    softcap: float | None = None
    """c, `final_logit_softcapping` of Gemma's models."""
    temperature: float = 1.0
    """Of a method's loss."""
    merged: tuple[int, ...] = ()
    """Tokens that count as one: the first has the sum of their probabilities, the others have none."""

    @property
    def weight_VH(self) -> Tensor:
        """Without the padded rows: their logits must enter no softmax and no sample."""
        return self.weight_UH[: self.vocab_size]

    def detach(self) -> Head:
        """The same head, to score with: no gradient reaches its weight."""
        return replace(self, weight_UH=self.weight_UH.detach())

    def scored_as(self, token_N: Tensor) -> Tensor:
        """Under which ids sampled tokens are looked up, [N]: merged ones all under the first."""
        if not self.merged:
            return token_N
        return token_N.masked_fill(torch.isin(token_N, token_N.new_tensor(self.merged)), self.merged[0])

    def logits(self, hidden_nH: Tensor, out_nV: Tensor) -> None:
        """Fills `out_nV` (float32)."""
        self._separate_logits(hidden_nH, out_nV)
        if self.merged:
            first, *others = self.merged
            out_nV[:, first] = out_nV[:, self.merged].logsumexp(-1)
            out_nV[:, others] = out_nV[:, first, None] - APART

    def _separate_logits(self, hidden_nH: Tensor, out_nV: Tensor) -> None:
        """Before any are merged. The product is taken in the weight's own dtype."""
        hidden_nH, weight_VH = hidden_nH.to(self.weight_UH.dtype), self.weight_VH
        if weight_VH.dtype == torch.float32:
            torch.mm(hidden_nH, weight_VH.T, out=out_nV)
        else:
            out_nV.copy_(hidden_nH @ weight_VH.T)
        if self.scale != 1:
            out_nV.mul_(self.scale)
        if self.softcap is not None:
            out_nV.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.temperature != 1:
            out_nV.div_(self.temperature)

    def product_gradient(self, grad_nV: Tensor, logp_nV: Tensor, log_total_n1: Tensor, hidden_nH: Tensor) -> None:
        """Turns the gradient of the logits into that of h·Wᵀ, in place.

        The logits are `logp_nV`, which is spent, + `log_total_n1`: their logarithmic softmax and its denominator's.
        """
        if self.merged:  # each gets its share of their sum's; the few logits of before are formed again
            members = replace(self, weight_UH=self.weight_UH[list(self.merged)], vocab_size=len(self.merged))
            logits_nm = grad_nV.new_empty(len(grad_nV), len(self.merged))
            members._separate_logits(hidden_nH, logits_nm)
            grad_nV[:, self.merged] = grad_nV[:, self.merged[:1]] * logits_nm.softmax(-1)
            logp_nV[:, self.merged] = logits_nm - log_total_n1
        if self.softcap is not None:
            logp_nV.add_(log_total_n1).mul_(self.temperature / self.softcap)
            grad_nV.mul_(logp_nV.square_().neg_().add_(1))
        if self.scale != self.temperature:
            grad_nV.mul_(self.scale / self.temperature)
