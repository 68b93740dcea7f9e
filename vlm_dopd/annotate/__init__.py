"""What `vlm-dopd annotate` does that needs a model, a processor or a page; the rest is in `privileged/`."""
