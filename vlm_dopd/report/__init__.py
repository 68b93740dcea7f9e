"""The report of a finished run: one page for people, one JSON file with the same numbers for programs.

Read in this order: `collect` (what a run folder holds), `examples` (which held-out questions are shown), `charts`,
`page`. Nothing here touches a model or the network.
"""

from .page import write_report

__all__ = ["write_report"]
