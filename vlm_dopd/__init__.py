"""vlm-dopd: dual on-policy distillation with privileged annotations (DOPD, arXiv 2606.30626)."""

__version__ = "0.1.0"
