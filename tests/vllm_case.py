"""A fake vLLM server of the random student, prompts for it, and the engine and the check that a run has of it."""

from __future__ import annotations

import pytest
import torch

from privileged import get_builder
from tests import tiny
from tests.fake_vllm import FakeVLLM
from vlm_dopd.collate import Collator, Encoder
from vlm_dopd.roles import banned_ids, eos_ids, load_policy
from vlm_dopd.rollout.mismatch import MismatchCheck
from vlm_dopd.rollout.server import Servers
from vlm_dopd.rollout.settings import RolloutConfig
from vlm_dopd.rollout.vllm import VLLMRollout

START = "vllm serve STUDENT"


@pytest.fixture(name="server")
def fake_server(pair):
    with FakeVLLM(pair[0]).serving() as fake:
        yield fake


@pytest.fixture(name="policy")
def student_policy(pair, processor):
    return load_policy(str(pair[0]), processor.tokenizer)


@pytest.fixture(name="groups", scope="module")
def pictured_groups(pair, processor):
    model = load_policy(str(pair[0]), processor.tokenizer).model
    encoder = Encoder(processor, model, keep_pictures=True)
    return Collator(encoder, get_builder("boxes"), 4096)(tiny.mixed_samples()).groups


def engine(fakes, policy, processor, tmp_path, timeout=20.0, dtype=torch.float32, **settings) -> VLLMRollout:
    fakes = fakes if isinstance(fakes, list) else [fakes]
    config = RolloutConfig(**{"engine": "vllm", "siblings": 3, "max_new_tokens": 6} | settings)
    eos, banned = eos_ids(policy.model, processor.tokenizer), banned_ids(policy.model, processor.tokenizer)
    backend = Servers([fake.url for fake in fakes], timeout, START)
    return VLLMRollout(backend, policy, config, eos, banned, 0, tmp_path, dtype)


def check_of(policy, processor, **settings) -> MismatchCheck:
    config = RolloutConfig(**{"engine": "vllm", "siblings": 3, "max_new_tokens": 6} | settings)
    return MismatchCheck(
        policy, config, banned_ids(policy.model, processor.tokenizer), processor.tokenizer.pad_token_id
    )


def move(policy) -> None:
    """A large step of the weights."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
