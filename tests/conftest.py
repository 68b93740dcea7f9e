"""Tests run offline, on the CPU, with one thread a process: tiny tensors gain nothing from more."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def processor():
    from tests import tiny

    return tiny.processor()


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory):
    """Folders of a random student and teacher."""
    from tests import tiny

    return tiny.save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def text_pair(tmp_path_factory: pytest.TempPathFactory):
    """The same of text-only models."""
    from tests import tiny

    return tiny.save_text_pair(tmp_path_factory.mktemp("text_pair"))
