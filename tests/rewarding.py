"""Rewards for tests, named in configurations as `tests.rewarding:by_length`."""

from privileged import Sample


def by_length(sample: Sample, text: str, truncated: bool) -> float:
    """Right for about half of the responses of a random model, whatever they say."""
    return float(len(text) % 2)
