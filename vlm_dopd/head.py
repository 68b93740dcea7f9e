"""The LM head of a model: what turns a hidden state into logits, and the gradient of logits back into its product.

Shape letters: n tokens of a chunk, V vocabulary, U ≥ V rows of the weight (the rest pads to a round number), H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


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

    @property
    def weight_VH(self) -> Tensor:
        """Without the padded rows: their logits must enter no softmax and no sample."""
        return self.weight_UH[: self.vocab_size]

    def detach(self) -> Head:
        return replace(self, weight_UH=self.weight_UH.detach())

    def logits(self, hidden_nH: Tensor, out_nV: Tensor) -> None:
        """Fills `out_nV` (float32). The product is taken in the weight's own dtype."""
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

    def product_gradient(self, grad_nV: Tensor, logp_nV: Tensor, log_total_n1: Tensor) -> None:
        """Turns the gradient of the logits into that of h·Wᵀ, in place.

        The logits are `logp_nV`, which is spent, + `log_total_n1`: their logarithmic softmax and its denominator's.
        """
        if self.softcap is not None:
            logp_nV.add_(log_total_n1).mul_(self.temperature / self.softcap)
            grad_nV.mul_(logp_nV.square_().neg_().add_(1))
        if self.scale != self.temperature:
            grad_nV.mul_(self.scale / self.temperature)
