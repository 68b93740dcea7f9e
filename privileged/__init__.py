"""Privileged annotations: what a teacher may see in training and the deployed student never will.

Read in this order: `records` (what a sample is), `builders` (how p is rendered), `views` (the prompts that result).
"""

from .builders import PrivilegedBlock, available, get_builder
from .errors import DataError, ImageError
from .images import load_image
from .records import Note, PrivilegedRecord, Region, Sample
from .views import View, Views, build_views, plain_view

__all__ = [
    "DataError", "ImageError", "Note", "PrivilegedBlock", "PrivilegedRecord", "Region", "Sample", "View", 
    "Views", "available", "build_views", "get_builder", "load_image", "plain_view",
]  # fmt: skip
