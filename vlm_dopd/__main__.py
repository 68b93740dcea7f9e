"""`python -m vlm_dopd` is `vlm-dopd`."""

from .cli import main

main()
