"""Rollouts are samples of the student's own distribution, and depend on nothing but weights, prompt, step and seed."""

from __future__ import annotations

import math

import pytest
import torch

from privileged import get_builder
from tests import tiny
from vlm_dopd.collate import Batch, Collator, Encoder
from vlm_dopd.completions import Completions
from vlm_dopd.methods import find
from vlm_dopd.roles import Policy, banned_ids, eos_ids
from vlm_dopd.rollout import sequence_seed
from vlm_dopd.rollout.hf import HFRollout, RolloutConfig, _InverseCdf


@pytest.fixture(scope="module")
def vision():
    return tiny.vision_model(1)


@pytest.fixture(scope="module")
def groups(vision, processor):
    return Collator(Encoder(processor, vision), get_builder("boxes"), 4096)(tiny.mixed_samples()).groups


def engine(model, processor, seed: int = 0, **settings) -> HFRollout:
    tokenizer = processor.tokenizer
    settings = {"siblings": 3, "max_new_tokens": 12} | settings
    return HFRollout(
        Policy(model, len(tokenizer)),
        RolloutConfig(**settings),
        tokenizer.pad_token_id,
        eos_ids(model, tokenizer),
        banned_ids(model, tokenizer),
        seed,
    )


def ids(responses):
    return [[response.id_T.tolist() for response in siblings] for siblings in responses]


def test_a_response_does_not_depend_on_its_batch(vision, processor, groups):
    """One batch of all, batches of two, one group at a time, another order: the same ids."""
    whole = ids(engine(vision, processor)(groups, step=3))
    assert ids(engine(vision, processor, batch_size=2)(groups, step=3)) == whole
    assert [ids(engine(vision, processor)([group], step=3))[0] for group in groups] == whole
    assert ids(engine(vision, processor)(groups[::-1], step=3))[::-1] == whole


def test_a_window_at_once_is_its_micro_batches_one_after_the_other(vision, processor, groups):
    """Whatever the split, and whichever sequences fit together: the same ids in the same places."""
    method = find("dopd")()
    one_by_one = [ids(engine(vision, processor)([group], step=2))[0] for group in groups]
    for cut in (1, 3):
        batches = [Batch(groups[:cut]), Batch(groups[cut:])]
        for sequences in (64, 6):
            completions = Completions(method=method, engine=engine(vision, processor, batch_size=sequences))
            window = [ids(responses) for responses in completions(batches, step=2)]
            assert window == [one_by_one[:cut], one_by_one[cut:]]


def test_steps_seeds_and_siblings_differ(vision, processor, groups):
    whole = ids(engine(vision, processor)(groups, step=3))
    assert whole == ids(engine(vision, processor)(groups, step=3))
    assert whole != ids(engine(vision, processor)(groups, step=4))
    assert whole != ids(engine(vision, processor, seed=1)(groups, step=3))
    assert all(len({tuple(response) for response in siblings}) == 3 for siblings in whole)
    assert len({sequence_seed(*key) for key in [(0, 1, "a", 1), (0, 1, "a1", 1), (0, 11, "a", 1), (1, 1, "a", 1)]}) == 4


def test_responses_end_with_one_eos_or_are_truncated(vision, processor, groups):
    ends = set(eos_ids(vision, processor.tokenizer))
    sampler = engine(vision, processor, siblings=16)
    eos = processor.tokenizer.eos_token_id

    def end_often(input_ids, scores):  # with probability 0.1 at every position, so that both fates occur
        others = scores.clone()
        others[:, eos] = float("-inf")
        scores[:, eos] = others.logsumexp(-1) + math.log(0.1 / 0.9)
        return scores

    sampler.filters.append(end_often)
    responses = [response for siblings in sampler(groups, step=0) for response in siblings]
    assert {response.truncated for response in responses} == {True, False}
    for response in responses:
        tokens = response.id_T.tolist()
        assert all(token not in ends for token in tokens[:-1])
        assert (tokens[-1] in ends) != response.truncated
        assert len(tokens) == 12 or not response.truncated


def test_media_tokens_and_padded_rows_are_never_sampled(vision, processor, groups):
    """Even if the model puts nearly all its mass on them: they would break the scoring pass."""
    tokenizer = processor.tokenizer
    forbidden = set(banned_ids(vision, tokenizer))
    assert {
        tokenizer.convert_tokens_to_ids(t) for t in ("<|image_pad|>", "<|video_pad|>", "<|vision_pad|>")
    } < forbidden
    assert len(forbidden) == 5
    padded = range(len(tokenizer), vision.get_output_embeddings().weight.shape[0])
    assert len(padded) > 0
    sampler = engine(vision, processor)
    scores = torch.zeros(2, padded.stop)
    scores[:, sorted(forbidden)] = 50.0
    scores[:, padded.start :] = 50.0
    for process in sampler.filters:
        scores = process(torch.zeros(2, 1, dtype=torch.long), scores)
    assert torch.isinf(scores[:, sorted(forbidden)]).all() and torch.isinf(scores[:, padded.start :]).all()
    assert torch.isfinite(scores).sum() == 2 * (len(tokenizer) - len(forbidden))


def test_sampling_follows_the_distribution():
    """20,000 draws by inverse CDF: every frequency within five standard deviations of its probability."""
    n = 20_000
    logits = torch.tensor([1.0, 0.0, -1.0, float("-inf"), 2.0, -6.0])
    draw = _InverseCdf([sequence_seed(0, 0, "x", i) for i in range(n)], 1, prompt_length=1)
    drawn = draw(torch.zeros(n, 1), logits.repeat(n, 1)).argmax(-1)
    p = logits.softmax(-1)
    error = (drawn.bincount(minlength=6) / n - p).abs()
    assert (error <= 5 * (p * (1 - p) / n).sqrt()).all()
    assert not (drawn == 3).any()


def test_temperature_top_k_and_top_p_are_applied(vision, processor, groups):
    """top_k=1 and a tiny temperature are both greedy, so they agree; the default is not."""
    greedy = ids(engine(vision, processor, top_k=1)(groups, step=0))
    assert ids(engine(vision, processor, temperature=1e-4)(groups, step=0)) == greedy
    assert ids(engine(vision, processor, top_p=1e-6)(groups, step=0)) == greedy
    assert all(siblings[0] == siblings[1] for siblings in greedy)
    assert ids(engine(vision, processor)(groups, step=0)) != greedy


def test_global_random_state_and_mode_are_left_alone(vision, processor, groups):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    vision.train()
    engine(vision, processor)(groups, step=0)
    assert vision.training
    vision.eval()
    assert torch.equal(torch.get_rng_state(), before)


def test_text_only_model(processor):
    model = tiny.text_model(1)
    tokenizer = processor.tokenizer
    collate = Collator(Encoder(tokenizer, model), get_builder("hints"), 4096)
    groups = collate([tiny.mixed_samples()[1]]).groups
    rollout = HFRollout(
        Policy(model, len(tokenizer)), RolloutConfig(siblings=2, max_new_tokens=5), 0, eos_ids(model, tokenizer), [], 0
    )
    assert [len(siblings) for siblings in rollout(groups, 0)] == [2]
