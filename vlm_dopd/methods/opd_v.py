"""OPD-V (arXiv 2608.05131): Vision-OPD on the tokens whose probability depends on what is in the image.

Its delta from vanilla OPD: target and loss are those of `vision_opd`. A second look, S⁻ = S^ema at the image with
random patches masked, says how visual a token is and weighs it:

    ω = sg[relu(ℓ^{S⁺} − ℓ^{S⁻})],   L = mean over tokens of ω · sg[min(ρ, 2)] · JS_½(S, S⁺),   student's top 100 + tail

The mean is over all tokens, those of ω = 0 included. Set `data.builder: crops`; what `vision_opd` says of the crops
and of rows without p (weight 0) holds here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import Role, WindowScores
from ._shared import mean
from .vision_opd import CROPS, VisionOPD

MASKED = Role("ema", "masked")


@dataclass(frozen=True, kw_only=True)
class OPDV(VisionOPD):
    @property
    def roles(self) -> tuple[Role, ...]:
        return (MASKED, *super().roles)

    @torch.no_grad()
    def weights(self, scores: WindowScores) -> tuple[Tensor, dict[str, float]]:
        weight_RN, figures = super().weights(scores)
        visual_N = (scores.logp_N[CROPS] - scores.logp_N[MASKED]).relu().float()
        privileged_N = scores.has_privilege_N.float()
        figures |= {
            "visual/mean": mean(visual_N, privileged_N),
            "share/kept": mean((visual_N * privileged_N > 0).float()),
        }
        return weight_RN * visual_N, figures


METHOD = OPDV
