"""Uploads (`train.push_to_hub`): the student, its processor and a model card, and nothing else of the run folder.

Left to itself, Trainer uploads all of `output_dir`, where metrics, the resolved configuration, answers to benchmarks
and pages with rows of the data lie as well, and a pickle of its arguments, which it also puts into every checkpoint.
Here a save is written to a folder of its own that is uploaded and then gone.
"""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy

from .errors import ConfigError, TrainingError

logger = logging.getLogger(__name__)


class StudentUploads(Trainer):
    """A Trainer that uploads what `_save` writes."""

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Raises ConfigError, before the first step, if there is no such repository and none can be made."""
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:
            raise ConfigError(
                f"train.push_to_hub: expected a repository to write to, got: {_first_line(error)}; look at "
                "train.hub_model_id and `hf auth whoami`, or push later"
            ) from None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        (Path(output_dir or self.args.output_dir or "") / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Waits for the upload. Raises TrainingError if it fails; the run folder is complete by then."""
        run = self.args.output_dir or ""
        kwargs = {"model_name": Path(self.args.hub_model_id or run).name} | kwargs | {"blocking": True}
        with TemporaryDirectory(prefix="_upload-", dir=run) as folder:
            self.args.output_dir = folder
            try:
                return super().push_to_hub(*args, **kwargs)
            except Exception as error:
                raise TrainingError(
                    f"{run}: expected it to be uploaded to {self.hub_model_id}, got: {_first_line(error)}; "
                    "all that was trained is in that folder"
                ) from None
            finally:
                self.args.output_dir = run

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """At every save, if `train.hub_strategy` is every_save; the run goes on where an upload fails."""
        if self.args.hub_strategy != HubStrategy.EVERY_SAVE:
            return
        try:
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}")
        except TrainingError as error:
            logger.warning("%s", error)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
