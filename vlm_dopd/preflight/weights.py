"""Is all of each model in its checkpoint? transformers fills what is missing with random numbers, and only warns."""

from __future__ import annotations

from ..plan.shapes import shape_of
from .finding import Check, Finding, judged
from .wiring import Wiring

KNOWN = ("qwen3", "qwen3_vl")
"""Families whose numbers the plan can count."""
LACKING = 0.001
"""Share of a model's numbers: a norm may have another name, a matrix may not be missing."""


def weights(wiring: Wiring) -> Finding:
    """Numbers in the checkpoint against those that the configuration describes; only headers of files are read."""
    figures, lacking = [], []
    for role, tensors in wiring.tensors.items():
        config, held = wiring.model_configs[role], sum(tensors.values())
        if getattr(config, "quantization_config", None) or config.model_type not in KNOWN:
            figures.append(f"{role} {held / 1e6:.6g} M, not compared")
            continue
        expected = shape_of(config, role).parameters
        figures.append(f"{role} {held / 1e6:.6g} M")
        if held < (1 - LACKING) * expected:
            seen = "" if any("visual" in name for name in tensors) else ", nothing called visual among them"
            lacking.append(f"{role} {held / 1e6:.6g} M of {expected / 1e6:.6g} M{seen}")
    figure = "; ".join(lacking) or ", ".join(figures)
    fix = "fetch the checkpoint again: what is missing would be random numbers, and the model blind if it is the tower"
    return judged(figure, "all numbers that config.json describes", fail=bool(lacking), fix=fix)


CHECKS = (Check("weights", "cheap", weights),)
