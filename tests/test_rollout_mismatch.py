"""An engine that does not sample from the student that is trained is found out, by its log-probabilities.

What is locked: 1) stale weights, unprocessed log-probabilities and dim images stop the run, each with its numbers and
its own advice; 2) when the check is made; 3) importance weights, by hand and in the loss; 4) weights as they travel.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from privileged import get_builder
from tests import tiny
from tests.vllm_case import check_of, engine, fake_server, move, pictured_groups, student_policy  # noqa: F401
from tests.windows import responses_of
from vlm_dopd.collate import Batch, Collator, Encoder
from vlm_dopd.completions import Completions
from vlm_dopd.errors import TrainingError
from vlm_dopd.importance import Importance, figures
from vlm_dopd.lora import LoraConfig, add_adapter
from vlm_dopd.methods import STUDENT_PLAIN, find
from vlm_dopd.roles import Policy, banned_ids, eos_ids, load_policy
from vlm_dopd.rollout import Response
from vlm_dopd.rollout.hf import HFRollout
from vlm_dopd.rollout.settings import RolloutConfig, VLLMConfig
from vlm_dopd.rollout.weights import whole_weights
from vlm_dopd.window import WindowBuilder


def test_stale_weights_stop_the_run(server, policy, processor, groups, tmp_path):
    """The server says that it took them; the numbers say that it did not."""
    server.stale = True
    move(policy)
    responses = engine(server, policy, processor, tmp_path)(groups, 0)
    with pytest.raises(TrainingError, match=r"step 1: .* of \d+ sampled tokens differ by [\d.]+ nats on average") as e:
        check_of(policy, processor)(groups, responses, 0)
    assert "most likely stale weights" in str(e.value) and "rollout.vllm.tolerance=0.05" in str(e.value)


def test_a_cache_that_outlives_the_weights_is_found(server, policy, processor, groups, tmp_path, monkeypatch):
    """Only first tokens are wrong, and that is enough."""
    sampler = engine(server, policy, processor, tmp_path, max_new_tokens=1)
    sampler(groups, 0)
    move(policy)
    monkeypatch.setattr("vlm_dopd.rollout.server.CACHES", ())
    responses = sampler(groups, 1)
    with pytest.raises(TrainingError, match="stale weights"):
        check_of(policy, processor)(groups, responses, 0)


def test_unprocessed_log_probabilities_are_named(server, policy, processor, groups, tmp_path):
    server.raw = True
    responses = engine(server, policy, processor, tmp_path, temperature=0.6)(groups, 0)
    with pytest.raises(TrainingError, match="--logprobs-mode processed_logprobs"):
        check_of(policy, processor, temperature=0.6)(groups, responses, 0)


def test_another_temperature_is_found(server, policy, processor, groups, tmp_path):
    responses = engine(server, policy, processor, tmp_path, temperature=0.6)(groups, 0)
    with pytest.raises(TrainingError, match="rollout mismatch"):
        check_of(policy, processor, temperature=0.9)(groups, responses, 0)


def test_images_that_are_seen_otherwise_are_named(server, policy, processor, groups, tmp_path):
    """Of the same size, so that no count of tokens tells."""
    server.blurred = True
    responses = engine(server, policy, processor, tmp_path)(groups, 0)
    with pytest.raises(TrainingError, match=r"prompts without images agree: .*processor_config.json"):
        check_of(policy, processor)(groups, responses, 0)


def test_images_of_another_size_are_refused_at_once(server, policy, processor, groups, tmp_path):
    server.processor.image_processor.size = {"shortest_edge": 16384, "longest_edge": 16384}
    with pytest.raises(TrainingError, match=r"expected a prompt of \d+ tokens, .* the same processor_config.json"):
        engine(server, policy, processor, tmp_path)(groups, 0)


def test_when_it_is_checked(policy, processor, groups):
    """In the first step, also of a resumed run, and in every tenth; no figures otherwise."""
    said = [[Response(torch.tensor([40, 41]), True, logp_T=torch.tensor([-50.0, -50.0]))] for _ in groups]
    check = check_of(policy, processor, vllm=VLLMConfig(tolerance=1e9))
    checked = [step for step in range(7, 31) if check(groups, said, step)]
    assert checked == [7, 10, 20, 30]
    strict = check_of(policy, processor, vllm=VLLMConfig(tolerance=1.0))
    with pytest.raises(TrainingError):
        strict(groups, said, 7)


def test_responses_of_others_are_not_compared(policy, processor, groups):
    """References and engines that say nothing."""
    silent = [[Response(torch.tensor([40]), True), Response(torch.tensor([40]), True, True, logp_T=torch.zeros(1))]]
    assert check_of(policy, processor)(groups[:1], silent, 0) == {}


def test_impossible_tokens_are_left_out(policy, processor, groups):
    """A token outside of the trainer's top-k by a hair has no finite log-probability there."""
    said = [[Response(torch.tensor([40, 41, 42]), True, logp_T=torch.tensor([-1.0, -math.inf, -1.0]))]]
    found = check_of(policy, processor, top_k=1).differences(groups[:1], said)
    assert found.processed_N.isfinite().all() and len(found.processed_N) <= 2


def test_importance_weights_by_hand():
    """Tokens: e^d, at most the cap. Responses: e^Σd, at most the cap, on all their tokens. Not sampled: 1."""
    d = torch.tensor([0.1, -0.3, 0.2, 1.0, 0.5, math.nan])
    logp_N = torch.full((6,), -1.0)
    responses = replace(responses_of([[3], [2, 1]]), rollout_logp_N=logp_N - d)
    token = Importance(role=STUDENT_PLAIN, of="token", cap=2.0).weights(logp_N, responses)
    assert token.tolist() == pytest.approx([math.exp(0.1), math.exp(-0.3), math.exp(0.2), 2.0, math.exp(0.5), 1.0])
    sequence = Importance(role=STUDENT_PLAIN, of="sequence", cap=3.0).weights(logp_N, responses)
    assert sequence.tolist() == pytest.approx([1.0] * 3 + [3.0] * 2 + [1.0], abs=1e-6)
    logged = figures([token[:3], token[3:]], 2.0)
    assert logged["rollout/importance"] == pytest.approx(token.mean().item())
    assert logged["rollout/importance_capped"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("of", ["token", "sequence"])
def test_importance_multiplies_the_loss_weights(processor, of):
    """An engine that is wrong by a constant c a token: every weight is e^c, or e^(c·length), times what it was."""
    student, teacher, c = tiny.vision_model(1), tiny.vision_model(2, hidden=48), 0.05
    tokenizer = processor.tokenizer
    policies = {name: Policy(m, len(tokenizer)) for name, m in (("student", student), ("teacher", teacher))}
    batch = Collator(Encoder(processor, student), get_builder("boxes"), 4096)(tiny.mixed_samples())
    eos, banned = eos_ids(student, tokenizer), banned_ids(student, tokenizer)
    config = RolloutConfig(siblings=2, max_new_tokens=4)
    sampler = HFRollout(policies["student"], config, tokenizer.pad_token_id, eos, banned, 0)
    role = STUDENT_PLAIN

    def saying(groups, step):
        check = check_of(policies["student"], processor)
        found = []
        for group, siblings in zip(groups, sampler(groups, step), strict=True):
            zeros = [replace(r, logp_T=torch.zeros(len(r.id_T))) for r in siblings]
            logp_N = -check.differences([group], [zeros]).unprocessed_N
            parts = logp_N.split([len(r.id_T) for r in siblings])
            found.append([replace(r, logp_T=part - c) for r, part in zip(siblings, parts, strict=True)])
        return found

    def weights(importance):
        ranks = SimpleNamespace(process_index=0, autocast=lambda: torch.autocast("cpu", enabled=False))
        method = find("dopd")()
        completions = Completions(method=method, engine=saying)
        pad = tokenizer.pad_token_id
        builder = WindowBuilder(policies, method, completions, pad, [*eos, *banned], ranks, importance=importance)
        window = builder.build([Batch(batch.groups[:2]), Batch(batch.groups[2:])], 0)
        found = []
        for passes in window.batches:
            rows_RN = torch.cat([torch.stack([term.weight_N for term in one.terms]) for one in passes], dim=1)
            found.append(rows_RN[:, torch.cat([one.packed.place_N for one in passes]).argsort()])
        lengths = torch.tensor([len(r.id_T) for own in saying(batch.groups, 0) for r in own for _ in r.id_T])
        return torch.cat(found, dim=1), lengths, window.figures

    plain_RN, length_N, without = weights(None)
    corrected_RN, _, logged = weights(Importance(role=role, of=of, cap=100.0))
    expected_N = torch.exp(c * (torch.ones_like(length_N) if of == "token" else length_N))
    assert (plain_RN != 0).any() and torch.allclose(corrected_RN, plain_RN * expected_N, rtol=1e-4)
    assert logged["rollout/importance"] == pytest.approx(expected_N.mean().item(), rel=1e-4)
    assert "rollout/importance" not in without


@pytest.mark.parametrize(("held", "near"), [("full", 1e-4), ("nf4", 1e-2)])
def test_weights_of_lora_are_merged_and_the_student_stays(pair, processor, held, near):
    """A plain model with them computes what the student with its adapter computes."""
    plain = load_policy(str(pair[0]), processor.tokenizer).model
    policy = load_policy(str(pair[0]), processor.tokenizer, held=held)
    add_adapter(policy.model, LoraConfig(r=2, dtype="float32", target_modules=["q_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    before = {name: parameter.clone() for name, parameter in policy.model.named_parameters()}
    tensors = dict(whole_weights(policy.model, torch.float32))
    after = dict(policy.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    expected = {name: parameter.shape for name, parameter in plain.named_parameters()}
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    row = {"input_ids": torch.arange(30, 60)[None]}
    with torch.no_grad():
        theirs, base = policy.model.eval()(**row).logits, plain(**row).logits
        plain.load_state_dict(tensors, strict=False)
        ours = plain(**row).logits
    assert (ours - theirs).abs().mean() < near < 0.1 < (base - theirs).abs().mean()


def test_zero3_is_refused(pair, processor):
    policy = load_policy(str(pair[0]), processor.tokenizer)
    next(policy.model.parameters()).ds_id = 0
    with pytest.raises(TrainingError, match="ZeRO-3"):
        list(whole_weights(policy.model, torch.float32))
