"""The pages of a run: when they are written during training, and whose questions they show."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from privileged import Sample
from privileged.errors import DataError

from .data import SampleDataset
from .errors import ConfigError
from .report import write_report
from .report.collect import collect

logger = logging.getLogger(__name__)

SHARE = 0.01
"""Of a run's time that its page may take while it trains."""


class RunPage(TrainerCallback):
    """Writes the page of `run` at its end, and before as often as it costs less than SHARE of the time."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.due = float("inf")

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Nothing is written in the first half minute."""
        self.due = time.perf_counter() + 30  # the first page of a long run is worth a second or two

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the page if it is due; on the first process only."""
        if state.is_world_process_zero and time.perf_counter() >= self.due:
            self.write()

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the page, whatever it costs."""
        if state.is_world_process_zero:
            self.write()

    def write(self) -> None:
        """A page that cannot be written is no reason to lose a run."""
        began = time.perf_counter()
        try:
            write_report(self.run, ())
        except (DataError, OSError, ValueError) as error:
            logger.warning("run page: %s", error)
        now = time.perf_counter()
        self.due = now + (now - began) / SHARE


def held_out_of(run: Path) -> Sequence[Sample]:
    """The held-out samples of a run whose replies are at hand, for the pictures on its page; none if they have gone."""
    found = collect(run)
    path = found.settings.get("data.eval", "")
    if not found.measured or path in ("", "null"):
        return ()
    try:
        data = SampleDataset(path)
        return [data[index] for index in range(len(data))]
    except (ConfigError, DataError) as error:
        logger.warning("held-out questions are not shown: %s", error)
        return ()
