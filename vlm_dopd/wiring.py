"""Data and prompts as a configuration has them: made in one way, for training and for its preflight."""

from __future__ import annotations

from privileged import get_builder
from privileged.builders import Builder
from privileged.probes import PROBES

from .collate import Collator, Encoder
from .completions import HEADERS
from .config import RunConfig
from .data import SampleDataset
from .methods import Method


def builder_of(config: RunConfig) -> Builder:
    """The builder of `data.builder` with its options. Raises DataError, as `get_builder` does."""
    return get_builder(config.data.builder, **config.data.builder_options)


def training_data(config: RunConfig) -> SampleDataset:
    """Raises ConfigError for a file that is not as it should be."""
    data = config.data
    return SampleDataset(
        data.train, policy=config.build_image_policy(), kinds=data.train_kinds, shuffle_p=data.shuffle_p
    )


def collator_of(config: RunConfig, method: Method, encoder: Encoder) -> Collator:
    """A collator that writes every prompt the method's roles are shown, and keeps samples where rewards need them."""
    views = {role.view for role in method.roles}
    later = method.needs_reward or method.wants_references or bool(views & set(HEADERS))
    return Collator(
        encoder,
        builder_of(config),
        config.data.max_prompt_tokens,
        config.data.placement,
        config.data.without_p,
        probes=sorted(views & set(PROBES)),
        keep_samples=later or config.report.token_samples > 0,
    )
