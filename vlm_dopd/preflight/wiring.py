"""What the cheap checks look at: the run's configuration and what it names, each read when it is first asked for.

Everything is made by the functions that training uses. Models are not loaded: of them only the configurations are read.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import AutoConfig, GenerationConfig

from privileged import Sample
from privileged.errors import DataError
from privileged.views import Views, build_views

from ..collate import Collator, Encoder, Group
from ..config import RunConfig
from ..data import SampleDataset
from ..lora import base_of
from ..methods import Method
from ..plan.shapes import Shape, find_shape
from ..roles import load_processor, tokenizer_of
from ..served import is_address
from ..wiring import builder_of, collator_of, training_data

ROWS = 16
"""Rows that are looked at, spread over the file."""


@dataclass(frozen=True)
class Wiring:
    """A configuration, and what can be known of it without weights. Of the data, `rows` are looked at."""

    config: RunConfig
    rows: int = ROWS

    @cached_property
    def method(self) -> Method:
        """The run's method, with its options."""
        return self.config.build_method()

    @cached_property
    def paths(self) -> dict[str, str]:
        """Folder or hub name of every model that is loaded here, by role; one that is served says its facts itself."""
        model = self.config.model
        paths = {"student": model.student, "teacher": model.teacher, "teacher_base": model.teacher_base}
        return {role: path for role, path in paths.items() if path and not is_address(path)}

    @cached_property
    def processors(self) -> dict[str, Any]:
        """Of every model that is loaded here, by role."""
        return {role: load_processor(path, self.config.model.allow_download) for role, path in self.paths.items()}

    @property
    def processor(self) -> Any:
        """The student's, by which prompts are made."""
        return self.processors["student"]

    @property
    def tokenizer(self) -> Any:
        """The student's."""
        return tokenizer_of(self.processor)

    @cached_property
    def model_configs(self) -> dict[str, Any]:
        """Of every model that is loaded here, by role; of the base, where a folder holds an adapter."""
        return {
            role: AutoConfig.from_pretrained(base_of(path) or path, **self._local) for role, path in self.paths.items()
        }

    @cached_property
    def generation_configs(self) -> dict[str, Any]:
        """A model without a file of its own has what its configuration says."""
        found = {}
        for role, path in self.paths.items():
            try:
                found[role] = GenerationConfig.from_pretrained(base_of(path) or path, **self._local)
            except OSError:
                found[role] = GenerationConfig.from_model_config(self.model_configs[role])
        return found

    @cached_property
    def shape(self) -> Shape:
        """The student's sizes."""
        return find_shape(self.config.model.student, self.config.model.allow_download)

    @cached_property
    def dataset(self) -> SampleDataset:
        """Training's, whole."""
        return training_data(self.config)

    @cached_property
    def places(self) -> list[int]:
        """Of the rows that are looked at."""
        return spread(len(self.dataset), self.rows)

    @cached_property
    def samples(self) -> list[Sample]:
        """The rows that are looked at."""
        return [self.dataset[place] for place in self.places]

    @cached_property
    def views(self) -> list[Views]:
        """Of every sample, before a processor has seen them."""
        return [build_views(sample, builder_of(self.config), self.config.data.placement) for sample in self.samples]

    @cached_property
    def collator(self) -> Collator:
        """Training's, but that its positions are those of text: enough to count and to read."""
        return collator_of(self.config, self.method, Encoder(self.processor))

    @cached_property
    def groups(self) -> list[Group | None]:
        """By sample; None for one that is left out. What the collator says of them is training's to log."""
        logger = logging.getLogger(Collator.__module__)
        before, logger.disabled = logger.disabled, True
        try:
            return [self._group(sample) for sample in self.samples]
        finally:
            logger.disabled = before

    def _group(self, sample: Sample) -> Group | None:
        try:
            return self.collator([sample]).groups[0]
        except DataError:  # of a batch with nothing left
            return None

    @property
    def shows_p(self) -> bool:
        """Whether the method shows p to anybody."""
        method = self.method
        views = {role.view for role in method.roles} | {c.student_view for c in method.components}
        return "privileged" in views or method.rollout_view == "privileged"

    @property
    def _local(self) -> dict[str, Any]:
        return {"local_files_only": not self.config.model.allow_download, "trust_remote_code": False}


def spread(total: int, count: int) -> list[int]:
    """So many of `total` places, in order: the same ones always, but in no rhythm with the file's own."""
    return sorted(random.Random(0).sample(range(total), min(count, total)))
