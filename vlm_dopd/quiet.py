"""Our bars and lines only: loading bars and advice of the libraries would bury them."""

from __future__ import annotations

import logging
import os


def quiet() -> None:
    """To be called before the first of them is used; imports them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("vlm_dopd").setLevel(logging.INFO)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
