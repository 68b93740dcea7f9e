"""vLLM itself, on the CPU: `make test-vllm` makes an environment with it and runs this file; else it is skipped.

What is locked: 1) text and image prompts give the log-probabilities that transformers gives; 2) new weights are in the
next rollout, and caches are emptied; 3) what is sampled from is what the check compares with; 4) a run of training, on
a server and with a colocated engine. The figures are printed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from privileged import Sample, get_builder
from tests import tiny
from vlm_dopd.collate import Collator, Encoder
from vlm_dopd.errors import TrainingError
from vlm_dopd.roles import banned_ids, eos_ids, load_policy
from vlm_dopd.rollout.mismatch import MismatchCheck
from vlm_dopd.rollout.server import Servers
from vlm_dopd.rollout.settings import RolloutConfig
from vlm_dopd.rollout.vllm import VLLMRollout

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not here: make test-vllm")
DTYPES = {"float32": (2e-4, 1e-2), "bfloat16": (0.03, 0.5)}
"""Limits of the mean and the largest difference, nats a token."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.vllm_server import checkpoint

    return checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=DTYPES)
def server(request, folder, tmp_path_factory):
    """Its address and dtype."""
    from tests.vllm_server import serving

    with serving(folder, request.param, tmp_path_factory.mktemp("log") / "server.log") as url:
        yield url, request.param


@pytest.fixture
def policy(folder, processor):
    return load_policy(str(folder), processor.tokenizer)


@pytest.fixture(scope="module")
def groups(folder, processor):
    """Text, one image, two images; and one prompt of several blocks of the prefix cache."""
    long = Sample(id="long", question="What is 4 plus 3? " * 40, answer="7")
    model = load_policy(str(folder), processor.tokenizer).model
    collate = Collator(Encoder(processor, model, keep_pictures=True), get_builder("boxes"), 4096)
    return collate([*tiny.mixed_samples(), *tiny.scenes(8)[4:], long]).groups


def configured(**settings) -> RolloutConfig:
    return RolloutConfig(**{"engine": "vllm", "siblings": 4, "max_new_tokens": 24} | settings)


def engine(backend, policy, processor, tmp_path, dtype, **settings) -> VLLMRollout:
    eos, banned = eos_ids(policy.model, processor.tokenizer), banned_ids(policy.model, processor.tokenizer)
    return VLLMRollout(backend, policy, configured(**settings), eos, banned, 0, tmp_path, getattr(torch, dtype))


def differences(policy, processor, groups, responses, dtype="float32", **settings):
    banned, pad = banned_ids(policy.model, processor.tokenizer), processor.tokenizer.pad_token_id
    check = MismatchCheck(policy, configured(**settings), banned, pad)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        return check.differences(groups, responses)


def tell(name, found) -> tuple[float, float]:
    """Mean and largest difference, printed."""
    mean, largest = found.processed_N.mean().item(), found.processed_N.max().item()
    print(f"\n{name}: {found.processed_N.numel()} tokens, mean {mean:.2g}, largest {largest:.2g} nats")
    return mean, largest


def move(policy, size: float = 0.02) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(size * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator))


def test_log_probabilities_agree_with_transformers(server, policy, processor, groups, tmp_path):
    url, dtype = server
    responses = engine(Servers([url], 120, ""), policy, processor, tmp_path, dtype)(groups, 0)
    assert [len(siblings) for siblings in responses] == [4] * len(groups)
    found = differences(policy, processor, groups, responses, dtype)
    limits = DTYPES[dtype]
    assert found.image_N.any() and not found.image_N.all()
    for name, part_N in (("images", found.image_N), ("text", ~found.image_N)):
        part = type(found)(found.processed_N[part_N], found.unprocessed_N[part_N], found.image_N[part_N])
        mean, largest = tell(f"{dtype}, {name}", part)
        assert mean < limits[0] and largest < limits[1]
    said = processor.tokenizer.decode(responses[0][0].id_T)
    assert "Answer:" in said and not responses[0][0].truncated


def test_new_weights_are_in_the_next_rollout(server, policy, processor, groups, tmp_path):
    """They agree again, and the old ones would not have: neither weights nor keys, values and features of before."""
    url, dtype = server
    sampler = engine(Servers([url], 120, ""), policy, processor, tmp_path, dtype)
    before = sampler(groups, 0)
    move(policy)
    stale, _ = tell(f"{dtype}, old weights", differences(policy, processor, groups, before, dtype))
    mean, largest = tell(f"{dtype}, new weights", differences(policy, processor, groups, sampler(groups, 1), dtype))
    assert mean < DTYPES[dtype][0] and largest < DTYPES[dtype][1]
    assert dtype == "bfloat16" or stale > 10 * mean
    assert not list(tmp_path.iterdir())


def test_an_old_prefix_is_found(server, policy, processor, groups, tmp_path, monkeypatch):
    """The prefix cache of the long prompt outlives its weights unless it is emptied, which is why it is."""
    url, dtype = server
    sampler = engine(Servers([url], 120, ""), policy, processor, tmp_path, dtype, max_new_tokens=4)
    sampler(groups[-1:], 0)
    move(policy, 0.3)
    monkeypatch.setattr("vlm_dopd.rollout.server.CACHES", ())
    old, _ = tell(f"{dtype}, old prefix", differences(policy, processor, groups[-1:], sampler(groups[-1:], 1), dtype))
    monkeypatch.undo()
    new, _ = tell(f"{dtype}, emptied", differences(policy, processor, groups[-1:], sampler(groups[-1:], 2), dtype))
    assert new < DTYPES[dtype][0] < 0.03 < old


def test_what_is_sampled_from_is_what_is_compared(server, policy, processor, groups, tmp_path):
    """Temperature, top-p, top-k and bans, in vLLM's order and in ours."""
    url, dtype = server
    move(policy, 0.3)  # less sure of itself, so that the settings matter
    settings = {"temperature": 0.8, "top_p": 0.9, "top_k": 20}
    responses = engine(Servers([url], 120, ""), policy, processor, tmp_path, dtype, **settings)(groups, 0)
    found = differences(policy, processor, groups, responses, dtype, **settings)
    mean, _ = tell(f"{dtype}, filtered", found)
    assert mean < DTYPES[dtype][0] < found.unprocessed_N.mean()
    forbidden = set(banned_ids(policy.model, processor.tokenizer))
    assert not forbidden & {i for own in responses for response in own for i in response.id_T.tolist()}


def test_a_server_of_other_images_is_refused(server, policy, processor, groups, tmp_path):
    url, dtype = server
    sampler = engine(Servers([url], 120, ""), policy, processor, tmp_path, dtype)
    image = groups[0].plain.images[0]
    small = type(image)(image.pixel_values, image.grid_thw, image.picture.resize((200, 200)))
    other = type(groups[0])(**vars(groups[0]) | {"plain": type(groups[0].plain)(
        **vars(groups[0].plain) | {"images": (small,)})})  # fmt: skip
    with pytest.raises(TrainingError, match="expected a prompt of"):
        sampler([other], 0)


def run_file(folder, tmp_path, **vllm):
    """A run of three steps as JSON, which is YAML."""
    values = {
        "model": {"student": str(folder), "teacher": str(tiny.ASSETS / "teacher"), "teacher_dtype": "float32"},
        "data": {"train": str(tiny.SCENES), "max_prompt_tokens": 400},
        "rollout": {"engine": "vllm", "siblings": 4, "max_new_tokens": 24, "vllm": {"check_steps": 1} | vllm},
        "train": {"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
                  "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", "use_cpu": True,
                  "disable_tqdm": True, "seed": 0},
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(values))
    return path


def trained(path, tmp_path):
    """The logged lines of a run in a process of its own."""
    from tests.vllm_server import ENVIRONMENT

    done = subprocess.run(
        [sys.executable, "-m", "vlm_dopd", "train", str(path)],
        cwd=tiny.ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_a_run_of_training(server, folder, tmp_path):
    url, dtype = server
    path = run_file(folder, tmp_path, urls=[url])
    if dtype == "bfloat16":
        path.write_text(path.read_text().replace('"use_cpu"', '"bf16": true, "use_cpu"'))
    lines = trained(path, tmp_path)
    print(f"\n{dtype}, training: mismatch", [f"{line['rollout/mismatch']:.2g}" for line in lines])
    assert len(lines) == 3 and all(line["rollout/mismatch"] < DTYPES[dtype][0] for line in lines)
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_with_a_colocated_engine(folder, tmp_path):
    lines = trained(run_file(folder, tmp_path, mode="colocate", memory_share=0.1), tmp_path)
    print("\ncolocated, training: mismatch", [f"{line['rollout/mismatch']:.2g}" for line in lines])
    assert len(lines) == 3 and all(line["rollout/mismatch"] < DTYPES["float32"][0] for line in lines)
