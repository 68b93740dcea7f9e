"""Errors a user can cause. Each message is one line: what, where, expected, got, fix."""

from __future__ import annotations


class DataError(ValueError):
    """A row, record or annotation that does not say what its schema promises."""


class ImageError(DataError):
    """An image that cannot be, or must not be, opened."""
